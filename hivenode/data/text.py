"""Text as numbers. Token 0 is padding, and whatever a tokenizer does not know.

numpy is imported where text is encoded: the daemon knows tokenizers, and encodes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hivenode.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Tokens = npt.NDArray[np.int64]

PRINTABLE = "\n" + "".join(map(chr, range(32, 127)))
MAX_TOKENIZER_BYTES = 16 << 20
MAX_ALPHABET = 20_000
IGNORED = -100
"""Label of a place that does not count, as PyTorch has it."""


class Tokenizer(Protocol):
    vocabulary: int
    padding: int

    def encode(self, text: str) -> Tokens: ...

    def decode(self, tokens: list[int]) -> str: ...

    def dump(self) -> str:
        """All of it, for `load`."""
        ...


class Characters:
    """A token for each character of an alphabet."""

    padding = 0

    def __init__(self, alphabet: str) -> None:
        self._alphabet = alphabet
        self._ids = {character: number for number, character in enumerate(alphabet, 1)}
        self.vocabulary = len(alphabet) + 1

    @classmethod
    def of(cls, text: str) -> Characters:
        """The characters of a text. Raises InvalidInput when there are too many."""
        alphabet = "".join(sorted(set(text)))
        if len(alphabet) > MAX_ALPHABET:
            raise InvalidInput(
                f"The text has {len(alphabet)} different characters.", fix='Use data.tokenizer = "byte" or a tokenizer.'
            )
        return cls(alphabet)

    def encode(self, text: str) -> Tokens:
        import numpy as np

        return np.array([self._ids.get(character, 0) for character in text], np.int64)

    def decode(self, tokens: list[int]) -> str:
        return "".join(self._alphabet[token - 1] for token in tokens if 0 < token < self.vocabulary)

    def dump(self) -> str:
        return json.dumps({"kind": "char", "alphabet": self._alphabet})


class Bytes:
    """A token for each byte of UTF-8."""

    vocabulary = 257
    padding = 0

    def encode(self, text: str) -> Tokens:
        import numpy as np

        return np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 1

    def decode(self, tokens: list[int]) -> str:
        return bytes(token - 1 for token in tokens if 0 < token < 257).decode(errors="replace")

    def dump(self) -> str:
        return json.dumps({"kind": "byte"})


@dataclass
class Pieces:
    """A tokenizer.json as the `tokenizers` library writes it; a declaration, without code."""

    text: str

    def __post_init__(self) -> None:
        try:
            import tokenizers
        except ImportError:
            raise Unavailable(
                "A tokenizer.json needs the tokenizers library, which is not installed here.",
                fix="Install it: pip install 'hivenode[transformers]'.",
            ) from None
        try:
            self._made: Any = tokenizers.Tokenizer.from_str(self.text)
        except Exception as error:
            raise InvalidInput(
                f"The tokenizer.json cannot be used: {str(error)[:200]}.", fix="Give one that `tokenizers` wrote."
            ) from error
        self._made.no_padding()
        self._made.no_truncation()
        self.vocabulary: int = self._made.get_vocab_size()
        named = [self._made.token_to_id(name) for name in ("[PAD]", "<pad>", "<|pad|>")]
        self.padding: int = next((number for number in named if number is not None), 0)

    def encode(self, text: str) -> Tokens:
        import numpy as np

        return np.array(self._made.encode(text).ids, np.int64)

    def decode(self, tokens: list[int]) -> str:
        return str(self._made.decode(tokens))

    def dump(self) -> str:
        return json.dumps({"kind": "json", "text": self.text})


def load(dumped: str) -> Tokenizer:
    """Raises ValueError when it is none."""
    said = json.loads(dumped)
    match said:
        case {"kind": "char", "alphabet": str(alphabet)}:
            return Characters(alphabet)
        case {"kind": "byte"}:
            return Bytes()
        case {"kind": "json", "text": str(text)}:
            return Pieces(text)
    raise ValueError("its tokenizer is of an unknown kind")


def fitted(tokens: Tokens, length: int, padding: int) -> Tokens:
    """(length,): cut, or filled up at the end."""
    import numpy as np

    made = np.full(length, padding, np.int64)
    made[: min(length, len(tokens))] = tokens[:length]
    return made


def pair(given: Tokens, written: Tokens, length: int, padding: int, end: int) -> tuple[Tokens, Tokens]:
    """(2 * length,) inputs and (length,) labels of a text to be written upon another: what is to be foretold at each
    place is the token there, from all before it; after the end there is nothing to foretell."""
    import numpy as np

    labels = fitted(np.append(written, end), length, IGNORED)
    before = np.where(labels[:-1] == IGNORED, padding, labels[:-1])
    return np.concatenate([fitted(given, length, padding), [padding], before]), labels


def windows(tokens: Tokens, length: int) -> tuple[Tokens, Tokens]:
    """A long text in samples of `length`, and for each the same one token on."""
    count = (len(tokens) - 1) // length
    return tokens[: count * length].reshape(count, length), tokens[1 : count * length + 1].reshape(count, length)

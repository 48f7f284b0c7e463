"""Pairing codes, and the proof that two machines were given the same one.

The proof is SPAKE2 (Abdalla and Pointcheval, CT-RSA 2005; RFC 9382) over Ed25519 from the `spake2` package, followed by
an explicit key confirmation as in RFC 9382, section 4. Whoever listens learns nothing about the code, and whoever plays
the other part can test one guess for each exchange, and none afterwards. The package's transcript is older than the
RFC's, so other implementations of the RFC would not understand it.

The package is written in plain Python and its arithmetic takes a time that depends on the secret. Somebody who measures
the exchanges of one code closely might learn a little about it: a code is good for ten minutes, one guess and
`MAX_STARTS` exchanges, which leaves no room for statistics.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hivenode.errors import InvalidInput, Refused

DIGITS = 8
"""Of a code, without the check digit: 26.6 bits, of which a guess covers one in a hundred million."""
MESSAGE_BYTES = 33
PROOF_BYTES = 32
MAX_STARTS = 16
"""Exchanges begun with one code."""

_CONTEXT = b"hivenode pair 1"
_JOINER, _MEMBER = _CONTEXT + b" joiner", _CONTEXT + b" member"
_NONCE = bytes(12)
# Damm's quasigroup of order 10 (H. M. Damm, 2004): notices every wrong digit and every swap of neighbours.
_DAMM = (
    "0317598642", "7092154863", "4206871359", "1750983426", "6123045978",
    "3674209581", "5869720134", "8945362017", "9438617205", "2581436790",
)  # fmt: skip


def make_code(below: Callable[[int], int] = secrets.randbelow) -> str:
    """A fresh code, "471-399-205".

    Args:
        below: a uniformly random number from 0 to its argument, exclusive; cryptographic outside of tests.
    """
    digits = f"{below(10**DIGITS):0{DIGITS}d}"
    whole = digits + str(_check(digits))
    return f"{whole[:3]}-{whole[3:6]}-{whole[6:]}"


def read_code(text: str) -> str:
    """The digits of a code as typed; blanks and dashes are forgiven.

    Raises:
        InvalidInput: it is none, or mistyped. Noticed here, so that no guess is spent on it.
    """
    digits = "".join(character for character in text if character not in " -.\t")
    if len(digits) != DIGITS + 1 or not (digits.isascii() and digits.isdecimal()):
        raise InvalidInput(
            f"'{text[:40]}' is not a pairing code: one has {DIGITS + 1} digits, as in 471-399-205.",
            fix="Type what `hivenode pair` shows on the other machine.",
        )
    if _check(digits) != 0:
        raise InvalidInput(
            f"The pairing code {text[:40]} is mistyped: its check digit does not fit.",
            fix="Type it again; nothing was sent, so the code is still good.",
        )
    return digits[:DIGITS]


class _Spake2(Protocol):
    def start(self) -> bytes: ...
    def finish(self, inbound: bytes) -> bytes: ...


class Exchange:
    """One machine's half of one exchange.

    Args:
        code: the digits, from `read_code`.
        joiner: whether this machine wants in; the other one is the member.

    Attributes:
        message: what to send to the other side.
    """

    def __init__(self, code: str, *, joiner: bool) -> None:
        from spake2 import SPAKE2_A, SPAKE2_B  # not before it is needed: importing it takes a moment

        side = SPAKE2_A if joiner else SPAKE2_B
        self._half: _Spake2 = side(_CONTEXT + code.encode("ascii"), idA=_JOINER, idB=_MEMBER)
        self.message: bytes = self._half.start()

    def finish(self, theirs: bytes) -> Shared:
        """What both sides share if they were given the same code, from the other side's message. Once only.

        Raises:
            Refused: the message is none of the other part's.
        """
        from spake2 import SPAKEError

        try:
            if len(theirs) != MESSAGE_BYTES:
                raise ValueError(f"{len(theirs)} bytes")
            key = self._half.finish(theirs)
        except (SPAKEError, ValueError, AssertionError) as error:
            raise _malformed(error) from error
        except Exception as error:
            # The package's own class for a point off the curve has no common base with the others.
            if type(error).__name__ != "NotOnCurve":
                raise
            raise _malformed(error) from error
        return Shared(key)


class Shared:
    """What follows from an exchange: a proof for each side, and a box to send a secret in.

    Args:
        key: of SPAKE2; it depends on the code and on both messages.
    """

    def __init__(self, key: bytes) -> None:
        keys = HKDF(SHA256(), 3 * PROOF_BYTES, salt=None, info=_CONTEXT).derive(key)
        self.joiner_proof = hmac.digest(keys[:32], _JOINER, sha256)
        self.member_proof = hmac.digest(keys[32:64], _MEMBER, sha256)
        self._box = ChaCha20Poly1305(keys[64:])

    def seal(self, secret: bytes, *, joiner: bool) -> bytes:
        """Encrypt what a side says. Each side seals once only: the nonce is fixed, and differs by side."""
        return self._box.encrypt(_nonce(joiner), secret, _JOINER if joiner else _MEMBER)

    def open(self, sealed: bytes, *, joiner: bool) -> bytes:
        """What that side sealed. Raises Refused if it was not sealed with this key."""
        try:
            return self._box.decrypt(_nonce(joiner), sealed, _JOINER if joiner else _MEMBER)
        except InvalidTag as error:
            raise Refused("What the other side sent does not fit the exchange.", fix="Take a new code.") from error


def proves(expected: bytes, given: bytes) -> bool:
    """Whether a proof is right, in a time that does not tell how much of it is."""
    return hmac.compare_digest(expected, given)


def _nonce(joiner: bool) -> bytes:
    return _NONCE[:-1] + bytes([joiner])


def _check(digits: str) -> int:
    found = 0
    for digit in digits:
        found = int(_DAMM[found][int(digit)])
    return found


def _malformed(error: Exception) -> Refused:
    return Refused(
        f"The other side's part of the exchange is malformed: {error!r:.100}.",
        fix="Run the same version of hivenode on both machines, and take a new code.",
    )

"""Coverage-guided fuzzing with atheris; see README.md. Begins with frames of every kind of message."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hivenode", "tests.fuzz.targets"]):
    from hivenode.net.codec import ProtocolError, encode
    from tests.fuzz import targets
    from tests.fuzz.messages import bodies, messages

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st


def corpus(directory: Path, count: int = 400) -> None:
    """Write inputs to begin with: several valid frames, or bodies of events, each."""
    made = 0

    @seed(1)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.lists(messages(), min_size=1, max_size=5), st.lists(bodies(), max_size=2))
    def write(heard: list[object], said: list[object]) -> None:
        nonlocal made
        parts = []
        for message in heard:
            try:
                parts.append(encode(message))  # type: ignore[arg-type]
            except ProtocolError:
                continue
        parts += [bytes([made % 4]) + bytes(8) + msgspec.msgpack.encode(body) for body in said]
        (directory / f"{made:04}").write_bytes(b"".join(len(p).to_bytes(2, "big") + p for p in parts if len(p) < 65536))
        made += 1

    write()


def mutate(data: bytes, max_size: int, chance: int) -> bytes:
    """Half of the time move, repeat or drop whole frames; otherwise damage bytes."""
    rng = random.Random(chance)
    parts = targets.parts(data)
    if parts and rng.random() < 0.5:
        other = list(parts)
        rng.shuffle(other)
        other.append(rng.choice(parts))
        joined = b"".join(len(part).to_bytes(2, "big") + part for part in other[: rng.randint(1, len(other))])
        if len(joined) <= max_size:
            return joined
    return bytes(atheris.Mutate(data, max_size))


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        corpus(Path(directory))
        atheris.Setup([*sys.argv, directory], targets.everything, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Coverage-guided fuzzing with atheris; see README.md. Begins with frames of every kind of message.

python -m tests.fuzz.campaign cores|link [options of libFuzzer, e.g. -max_total_time=600]
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hivenode", "tests.fuzz.targets", "tests.fuzz.doorway"]):
    from hivenode.net.codec import ProtocolError, encode
    from tests.fuzz import targets
    from tests.fuzz.doorway import Looks, seeds
    from tests.fuzz.messages import bodies, messages

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Ways = Callable[[list[bytes], list[bytes]], list[list[bytes]]]
"""From frames' payloads and bodies of events to inputs, as the parts of each."""


def corpus(directory: Path, ways: Ways, count: int = 400) -> None:
    """Write inputs to begin with."""
    made = 0

    @seed(1)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.lists(messages(), min_size=1, max_size=5), st.lists(bodies(), max_size=2))
    def write(heard: list[object], said: list[object]) -> None:
        nonlocal made
        payloads = []
        for message in heard:
            try:
                payloads.append(encode(message))  # type: ignore[arg-type]
            except ProtocolError:
                continue
        bodies = [bytes([made % 4]) + bytes(8) + msgspec.msgpack.encode(body) for body in said]
        for parts in ways(payloads, bodies):
            (directory / f"{made:04}").write_bytes(joined(parts))
            made += 1

    write()


def joined(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts if len(part) < 65536)


def mutate(data: bytes, max_size: int, chance: int) -> bytes:
    """Move, repeat or drop whole parts, or damage one of them, or bytes anywhere."""
    rng = random.Random(chance)
    parts = targets.parts(data)
    if parts and (die := rng.random()) < 0.75:
        other = list(parts)
        if die < 0.4:
            place = rng.randrange(len(other))
            other[place] = bytes(atheris.Mutate(other[place], min(max_size, len(other[place]) + 64)))
        else:
            rng.shuffle(other)
            other.append(rng.choice(parts))
            other = other[: rng.randint(1, len(other))]
        found = joined(other)
        if len(found) <= max_size:
            return found
    return bytes(atheris.Mutate(data, max_size))


def main() -> None:
    which, options = sys.argv[1], sys.argv[2:]
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        if which == "link":
            looks = Looks()
            hello = looks.hello
            corpus(Path(directory), lambda payloads, bodies: seeds(payloads, hello), 100)

            def look(data: bytes) -> None:
                looks.everything(targets.parts(data))

        else:
            corpus(Path(directory), lambda payloads, bodies: [payloads + bodies])
            look = targets.everything
        found = [] if any(Path(option).is_file() for option in options) else [directory]  # a file is to be repeated
        atheris.Setup([sys.argv[0], *options, *found], look, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

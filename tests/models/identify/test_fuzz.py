"""Damage at every place: only clean errors, never a claim that a hostile file is safe because half of it was read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.models.identify import identify
from hivenode.models.identify.report import Report
from tests.models.identify.zips import write_zip

SAMPLES = Path(__file__).parents[1] / "samples"
SMALL = ["pytorch/gru.safetensors", "pytorch/bfloat16.pt", "pytorch/legacy.pth", "transformers/dense.msgpack"]
LARGE = [
    "pytorch/scripted.pt",
    "pytorch/exported.pt2",
    "pytorch/oldest.tar",
    "pytorch/lstm.pt",
    "pytorch/module_legacy.pt",
]
CUTS = 60
FLIPS = 150


def sound(report: Report) -> bool:
    """Whether a report is one a person can use: a verdict, or an error with a fix."""
    return report.safe is not None or (report.error is not None and bool(report.error.fix))


def cuts(length: int, every: bool) -> Iterator[int]:
    yield from range(0, length, 1 if every else max(1, length // CUTS))


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_cut_short_anywhere(name: str, tmp_path: Path) -> None:
    data = (SAMPLES / name).read_bytes()
    path = tmp_path / Path(name).name
    needed = len(data.rstrip(b"\0")) if name.endswith(".tar") else len(data)  # a tar ends in as many zeros as it likes
    for length in cuts(needed, name in SMALL):
        path.write_bytes(data[:length])
        report = identify(path)
        assert report.error is not None, length
        assert report.error.fix
        assert report.safe is not True


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_flipped_bits(name: str, tmp_path: Path) -> None:
    data = (SAMPLES / name).read_bytes()
    path = tmp_path / Path(name).name
    dice = random.Random(name)
    for _ in range(FLIPS):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 6)):
            damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        assert sound(identify(path))


@pytest.mark.parametrize("name", ["pytorch/distributed", "transformers/bert", "transformers/stable_diffusion"])
def test_damaged_directories(name: str, tmp_path: Path) -> None:
    dice = random.Random(name)
    files = sorted(path for path in (SAMPLES / name).rglob("*") if path.is_file())
    for source in files:
        target = tmp_path / source.relative_to(SAMPLES / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    for _ in range(FLIPS // 3):
        source = dice.choice(files)
        target = tmp_path / source.relative_to(SAMPLES / name)
        data = bytearray(source.read_bytes())
        if dice.random() < 0.3:
            data = data[: dice.randrange(len(data) + 1)]
        else:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        target.write_bytes(data)
        report = identify(tmp_path)
        assert sound(report)
        target.write_bytes(source.read_bytes())
    assert identify(tmp_path).safe is True


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.floats(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=6,
    ),
    st.sampled_from(["config.json", "adapter_config.json", "model_index.json", "model.safetensors.index.json"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_in_a_model_directory(tmp_path: Path, value: object, name: str) -> None:
    import msgspec

    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / name).write_bytes(msgspec.json.encode(value))
    assert sound(identify(folder))


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pickle_in_an_archive(tmp_path: Path, payload: bytes) -> None:
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": b"\x80\x02" + payload, "m/version": b"3"})
    assert sound(identify(path))


OPCODES = b"(.0123456789FIJKLMNPQRSTUVXabcdeghijlopqrstu})]\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x93\x94"


@given(st.lists(st.sampled_from([bytes([code]) for code in OPCODES] + [b"K\x01", b"X\x01\0\0\0a", b"q\0", b"h\0",
       b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"]), max_size=40))  # fmt: skip
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_opcodes(tmp_path: Path, codes: list[bytes]) -> None:
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": b"\x80\x02" + b"".join(codes) + b".", "m/version": b"3"})
    assert sound(identify(path))

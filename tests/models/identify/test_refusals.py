"""Files that are no models, or lie: one clear error each, in bounded memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from hivenode.models.identify import identify
from hivenode.models.identify.many import BATCH, identify_all
from hivenode.models.identify.report import Report, Trouble
from tests.models.identify.zips import patched, write_zip

SAMPLES = Path(__file__).parents[1] / "samples"


def trouble(path: Path) -> Trouble:
    report = identify(path)
    assert report.error is not None
    assert report.safe is not True
    assert report.error.fix
    return report.error


def file(folder: Path, content: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"  <html lang=en>", "web page"),
        (b"Entry not found", "error message"),
        (b"\0" * 70_000, "zeros"),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 100, "ELF"),
        (b"MZ\x90\0" + b"\0" * 100, "Windows program"),
        (b"7z\xbc\xaf\x27\x1c\0\4" + b"\0" * 100, "7z"),
        (b"Rar!\x1a\7\0", "RAR"),
        (b"%PDF-1.7", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"PAR1" + b"\0" * 20, "Parquet"),
        (b"some text of no meaning", "no format that is known"),
        (bytes(range(256)), "no format that is known"),
    ],
)
def test_what_is_no_model(content: bytes, words: str, tmp_path: Path) -> None:
    assert words in trouble(file(tmp_path, content)).message


def test_missing_and_barred(tmp_path: Path) -> None:
    assert trouble(tmp_path / "nothing").code == "not_found"
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in trouble(tmp_path / "pipe").message
    barred = file(tmp_path, b"x")
    barred.chmod(0)
    if os.geteuid():
        assert "may not be read" in trouble(barred).message


def test_directories(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in trouble(empty).message
    (empty / "notes.txt").write_text("nothing here")
    assert "no model" in trouble(empty).message
    (empty / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert "no weights" in trouble(empty).message
    assert identify(empty).model == "BertModel"


def test_an_encrypted_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"secret.txt": b"hidden"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in trouble(path).message


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    assert "no model" in trouble(write_zip(tmp_path / "a.zip", {"letter.txt": b"hello"})).message


def test_an_archive_cut_short(tmp_path: Path) -> None:
    whole = (SAMPLES / "pytorch" / "state_dict.pt").read_bytes()
    assert "cut short" in trouble(file(tmp_path, whole[:-1000])).message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    for source in (SAMPLES / "transformers" / "llama_sharded").iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in trouble(folder).message
    assert identify(folder).parameters is None
    assert gone.name in trouble(folder / "model.safetensors.index.json").message


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "..", "", "a\\b", "sub/x"]
)
def test_an_index_that_leads_out_of_its_directory(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.safetensors").write_bytes((SAMPLES / "pytorch" / "plain.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    error = trouble(folder / "model.safetensors.index.json")
    assert "not in" in error.message or "lacks" in error.message
    assert identify(folder).tensors is None


def header(fields: object) -> bytes:
    raw = json.dumps(fields).encode()
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 39) + b'{"a',
        struct.pack("<Q", 100) + b'{"a": {',
        header({"w": {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 1 << 52]}}),
        header({"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"w": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + b"\0" * 8,
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}) + b"\0" * 8,
        header({"w": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}) + b"\0" * 4,
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 5,
        struct.pack("<Q", 20_000) + b'{"a":' * 4_000,
        struct.pack("<Q", 3) + b'{"\xff',
    ],
)
def test_safetensors_that_lie(content: bytes, tmp_path: Path) -> None:
    assert (
        "safetensors" in trouble(file(tmp_path, content)).message
        or "cut short" in trouble(file(tmp_path, content)).message
    )


def tensor(storage: int, shape: tuple[int, ...], *, offset: int = 0, key: str = "0") -> bytes:
    """A pickle of a state dict with one tensor, as torch writes it."""

    def number(value: int) -> bytes:
        raw = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw

    size = b"(" + b"".join(map(number, shape)) + b"t"
    stride = b"(" + b"".join(number(1) for _ in shape) + b"t"
    return (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        + b"X" + struct.pack("<I", len(key)) + key.encode() + b"X\x03\0\0\0cpu" + number(storage) + b"tQ"
        + number(offset) + size + stride + b"\x89)tRs."
    )  # fmt: skip


@pytest.mark.parametrize(
    "payload",
    [
        tensor(1 << 60, (1 << 60,)),
        tensor(1 << 40, (1,)),
        tensor(4, (5,)),
        tensor(4, (2,), offset=3),
        tensor(4, (2,), offset=-1),
        tensor(4, (-2,)),
        tensor(4, (4,), key="9"),
        tensor(4, (4,), key="../data.pkl"),
        tensor(4, ((1 << 62), (1 << 62))),
    ],
)
def test_torch_tensors_that_lie(payload: bytes, tmp_path: Path) -> None:
    entries = {"m/data.pkl": payload, "m/data/0": b"\0" * 16, "m/version": b"3"}
    assert trouble(write_zip(tmp_path / "m.pt", entries)).code == "corrupted"
    right = {**entries, "m/data.pkl": tensor(4, (4,))}
    assert identify(write_zip(tmp_path / "right.pt", right)).parameters == 4


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    cycle = b"\x80\x02}q\x00X\x01\0\0\0ah\x00s."
    assert trouble(write_zip(tmp_path / "m.pt", {"m/data.pkl": cycle, "m/version": b"3"})).code == "corrupted"


def test_a_million_branches_of_one_leaf(tmp_path: Path) -> None:
    doubled = b"\x80\x02]q\x00" + b"".join(
        b"](h" + bytes([place]) + b"h" + bytes([place]) + b"eq" + bytes([place + 1]) for place in range(60)
    )
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": doubled + b".", "m/version": b"3"})
    assert identify(path).tensors == 0


def test_an_entry_that_unpacks_to_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("m/data.pkl", "w") as entry:
        for _ in range(300):
            entry.write(b"N" * (1 << 20))
    tracemalloc.start()
    error = trouble(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "exhausted"
    assert peak < 32 << 20


def test_an_entry_that_lies_about_what_it_unpacks_to(tmp_path: Path) -> None:
    raw = b"N" * (64 << 20)
    path = write_zip(tmp_path / "bomb.pt", {"m/data.pkl": raw}, method=zipfile.ZIP_DEFLATED)
    patched(path, struct.pack("<I", len(raw)), struct.pack("<I", 100))
    tracemalloc.start()
    error = trouble(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "corrupted"
    assert peak < 32 << 20


def test_entries_that_overlap(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": b"\x80\x02}.", "m/version": b"3"})
    data = bytearray(path.read_bytes())
    second = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, second + 42, 0)
    path.write_bytes(data)
    assert "overlap" in trouble(path).message


def test_more_entries_than_any_model_has(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": b"\x80\x02}."})
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x05\x06")
    struct.pack_into("<HH", data, at + 8, 60_000, 60_000)
    path.write_bytes(data)
    assert trouble(path).code == "corrupted"


def test_flax_that_lies(tmp_path: Path) -> None:
    raw = (SAMPLES / "transformers" / "dense.msgpack").read_bytes()
    assert trouble(file(tmp_path, raw[:-3])).code == "corrupted"
    assert trouble(file(tmp_path, raw + b"\x01")).code == "corrupted"
    assert trouble(file(tmp_path, b"\x81\xa1a" + b"\x81\xa1a" * 1000 + b"\xc0")).code == "corrupted"


def test_a_legacy_storage_beyond_the_end(tmp_path: Path) -> None:
    raw = (SAMPLES / "pytorch" / "legacy.pth").read_bytes()
    assert "cut short" in trouble(file(tmp_path, raw[:-4])).message


def test_the_json_form_is_stable() -> None:
    fields = set(Report().to_dict())
    assert fields >= {
        "path", "format", "framework", "family", "task", "architecture", "model", "parameters", "trainable_parameters",
        "dtypes", "tensors", "layers", "inputs", "outputs", "size_bytes", "quantization", "safe", "findings",
        "confidence", "error",
    }  # fmt: skip


DOUBLED = b")q\x00" + b"".join(
    b"0h" + bytes([at]) + b"h" + bytes([at]) + b"\x86q" + bytes([at + 1]) for at in range(80)
)
"""A tuple of itself twice, eighty times over: small in memory, and without end as a text."""
LEGACY = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def stored(key: bytes = b"X\x01\0\0\x000", location: bytes = b"X\3\0\0\0cpu") -> bytes:
    """A pickle of a tensor whose storage has this key and location."""
    return (
        b"\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
        + key + location + b"K\4tQK\0(K\4t(K\1t\x89)tRs."
    )  # fmt: skip


@pytest.mark.parametrize(
    "content", [stored(DOUBLED) + b"\x80\x02].", stored() + b"\x80\x02]" + DOUBLED + b"a." + bytes(40)]
)
def test_a_key_without_end_is_refused(content: bytes, tmp_path: Path) -> None:
    assert trouble(file(tmp_path, LEGACY + content)).code == "corrupted"


def test_an_entry_without_end_is_not_written_out(tmp_path: Path) -> None:
    entry = b"\x80\x02}(X\x19\0\0\0pytorch-lightning_version" + DOUBLED + b"X\4\0\0\0arch" + DOUBLED + b"u."
    assert identify(write_zip(tmp_path / "m.pt", {"m/data.pkl": entry, "m/version": b"3"})).model is None


def test_a_text_without_end_in_the_oldest_format(tmp_path: Path) -> None:
    one, end = b"\x80\x02K\1.", b"\x80\x02]."
    storages = one + b"\x80\x02(K\0X\3\0\0\0cpuctorch\nFloatStorage\nt." + struct.pack("<q", 1) + bytes(4)
    listed = one + b"\x80\x02(K\0K\0ctorch\nFloatTensor\nt." + struct.pack("<i4x3q", 1, 1, 1, 0)
    members = {"storages": storages + end, "tensors": listed, "pickle": b"\x80\x02}X\1\0\0\0wX\1\0\0\x000Qs."}
    key = {"storages": storages.replace(b"(K\0", b"(" + DOUBLED) + end}
    views = {"storages": storages + b"\x80\x02" + DOUBLED + b"."}
    names = {"storages": storages + b"\x80\x02ccollections\nOrderedDict\n."}
    tensor = {"tensors": listed.replace(b"(K\0K\0", b"(K\0" + DOUBLED)}
    reference = {"pickle": b"\x80\x02}X\1\0\0\0w" + DOUBLED + b"Qs."}
    for change in ({}, key, views, names, tensor, reference):
        path = tmp_path / "m.tar"
        with tarfile.open(path, "w") as tar:
            for name, data in (members | change).items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        report = identify(path)
        assert report.error is not None or report.safe is not None
        if not change:
            assert report.parameters == 1


def test_one_number_that_stands_for_more_than_there_are(tmp_path: Path) -> None:
    size = b"(" + b"\x8a\x08" + (1 << 62).to_bytes(8, "little") + b"K\4t"
    expanded = stored().replace(b"(K\4t(K\1t", size + b"(K\0K\0t")
    entries = {"m/data.pkl": expanded, "m/version": b"3", "m/data/0": bytes(16)}
    assert trouble(write_zip(tmp_path / "m.pt", entries)).code == "corrupted"
    axes = stored().replace(b"(K\4t(K\1t", b"(" + b"K\2" * 100 + b"t(" + b"K\0" * 100 + b"t")
    assert trouble(write_zip(tmp_path / "n.pt", entries | {"m/data.pkl": axes})).code == "corrupted"


def test_halves_of_letters_and_odd_numbers_are_written_plainly(tmp_path: Path) -> None:
    half = b"\xed\xa0\x80"
    named = b"\x80\x04\x8c\x04x" + half + b"\x8c\x01y\x93)R."
    path = tmp_path / os.fsdecode(b"\xff.pkl")
    path.write_bytes(named)
    (finding,) = identify(path).findings
    assert finding.what == "x\\ud800.y"
    reports = dict(identify_all([path, SAMPLES / "tabular" / "xgb_classifier.pkl"] * 20))
    assert len(json.dumps([report.to_dict(listing=True) for report in reports.values()])) > 100
    assert reports[path].safe is False
    assert reports[SAMPLES / "tabular" / "xgb_classifier.pkl"].model == "XGBClassifier"


def test_many_files_are_known_by_several_processes(tmp_path: Path) -> None:
    paths = [
        path for path in sorted(SAMPLES.rglob("*")) if path.is_file() and path.suffix in (".pkl", ".pt", ".joblib")
    ]
    paths = paths[: 2 * BATCH]
    found = dict(identify_all(paths))
    assert set(found) == set(paths)
    for path, report in found.items():
        assert report.to_dict() == identify(path).to_dict()

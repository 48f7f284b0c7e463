"""Pickles made to run something: each is called unsafe or refused, in every container, and none has any effect."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hivenode.models.identify import identify
from tests.models.identify.pickle_payloads import CONTAINERS, armed, inert, refused, short, torch_zip
from tests.models.identify.zips import patched, write_zip

ARMED = sorted(armed(Path("mark")))
INERT = sorted(inert())


@pytest.mark.parametrize("name", ARMED)
def test_the_payloads_are_real(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = tmp_path / "payload.pkl"
    file.write_bytes(armed(mark)[name])
    load = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-S", "-c", load, str(file)], check=False, capture_output=True)
    assert mark.exists()


@pytest.mark.parametrize("container", sorted(CONTAINERS))
@pytest.mark.parametrize("name", ARMED)
def test_an_armed_pickle_is_refused_and_does_nothing(name: str, container: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = CONTAINERS[container](tmp_path, armed(mark)[name])
    assert refused(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", INERT)
def test_what_a_foreign_package_would_do_is_refused(name: str, tmp_path: Path) -> None:
    assert refused(torch_zip(tmp_path, inert()[name]))


def test_a_finding_names_the_global_and_its_place(tmp_path: Path) -> None:
    report = identify(torch_zip(tmp_path, b"\x80\x02}cos\nsystem\n(S'true'\ntR0."))
    assert report.safe is False
    assert [(found.what, found.where) for found in report.findings] == [("os.system", "model/data.pkl at byte 3")]


def test_a_name_from_the_memo_is_found_where_it_is_used(tmp_path: Path) -> None:
    payload = b"\x80\x04" + short("system") + b"\x94" + short("os") + b"\x9400h\x01h\x00\x93."
    (found,) = identify(torch_zip(tmp_path, payload)).findings
    assert found.what == "os.system"
    assert found.where.endswith(f"byte {len(payload) - 2}")


def test_a_bad_checksum_is_refused(tmp_path: Path) -> None:
    path = torch_zip(tmp_path, armed(tmp_path / "mark")["os.system, protocol 0"])
    archive = zipfile.ZipFile(path)
    crc = archive.getinfo("model/data.pkl").CRC.to_bytes(4, "little")
    patched(path, crc, b"\1\2\3\4")
    report = identify(path)
    assert report.error is not None
    assert "checksum" in report.error.message
    assert report.safe is None


def test_a_file_only_marked_as_encrypted_is_refused(tmp_path: Path) -> None:
    path = torch_zip(tmp_path, b"cos\nsystem\n(S'true'\ntR.")
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(signature)
        while at >= 0:
            data[at + place] |= 1
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    report = identify(path)
    assert report.error is not None
    assert "encrypted" in report.error.message


def test_a_directory_that_calls_an_entry_otherwise_than_its_header_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": b"\x80\x02}.", "m/version": b"3"})
    data = path.read_bytes()
    at = data.find(b"m/data.pkl")
    path.write_bytes(data[:at] + b"m/evil.pkl" + data[at + 10 :])
    report = identify(path)
    assert report.error is not None
    assert "evil" in report.error.message


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("m/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    report = identify(path)
    assert report.error is not None
    assert "twice" in report.error.message


def test_a_second_pickle_in_the_archive_is_named(tmp_path: Path) -> None:
    entries = {"m/data.pkl": b"\x80\x02}.", "m/version": b"3", "m/extra.pkl": b"cos\nsystem\n(S'true'\ntR."}
    report = identify(write_zip(tmp_path / "m.pt", entries))
    assert report.safe is False
    assert report.findings[0].what == "m/extra.pkl"


def test_something_before_the_archive_is_refused(tmp_path: Path) -> None:
    path = torch_zip(tmp_path, b"\x80\x02}.")
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR." + path.read_bytes())
    assert refused(path)
    path = torch_zip(tmp_path, b"\x80\x02}.")
    path.write_bytes(path.read_bytes()[:40] + path.read_bytes())
    assert refused(path)


def test_something_after_a_legacy_checkpoint_is_named(tmp_path: Path) -> None:
    path = CONTAINERS["torch_legacy"](tmp_path, b"\x80\x02}.")
    assert identify(path).safe is True
    path.write_bytes(path.read_bytes() + b"cos\nsystem\n(S'true'\ntR.")
    assert refused(path)


def test_torchscript_that_writes_files_is_named(tmp_path: Path) -> None:
    code = "class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n  def forward(self: __torch__.Net,\n"
    for call in ('torch.save(x, "/tmp/x")', "ops.evil.run(x)", 'torch.from_file("/etc/passwd", False, 10)'):
        entries = {
            "m/data.pkl": b"\x80\x02c__torch__\nNet\n)\x81}b.",
            "m/constants.pkl": b"\x80\x02).",
            "m/code/__torch__.py": f"{code}    x: Tensor) -> Tensor:\n    _0 = {call}\n    return x\n".encode(),
        }
        report = identify(write_zip(tmp_path / "m.pt", entries))
        assert report.safe is False
        assert report.findings[0].what == call.partition("(")[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"auto_map": {"AutoModel": "modeling_evil.Evil"}}'),
        ("tokenizer_config.json", '{"chat_template": "{{ self.__init__.__globals__ }}"}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "{{ lipsum }}"}]}'),
        ("tokenizer_config.json", '{"chat_template": 7}'),
        ("modeling_evil.py", "import os"),
        ("chat_template.jinja", "{{ cycler }}"),
        ("chat_template.json", '{"chat_template": "{{ messages.__class__ }}"}'),
    ],
)
def test_programs_in_a_model_directory_are_named(file: str, content: str, tmp_path: Path) -> None:
    folder = CONTAINERS["beside_safetensors"](tmp_path, b"\x80\x02}.")
    assert identify(folder).safe is True
    (folder / file).write_text(content)
    report = identify(folder)
    assert report.safe is False
    assert report.dangerous
    assert any(file in (found.where, found.what) for found in report.findings)


def test_an_ordinary_template_in_a_model_directory_leaves_it_safe(tmp_path: Path) -> None:
    folder = CONTAINERS["beside_safetensors"](tmp_path, b"\x80\x02}.")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    report = identify(folder)
    assert report.safe is True
    assert [(found.what, found.severity) for found in report.findings] == [("chat_template.jinja", "notice")]

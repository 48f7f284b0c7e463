from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hivenode.config import Settings, load_settings, render
from hivenode.errors import InvalidInput
from hivenode.home import default_home

FILE = Path(__file__).parents[1] / "configs" / "hivenode.toml"


def written(home: Path, text: str) -> Path:
    path = home / "hivenode.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_sample_file_is_the_generated_one() -> None:
    assert FILE.read_text(encoding="utf-8") == render(), "run: python -m hivenode.config > configs/hivenode.toml"


def test_the_sample_file_changes_nothing() -> None:
    assert load_settings(Path("/nowhere"), FILE) == Settings()


def test_the_sample_file_has_every_setting_with_a_reason() -> None:
    data = tomllib.loads(render())
    for name, section in Settings.model_fields.items():
        fields = section.annotation.model_fields  # type: ignore[union-attr]
        assert list(data[name]) == list(fields)
        assert all(len(field.description or "") > 30 for field in fields.values())


def test_the_module_prints_the_sample_file() -> None:
    done = subprocess.run([sys.executable, "-m", "hivenode.config"], capture_output=True, text=True, check=True)
    assert done.stdout == render()


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings == Settings()
    assert settings.election.timeout_seconds == (3.0, 4.5)
    assert settings.admin.host == "127.0.0.1"


def test_a_file_in_the_home_counts_and_one_given_beats_it(tmp_path: Path) -> None:
    written(tmp_path, "[network]\nport = 1111\n[node]\nname = 'here'")
    assert load_settings(tmp_path).network.port == 1111
    other = tmp_path / "other.toml"
    other.write_text("[network]\nport = 2222\n")
    settings = load_settings(tmp_path, other)
    assert (settings.network.port, settings.node.name) == (2222, Settings().node.name)


def test_the_command_line_beats_the_file_setting_by_setting(tmp_path: Path) -> None:
    written(tmp_path, "[network]\nport = 1111\ndiscovery = false\n")
    settings = load_settings(tmp_path, None, {"network": {"port": 0}, "node": {"name": "n1"}})
    assert (settings.network.port, settings.network.discovery, settings.node.name) == (0, False, "n1")
    with pytest.raises(InvalidInput, match=r"command line.*network\.port"):
        load_settings(tmp_path, None, {"network": {"port": 99999}})


def test_the_name_defaults_to_the_host_name_made_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Anna's MacBook.local")
    assert Settings().node.name == "Anna-s-MacBook.local"
    monkeypatch.setattr(socket, "gethostname", lambda: "--")
    assert Settings().node.name == "node"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[network]\nprot = 1", r"network\.prot: unknown field, did you mean 'port'\?"),
        ("[netwrok]\nport = 1", r"netwrok: unknown field, did you mean 'network'\?"),
        ("[node]\nzzz = 1", r"node\.zzz: unknown field, valid names are name"),
        ("[network]\nport = 70000", r"network\.port: input should be less than or equal to 65535"),
        ("[network]\nport = 'x'", r"network\.port: input should be a valid integer"),
        ("[network]\nlisten = 'localhost:1'", r"network\.listen: 'localhost:1' is not an IP address"),
        ("[network]\nseeds = ['box:0']", r"network\.seeds: 'box:0' does not end in a port"),
        ("[network]\nseeds = ['http://box']", r"network\.seeds: 'http://box'"),
        ("[network]\nport = 0\nadvertise = ['box']", r"network\.advertise: 'box' needs a port"),
        ("[admin]\nhost = '0.0.0.0'", r"admin\.host: 0\.0\.0\.0 is not a loopback address"),
        ("[admin]\nport = 7447", "network.port and admin.port are both 7447"),
        ("[election]\ntimeout_seconds = [4, 2]", r"election: timeout_seconds must rise"),
        ("[election]\nheartbeat_seconds = 3", r"election: timeout_seconds begins at 3\.0, below twice"),
        ("[worker]\nports = [9, 8]", r"worker\.ports: \[9, 8\] is not a range"),
        ("[worker]\nmemory_bytes = 1000", r"worker\.memory_bytes: 1000 bytes are too few"),
        ("[worker]\nprewarm = ['tensorflaw']", r"worker\.prewarm\.0: 'tensorflaw' is not a choice, choose torch"),
        ("[node]\nname = 'two words'", r"node\.name: give 1 to 63 letters"),
        ("[membership]\nprofile = 'moon'", r"membership\.profile: 'moon' is not a choice, choose lan, wan, local"),
        ("port = 1", r"port: unknown field"),
        ("[network\n", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_field(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidInput, match=sentence) as caught:
        load_settings(tmp_path)
    assert str(path) in caught.value.sentence
    assert caught.value.fix


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    written(tmp_path, "[network]\nport = -1\n[logs]\nlevel = 'loud'\n")
    with pytest.raises(InvalidInput, match=r"network\.port.*logs\.level"):
        load_settings(tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"missing\.toml"):
        load_settings(tmp_path, tmp_path / "missing.toml")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_settings(tmp_path, tmp_path)
    (tmp_path / "hivenode.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"hivenode\.toml cannot be read"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("box", "box:7447"),
        ("box.lan:9", "box.lan:9"),
        ("10.0.0.1", "10.0.0.1:7447"),
        ("fd00::1", "[fd00::1]:7447"),
        ("[fd00::1]", "[fd00::1]:7447"),
        ("[fd00::1]:9", "[fd00::1]:9"),
    ],
)
def test_addresses_without_a_port_get_the_usual_one(tmp_path: Path, given: str, meant: str) -> None:
    written(tmp_path, f"[network]\nport = 7447\nseeds = ['{given}']\nadvertise = ['{given}']\n")
    settings = load_settings(tmp_path)
    assert settings.network.seeds == (meant,)
    assert settings.network.advertise == (meant,)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError):
        Settings().network.port = 1


def test_where_a_node_lives() -> None:
    assert default_home({"HIVENODE_HOME": "/srv/hive", "STATE_DIRECTORY": "/var/lib/hivenode"}) == Path("/srv/hive")
    assert default_home({"STATE_DIRECTORY": "/var/lib/hivenode"}) == Path("/var/lib/hivenode")
    assert default_home({"STATE_DIRECTORY": "/var/lib/other"}) == Path.home() / ".hivenode"
    assert default_home({"HIVENODE_HOME": ""}) == Path.home() / ".hivenode"

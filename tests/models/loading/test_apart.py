"""The walls around a process that handles a file nobody vouches for: real attempts to get out, each of which fails."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hivenode import walls
from hivenode.errors import Conflict, Exhausted, JobFailed, Refused
from hivenode.models import apart, conversion
from hivenode.models.apart import Limits
from hivenode.models.identify.report import Report
from hivenode.models.loading import load

SAMPLES = Path(__file__).parents[1] / "samples"
LIMITS = Limits(2 << 30, 60, 120, 256 << 20)
pytestmark = pytest.mark.skipif(walls.landlock() < 4, reason="this kernel has no Landlock that knows TCP")

WALLED = """
import sys
from pathlib import Path
from hivenode.worker.sandbox import Apart, set_apart
room = Path(sys.argv[1])
layers = set_apart(Apart((room / "given",), (room / "out",), 1 << 30, 60, 1 << 20))
wanted = {"no new privileges", "files: Landlock", "TCP: Landlock", "processes and programs: seccomp"}
assert wanted <= set(layers), layers

def own_to_parent():
    import fcntl, os, socket
    one, other = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETOWN, os.getppid())
"""
ATTEMPTS = {
    "write elsewhere": "open(room / 'mark', 'w')",
    "write into what is given": "open(room / 'given' / 'mark', 'w')",
    "append to what is given": "open(room / 'given' / 'file', 'a')",
    "read elsewhere": "open('/etc/hostname').read()",
    "read the home of whoever runs it": "__import__('os').listdir(str(Path.home()))",
    "link out": "__import__('os').link('/etc/hostname', room / 'out' / 'link')",
    "read through a link": "((room / 'out' / 'l').symlink_to('/etc/hostname'), open(room / 'out' / 'l').read())",
    "connect": "__import__('socket').create_connection(('127.0.0.1', int(sys.argv[2])), 5)",
    "listen": "__import__('socket').create_server(('127.0.0.1', 0))",
    "a socket of its own": "__import__('socket').socket(__import__('socket').AF_UNIX)",
    "a pair that could send anywhere": "(s := __import__('socket')).socketpair(s.AF_UNIX, s.SOCK_DGRAM)",
    "fork": "__import__('os').fork()",
    "run a program": "__import__('subprocess').run(['true'])",
    "become a program": "__import__('os').execv('/bin/true', ['true'])",
    "a process by posix_spawn": "__import__('os').posix_spawn('/bin/true', ['true'], {})",
    "50 GB": "bytearray(50 << 30)",
    "50 GB that are shared": "__import__('mmap').mmap(-1, 50 << 30)",
    "memory as a file": "__import__('os').memfd_create('x')",
    "a large file": "(room / 'out' / 'large').write_bytes(bytes(2 << 20))",
    "a signal to its parent": "__import__('os').kill(__import__('os').getppid(), 0)",
    "a signal to its group": "__import__('os').kill(0, 0)",
    "a signal to its parent when there is something to read": "own_to_parent()",
    "its parent's limits": "__import__('resource').prlimit(__import__('os').getppid(), 7)",
    "its parent's processors": "__import__('os').sched_setaffinity(__import__('os').getppid(), {*range(1024)})",
    "its parent's priority": "(o := __import__('os')).setpriority(0, o.getppid(), o.getpriority(0, o.getppid()))",
    "its parent's class": "(o := __import__('os')).sched_setscheduler(o.getppid(), o.SCHED_OTHER, o.sched_param(0))",
    "its parent's memory": "open(f'/proc/{__import__(\"os\").getppid()}/mem', 'rb')",
    "its parent's environment": "open(f'/proc/{__import__(\"os\").getppid()}/environ', 'rb').read()",
    "new namespaces": "__import__('ctypes').CDLL(None, use_errno=True).unshare(0x10000000) and 1 / 0",
    "more than its limit": "__import__('resource').setrlimit(__import__('resource').RLIMIT_DATA, (1 << 40, 1 << 40))",
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def room_of(tmp_path: Path) -> Path:
    for name in ("given", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "given" / "file").write_text("there")
    return tmp_path


def test_every_way_out_is_shut(tmp_path: Path, port: int) -> None:
    """Each attempt in a process of its own would cost a start; they cannot undo each other's walls."""
    room = room_of(tmp_path)
    script = WALLED + f"attempts = {ATTEMPTS!r}\n" + (
        "for name, code in attempts.items():\n"
        "    try:\n"
        "        eval(code)\n"
        "    except (OSError, MemoryError, ValueError, ZeroDivisionError):\n"
        "        continue\n"
        "    print('did:', name)\n"
        "import threading\n"
        "thread = threading.Thread(target=print, args=('a thread runs',))\n"
        "thread.start(); thread.join()\n"
        "print((room / 'given' / 'file').read_text()); (room / 'out' / 'new').write_text('written')\n"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(room), str(port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["a thread runs", "there"], done.stderr
    assert (room / "out" / "new").read_text() == "written"
    assert not (room / "mark").exists()
    assert not (room / "given" / "mark").exists()


def test_the_attempts_would_work_without_the_walls(tmp_path: Path, port: int) -> None:
    room = room_of(tmp_path)
    names = ("write elsewhere", "connect", "fork", "run a program", "read elsewhere", "memory as a file")
    for name in names:
        code = f"import sys; from pathlib import Path; room = Path(sys.argv[1]); {ATTEMPTS[name]}"
        subprocess.run([sys.executable, "-c", code, str(room), str(port)], check=True, timeout=60)


# conversion of pickles that try


class Runs:
    """Pickles to a call of `exec`."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


def hostile(path: Path, code: str) -> Path:
    numpy = pytest.importorskip("numpy")
    path.write_bytes(pickle.dumps({"weights": numpy.ones(3), "more": Runs(code)}))
    return path


def converted(source: Path, target: Path, limits: Limits = LIMITS) -> conversion.Made:
    return conversion.convert(conversion.choose(source, run=False), source, target, limits)


def test_a_pickle_that_runs_something_is_converted_and_gets_nowhere(tmp_path: Path, port: int) -> None:
    mark = tmp_path / "mark"
    tries = [
        f"open({str(mark)!r}, 'w')", f"__import__('os').system('touch {mark}')",
        f"__import__('socket').create_connection(('127.0.0.1', {port}))", "__import__('os').fork()",
        "bytearray(50 << 30)",
    ]  # fmt: skip
    code = f"done = []\nfor code in {tries!r}:\n    try:\n        done.append((code, eval(code)))\n"
    code += "    except Exception: pass\n"
    code += "assert [value for _, value in done if value != -1 and value != 32512] == [], done\n"
    source = hostile(tmp_path / "m.pkl", code)
    made = converted(source, tmp_path / "out")
    assert made.files == ["model.safetensors"]
    assert "network: a namespace of its own, with nothing in it" in made.layers or os.getuid()
    assert not mark.exists()
    weights = load(tmp_path / "out" / "model.safetensors").weights
    assert weights["weights"].numpy().tolist() == [1, 1, 1]
    assert conversion.identify(tmp_path / "out" / "model.safetensors").safe


def test_a_fork_bomb_ends_with_its_process(tmp_path: Path) -> None:
    source = hostile(tmp_path / "m.pkl", "import os\nwhile True: os.fork()")
    with pytest.raises(JobFailed, match="not permitted"):
        converted(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_endless_work_is_ended(tmp_path: Path) -> None:
    source = hostile(tmp_path / "m.pkl", "while True: pass")
    with pytest.raises(Exhausted, match=r"4 s"):
        converted(source, tmp_path / "out", Limits(1 << 30, 4, 60, 1 << 20))


def test_a_full_disk_is_not_its_to_make(tmp_path: Path) -> None:
    code = (
        "import os\nn = 0\nwhile True:\n    n += 1\n    open(f\"{os.environ['HOME']}/{n}\", 'wb').write(bytes(1 << 20))"
    )
    with pytest.raises(Exhausted, match="disk"):
        converted(hostile(tmp_path / "m.pkl", code), tmp_path / "out", Limits(1 << 30, 60, 60, 8 << 20))


def test_what_the_process_leaves_is_looked_at_again(tmp_path: Path) -> None:
    """A pickle that writes a pickle of its own, links and strange names beside what it should: all thrown away."""
    code = (
        "import os, sys, pathlib, gc\n"
        "from hivenode.models.apart import Convert\n"
        "frame = sys._getframe()\n"
        "while 'work' not in frame.f_locals: frame = frame.f_back\n"
        "out = pathlib.Path(frame.f_locals['work'].out)\n"
        "(out / 'evil.joblib').write_bytes(b\"cos\\nsystem\\n(S'true'\\ntR.\")\n"
        "(out / 'link.safetensors').symlink_to('/etc/hostname')\n"
        "(out / '.hidden').write_text('x')\n"
        "(out / 'settings.json').write_text('{\"a\": {\"b\": 1}}')\n"
        "(out / 'broken.safetensors').write_bytes(b'\\0' * 64)\n"
        "os.mkfifo(out / 'pipe')\n"
    )
    made = converted(hostile(tmp_path / "m.pkl", code), tmp_path / "out")
    assert made.files == ["model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert sum("thrown away" in note for note in made.notes) == 6
    assert any("os.system" in note for note in made.notes)


def test_a_forged_answer_is_bounded(tmp_path: Path) -> None:
    code = "import os\nos.write(3, b'x' * 100)\nos._exit(0)"
    for descriptor in range(3, 8):
        with pytest.raises(JobFailed, match="without an answer"):
            converted(hostile(tmp_path / "m.pkl", code.replace("3", str(descriptor), 1)), tmp_path / "out")


# what comes of what


def test_nothing_is_run_where_our_readers_can_tell(tmp_path: Path) -> None:
    """A checkpoint with weights and a call beside them: the weights are copied, the call is not made."""
    torch = pytest.importorskip("torch")
    mark = tmp_path / "mark"
    torch.save({"w": torch.arange(4.0), "half": torch.ones(2, dtype=torch.bfloat16),
                "call": Runs(f"open({str(mark)!r}, 'w')")}, tmp_path / "m.pt")  # fmt: skip
    way = conversion.choose(tmp_path / "m.pt", run=False)
    assert not way.run
    with pytest.raises(Refused, match="exec"):
        load(tmp_path / "m.pt")
    conversion.convert(way, tmp_path / "m.pt", tmp_path / "out", LIMITS)
    weights = load(tmp_path / "out" / "model.safetensors").weights
    assert torch.equal(weights["w"].torch(), torch.arange(4.0))
    assert weights["half"].torch().dtype == torch.bfloat16
    assert not mark.exists()


@pytest.mark.slow
def test_a_module_of_somebodys_own_is_run_with_its_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "somebodys.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = torch.nn.Linear(3, 2)\n"
    )
    save = "import sys, torch; import somebodys; torch.manual_seed(0); torch.save(somebodys.Net(), sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", save, str(tmp_path / "m.pt")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "code")},
    )
    source = tmp_path / "m.pt"
    way = conversion.choose(source, run=True)
    assert way.run
    assert any(finding.what == "somebodys.Net" for finding in way.report.findings)
    with pytest.raises(JobFailed, match="somebodys"):
        conversion.convert(way, source, tmp_path / "without", LIMITS)
    conversion.convert(way, source, tmp_path / "out", LIMITS, [tmp_path / "code"])
    copied = conversion.convert(conversion.choose(source, run=False), source, tmp_path / "copied", LIMITS)
    assert copied.files == ["model.safetensors"]
    one, other = (load(tmp_path / name / "model.safetensors").weights for name in ("out", "copied"))
    assert one.keys() == other.keys() == {"a.weight", "a.bias"}
    assert all(torch.equal(one[name].torch(), other[name].torch()) for name in one)


def test_estimators_are_taken_out_of_what_holds_them(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    linear = pytest.importorskip("sklearn.linear_model")
    numpy = pytest.importorskip("numpy")
    model = linear.Ridge().fit(numpy.eye(3), [1, 2, 3])
    joblib.dump({"model": model, "more": Runs("None")}, tmp_path / "m.joblib")
    with pytest.raises(Refused):
        load(tmp_path / "m.joblib")
    made = converted(tmp_path / "m.joblib", tmp_path / "out")
    assert made.files == ["model.joblib"]
    ours = load(tmp_path / "out" / "model.joblib").model
    assert numpy.array_equal(ours.predict(numpy.eye(3)), model.predict(numpy.eye(3)))
    with pytest.raises(Conflict, match="not empty"):
        converted(tmp_path / "m.joblib", tmp_path / "out")


def test_links_in_a_directory_lead_to_its_cache_and_nowhere_else(tmp_path: Path) -> None:
    folder, blobs, secret = tmp_path / "hub" / "snapshots" / "1", tmp_path / "hub" / "blobs", tmp_path / "secret"
    for made in (folder, blobs, secret):
        made.mkdir(parents=True)
    (blobs / "a").write_text("{}")
    (secret / "key").write_text("key")
    for name, target in (("config.json", "../../blobs/a"), ("keys", secret), ("key", secret / "key"), ("all", "/")):
        (folder / name).symlink_to(target)
    assert apart.places(folder, Report()) == [folder, blobs / "a"]


def test_a_worker_loads_behind_the_walls() -> None:
    path = SAMPLES / "transformers" / "llama_sharded"
    answer = apart.run(
        apart.Load(str(path), ["model.layers.0.*"], True), LIMITS, apart.places(path, conversion.identify(path))
    )
    assert len(answer.tensors) == 9
    assert {"files: Landlock", "sockets: seccomp"} <= set(answer.layers)
    refused = SAMPLES / "graphs" / "lambda.keras"
    with pytest.raises(Refused, match="Lambda"):
        apart.run(apart.Load(str(refused), [], True), LIMITS, [refused])

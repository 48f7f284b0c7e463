"""Pickles that would run something, written opcode by opcode. Each leaves a mark behind if it is ever loaded."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from hivenode.models.identify import identify
from tests.models.identify.zips import write_zip


def short(text: str) -> bytes:
    raw = text.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def armed(mark: Path) -> dict[str, bytes]:
    """Pickles that create `mark` when the standard library loads them."""
    command = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w').close()"
    quoted, coded = repr(command).encode(), repr(code).encode()
    p2, p4 = b"\x80\x02", b"\x80\x04"
    framed = short("os") + b"\x94" + short("system") + b"\x94\x93\x94" + short(command) + b"\x94\x85\x94R\x94."
    return {
        "os.system, protocol 0": b"cos\nsystem\n(S" + quoted + b"\ntR.",
        "os.system, protocol 2": p2 + b"cos\nsystem\nX" + struct.pack("<I", len(command)) + command.encode()
            + b"\x85R.",
        "os.system, protocol 4": p4 + short("os") + short("system") + b"\x93" + short(command) + b"\x85R.",
        "posix.system": b"cposix\nsystem\n(S" + quoted + b"\ntR.",
        "subprocess.call": p4 + short("subprocess") + short("call") + b"\x93]" + b"".join(
            short(word) + b"a" for word in command.split()) + b"\x85R.",
        "builtins.eval": b"cbuiltins\neval\n(S" + coded + b"\ntR.",
        "builtins.exec": b"c__builtin__\nexec\n(S" + coded + b"\ntR.",
        "INST": b"(S" + quoted + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS" + quoted + b"\no.",
        "NEWOBJ": p4 + short("builtins") + short("bytes") + b"\x93" + short("builtins") + short("map") + b"\x93"
            + short("os") + short("system") + b"\x93](" + short(command) + b"e\x86\x81\x85\x81.",
        "NEWOBJ_EX": p4 + short("builtins") + short("bytes") + b"\x93" + short("builtins") + short("map") + b"\x93"
            + short("os") + short("system") + b"\x93](" + short(command) + b"e\x86}\x92\x85}\x92.",
        "name out of the memo": p4 + short("system") + b"\x94" + short("os") + b"\x940" + b"0" + b"h\x01h\x00\x93"
            + short(command) + b"\x85R.",
        "name put together by text opcodes": b"Vsystem\np5\n0Vos\np6\n0g6\ng5\n\x93S" + quoted + b"\n\x85R.",
        "a dotted name": p4 + short("shutil") + short("os.system") + b"\x93" + short(command) + b"\x85R.",
        "getattr on a module": p4 + short("builtins") + short("getattr") + b"\x93" + short("importlib")
            + short("import_module") + b"\x93" + short("os") + b"\x85R" + short("system") + b"\x86R" + short(command)
            + b"\x85R.",
        "a map over a callable": p4 + short("builtins") + short("list") + b"\x93" + short("builtins") + short("map")
            + b"\x93" + short("os") + short("system") + b"\x93" + b"](" + short(command) + b"e\x86R\x85R.",
        "functools.partial": p4 + short("functools") + short("partial") + b"\x93" + short("os") + short("system")
            + b"\x93" + short(command) + b"\x86R)R.",
        "operator.methodcaller": p4 + short("operator") + short("methodcaller") + b"\x93" + short("touch") + b"\x85R"
            + short("pathlib") + short("PosixPath") + b"\x93" + short(str(mark)) + b"\x85R\x85R.",
        "a pickle in a pickle": p4 + short("pickle") + short("loads") + b"\x93" + _bytes(
            b"cos\nsystem\n(S" + quoted + b"\ntR.") + b"\x85R.",
        "thrown away, and a harmless value on top": b"cos\nsystem\n(S" + quoted + b"\ntR0}.",
        "inside a frame": p4 + b"\x95" + struct.pack("<Q", len(framed)) + framed,
    }  # fmt: skip


def inert() -> dict[str, bytes]:
    """Pickles that do nothing here, and would where the named package is: as a scanner has to see them."""
    named = [
        "torch.storage._load_from_bytes", "torch.serialization.load", "torch.hub.load", "torch.load",
        "torch._utils.os.system", "torch.serialization.os.system", "torch.jit.unsupported_tensor_ops.execWrapper",
        "torch.distributed.rpc.internal._run_function", "torch.utils.collect_env.run",
        "torch.utils.bottleneck.__main__.run_cprofile", "torch.fx.graph_module._forward_from_src",
        "torch.nn.modules.module.Module.load_state_dict", "torch.nn.modules.linear.os.system",
        "numpy.load", "numpy.testing._private.utils.runstring", "numpy.f2py.crackfortran.myeval",
        "numpy.distutils.exec",
        "numpy.core.multiarray.os", "joblib.load", "pandas.read_pickle", "pip._internal.main", "pip.main",
        "runpy._run_code", "runpy.run_path", "pty.spawn", "code.InteractiveInterpreter", "ctypes.CDLL",
        "timeit.timeit",
        "cProfile.runctx", "profile.run", "bdb.Bdb.run", "pdb.run", "trace.Trace.run", "doctest.debug_script",
        "asyncio.unix_events._UnixSubprocessTransport._start", "webbrowser.open", "http.client.HTTPSConnection",
        "urllib.request.urlretrieve", "socket.create_connection", "shutil.rmtree", "os.remove", "distutils.file_util.x",
        "ensurepip._run_pip", "lib2to3.pgen2.pgen.ParserGenerator", "idlelib.pyshell.ModifiedInterpreter.runcommand",
        "types.FunctionType", "types.CodeType", "marshal.loads", "importlib.import_module", "builtins.__import__",
        "builtins.open", "builtins.compile", "builtins.breakpoint", "builtins.help", "builtins.getattr",
        "builtins.type.__subclasses__", "operator.attrgetter", "operator.itemgetter", "functools.reduce", "sys.exit",
        "collections.OrderedDict.fromkeys", "collections.abc.os", "copyreg.add_extension", "nt.system",
        "commands.getoutput",
        "keras.models.load_model", "tensorflow.io.write_file", "sklearn.utils._joblib.os", "argparse.FileType",
        "pathlib.Path.unlink", "logging.config.listen", "multiprocessing.util.spawnv_passfds",
        "test.support.script_helper",
    ]  # fmt: skip
    made = {}
    for name in named:
        module, _, last = name.rpartition(".")
        made[name] = b"\x80\x04" + short(module) + short(last) + b"\x93" + short("x") + b"\x85R."
        made[f"{name} as text"] = f"c{module}\n{last}\n".encode() + b"(S'x'\ntR."
    made["a dotted name that adds up to an allowed one"] = (
        b"\x80\x04" + short("torch") + short("_utils._rebuild_tensor_v2") + b"\x93" + b")R."
    )
    made["a computed name"] = (
        b"\x80\x04" + short("builtins") + short("str") + b"\x93" + short("os") + b"\x85R" + short("system") + b"\x93)R."
    )
    made["an extension code"] = b"\x80\x02\x82\x01)R."
    made["a long extension code"] = b"\x80\x02\x84\x01\x02\x03\x00)R."
    made["attributes of a class are set"] = b"\x80\x02ccollections\nOrderedDict\n}X\x04\0\0\0evilK\x01sb."
    made["a call of what a call returned"] = b"\x80\x02ccollections\nOrderedDict\n)R)R."
    made["a call of a string"] = b"\x80\x02X\x02\0\0\0os)R."
    made["a second state"] = b"\x80\x02ccollections\nOrderedDict\n)R}b}b."
    made["a codec that is none"] = b"\x80\x02c_codecs\nencode\nX\x01\0\0\0xX\x03\0\0\0hex\x86R."
    return made


def _bytes(raw: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(raw)) + raw


Container = Callable[[Path, bytes], Path]


def torch_zip(folder: Path, payload: bytes) -> Path:
    return write_zip(folder / "model.pt", {"model/data.pkl": payload, "model/version": b"3\n"})


def torch_zip_deflated(folder: Path, payload: bytes) -> Path:
    return write_zip(folder / "m.ckpt", {"m/data.pkl": payload, "m/version": b"3\n"}, method=zipfile.ZIP_DEFLATED)


def torch_legacy(folder: Path, payload: bytes) -> Path:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path = folder / "legacy.pth"
    path.write_bytes(head + payload + pickle.dumps([], 2))
    return path


def torch_legacy_keys(folder: Path, payload: bytes) -> Path:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path = folder / "keys.pth"
    path.write_bytes(head + pickle.dumps({}, 2) + payload)
    return path


def scripted(folder: Path, payload: bytes) -> Path:
    return write_zip(folder / "s.pt", {"s/data.pkl": b"\x80\x02}.", "s/constants.pkl": payload, "s/version": b"3"})


def exported(folder: Path, payload: bytes) -> Path:
    """A harmless graph whose sample inputs are a pickle, which torch.export.load loads."""
    inner = torch_zip(folder, payload).read_bytes()
    graph = b'{"graph_module": {"graph": {"nodes": []}, "signature": {}}}'
    parts = {"e/models/model.json": graph, "e/data/sample_inputs/model.pt": inner, "e/archive_format": b"pt2"}
    return write_zip(folder / "e.pt2", parts)


def distributed(folder: Path, payload: bytes) -> Path:
    place = folder / "dcp"
    place.mkdir(exist_ok=True)
    (place / ".metadata").write_bytes(payload)
    (place / "__0_0.distcp").write_bytes(b"")
    return place


def beside_safetensors(folder: Path, payload: bytes) -> Path:
    """Harmless weights in the file that is preferred, and a pickle in the one that other loaders take."""
    place = folder / "hub"
    place.mkdir(exist_ok=True)
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    (place / "config.json").write_text('{"model_type": "bert"}')
    torch_zip(place, payload).rename(place / "pytorch_model.bin")
    return place


def renamed(folder: Path, payload: bytes) -> Path:
    path = torch_zip(folder, payload)
    return path.rename(folder / "model.safetensors")


CONTAINERS: dict[str, Container] = {
    made.__name__: made
    for made in (
        torch_zip, torch_zip_deflated, torch_legacy, torch_legacy_keys, scripted, exported, distributed,
        beside_safetensors, renamed,
    )
}  # fmt: skip


def refused(path: Path) -> bool:
    """Whether a file is called unsafe with a finding, or cannot be read."""
    report = identify(path)
    if report.error is not None:
        return report.safe is not True
    return report.safe is False and bool(report.findings)

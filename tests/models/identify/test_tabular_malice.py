"""Files of estimators and agents made to run something: each is called unsafe or refused, and none has any effect."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from hivenode.models.identify import identify
from tests.models.identify.pickle_payloads import armed, inert, refused, short
from tests.models.identify.zips import write_zip

SAMPLES = Path(__file__).parents[1] / "samples"
ARMED = sorted(armed(Path("mark")))
INERT = sorted(inert())


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def plain(folder: Path, payload: bytes) -> Path:
    return written(folder / "model.pkl", payload)


def behind_a_harmless_one(folder: Path, payload: bytes) -> Path:
    return written(folder / "model.pkl", pickle.dumps({"a": 1}) + payload)


def packed(folder: Path, payload: bytes) -> Path:
    return written(folder / "model.joblib", zlib.compress(payload))


def packed_twice(folder: Path, payload: bytes) -> Path:
    """Two members, which gzip reads as one."""
    return written(folder / "m.joblib.gz", gzip.compress(payload[:3]) + gzip.compress(payload[3:]))


def in_an_attribute(folder: Path, payload: bytes) -> Path:
    """An estimator one of whose attributes is made by the payload, which lies in the stream with all its opcodes."""
    body = payload[2:] if payload[:1] == b"\x80" else payload
    estimator = b"csklearn.linear_model._base\nLinearRegression\n)\x81}X\x05\0\0\0coef_" + body[:-1] + b"sb."
    return written(folder / "m.pkl", b"\x80\x04" + estimator)


def object_array(payload: bytes) -> bytes:
    """An array of objects as joblib writes it, whose numbers are a pickle of their own: the payload."""
    raw = io.BytesIO()
    joblib.dump(np.array([None, "a"], dtype=object), raw)
    data = raw.getvalue()
    at = data.index(pickle.dumps(np.array([None, "a"], dtype=object), 5))
    return data[:at] + payload + b"."  # the STOP of the outer pickle


def in_joblib(folder: Path, payload: bytes) -> Path:
    return written(folder / "labels.joblib", object_array(payload))


def in_joblib_packed(folder: Path, payload: bytes) -> Path:
    return written(folder / "labels.joblib", gzip.compress(object_array(payload)))


def objects(payload: bytes) -> bytes:
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return raw.getvalue() + payload


def in_npy(folder: Path, payload: bytes) -> Path:
    return written(folder / "q_table.npy", objects(payload))


def in_npz(folder: Path, payload: bytes) -> Path:
    harmless = io.BytesIO()
    np.save(harmless, np.zeros((9, 2)))
    return write_zip(folder / "q_table.npz", {"q_table.npy": harmless.getvalue(), "names.npy": objects(payload)})


def agent(folder: Path, change: Callable[[dict[str, Any]], None], **entries: bytes) -> Path:
    """The agent of the samples with other settings or entries."""
    with zipfile.ZipFile(SAMPLES / "agents" / "sb3_ppo.zip") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    settings = json.loads(held["data"])
    change(settings)
    held["data"] = json.dumps(settings).encode()
    held |= {name.replace("__", "."): data for name, data in entries.items()}
    return write_zip(folder / "agent.zip", held)


def in_a_setting(folder: Path, payload: bytes) -> Path:
    def change(settings: dict[str, Any]) -> None:
        settings["clip_range"][":serialized:"] = base64.b64encode(payload).decode()

    return agent(folder, change)


def in_a_setting_of_a_setting(folder: Path, payload: bytes) -> Path:
    def change(settings: dict[str, Any]) -> None:
        settings["policy_kwargs"]["deep"] = [{":serialized:": base64.b64encode(payload).decode()}]

    return agent(folder, change)


def in_the_policy(folder: Path, payload: bytes) -> Path:
    inner = write_zip(folder / "inner.pth", {"policy/data.pkl": payload, "policy/version": b"3\n"}).read_bytes()
    return agent(folder, lambda _: None, policy__pth=inner)


def as_the_policy(folder: Path, payload: bytes) -> Path:
    return agent(folder, lambda _: None, policy__pth=payload)


def beside_the_policy(folder: Path, payload: bytes) -> Path:
    return agent(folder, lambda _: None, extra__pkl=payload)


def in_tabnet(folder: Path, payload: bytes) -> Path:
    inner = write_zip(folder / "inner.pt", {"n/data.pkl": payload, "n/version": b"3\n"}).read_bytes()
    parts = {"model_params.json": b'{"init_params": {"input_dim": 4}}', "network.pt": inner}
    return write_zip(folder / "tabnet.zip", parts, method=zipfile.ZIP_DEFLATED)


def in_a_detector(folder: Path, payload: bytes) -> Path:
    mark = b"X\x14\0\0\0ultralytics.nn.tasks0"
    body = payload[2:] if payload[:1] == b"\x80" else payload
    return write_zip(folder / "yolo.pt", {"y/data.pkl": b"\x80\x04" + mark + body, "y/version": b"3\n"})


CONTAINERS = {
    made.__name__: made
    for made in (
        plain, behind_a_harmless_one, packed, packed_twice, in_an_attribute, in_joblib, in_joblib_packed, in_npy,
        in_npz, in_a_setting, in_a_setting_of_a_setting, in_the_policy, as_the_policy, beside_the_policy, in_tabnet,
        in_a_detector,
    )
}  # fmt: skip


@pytest.mark.parametrize("container", sorted(CONTAINERS))
@pytest.mark.parametrize("name", ARMED)
def test_an_armed_pickle_is_refused_and_does_nothing(name: str, container: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = CONTAINERS[container](tmp_path, armed(mark)[name])
    assert refused(path)
    assert not mark.exists()


@pytest.mark.parametrize("container", ["plain", "in_joblib", "in_a_setting"])
@pytest.mark.parametrize("name", INERT)
def test_what_a_foreign_package_would_do_is_refused(name: str, container: str, tmp_path: Path) -> None:
    assert refused(CONTAINERS[container](tmp_path, inert()[name]))


def zipped(payload: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("m/data.pkl", payload)
        archive.writestr("m/version", b"3")
    return raw.getvalue()


def wrapped_in_bytes(payload: bytes) -> bytes:
    return pickle.dumps({"a": 1}) + zipped(payload)


POLYGLOTS: dict[str, Callable[[bytes], bytes]] = {
    "a zip in gzip": lambda payload: gzip.compress(zipped(payload)),
    "a zip in joblib's zlib": lambda payload: zlib.compress(zipped(payload)),
    "a zip in a zip in gzip": lambda payload: gzip.compress(zipped(zipped(payload))),
    "a pickle, then a zip": wrapped_in_bytes,
    "a zip, then a pickle": lambda payload: zipped(b"\x80\x02}.") + payload,
    "a zip, then a zip": lambda payload: zipped(b"\x80\x02}.") + zipped(payload),
    "a zip with a comment": lambda payload: zipped(b"\x80\x02}.")[:-2] + struct.pack("<H", len(payload)) + payload,
    "a program, then a zip": lambda payload: b"\x7fELF" + bytes(60) + zipped(payload),
    "a picture, then a zip": lambda payload: b"\x89PNG\r\n\x1a\n" + bytes(60) + zipped(payload),
    "tensors, then a zip": lambda payload: struct.pack("<Q", 2) + b"{}" + zipped(payload),
    "GGUF, then a zip": lambda payload: b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8) + zipped(payload)[:-9],
    "NPY, then a pickle": lambda payload: objects(b"")[:-1] + b"\n" + payload,
    "a table of LightGBM, then a pickle": lambda payload: (
        (SAMPLES / "tabular" / "lightgbm_binary.txt").read_bytes() + payload),
    "a booster of XGBoost, then a pickle": lambda payload: (
        (SAMPLES / "tabular" / "xgb_classifier.ubj").read_bytes() + payload),
    "JSON of XGBoost, then a pickle": lambda payload: (
        (SAMPLES / "tabular" / "xgb_classifier.json").read_bytes() + payload),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".joblib", ".safetensors"])
@pytest.mark.parametrize("kind", sorted(POLYGLOTS))
def test_a_file_that_is_two_things_is_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    payload = armed(tmp_path / "mark")["os.system, protocol 4"]
    assert refused(written(tmp_path / f"model{suffix}", POLYGLOTS[kind](payload)))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("container", ["plain", "packed", "packed_twice", "in_joblib", "in_joblib_packed", "in_npy"])
def test_the_containers_are_real(container: str, tmp_path: Path) -> None:
    """Loaded by their own libraries, in a process of their own, they do what they were made for."""
    mark = tmp_path / "mark"
    path = CONTAINERS[container](tmp_path, armed(mark)["os.system, protocol 4"])
    loaders = {".npy": "numpy.load(p, allow_pickle=True)", ".gz": "pickle.load(gzip.open(p))"}
    load = "import gzip, joblib, numpy, pickle, sys; p = sys.argv[1]; " + loaders.get(path.suffix, "joblib.load(p)")
    subprocess.run([sys.executable, "-c", load, str(path)], check=False, capture_output=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "sklearn.utils._testing.ignore_warnings", "sklearn.datasets.fetch_openml", "sklearn.externals._arff.load",
        "sklearn.utils.fixes.threadpool_limits", "sklearn.ensemble._forest.threading", "xgboost.core.ctypes",
        "xgboost.core._load_lib", "lightgbm.basic._safe_call", "lightgbm.libpath.find_lib_path",
        "joblib.numpy_pickle.load",
        "joblib.parallel.Parallel", "joblib.memory.Memory", "joblib.numpy_pickle.NDArrayWrapper", "numpy.memmap",
        "numpy.fromfile", "numpy.vectorize", "numpy.core.multiarray.fromfile", "scipy.io.loadmat",
        "sklearn.tree._tree.os", "cloudpickle.cloudpickle._make_function", "cloudpickle.cloudpickle._builtin_type",
        "stable_baselines3.common.save_util.load_from_zip_file", "catboost.core.CatBoost.load_model",
        "sklearn.preprocessing._function_transformer.partial", "pandas.io.pickle.read_pickle",
        "dill._dill._create_type",
    ],
)  # fmt: skip
def test_names_beside_the_allowed_ones_are_refused(name: str, tmp_path: Path) -> None:
    module, _, last = name.rpartition(".")
    path = written(tmp_path / "m.pkl", b"\x80\x04" + short(module) + short(last) + b"\x93" + short("x") + b"\x85R.")
    assert [finding.what for finding in identify(path).findings] == [name]


def call(name: str, *arguments: bytes) -> bytes:
    module, _, last = name.rpartition(".")
    return b"\x80\x04" + short(module) + short(last) + b"\x93(" + b"".join(arguments) + b"tR."


@pytest.mark.parametrize(
    "payload",
    [
        call("xgboost.core.Booster", b"}", b")", short("/etc/passwd")),
        call("lightgbm.basic.Booster", b"}", b"N", short("/etc/passwd")),
        call("copyreg._reconstructor", b"cxgboost.core\nBooster\n", b"cxgboost.core\nBooster\n", short("/etc/passwd")),
        call("_codecs.encode", short("x"), short("zlib")),
        b"\x80\x04" + short("sklearn") + short("linear_model._base.LinearRegression") + b"\x93)\x81.",
        b"\x80\x04Vpersistent\nQ.",
        b"\x80\x05\x97.",
        pickle.dumps({"a": 1}) + b"PK\x03\x04 something else",
        zlib.compress(pickle.dumps([1])) + b"cos\nsystem\n",
        b"\x80\x04ccollections\ndefaultdict\ncfunctools\npartial\n\x85R.",
    ],
)
def test_allowed_names_in_uses_that_are_not_theirs_are_refused(payload: bytes, tmp_path: Path) -> None:
    assert refused(written(tmp_path / "m.pkl", payload))


def wrapper(shape: bytes, dtype: bytes, order: bytes = short("C"), more: bytes = b"") -> bytes:
    """joblib's marker of an array, with what a test wants to be in it."""
    return (
        b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}("
        + short("subclass") + b"cnumpy\nndarray\n" + short("shape") + shape + short("order") + order
        + short("dtype") + dtype + short("allow_mmap") + b"\x88" + more + b"ub"
    )  # fmt: skip


def dtype(spelt: str, state: bytes) -> bytes:
    return b"cnumpy\ndtype\n(" + short(spelt) + b"\x89\x88tR" + state + b"b"


FLOAT = dtype("f8", b"(K\x03" + short("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t")
HUGE = b"\x8a\x09" + (1 << 62).to_bytes(9, "little")


@pytest.mark.parametrize(
    "payload",
    [
        wrapper(b"K\x02\x85", dtype("f8", b"(K\x03" + short("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x01t")),
        wrapper(b"K\x02\x85", dtype("V4", b"(K\x03" + short("|") + b"NNNK\x08K\x01K\0t")),
        wrapper(b"K\x02\x85", dtype("V8", b"(K\x03" + short("|") + b"N)}K\x08K\x01K\x01t")),
        wrapper(HUGE + b"\x85", FLOAT),
        wrapper(b"(" + HUGE * 2 + b"t", FLOAT),
        wrapper(b"J\xff\xff\xff\xff\x85", FLOAT),
        wrapper(b"M\xff\xff\x85", FLOAT),
        wrapper(b"]", FLOAT),
        wrapper(b"K\x02\x85", short("f8")),
        wrapper(b"K\x02\x85", FLOAT, short("A")),
        wrapper(b"K\x02\x85", FLOAT, more=short("numpy_array_alignment_bytes") + b"K\x10"),
        call("numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", b"K\0\x85", b"C\x01b")[:-1]
        + b"(K\x01K\x09\x85" + FLOAT + b"\x89C\x04abcdtb.",
    ],
)  # fmt: skip
def test_arrays_that_lie_are_refused(payload: bytes, tmp_path: Path) -> None:
    """Two sizes, numbers that are objects after all, shapes beyond the file: loaders and scanners would disagree."""
    path = written(tmp_path / "m.joblib", payload + bytes(16) + b".")
    report = identify(path)
    assert report.error is not None
    assert report.error.code == "corrupted"
    assert report.safe is None


def test_pickles_in_pickles_end_somewhere(tmp_path: Path) -> None:
    payload = pickle.dumps(None)
    for _ in range(40):
        payload = object_array(payload)
    assert refused(written(tmp_path / "m.joblib", payload))


def test_a_bomb_of_joblib_is_put_out(tmp_path: Path) -> None:
    machine = zlib.compressobj(9)
    raw = wrapper(HUGE[:2] + (1 << 31).to_bytes(9, "little") + b"\x85", FLOAT)
    head = machine.compress(raw) + machine.flush(zlib.Z_FULL_FLUSH)
    zeros = machine.compress(bytes(8 << 20)) + machine.flush(zlib.Z_FULL_FLUSH)
    data = head + zeros * 150
    path = written(tmp_path / "m.joblib", data)
    assert len(data) < 4 << 20
    tracemalloc.start()
    report = identify(path)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert report.error is not None
    assert report.error.code == "exhausted"


@pytest.mark.parametrize(
    ("place", "node"),
    [
        ("func", {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1}),
        ("func", {"__class__": "log1p", "__module__": "numpy", "__loader__": "FunctionNode", "__id__": 1,
                  "content": {"module_path": "os", "function": "system"}}),
        ("func", {"__class__": "partial", "__module__": "functools", "__loader__": "PartialNode", "__id__": 1}),
        ("func", {"__class__": "attrgetter", "__module__": "operator", "__loader__": "OperatorFuncNode"}),
        ("func", {"__class__": "Ridge", "__module__": "sklearn.linear_model._ridge", "__loader__": "MethodNode"}),
        ("func", {"__class__": "Booster", "__module__": "xgboost.core", "__loader__": "TreeNode"}),
        ("func", {"__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode", "type": "numpy",
                  "file": "../../etc/passwd"}),
        ("hidden", [{"deep": {"__class__": "system", "__module__": "os", "__loader__": "TypeNode"}}]),
        ("odd", {"__class__": "list", "__module__": "builtins", "__loader__": ["ListNode"]}),
        ("odd", {"__class__": ["list"], "__module__": {"a": 1}, "__loader__": "ListNode"}),
    ],
)  # fmt: skip
def test_skops_that_names_code_is_refused(place: str, node: object, tmp_path: Path) -> None:
    schema = {
        "__class__": "FunctionTransformer", "__module__": "sklearn.preprocessing._function_transformer",
        "__loader__": "ObjectNode", "protocol": 2, "_skops_version": "0.16",
        "content": {"__class__": "dict", "__module__": "builtins", "__loader__": "DictNode", "content": {place: node}},
    }  # fmt: skip
    assert refused(write_zip(tmp_path / "m.skops", {"schema.json": json.dumps(schema).encode()}))


def test_an_array_of_objects_in_skops_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(SAMPLES / "tabular" / "pipeline.skops") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    array = next(name for name in held if name.endswith(".npy"))
    held[array] = objects(b"cos\nsystem\n(S'true'\ntR.")
    assert refused(write_zip(tmp_path / "m.skops", held))


@pytest.mark.parametrize(
    "data",
    [
        b"{L" + struct.pack(">q", 7) + b"learner{" * 50_000,
        b"{L" + struct.pack(">q", 7) + b"learner[#L" + struct.pack(">q", 1 << 62),
        b"{L" + struct.pack(">q", 7) + b"learner[$Z#L" + struct.pack(">q", 1 << 30),
        b"{L" + struct.pack(">q", 7) + b"learner[$d#L" + struct.pack(">q", 1 << 50),
        b"{L" + struct.pack(">q", 7) + b"learner{" + b"N" * 100_000,
        b"{L" + struct.pack(">q", -7) + b"learner{}",
        b"binf" + bytes(136) + struct.pack("<Q", 1 << 60) + bytes(300),
        b"binf" + bytes(136) + struct.pack("<Q", 3) + b"reg" + struct.pack("<Q", 6) + b"gbtree" + b"\xff" * 900,
        b'{"learner":{"gradient_booster":' + b'{"a":' * 100_000 + b"}" * 100_000,
        b"tree\nversion=v4\nnum_class=1\ntree_sizes=" + b"9" * 40 + b"\n\nTree=0\n",
        b"tree\nversion=v4\nnum_class=1\n" + b"x" * 100_000,
        b"CBM1\xff\xff\xff\x7f" + bytes(50),
        b"CBM1\x10\0\0\0" + b"\xff" * 16,
        b"\x93NUMPY\x01\0\xff\xff{'descr': '<f8'",
        b"\x93NUMPY\x02\0\xff\xff\xff\xff{",
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(data: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "model", data)
    tracemalloc.start()
    report = identify(path)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert report.error is not None
    assert report.error.code in {"corrupted", "exhausted"}


def test_an_array_whose_header_runs_code_does_not(tmp_path: Path) -> None:
    header = b"{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1,), }\n"
    data = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(8)
    report = identify(written(tmp_path / "m.npy", data))
    assert report.error is not None
    assert report.safe is None


def test_an_estimator_that_is_harmless_stays_safe(tmp_path: Path) -> None:
    """The counterpart: the containers themselves are not what is refused."""
    estimator = pickle.dumps(LinearRegression().fit(np.eye(3), np.ones(3)), 4)
    for container in (plain, packed, packed_twice, in_joblib, in_npy):
        assert identify(container(tmp_path, estimator)).safe is True, container.__name__
    assert identify(agent(tmp_path, lambda _: None)).safe is True

"""Files made to mislead: each is unsafe or refused, in bounded time, and nothing in it has any effect."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hivenode.models.identify import identify
from hivenode.models.identify.report import Report
from tests.models.identify.graph_builders import (
    field,
    gguf,
    gguf_tensor,
    gguf_text,
    message,
    onnx_model,
    onnx_node,
    onnx_tensor,
    varint,
)

SAMPLES = Path(__file__).parents[1] / "samples" / "graphs"


def look(tmp_path: Path, data: bytes, name: str = "model") -> Report:
    path = tmp_path / name
    path.write_bytes(data)
    return identify(path)


def refused(report: Report) -> bool:
    return report.safe is None and report.error is not None and report.error.code in ("corrupted", "exhausted")


# -- ONNX


@pytest.mark.parametrize(
    "location",
    [
        "../weights.bin",
        "/etc/passwd",
        "a/../../weights.bin",
        "..\\weights.bin",
        "C:weights.bin",
        "*/_ORT_MEM_ADDR_/*",
        "",
        ".",
    ],
)
def test_external_data_may_not_leave_the_directory(tmp_path: Path, location: str) -> None:
    tensor = onnx_tensor("w", [2], None, external={"location": location})
    report = look(tmp_path, onnx_model((5, tensor)))
    assert report.safe is False
    assert report.findings[0].what == location


def test_external_data_may_not_leave_over_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"\0" * 8)
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "weights.bin").symlink_to(tmp_path / "outside")
    (inside / "m.onnx").write_bytes(onnx_model((5, onnx_tensor("w", [2], None, external={"location": "weights.bin"}))))
    report = identify(inside / "m.onnx")
    assert report.safe is False
    assert "out of" in report.findings[0].why


@pytest.mark.parametrize(
    "external",
    [{"offset": "-1"}, {"offset": "x"}, {"offset": "9" * 30}, {"length": "7"}, {"offset": "1"}],
)
def test_numbers_of_external_data_are_checked(tmp_path: Path, external: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    report = look(tmp_path, onnx_model((5, onnx_tensor("w", [2], None, external={"location": "w.bin", **external}))))
    assert refused(report)


@pytest.mark.parametrize(
    ("domain", "op"),
    [
        ("", "PyOp"),
        ("com.microsoft", "PythonOp"),
        ("com.microsoft", "EPContext"),
        ("ai.onnx.contrib", "PyCustomOp"),
        ("", "ATen"),
    ],
)
def test_operators_outside_the_list_are_named(tmp_path: Path, domain: str, op: str) -> None:
    report = look(tmp_path, onnx_model((1, onnx_node(op, [], ["y"], domain=domain))))
    assert report.safe is False
    assert report.findings[0].what.endswith(f"::{op}")
    assert "byte" in report.findings[0].where


def test_an_operator_hidden_in_a_branch_of_a_branch_is_named(tmp_path: Path) -> None:
    graph = message((1, onnx_node("Evil", [], [], domain="x")))
    for _ in range(10):
        graph = message((1, onnx_node("If", ["c"], ["y"], attributes=[message((1, "then_branch"), (6, graph))])))
    report = look(tmp_path, message((1, 9), (2, "t"), (7, graph)))
    assert [finding.what for finding in report.findings] == ["x::Evil"]


def test_an_operator_in_a_second_graph_field_is_named(tmp_path: Path) -> None:
    second = field(7, message((1, onnx_node("Evil", [], [], domain="x"))))
    report = look(tmp_path, onnx_model((1, onnx_node("Relu", ["x"], ["y"])), more=second))
    assert report.safe is False


def test_a_function_may_not_pose_as_a_standard_operator(tmp_path: Path) -> None:
    function = field(25, message((1, "Relu"), (7, onnx_node("Abs", ["a"], ["b"])), (10, "")))
    assert look(tmp_path, onnx_model((1, onnx_node("Relu", ["x"], ["y"])), more=function)).safe is False


@pytest.mark.parametrize(
    "tensor",
    [
        onnx_tensor("w", [1 << 40, 1 << 40], b""),
        onnx_tensor("w", [(1 << 64) - 1], b""),
        onnx_tensor("w", [1 << 50], None),
        onnx_tensor("w", [1 << 61], b"\0" * 8),
        onnx_tensor("w", [2], b"\0" * 9),
        onnx_tensor("w", [2], b"\0" * 8, dtype=99),
        message((2, 1), (8, "w"), (1, b"\x01" * 65)),
        message((2, 1), (8, "w"), (1, b"\xff" * 3)),
    ],
    ids=["overflow", "negative", "no bytes", "too few", "too many", "dtype", "axes", "cut number"],
)
def test_shapes_must_fit_their_bytes(tmp_path: Path, tensor: bytes) -> None:
    assert refused(look(tmp_path, onnx_model((5, tensor))))


@pytest.mark.parametrize(
    "tail",
    [
        b"\x3a" + b"\xff" * 10 + b"\x01",
        b"\x3a" + b"\xff" * 11,
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x0a",
        b"\x3a\x04\x0a\xff\xff\xff",
        b"\x3a\x04\x12\x00\x0b\x00",
        b"\x3a\x02\x0a\x7f",
    ],
)
def test_absurd_numbers_are_refused(tmp_path: Path, tail: bytes) -> None:
    report = look(tmp_path, b"\x08\x09\x12\x01t" + tail)
    assert refused(report)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(2000):
        graph = message((1, onnx_node("If", ["c"], ["y"], attributes=[message((1, "b"), (6, graph))])))
    assert refused(look(tmp_path, message((1, 9), (2, "t"), (7, graph))))


def test_millions_of_empty_fields_are_refused(tmp_path: Path) -> None:
    report = look(tmp_path, message((1, 9), (2, "t"), (7, b"\x0a\x00" * 4_000_000)))
    assert refused(report)


# -- GGUF


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<I", kind) + raw


def array(kind: int, length: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + raw


def nested(depth: int) -> bytes:
    raw = array(0, 0)
    for _ in range(depth):
        raw = array(9, 1, raw)
    return raw


@pytest.mark.parametrize(
    "data",
    [
        gguf(count=1 << 60),
        gguf(tensor_count=1 << 60),
        gguf(pair("a", 9, array(8, 1 << 60)), 1),
        gguf(pair("a", 9, array(10, 1 << 61)), 1),
        gguf(pair("a", 9, nested(64)), 1),
        gguf(pair("a", 9, array(77, 1)), 1),
        gguf(pair("a", 99, b""), 1),
        gguf(gguf_text("a" * 70000) + b"\0" * 8, 1),
        gguf(struct.pack("<Q", (1 << 64) - 1), 1),
        gguf(pair("a", 0, b"\1") * 2, 2),
        gguf(pair("general.alignment", 4, struct.pack("<I", 0)), 1, gguf_tensor("t", (1,), 0, 0), 1, b"\0" * 64),
        gguf(pair("general.alignment", 4, struct.pack("<I", 3)), 1),
        gguf(tensors=gguf_tensor("t", (1 << 62,), 0, 0), tensor_count=1, data=b"\0" * 64),
        gguf(tensors=gguf_tensor("t", (1 << 40, 1 << 40), 0, 0), tensor_count=1, data=b"\0" * 64),
        gguf(tensors=gguf_tensor("t", (8,), 0, 1 << 63), tensor_count=1, data=b"\0" * 64),
        gguf(tensors=gguf_tensor("t", (8,), 1234, 0), tensor_count=1, data=b"\0" * 64),
        gguf(tensors=gguf_tensor("t", (8,), 2, 0), tensor_count=1, data=b"\0" * 64),
        gguf(tensors=gguf_tensor("a", (16,), 0, 0) + gguf_tensor("b", (8,), 0, 32), tensor_count=2, data=b"\0" * 64),
        gguf(tensors=gguf_tensor("a", (8,), 0, 0) * 2, tensor_count=2, data=b"\0" * 64),
        gguf(version=4),
    ],
)
def test_gguf_that_lies_is_refused(tmp_path: Path, data: bytes) -> None:
    assert refused(look(tmp_path, data))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{% for part in ''.__class__.__mro__ %}{% endfor %}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ messages | attr('items') }}",
        "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}",
        "{{ ''['_' * 2 ~ 'class' ~ '_' * 2] }}",
        "{{ '{0.real}'.format(1) }}",
        "{{ '%c%c' % (95, 95) }}",
        "{%- include 'secrets' -%}",
        "{# harmless #}{{ lipsum",
        "{{ '}}' ~ cycler.next }}",
        "{% if '%}' ~ lipsum %}{% endif %}",
        '{{ {"a": {}} ~ self }}',
        "{{ 1.__class__ }}",
        """{% raw %}{{ " {% endraw %}{{ joiner }}{# " #}""",
        "{# never closed",
        "{% raw %} never closed",
        "{{ messages",
        "{{ messages }}" + " " * (1 << 20),
    ],
)
def test_a_template_that_reaches_for_more_is_unsafe_wherever_it_is(tmp_path: Path, attack: str) -> None:
    report = look(tmp_path, gguf(pair("tokenizer.chat_template.tool_use", 8, gguf_text(attack)), 1))
    assert report.safe is False
    assert [finding.severity for finding in report.findings] == ["danger"]
    assert report.findings[0].what == "tokenizer.chat_template.tool_use"


@pytest.mark.parametrize("part", ["{#", "{{ \"\\\\'", "{{'", "{{ '{.", "{% raw %}", "{{ (", "{%- raw -"])
def test_a_template_made_to_take_time_is_through_at_once(tmp_path: Path, part: str) -> None:
    """A search that begins anew at each of these would take hours: the test would not end."""
    template = part + "\\'" * 100_000 + (part * 300_000)[:800_000]
    assert look(tmp_path, gguf(pair("tokenizer.chat_template", 8, gguf_text(template)), 1)).safe is False


def test_an_array_in_the_place_of_a_template_is_unsafe(tmp_path: Path) -> None:
    report = look(tmp_path, gguf(pair("tokenizer.chat_template", 9, array(8, 1, gguf_text("{{ lipsum }}"))), 1))
    assert report.safe is False


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m.content | trim }}{% endfor %}",
        "{%- set ns = namespace(last=0) %}{{ '{}: {}'.format(a, b) }}{{ tools | tojson(indent=4) }}",
        "{{ raise_exception('no tools') if tools else bos_token }}",
        "{% if loop.index0 % 2 == 0 %}{{ strftime_now('%d %b %Y') }}{% endif %}",
        "{% raw %}{{ cycler }}{% endraw %}{# cycler #}{{ {'a': {'b': 10 % 3}} }}{%- set x = [1.5][-1:] -%}",
        "plain __text__ with cycler and self, which is no program",
    ],
)
def test_a_template_that_arranges_messages_is_named_and_leaves_the_file_safe(tmp_path: Path, template: str) -> None:
    report = look(tmp_path, gguf(pair("tokenizer.chat_template", 8, gguf_text(template)), 1))
    assert report.safe is True
    assert [finding.severity for finding in report.findings] == ["notice"]


# -- Keras


def layer(
    class_name: str, module: str | None = "keras.layers", registered: str | None = None, **config: object
) -> dict[str, object]:
    return {
        "module": module,
        "class_name": class_name,
        "config": {"name": "x", **config},
        "registered_name": registered,
    }


def model_of(*layers: object, class_name: str = "Sequential") -> dict[str, object]:
    return {
        "module": "keras",
        "class_name": class_name,
        "config": {"name": "m", "layers": list(layers)},
        "registered_name": class_name,
    }


def keras_zip(path: Path, config: object, more: dict[str, bytes] | None = None) -> Report:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", json.dumps(config))
        archive.write(SAMPLES / "picture.weights.h5", "model.weights.h5")
        for name, data in (more or {}).items():
            archive.writestr(name, data)
    return identify(path)


CODE: list[tuple[object, str]] = [
    (layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wAA"}}), "Lambda"),
    (layer("Bidirectional", layer=layer("Lambda")), "Lambda"),
    (layer("Dense", activation=layer("Lambda")), "Lambda"),
    (layer("TFSMLayer", filepath="/tmp/evil"), "TFSMLayer"),
    (layer("TorchModuleWrapper", module="gASV"), "TorchModuleWrapper"),
    (layer("Dense", module="os"), "os.Dense"),
    (layer("Dense", module="keras.utils"), "keras.utils.Dense"),
    (layer("Dense", module="keras.src.saving"), "keras.src.saving.Dense"),
    (layer("get_file", module="keras.utils", origin="http://x"), "get_file"),
    (layer("system", module="os"), "system"),
    (layer("Popen", module="subprocess"), "Popen"),
    (layer("Dense", registered="mine>Dense"), "mine>Dense"),
    (layer("Mine", module=None, registered="mine>Mine"), "Mine"),
    (layer("Dense", activation={"module": "builtins", "class_name": "function", "config": "exec"}), "function"),
    (layer("Dense", activation="mine>act"), "mine>act"),
    (layer("StringLookup", vocabulary="/etc/passwd"), "/etc/passwd"),
    (layer("TextVectorization", vocabulary="http://x/y"), "http://x/y"),
    (layer("TFOpLambda", function="io.write_file"), "io.write_file"),
    ({"class_name": ["Dense"], "config": {}}, "Dense"),
]


@pytest.mark.parametrize(("hidden", "name"), CODE, ids=[name + str(number) for number, (_, name) in enumerate(CODE)])
def test_code_is_found_at_any_depth(tmp_path: Path, hidden: object, name: str) -> None:
    for depth in (0, 1, 5):
        config = model_of(hidden)
        for _ in range(depth):
            config = model_of(layer("Dense", units=2), config, class_name="Functional")
        report = keras_zip(tmp_path / f"{depth}.keras", config)
        assert report.safe is False
        assert any(name in finding.what for finding in report.findings)
        assert all("config.json" in finding.where for finding in report.findings)


def test_a_configuration_of_absurd_depth_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", '{"config":' * 100_000 + "1" + "}" * 100_000)
    assert refused(identify(path))


@pytest.mark.parametrize("entry", ["assets/../../evil", "evil.pkl", "assets/x/../../../y"])
def test_entries_keras_does_not_write_are_named(tmp_path: Path, entry: str) -> None:
    report = keras_zip(tmp_path / "m.keras", model_of(layer("Dense", units=2)), {entry: b"x"})
    assert report.safe is False
    assert report.findings[0].what == entry


# -- HDF5: the good file with single fields overwritten


def superblock() -> bytearray:
    return bytearray((SAMPLES / "picture.weights.h5").read_bytes())


def test_a_soft_link_is_named_and_not_followed(tmp_path: Path) -> None:
    data = superblock()
    at = data.index(b"SNOD")
    struct.pack_into("<I", data, at + 8 + 16, 2)  # the cache type of the first entry: a soft link
    report = look(tmp_path, bytes(data))
    assert report.safe is False
    assert "soft link" in report.findings[0].why


def test_an_external_link_is_named_and_not_followed(tmp_path: Path) -> None:
    """A superblock of version 2, a root group whose header holds one link of kind 64."""
    name, value = b"weights", b"\0" + b"/etc/passwd\0" + b"/\0"
    link = struct.pack("<BBBB", 1, 8, 64, len(name)) + name + struct.pack("<H", len(value)) + value
    info = struct.pack("<BB", 0, 0) + b"\xff" * 16
    messages = struct.pack("<BHB", 2, len(info), 0) + info + struct.pack("<BHB", 6, len(link), 0) + link
    header = b"OHDR" + struct.pack("<BBB", 2, 0, len(messages)) + messages + b"\0" * 4
    block = b"\x89HDF\r\n\x1a\n" + struct.pack("<BBBBQQQQI", 2, 8, 8, 0, 0, (1 << 64) - 1, 48 + len(header), 48, 0)
    report = look(tmp_path, block + header)
    assert report.safe is False
    assert report.findings[0].what == "weights"
    assert "external link" in report.findings[0].why


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("kind", ["external dataset", "virtual dataset", "external link", "soft link out"])
def test_what_leads_to_other_files_is_named_as_the_library_writes_it(tmp_path: Path, kind: str, latest: bool) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.h5"
    with h5py.File(path, "w", libver="latest" if latest else "earliest") as file:
        file.create_dataset("harmless", data=[1.0, 2.0])
        group = file.create_group("layers/dense/vars")
        if kind == "external dataset":
            group.create_dataset("0", (2,), "f4", external=[("/etc/passwd", 0, 8)])
        elif kind == "virtual dataset":
            layout = h5py.VirtualLayout((2,), "f4")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2,))
            group.create_virtual_dataset("0", layout)
        elif kind == "external link":
            group["0"] = h5py.ExternalLink("/etc/other.h5", "/x")
        else:
            group["0"] = h5py.SoftLink("/harmless")
    report = identify(path)
    assert report.safe is False
    assert any("layers/dense/vars/0" in finding.what for finding in report.findings)


def dataset_header(data: bytearray, shape: tuple[int, ...]) -> int:
    """Where the sizes of a dataset of this shape stand."""
    raw = struct.pack("<BBBBI", 1, len(shape), 1, 0, 0) + struct.pack(f"<{len(shape)}Q", *shape)
    return data.index(raw) + 8


def test_a_dataset_of_four_petabytes_is_refused(tmp_path: Path) -> None:
    data = superblock()
    struct.pack_into("<Q", data, dataset_header(data, (3, 3, 3, 4)), 1 << 50)
    report = look(tmp_path, bytes(data))
    assert refused(report)
    struct.pack_into("<QQQQ", data, dataset_header(superblock(), (3, 3, 3, 4)), *(1 << 40,) * 4)
    assert refused(look(tmp_path, bytes(data)))


def test_a_group_that_contains_itself_is_refused(tmp_path: Path) -> None:
    data = superblock()
    root = struct.unpack_from("<Q", data, 24 + 32 + 8)[0]
    at = data.index(b"SNOD") + 8
    struct.pack_into("<Q", data, at + 8, root)
    assert refused(look(tmp_path, bytes(data)))


def test_a_tree_that_runs_in_circles_is_refused(tmp_path: Path) -> None:
    data = superblock()
    at = data.index(b"TREE")
    struct.pack_into("<Q", data, at + 8 + 16 + 8, at)
    assert refused(look(tmp_path, bytes(data)))


# -- TensorFlow


def graph_with(op: str, *, reached: bool) -> bytes:
    node = message((1, "n"), (2, op))
    signature = message((1, "serving_default"), (2, message((2, message((1, "y"), (2, message((1, "n:0"))))))))
    save = field(3, message((2, "n:0")))
    info = message((4, "serve"))
    return message(
        (1, 1), (2, message((1, info), (2, message((1, node)))) + save + (field(5, signature) if reached else b""))
    )


@pytest.mark.parametrize(
    "op",
    [
        "ReadFile",
        "WriteFile",
        "PyFunc",
        "EagerPyFunc",
        "MatchingFiles",
        "ImmutableConst",
        "PrintV2",
        "LoadLibrary",
        "Mine",
    ],
)
def test_operators_that_reach_outside_are_named(tmp_path: Path, op: str) -> None:
    report = look(tmp_path, graph_with(op, reached=False), "saved_model.pb")
    assert [finding.what for finding in report.findings] == [op]


def test_writing_a_checkpoint_is_for_saving_only(tmp_path: Path) -> None:
    assert look(tmp_path, graph_with("SaveV2", reached=False), "saved_model.pb").safe is True
    assert look(tmp_path, graph_with("SaveV2", reached=True), "saved_model.pb").safe is False


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """A table of one block, uncompressed."""

    def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
        body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in pairs)
        return body + struct.pack("<II", 0, 1)

    first = block(list(entries))
    second = block([(b"\xff", varint(0) + varint(len(first)))])
    at = len(first) + 5
    handles = varint(0) + varint(0) + varint(at) + varint(len(second))
    return first + b"\0" * 5 + second + b"\0" * 5 + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


@pytest.mark.parametrize(
    "entry",
    [
        message((1, 1), (2, message((2, message((1, 1 << 61))))), (5, 4)),
        message((1, 1), (2, message((2, message((1, 2))))), (5, 4)),
        message((1, 1), (2, message((2, message((1, 2))))), (4, 1 << 60), (5, 8)),
        message((1, 1), (3, 77), (5, 4)),
    ],
    ids=["overflow", "too few", "past the end", "no such file"],
)
def test_checkpoints_that_lie_are_refused(tmp_path: Path, entry: bytes) -> None:
    (tmp_path / "c.data-00000-of-00001").write_bytes(b"\0" * 8)
    good = message((1, 1), (2, message((2, message((1, 2))))), (5, 8))
    assert look(tmp_path, table((b"", message((1, 1))), (b"w", good)), "c.index").parameters == 2
    assert refused(look(tmp_path, table((b"", message((1, 1))), (b"w", entry)), "c.index"))


def flip(name: str, change: Callable[[bytearray], None]) -> bytes:
    data = bytearray((SAMPLES / name).read_bytes())
    change(data)
    return bytes(data)


def test_a_flat_buffer_whose_root_is_nowhere_is_refused(tmp_path: Path) -> None:
    data = flip("picture.tflite", lambda raw: struct.pack_into("<I", raw, 0, 0x7FFFFFFF))
    assert refused(look(tmp_path, data))

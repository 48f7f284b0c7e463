"""Files as data sets: what comes out of each kind, and how what is wrong with one is told."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hivenode.data.reading import read
from hivenode.errors import HiveError, InvalidInput, NotFound
from hivenode.spec.data import DataSpec

CSV = "sepal,petal,kind\n" + "".join(f"{n},{n * n % 7},{'long' if n % 2 else 'short'}\n" for n in range(20))


def spec(kind: str, path: Path, **rest: object) -> DataSpec:
    return DataSpec(source=f"{kind}:{path}", **rest)


def test_csv_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    data = read(spec("csv", path))
    assert (data.info.task, data.info.labels, data.info.input_shape) == ("classification", ("long", "short"), (2,))
    assert len(data.train) == 16
    inputs, labels = data.train.take(np.arange(16))
    assert abs(float(inputs.mean())) < 1e-5
    raw = data.normalisation.undo(inputs)
    assert all((label == 0) == (round(float(row[0])) % 2 == 1) for row, label in zip(raw, labels, strict=True))
    assert "long 10, short 10" in data.summary[1]


def test_csv_of_values(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,price\n" + "".join(f"{n},{-n},{n * 1.5 + 0.25}\n" for n in range(50)))
    data = read(spec("csv", path, target="price", features=("a",)))
    assert (data.info.task, data.info.labels, data.info.outputs, data.info.input_shape) == (
        "regression", ("price",), 1, (1,),
    )  # fmt: skip
    inputs, targets = data.test.take(np.arange(len(data.test)))
    back = data.targets.undo(targets)
    assert np.allclose(back, data.normalisation.undo(inputs) * 1.5 + 0.25, atol=1e-4)
    whole = read(spec("csv", path, task="reconstruction"))
    assert (whole.info.outputs, whole.info.task) == (3, "reconstruction")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CSV + "3,x,long\n", r"a\.csv, line 22, column 'petal': 'x' is not a number"),
        (CSV + "3,,long\n", r"line 22, column 'petal': it is empty"),
        (CSV + "3,1,\n", r"line 22, column 'kind': it is empty"),
        (CSV + "3,nan,long\n", r"line 22, column 'petal': 'nan' is not finite"),
        (CSV + "3,1\n", r"line 22: 2 columns, and the first line names 3"),
        (CSV + '3,"1,long\n', r"about line 22"),
        ("1,2,3\n4,5,6\n", "line 1, holds numbers, not names"),
        ("a,a\n1,2\n", "line 1, names two columns 'a'"),
        ("a,,b\n1,2,3\n", "each by a name of its own"),
        ("a;b;kind\n1;2;x\n3;4;y\n", "line 1, is one column, with ';' in its name"),
        ("a,b\n1,2\n", "has 1 samples"),
        ("a,b\n1,x\n2,x\n", "1 different values"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_with_a_csv_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=said):
        read(spec("csv", path))


CLASSES = "a,kind\n" + "".join(f"{n},{n % 3}\n" for n in range(20))


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("7000000", "line 22, column 'kind': the label 7000000 is out of range: all others are 0 to 2"),
        ("-1", "line 22, column 'kind': the label -1 is out of range: all others are 0 to 2"),
        ("1.5", "line 22, column 'kind': the label is 1.5, and classes have whole numbers"),
        ("nan", "line 22, column 'kind': the label is nan"),
    ],
)
def test_numbers_that_are_no_classes_are_told_with_their_place(tmp_path: Path, last: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{CLASSES}1,{last}\n")
    with pytest.raises(InvalidInput, match=said):
        read(spec("csv", path, task="classification"))
    np.savez(tmp_path / "a.npz", x=np.arange(21.0), kind=np.array([*(n % 3 for n in range(20)), float(last)]))
    with pytest.raises(InvalidInput, match=said.replace("line 22", "row 21")):
        read(spec("npz", tmp_path / "a.npz", task="classification", target="kind"))


@pytest.mark.parametrize("last", ["3", "-1\n2,-1", "8\n4,8", "2"])
def test_unusual_numbers_of_classes_are_taken(tmp_path: Path, last: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{CLASSES}1,{last}\n")
    data = read(spec("csv", path))
    assert data.info.task == "classification"
    assert any("One class is called -1" in line for line in data.summary) is last.startswith("-1")


def test_a_target_that_is_no_classes_for_few_of_its_numbers_is_said_to_be_values(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{CLASSES}1,1.5\n")
    data = read(spec("csv", path))
    assert data.info.task == "regression"
    assert data.summary[-1].startswith("'kind' is taken for values to predict, not for classes, since line 22 has")
    path.write_text("a,kind\n" + "".join(f"{n},{n / 2}\n" for n in range(20)))
    assert "is taken" not in read(spec("csv", path)).summary[-1]


def test_the_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV.encode() + b"3,1,\xff\n" + b"3,1,long\n" * 9)
    with pytest.raises(InvalidInput, match="line 22, is not UTF-8"):
        read(spec("csv", tmp_path / "a.csv"))


def test_arrays_that_are_none_are_told_by_name_and_reason(tmp_path: Path) -> None:
    inputs, labels = np.zeros((4, 2)), np.arange(4) % 2
    for arrays, said in (
        ({"x": np.array([{}, 1, 2, 3]), "y": labels}, r"array 'x', .* Python objects, which .* are not loaded"),
        ({"x": inputs, "y": np.array(list("abab"))}, r"array 'y', .* are of type <U1, not numbers"),
        ({"x": inputs.reshape(4, 2, 1, 1, 1), "y": labels}, r"array 'x', has 5 axes"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InvalidInput, match=said):
            read(spec("npz", tmp_path / "a.npz"))


def test_a_wrong_row_of_several_files_is_told_with_its_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, values in (("a", [1.0, 2.0, 3.0]), ("b", [4.0, float("nan"), 6.0])):
        parquet.write_table(pyarrow.table({"v": values, "y": [0, 1, 0]}), tmp_path / f"{name}.parquet")
    with pytest.raises(InvalidInput, match=r", b\.parquet, row 2, column 'v': .*nan.* is not finite"):
        read(spec("parquet", tmp_path))
    for column, where, said in (
        ({"v": [1.0, None]}, tmp_path, r", b\.parquet, row 2, column 'v': it is empty"),
        ({"v": [1.0, None]}, tmp_path / "b.parquet", r"b\.parquet, row 2, column 'v': it is empty"),
        ({"w": [1.0, 2.0]}, tmp_path, r"a\.parquet has a column 'v', and .*b\.parquet has none"),
        ({"v": ["p", "q"]}, tmp_path, r"Column 'v' is double in .*a\.parquet and string in .*b\.parquet"),
    ):
        parquet.write_table(pyarrow.table({**column, "y": [0, 1]}), tmp_path / "b.parquet")
        with pytest.raises(InvalidInput, match=said):
            read(spec("parquet", where))


def test_a_saved_set_without_a_part_to_train_on_names_its_parts(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "whole").mkdir()
    for name in ("dataset_dict.json", "whole/state.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InvalidInput, match="has no part called train; it has whole") as raised:
        read(spec("arrow", tmp_path))
    assert "arrow:PATH/PART" in raised.value.fix


def test_a_value_of_an_npy_is_told_by_its_column_there(tmp_path: Path) -> None:
    for column in (1, 2):
        values = np.random.default_rng(0).normal(size=(20, 3))
        values[4, column] = np.nan
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(InvalidInput, match=f"row 5, column {column + 1}: nan is not finite"):
            read(spec("npy", tmp_path / "a.npy"))


def test_a_column_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    with pytest.raises(InvalidInput, match="Did you mean 'petal'"):
        read(spec("csv", path, features=("petals",)))
    with pytest.raises(NotFound, match=r"There is no csv .*b\.csv"):
        read(spec("csv", tmp_path / "b.csv"))
    with pytest.raises(InvalidInput, match="is a folder"):
        read(spec("csv", tmp_path))


def test_jsonl_of_texts_and_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"say {n}", "tone": "ab"[n % 2]}) + "\n" for n in range(10)))
    data = read(spec("jsonl", path, length=8))
    assert (data.info.input_shape, data.info.labels, data.info.padding) == ((8,), ("a", "b"), 0)
    tokens, _ = data.train.take(np.arange(1))
    assert tokens.dtype == np.int64
    assert tokens[0, -1] == 0, "shorter texts are filled up"
    path.write_text("".join(json.dumps({"x": [n, 2.5], "y": n % 2 == 0}) + "\n" for n in range(10)))
    assert read(spec("jsonl", path)).info.labels == ("0", "1")
    path.write_text('{"x": 1, "y": 2}\n{"x": 1}\n')
    with pytest.raises(InvalidInput, match=r"line 2, lacks 'y'"):
        read(spec("jsonl", path))
    path.write_text('{"x": 1, "y": 2}\n{"x": {"z": 1}, "y": 3}\n')
    with pytest.raises(InvalidInput, match=r"line 2, column 'x': it is no number, text or list of numbers"):
        read(spec("jsonl", path))
    path.write_bytes(b'{"x": "a", "y": 2}\n{"x": "caf\xe9", "y": 3}\n')
    with pytest.raises(InvalidInput, match=r"line 2, is not UTF-8") as raised:
        read(spec("jsonl", path))
    assert raised.value.fix == "Save it as UTF-8."
    path.write_text('{"x": 1, "y": 2}\n{"x": \n')
    with pytest.raises(InvalidInput, match=r"line 2: "):
        read(spec("jsonl", path))


def test_text_by_characters_bytes_and_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("das Ei und die Henne " * 30, encoding="utf-8")
    data = read(spec("text", path, length=10))
    assert (data.info.task, data.info.vocabulary) == ("language", len(set("das Ei und die Henne ")) + 1)
    tokens, following = data.train.take(np.arange(len(data.train)))
    assert (tokens[:, 1:] == following[:, :-1]).all()
    assert read(spec("text", path, length=10, tokenizer="byte")).info.vocabulary == 257

    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "das": 1, "Ei": 2, "?": 3}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    data = read(spec("text", path, length=4, tokenizer=str(tmp_path / "tokenizer.json")))
    assert data.info.vocabulary == 4
    path.write_bytes(b"good\nbad \xff\n")
    with pytest.raises(InvalidInput, match="line 2, is not UTF-8"):
        read(spec("text", path))


def test_a_tokenizer_is_a_file_and_nothing_that_goes_on_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words " * 100)
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path)):
        with pytest.raises(InvalidInput, match=r"is no file\."):
            read(spec("text", tmp_path / "a.txt", tokenizer=place))


def test_npz_and_npy(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=pictures, y=np.arange(30) % 3)
    data = read(spec("npz", tmp_path / "a.npz"))
    assert (data.info.input_shape, data.info.labels) == ((3, 6, 5), ("0", "1", "2"))
    inputs, _ = data.train.take(np.arange(5))
    assert inputs.dtype == np.float32
    assert 0.9 < inputs.max() <= 1
    np.save(tmp_path / "a.npy", np.asfortranarray(np.random.default_rng(0).normal(size=(40, 4))))
    assert read(spec("npy", tmp_path / "a.npy")).info.task == "regression"


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))


def _npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(_Trap()),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", pickle.dumps([_Trap()])),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4), }", bytes(64)),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-4, 4), }", bytes(64)),
        _npy("__import__('os').system('touch sprung')"),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"",
    ],
)
def test_hostile_arrays_run_nothing_and_take_no_memory(tmp_path: Path, monkeypatch, data: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InvalidInput):
        read(spec("npy", tmp_path / "a.npy"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
        archive.writestr("y.npy", data)
    with pytest.raises(InvalidInput):
        read(spec("npz", tmp_path / "a.npz"))
    assert not (tmp_path / "sprung").exists()


def test_parquet_and_a_saved_dataset(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"a": list(range(12)), "b": [n / 2 for n in range(12)], "kind": [n % 3 for n in range(12)]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(spec("parquet", tmp_path / "a.parquet")).info.labels == ("0", "1", "2")
    parquet.write_table(pyarrow.table({"a": [1, None, 3], "y": [1, 2, 1]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidInput, match="row 2, column 'a': it is empty"):
        read(spec("parquet", tmp_path / "b.parquet"))
    times = pyarrow.table({"a": [1, 2, 3], "t": pyarrow.array([1, 2, 3], pyarrow.timestamp("s")), "y": [1, 2, 1]})
    parquet.write_table(times, tmp_path / "d.parquet")
    with pytest.raises(InvalidInput, match="column 't', is of type timestamp"):
        read(spec("parquet", tmp_path / "d.parquet"))
    assert read(spec("parquet", tmp_path / "d.parquet", features=("a",))).info.features == 1
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(spec("parquet", tmp_path / "c.parquet"))


def test_what_the_datasets_library_saves(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"a": [float(n) for n in range(10)], "kind": [n % 2 for n in range(10)]})
    file = str(tmp_path / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(file, "wb") as opened, pyarrow.ipc.new_stream(opened, table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    features = {"a": {"dtype": "float64", "_type": "Value"}, "kind": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": features}))
    assert read(spec("arrow", tmp_path)).info.labels == ("cat", "dog")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../secret.arrow"}]}')
    with pytest.raises(InvalidInput, match="names no data files"):
        read(spec("arrow", tmp_path))


def test_what_the_datasets_library_itself_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"a": datasets.Value("float32"), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"a": [float(n) for n in range(10)], "kind": [n % 2 for n in range(10)]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "saved"))
    assert read(spec("arrow", tmp_path / "saved")).info.labels == ("cat", "dog")


def test_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for kind, shade in (("dark", 10), ("light", 240)):
        (tmp_path / kind).mkdir()
        for n in range(5):
            image.new("L" if n % 2 else "RGB", (9, 7), shade if n % 2 else (shade,) * 3).save(
                tmp_path / kind / f"{n}.png"
            )
    data = read(spec("images", tmp_path, size=8))
    assert (data.info.input_shape, data.info.labels) == ((3, 8, 8), ("dark", "light"))
    inputs, labels = data.train.take(np.arange(8))
    assert ((inputs.mean(axis=(1, 2, 3)) > 0.5) == (labels == 1)).all()
    (tmp_path / "light" / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(InvalidInput, match=r"bad\.png is not a usable image"):
        read(spec("images", tmp_path))


def test_splits_are_the_seed_s_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n,y\n" + "".join(f"{n},{n % 2}\n" for n in range(100)))

    def parts(seed: int) -> tuple[list[int], list[int]]:
        data = read(spec("csv", path, seed=seed, test_fraction=0.3))
        found = []
        for part in (data.train, data.test):
            inputs, _ = part.take(np.arange(len(part)))
            found.append([round(float(v)) for v in data.normalisation.undo(inputs)[:, 0]])
        return found[0], found[1]

    assert parts(1) == parts(1) != parts(2)
    train, test = parts(1)
    assert sorted(train + test) == list(range(100))
    assert len(test) == 30


def test_random_bytes_of_every_kind_are_refused_as_such(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for kind in ("csv", "jsonl", "npy", "npz", "parquet", "text"):
        for size in (1, 10, 1000, 5000):
            path = tmp_path / f"{kind}-{size}"
            path.write_bytes(rng.bytes(size))
            with pytest.raises(HiveError):
                read(spec(kind, path))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_pairs_of_text(tmp_path: Path, kind: str) -> None:
    """What is to be written is foretold token by token, and not after its end."""
    path, rows = tmp_path / f"a.{kind}", [{"said": "ab", "meant": "ba"}, {"said": "abab", "meant": "b"}] * 5
    if kind == "csv":
        path.write_text("said,meant\n" + "".join(f"{row['said']},{row['meant']}\n" for row in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        arrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), path)
    data = read(spec(kind, path, task="text_to_text", length=4))
    assert (data.info.task, data.info.input_shape, data.info.vocabulary, data.info.outputs) == (
        "text_to_text", (8,), 4, 4,
    )  # fmt: skip
    inputs, labels = data.train.take(np.arange(len(data.train)))
    found = {tuple(row): tuple(label) for row, label in zip(inputs.tolist(), labels.tolist(), strict=True)}
    assert found == {  # a, b and the end are 1, 2 and 3
        (1, 2, 0, 0, 0, 2, 1, 3): (2, 1, 3, -100),
        (1, 2, 1, 2, 0, 2, 3, 0): (2, 3, -100, -100),
    }


@pytest.mark.parametrize(("text", "features", "told"), [
    ("a,b\nx,\ny,z\n", (), "line 2, column 'b': it is empty"),
    ("a,b,c\nx,y,z\nx,y,z\n", (), "text_to_text takes one"),
    ("a,b,c\nx,y,z\n,y,z\n", ("a",), "line 3, column 'a': it is empty"),
])  # fmt: skip
def test_what_is_wrong_with_pairs_is_told(tmp_path: Path, text: str, features: tuple[str, ...], told: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InvalidInput, match=told):
        read(spec("csv", tmp_path / "a.csv", task="text_to_text", features=features))

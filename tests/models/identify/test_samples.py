"""Models saved by torch, transformers, PEFT, diffusers and flax are what their makers say they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hivenode.models.identify import identify
from hivenode.models.identify.report import Confidence

SAMPLES = Path(__file__).parents[1] / "samples"
CASES = [
    pytest.param(SAMPLES / group / name, fields, id=f"{group}/{name}")
    for group in ("pytorch", "transformers")
    for name, fields in json.loads((SAMPLES / f"{group}.json").read_text()).items()
]


@pytest.mark.parametrize(("path", "expected"), CASES)
def test_a_sample_is_known_for_what_it_is(path: Path, expected: dict[str, Any]) -> None:
    report = json.loads(json.dumps(identify(path).to_dict()))
    assert report["error"] is None
    assert {name: report[name] for name in expected} == expected


@pytest.mark.parametrize(("path", "expected"), CASES)
def test_what_is_inferred_says_from_what(path: Path, expected: dict[str, Any]) -> None:
    report = identify(path)
    for name in ("format", "framework", "task", "architecture", "model", "parameters"):
        if getattr(report, name) is not None:
            assert report.confidence[name].evidence
    assert report.confidence["parameters"].how is Confidence.read
    assert (report.bytes_read or 0) < 1 << 20 or report.bytes_read is None


def test_tied_weights_count_once() -> None:
    listing = {tensor.name: tensor for tensor in identify(SAMPLES / "pytorch" / "tied.pt").listing}
    assert listing["out.weight"].shared_with == "embedding.weight"


@pytest.mark.parametrize("name", ["state_dict.pt", "legacy.pth", "plain.safetensors", "oldest.tar", "exported.pt2"])
def test_the_listing_says_where_the_bytes_are(name: str) -> None:
    torch = pytest.importorskip("torch")
    path = SAMPLES / "pytorch" / name
    report = identify(path)
    data = path.read_bytes()
    if name.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    elif name.endswith(".pt2"):
        state = torch.export.load(path).state_dict
    else:
        state = torch.load(path, weights_only=False)
    found = {tensor.name: tensor for tensor in report.listing}
    assert found.keys() >= state.keys()
    for key, tensor in state.items():
        place = found[key]
        assert place.offset is not None
        assert data[place.offset : place.offset + (place.nbytes or 0)] == tensor.detach().numpy().tobytes()


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from hivenode.models.identify import identify; "
        "[identify(path) for path in sys.argv[1:]]; "
        "print([name for name in ('torch', 'numpy', 'transformers', 'safetensors', 'pickle') if name in sys.modules])"
    )
    paths = [str(case.values[0]) for case in CASES]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

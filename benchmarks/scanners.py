"""Verdicts on files made to run something, and on harmless ones, beside picklescan, modelscan and fickling.

    python benchmarks/scanners.py [--peers DIR] [--json]

The hostile files are those of the tests (`tests/models/identify/pickle_payloads.py`): pickles that run a command when
they are loaded, pickles that name what a foreign package would run, each in several containers. The
harmless ones are the samples of the tests, saved by the frameworks themselves. Counted is what each tool calls unsafe
or refuses with an error; nothing is loaded. The peers are looked for in the virtual environment DIR (default:
benchmarks/results/peers), which is made and filled with pip if it is not there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from identify import PEERS, peer_python

from hivenode.models.identify import identify
from tests.models.identify.pickle_payloads import CONTAINERS, armed, inert

SAMPLES = Path(__file__).parents[1] / "tests" / "models" / "samples"
PICKLED = {"torch_zip", "torch_legacy", "torch_tar", "torchscript", "pickle", "joblib", "ultralytics_pt"}
TOOLS = {
    "picklescan": "from picklescan.scanner import scan_file_path\n"
    "def ask(path):\n    found = scan_file_path(path)\n    return found.infected_files > 0 or found.scan_err",
    "modelscan": "import logging\nlogging.disable(logging.CRITICAL)\nfrom modelscan.modelscan import ModelScan\n"
    "def ask(path):\n    found = ModelScan().scan(path)\n"
    "    return found['summary']['total_issues'] > 0 or bool(found['errors'])",
    "fickling": "import fickling\ndef ask(path):\n    return not fickling.is_likely_safe(path)",
}
ASK = """
import json, sys
out = []
for path in json.load(sys.stdin):
    try:
        out.append(bool(ask(path)))
    except Exception:
        out.append(True)
print(json.dumps(out))
"""


def hostile(folder: Path) -> dict[str, list[Path]]:
    """The files of each group."""
    groups: dict[str, list[Path]] = {}
    mark = folder / "mark"
    for kind, payloads in (("runs a command", armed(mark)), ("names what would run", inert())):
        place = folder / kind.split()[0]
        plain = []
        for number, payload in enumerate(payloads.values()):
            path = place / f"{number}.pkl"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(payload)
            plain.append(path)
        groups[f"{kind}: a pickle"] = plain
        for name, container in CONTAINERS.items():
            paths = []
            for number, payload in enumerate(payloads.values()):
                below = place / f"{name}{number}"
                below.mkdir()
                made = container(below, payload)
                paths += sorted(made.rglob("pytorch_model.bin")) or sorted(made.rglob(".metadata")) or [made]
            groups[f"{kind}: {name.replace('_', ' ')}"] = paths
    return groups


def harmless() -> list[Path]:
    """The samples in which there are pickles."""
    found = []
    for group in ("pytorch", "tabular", "agents"):
        for name, expected in json.loads((SAMPLES / f"{group}.json").read_text()).items():
            if expected["format"] in PICKLED and expected.get("safe"):
                found.append(SAMPLES / group / name)
    return found


def ours(paths: list[Path]) -> list[bool]:
    return [identify(path).safe is not True for path in paths]


def theirs(python: Path, tool: str, paths: list[Path]) -> list[bool] | None:
    """The verdicts of a peer; None where it does not run."""
    done = subprocess.run(
        [python, "-c", TOOLS[tool] + ASK], input=json.dumps([str(path) for path in paths]), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=PEERS)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    chosen = parser.parse_args()
    python = peer_python(chosen.peers)
    with tempfile.TemporaryDirectory() as name:
        groups = hostile(Path(name)) | {"harmless, called unsafe": harmless()}
        every = [path for paths in groups.values() for path in paths]
        told: dict[str, list[bool] | None] = {"hivenode": ours(every)}
        told |= {tool: theirs(python, tool, every) if python is not None else None for tool in TOOLS}
        assert not (Path(name) / "mark").exists(), "something ran"
        counts: dict[str, dict[str, int | None]] = {}
        at = 0
        for group, paths in groups.items():
            counts[group] = {
                tool: None if found is None else sum(found[at : at + len(paths)]) for tool, found in told.items()
            }
            at += len(paths)
    if chosen.json:
        print(json.dumps({group: {"files": len(groups[group])} | found for group, found in counts.items()}))
        return
    print("| files | how many | " + " | ".join(told) + " |\n|---|---|" + "---|" * len(told))
    for group, found in counts.items():
        cells = ("-" if number is None else str(number) for number in found.values())
        print(f"| {group} | {len(groups[group])} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""The README's commands, word for word, on two homes of this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import CONFIG, free_port

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> list[list[str]]:
    """Command lines of each shell block."""
    found = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [[line for line in block.splitlines() if line.strip() and not line.startswith("#")] for block in found]


class Shell:
    """Runs command lines with a home of its own, as a person on one machine would."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        home.mkdir()
        (home / "hivenode.toml").write_text(
            CONFIG.format(name=name, listen="127.0.0.1", port=free_port(), discovery="false")
        )
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, "HIVENODE_HOME": str(home), "PATH": path}

    def run(self, line: str) -> str:
        done = subprocess.run(
            shlex.split(line), cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[tuple[Shell, Shell]]:
    first, second = Shell(tmp_path / "first", "first"), Shell(tmp_path / "second", "second")
    yield first, second
    for shell in (first, second):
        if (shell.home / "run" / "admin.json").exists():  # the README stops one of them itself
            shell.run("hivenode down")


@pytest.mark.timeout(300)
def test_the_demo_of_the_first_line() -> None:
    assert blocks((ROOT / "README.md").read_text())[0] == ["make demo"]
    done = subprocess.run(["make", "demo", "ARGS=--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"]
    assert result["nodes"] == 3
    assert result["strategy"] == "data_parallel"
    assert result["accuracy"] >= 0.96
    assert result["epoch_after"] > result["epoch_before"]
    assert result["killed"]
    assert result["model"].startswith("digits:")


@pytest.mark.timeout(300)
def test_the_rest_of_the_readme(shells: tuple[Shell, Shell]) -> None:
    first, second = shells
    _, found, join, use = blocks((ROOT / "README.md").read_text())
    printed = ""
    for line in found:
        printed += first.run(line)
    token = re.search(r"HIVE1-[A-Z0-9-]+", printed, flags=re.IGNORECASE)
    assert token, printed
    for line in join:
        second.run(line.replace("TOKEN", token.group()))
    for line in use:
        printed = first.run(line)
        if line.startswith("hivenode predict"):
            assert re.search(r"\d", printed)


@pytest.mark.timeout(300)
def test_what_the_pages_ask_a_node(shells: tuple[Shell, Shell]) -> None:
    first, _ = shells
    first.run("hivenode up --detach")
    for line in blocks((ROOT / "docs" / "analyze.md").read_text())[0]:
        assert first.run(line)
    asked = "\n".join(blocks((ROOT / "docs" / "cli.md").read_text())[0])
    assert json.loads(first.run(shlex.join(["sh", "-c", asked.replace("~/.hivenode", str(first.home))]))) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_named_in_the_documents_exists(document: Path) -> None:
    text = document.read_text()
    inline = re.findall(r"`(hivenode [a-z][^`]*)`", text)
    lines = [line for block in blocks(text) for line in block if line.startswith("hivenode ")]
    for line in dict.fromkeys([*inline, *lines]):
        verbs = []
        for word in shlex.split(line)[1:]:
            if not re.fullmatch(r"[a-z]+", word) or len(verbs) == 2:
                break
            verbs.append(word)
        if not verbs or verbs[0] not in {"config"}:
            verbs = verbs[:1]
        done = subprocess.run(
            [sys.executable, "-m", "hivenode.cli.main", *verbs, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{document.name}: {line}: {done.stderr}"
        options = [word.split("=")[0] for word in line.split() if word.startswith("--")]
        shown = subprocess.run(
            [sys.executable, "-m", "hivenode.cli.main", "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in options:
            assert option.strip("[],") in done.stdout + shown, f"{document.name}: {line}: no {option}"

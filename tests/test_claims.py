"""What docs/election.md claims is tested, and what is tested as a claim stands there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "election.md"


def claimed() -> dict[str, set[str]]:
    """By the id of each claim, the tests the page names for it."""
    rows = re.findall(r"^\| (E\d+) \| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {number: set(re.findall(r"`([^`]+)`", tests)) for number, _, tests in rows}
    assert len(found) == len(rows), "an id stands twice"
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for _, sentence, _ in rows), "one sentence each"
    return found


def marked() -> dict[str, set[str]]:
    """By id, the tests that carry `pytest.mark.claim(id)`."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.claim":
                    name = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                    for argument in decorator.args:
                        found.setdefault(ast.literal_eval(argument), set()).add(name)
    return found


def test_claims_and_tests_match() -> None:
    page, tests = claimed(), marked()
    assert list(page) == [f"E{number}" for number in range(1, len(page) + 1)]
    assert page == tests


def test_every_claim_has_a_test() -> None:
    assert all(claimed().values())

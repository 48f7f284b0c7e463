"""Chat templates: programs in Jinja that a runtime runs on each request, in a sandbox if it is a sound one.

Nearly every chat model has one, so that there is one is a notice and no danger. It is a danger where the program
reaches for more than the messages: for Python's insides, the loader, or text that builds such names. Judged by its
tokens, never run: https://jinja.palletsprojects.com/en/stable/templates/
"""

from __future__ import annotations

import re

from hivenode.models.identify.report import Report, Severity

LONGEST = 1 << 20
NOTICE = "A chat template is a program that runs on each request; this one only arranges the messages."
UNREADABLE = "text that is no sound template"
_OPEN = re.compile(r"\{([{%#])[-+]?")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*-?%\}")
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_END_COMMENT = re.compile(r"#\}")
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*(?:"|\Z)|'(?:[^'\\]|\\.)*(?:'|\Z))|(?P<name>[^\W\d]\w*)"""
    r"""|(?P<number>\d[\d_]*(?:\.\d[\d_]*)?)|(?P<end>[-+]?[%}]\})|(?P<mark>[^\s\w])""",
    re.DOTALL,
)
"""A text without an end takes the rest, so that no quote is looked at twice."""
_ROOTS = frozenset({"cycler", "joiner", "lipsum", "self", "config", "request", "environment"})
"""Names Jinja and web frameworks offer whose attributes lead to Python's modules."""
_STATEMENTS = frozenset({"import", "include", "extends", "from"})
_FILTERS = frozenset({"attr", "format", "xmlattr", "pprint"})
_ATTRIBUTES = frozenset({
    "mro", "format_map", "func_globals", "func_code", "gi_frame", "gi_code", "cr_frame", "cr_code", "ag_frame",
    "f_globals", "f_builtins", "f_locals", "f_back", "tb_frame", "tb_next", "popen", "system",
})  # fmt: skip
_ESCAPE = re.compile(r"\\[xuUN0-7]")
_FIELD = re.compile(r"\{[^{}.\[]*[.\[][^{}]*\}")
"""A field of `str.format` that looks into what it is given: {0.real}, {a[b]}."""


def judge_template(report: Report, text: str, what: str, where: str) -> None:
    """Name a template in the report: a notice if it only arranges messages, else a danger with what it reaches for."""
    reached = _reaches_for(text) if len(text) <= LONGEST else "more text than can be looked through"
    if reached is None:
        report.find(what, where, NOTICE, severity=Severity.notice)
    else:
        report.find(what, where, f"The chat template reaches for more than the messages: {reached[:80]}.")


def _reaches_for(text: str) -> str | None:
    """The first thing in a template that is not about messages; None if there is none."""
    at = 0
    while (opened := _OPEN.search(text, at)) is not None:
        if (raw := _RAW.match(text, opened.start())) is not None:
            end = _END_RAW.search(text, raw.end())
        elif opened[1] == "#":
            end = _END_COMMENT.search(text, opened.end())
        else:
            found, end = _block(text, opened.end(), statement=opened[1] == "%")
            if found is not None:
                return found
        if end is None:
            return UNREADABLE
        at = end.end()
    return None


def _block(text: str, at: int, *, statement: bool) -> tuple[str | None, re.Match[str] | None]:
    """What one statement or expression reaches for, and its end, if it has one.

    It ends where Jinja has it end: not within a text, nor within brackets that are open.
    """
    before, earlier, closing, depth = "", "", "%}" if statement else "}}", 0
    while (token := _TOKEN.search(text, at)) is not None:
        word, kind, first = token[0], token.lastgroup, not before
        if kind == "end":
            if word.endswith(closing) and not depth:
                return None, token
            word, kind = word[0], "mark"
        at = token.start() + len(word)
        bad = False
        if kind == "name":
            bad = (
                "__" in word
                or (before in (".", "|") and word.startswith("_"))
                or (before == "." and (word in _ATTRIBUTES or (word == "format" and not _plain(earlier))))
                or (before == "|" and word in _FILTERS)
                or (before != "." and word in _ROOTS)
                or (statement and first and word in _STATEMENTS)
            )
        elif kind == "text":
            bad = "__" in word or _ESCAPE.search(word) is not None or word[1:-1].strip() == "_"
        elif word == "%" and before[:1] in "\"'" and before:
            bad = True
        elif word in "{[(":
            depth += 1
        elif word in ")]}":
            depth -= 1
        if bad:
            return word, None
        earlier, before = before, word
    return None, None


def _plain(word: str) -> bool:
    """Whether a token is a literal whose fields only take values."""
    return word[:1] in ('"', "'") and _FIELD.search(word) is None

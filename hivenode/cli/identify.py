"""The verb that says what a model file is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivenode.cli.options import JsonOption
from hivenode.errors import BY_CODE, HiveError, Refused

if TYPE_CHECKING:
    from rich.console import Console

    from hivenode.models.identify import Report

SHOWN_FINDINGS = 12
SHOWN_TENSORS = 200
BAR_FROM = 24


def identify(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Model files, model directories, or folders of them.")
    ],
    as_json: JsonOption = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor: name, dtype, shape, place.")] = False,
) -> None:
    """What a model file is, by its headers alone: nothing in it is run. Exit code 4 if anything is unsafe."""
    from hivenode.models.identify.many import below

    wanted = below(paths)
    reports = list(_with_bar(wanted))
    if as_json:
        import msgspec

        plain = [report.to_dict(listing=tensors) for report in reports]
        one = len(plain) == 1 and len(paths) == 1 and str(wanted[0]) == str(paths[0])
        raw = msgspec.json.format(msgspec.json.encode(plain[0] if one else plain), indent=2)
        sys.stdout.write(raw.decode() + "\n")
    else:
        _show(reports, tensors)
    code = _exit_code(reports)
    if code:
        raise typer.Exit(code)


def _exit_code(reports: Sequence[Report]) -> int:
    """Unsafe before unreadable, unreadable before nothing."""
    if any(report.safe is False for report in reports):
        return Refused.exit_code
    codes = [BY_CODE.get(report.error.code, HiveError).exit_code for report in reports if report.error is not None]
    return codes[0] if codes else 0


def _with_bar(paths: Sequence[Path]) -> Iterator[Report]:
    """Reports in the order of the paths, with a bar on a terminal where there are many."""
    from hivenode.models.identify.many import identify_all

    places = {path: place for place, path in enumerate(paths)}
    found = identify_all(paths)
    if len(paths) > BAR_FROM and sys.stderr.isatty():
        from rich.progress import track

        from hivenode.cli.output import console

        found = track(found, "identifying", total=len(paths), console=console(stderr=True), transient=True)  # type: ignore[assignment]
    for _, report in sorted(found, key=lambda pair: places[pair[0]]):
        yield report


def _show(reports: Sequence[Report], tensors: bool) -> None:
    from hivenode.cli.output import console

    out = console()
    if len(reports) == 1:
        _sheet(out, reports[0], tensors)
        return
    _overview(out, reports)
    if tensors:
        for report in reports:
            _tensors(out, report)


def _overview(out: Console, reports: Sequence[Report]) -> None:
    """A line for each file, then what is wrong with some."""
    from hivenode.cli.output import clean, size, styled, table

    listing = table("FILE", "FORMAT", "MODEL", "TASK", "PARAMETERS", "SIZE", "SAFE", right=("PARAMETERS", "SIZE"))
    for report in reports:
        listing.add_row(
            styled(report.path, "bold"),
            styled(report.format or "-"),
            styled(report.model or report.architecture or "-"),
            styled(report.task or report.family),
            "-" if report.parameters is None else f"{report.parameters:,}",
            "-" if report.size_bytes is None else size(report.size_bytes),
            _verdict(report),
        )
    out.print(listing)
    for report in reports:
        if report.error is not None:
            out.print(styled(f"{report.path}: {clean(report.error.message)} {clean(report.error.fix)}", "yellow"))
        elif report.dangerous:
            dangers = [finding for finding in report.findings if finding.severity == "danger"]
            more = f" (and {len(dangers) - 1} more)" if len(dangers) > 1 else ""
            first = dangers[0]
            out.print(styled(f"{report.path}: {first.what}, {first.where}: {first.why}{more}", "red"))


def _sheet(out: Console, report: Report, tensors: bool) -> None:
    """Everything known of one file, each line with how it is known."""
    from hivenode.cli.output import size, styled, table

    out.print(styled(report.path, "bold"))
    if report.error is not None:
        out.print(styled(f"  {report.error.message}", "red"))
        out.print(styled(f"  {report.error.fix}"))
        if report.format is None:
            return
    lines = table("", "", "", "")
    lines.show_header = False
    for name, value in _fields(report):
        known = report.confidence.get(name)
        how, evidence = (known.how.value, known.evidence) if known is not None else ("", "")
        lines.add_row(styled(name.replace("_", " "), "dim"), styled(value), styled(how, "dim"), styled(evidence, "dim"))
    if report.size_bytes is not None:
        lines.add_row(styled("size", "dim"), styled(size(report.size_bytes)))
    lines.add_row(styled("safe", "dim"), _verdict(report))
    out.print(lines)
    for finding in report.findings[:SHOWN_FINDINGS]:
        colour = "red" if finding.severity == "danger" else "yellow"
        out.print(styled(f"  {finding.what}", colour), styled(f"{finding.where}: {finding.why}"))
    if len(report.findings) > SHOWN_FINDINGS:
        out.print(f"  ... and {len(report.findings) - SHOWN_FINDINGS} more; --json gives all.")
    if tensors:
        _tensors(out, report)


def _fields(report: Report) -> Iterator[tuple[str, str]]:
    """The fields that have a value, as text."""
    for name in ("format", "framework", "family", "task", "architecture", "model"):
        value: Any = getattr(report, name)
        if value and value != "unknown":
            yield name, str(value)
    for name in ("parameters", "trainable_parameters", "tensors", "layers"):
        value = getattr(report, name)
        if value is not None:
            yield name, f"{value:,}"
    if report.dtypes:
        yield "dtypes", ", ".join(f"{name} {elements:,}" for name, elements in report.dtypes.items())
    for name in ("inputs", "outputs"):
        ports = getattr(report, name)
        if ports:
            yield name, "; ".join(f"{port.name} {port.dtype or ''}{_shape(port.shape)}" for port in ports[:8])
    if report.quantization:
        yield "quantization", report.quantization


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else " [" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"


def _verdict(report: Report) -> Any:
    from hivenode.cli.output import styled

    words = {True: ("yes", "green"), False: ("NO", "bold red"), None: ("not known", "yellow")}
    return styled(*words[report.safe])


def _tensors(out: Console, report: Report) -> None:
    from hivenode.cli.output import styled, table

    listing = table("TENSOR", "DTYPE", "SHAPE", "FILE", "OFFSET", right=("OFFSET",))
    for tensor in report.listing[:SHOWN_TENSORS]:
        shared = f" = {tensor.shared_with}" if tensor.shared_with else ""
        listing.add_row(
            styled(tensor.name + shared),
            styled(tensor.dtype),
            styled(_shape(tensor.shape).strip()),
            styled(tensor.file),
            "-" if tensor.offset is None else str(tensor.offset),
        )
    out.print(listing)
    if len(report.listing) > SHOWN_TENSORS:
        out.print(f"... and {len(report.listing) - SHOWN_TENSORS} more; --json gives all.")

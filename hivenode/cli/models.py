"""Verbs about models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of

if TYPE_CHECKING:
    from rich.console import Console

    from hivenode.spec.status import Prediction

SHOWN_SAMPLES = 8
SHOWN_LABELS = 10


def models(context: typer.Context, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """The models that the hive has trained."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import ago, console, number, print_json, size, styled, table
    from hivenode.spec.status import ModelSummary

    client = AdminClient(home_of(context, home))
    if as_json:
        print_json(client.ask("GET", "/v1/models"))
        return
    found = client.get("/v1/models", tuple[ModelSummary, ...])
    out = console()
    if not found:
        out.print("No models yet. Next: `hivenode submit FILE --wait` trains one.")
        return
    listing = table("MODEL", "SOURCE", "ACCURACY", "SIZE", "HERE", "HELD BY", "JOB", "MADE", right=("ACCURACY", "SIZE"))
    for model in found:
        listing.add_row(
            styled(f"{model.name}:{model.version}", "bold"),
            styled(model.source),
            number(model.metrics.get("accuracy")),
            size(model.blob.size),
            "yes" if model.here else "no",
            styled(" ".join(model.holders)),
            styled(model.job),
            ago(model.created_at),
        )
    out.print(listing)
    out.print(f"Next: `hivenode predict {found[0].name} --input FILE`.")


def predict(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME (newest version) or NAME:VERSION.")],
    input: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help=".json, .txt, .csv or .npy; - for standard input."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", "-t", metavar="TEXT", help="A text, in place of a file.")
    ] = None,
    go_on: Annotated[
        int, typer.Option("--continue", "-c", metavar="N", min=0, max=4096, help="Go on with a text for N tokens.")
    ] = 0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Ask a model about samples."""
    from hivenode.cli.client import AdminClient, segment
    from hivenode.cli.inputs import Asked, read_inputs
    from hivenode.cli.output import console, print_json, styled
    from hivenode.errors import InvalidInput
    from hivenode.spec.status import Prediction

    if (input is None) == (text is None):
        raise InvalidInput("There is nothing to ask about, or two things.", fix="Give --input FILE or --text TEXT.")
    asked = read_inputs(input) if input is not None else Asked([], [str(text)])
    body = {"inputs": asked.rows, "texts": asked.texts, "continue_tokens": go_on}
    client = AdminClient(home_of(context, home))
    path = f"/v1/models/{segment(model)}/predict"
    if as_json:
        print_json(client.ask("POST", path, body))
        return
    prediction = client.post(path, Prediction, body)
    out = console()
    samples = len(asked.rows) or len(asked.texts)
    for place in range(min(samples, SHOWN_SAMPLES)):
        if samples > 1:
            out.print(f"sample {place + 1}")
        if prediction.texts:
            out.print(styled(asked.texts[place] if asked.texts else "", "dim").append(styled(prediction.texts[place])))
        elif prediction.labels:
            show(out, asked.rows[place] if asked.rows else [], prediction, place)
        else:
            out.print(" ".join(f"{value:.4g}" for value in prediction.outputs[place]))
    if samples > SHOWN_SAMPLES:
        out.print(f"... and {samples - SHOWN_SAMPLES} more; --json gives all.")
    out.print(f"{prediction.model}, on {prediction.node}, in {prediction.seconds * 1000:.0f} ms")


def show(out: Console, row: list[float], prediction: Prediction, place: int = 0) -> None:
    """One sample: its picture if it is a small square image, and its outputs as bars, the likeliest marked."""
    from hivenode.cli.output import bar, number, styled, table
    from hivenode.cli.pictures import digit, side_of

    side = side_of(len(row))
    picture = styled("")
    if side is not None:
        picture.append(digit(row, side))
    outputs = prediction.outputs[place]
    best = max(range(len(outputs)), key=outputs.__getitem__)
    order = sorted(range(len(outputs)), key=lambda n: (-outputs[n], n))[:SHOWN_LABELS]
    bars = table("", "", "", right=("",))
    bars.show_header = False
    for label in sorted(order):
        name = prediction.labels[label] if label < len(prediction.labels) else str(label)
        style = "bold green" if label == best else ""
        bars.add_row(styled(name, style), styled(bar(outputs[label]), style), styled(number(outputs[label], 3), style))
    sheet = table("", "")
    sheet.box = None
    sheet.show_header = False
    sheet.add_row(picture, bars) if side is not None else sheet.add_row(bars)
    out.print(sheet)

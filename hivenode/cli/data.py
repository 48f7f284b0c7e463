"""Verbs about data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hivenode.cli.options import JsonOption

app = typer.Typer(no_args_is_help=True, help="Look at data before training on them.")


@app.callback()
def everything() -> None:
    """Look at data before training on them."""


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job in TOML, or a file of data.")],
    target: Annotated[str, typer.Option("--target", metavar="COLUMN", help="What is to be predicted.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Sizes, kind and class balance of the data of a job, or of a file; no daemon is needed."""
    from hivenode.cli.output import console, print_json
    from hivenode.data.reading import read

    dataset = read(_declared(file, target))
    if as_json:
        print_json({"info": dataset.info, "summary": dataset.summary})
        return
    out = console()
    for line in dataset.summary:
        out.print(line)


def summarised(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of a declaration, for whoever plans; empty where the data are not here, or what reads them."""
    from hivenode.data.reading import read
    from hivenode.errors import Unavailable
    from hivenode.spec.data import DataSpec

    spec = DataSpec.model_validate(data)
    if spec.kind in ("private", "shared"):
        return ()
    try:
        return read(spec).summary
    except Unavailable:
        return ()


def _declared(file: Path, target: str) -> Any:
    from hivenode.cli.jobs import located
    from hivenode.errors import InvalidInput
    from hivenode.spec.data import DataSpec
    from hivenode.spec.job import read_job

    kinds = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".npz": "npz", ".npy": "npy", ".txt": "text"}
    if file.suffix == ".toml":
        return located(read_job(file), file.absolute().parent).data
    kind = kinds.get(file.suffix.lower())
    if file.is_dir():
        kind = "arrow" if (file / "state.json").is_file() or (file / "dataset_dict.json").is_file() else "images"
    if kind is None:
        raise InvalidInput(
            f"{file} is of no kind that can be read.", fix=f"Give a job.toml, a folder, or {', '.join(kinds)}."
        )
    return DataSpec(source=f"{kind}:{file.absolute()}", target=target)

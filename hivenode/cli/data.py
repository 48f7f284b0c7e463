"""Verbs about data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hivenode.cli.options import JsonOption

if TYPE_CHECKING:
    from hivenode.data.manifest import Manifest
    from hivenode.spec.data import DataSpec


class Verbs(TyperGroup):
    """Says which verb was meant where one is left out."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            from hivenode.errors import InvalidInput

            raise InvalidInput(
                f"'{args[0]}' is no verb about data.", fix=f"To look at it: `hivenode data summary {args[0]}`."
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Look at data before training on them.")


@app.callback()
def everything() -> None:
    """Look at data before training on them."""


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job in TOML, a file of data, or KIND:PATH.")],
    target: Annotated[str, typer.Option("--target", metavar="COLUMN", help="What is to be predicted.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Sizes, kind and class balance of the data of a job, or of a file; no daemon is needed."""
    from hivenode.cli.output import console, print_json

    found = _read(_declared(file, target))
    if as_json:
        print_json({"info": found.info, "summary": found.summary})
        return
    out = console()
    for line in found.summary:
        out.print(line)


def summarised(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of a declaration, for whoever plans; empty where the data are not here, or what reads them."""
    from hivenode.errors import Unavailable
    from hivenode.spec.data import DataSpec

    spec = DataSpec.model_validate(data)
    if spec.kind in ("private", "shared"):
        return ()
    try:
        return _read(spec).summary
    except Unavailable:
        return ()


def _read(spec: DataSpec) -> Manifest:
    """Behind walls, like what is submitted: nobody vouches for a file. All of this machine's memory may be taken."""
    from hivenode.data.preparing import prepared

    return prepared(spec, None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _declared(file: Path, target: str) -> DataSpec:
    from hivenode.cli.jobs import located
    from hivenode.errors import InvalidInput, NotFound
    from hivenode.spec.data import FILES, DataSpec
    from hivenode.spec.job import read_job

    named, colon, name = str(file).partition(":")
    if colon and named in FILES:
        return DataSpec(source=f"{named}:{Path(name).expanduser().absolute()}", target=target)
    if colon and named == "sklearn":
        return DataSpec(source=str(file))
    kinds = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".npz": "npz", ".npy": "npy", ".txt": "text"}
    if file.suffix == ".toml":
        return located(read_job(file), file.absolute().parent).data
    if not file.exists():
        raise NotFound(f"There is no {file}.", fix="Give a job.toml, a file or folder of data, or a set: sklearn:iris.")
    kind = kinds.get(file.suffix.lower())
    if file.is_dir():
        kind = "arrow" if (file / "state.json").is_file() or (file / "dataset_dict.json").is_file() else "images"
    if kind is None:
        raise InvalidInput(
            f"{file} is of no kind that can be read.",
            fix=f"Give a job.toml, a folder, {', '.join(kinds)}, or say what it is: csv:{file}.",
        )
    return DataSpec(source=f"{kind}:{file.absolute()}", target=target)

"""`hivenode demo`: several daemons train a model on this machine while the coordinator is killed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hivenode.cli.options import JsonOption

DIGITS: dict[str, Any] = {
    "name": "digits",
    "model": {"source": "zoo:cnn"},
    "data": {"source": "sklearn:digits", "test_fraction": 0.2, "seed": 0},
    "training": {
        "epochs": 60,
        "batch_size": 64,
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "momentum": 0.9,
        "seed": 0,
        "checkpoint_every_steps": 50,
    },
    "placement": {"strategy": "auto"},
}
"""configs/jobs/digits.toml; here too because an installed package has no configs folder."""


def demo(
    nodes: Annotated[int, typer.Option(min=2, max=8, help="Daemons to start.")] = 3,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the homes and logs of the daemons.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Three daemons on this machine train a model together while the coordinator is killed."""
    import signal

    from hivenode.cli.output import console, print_json_line
    from hivenode.cli.show import Show

    signal.signal(signal.SIGHUP, signal.default_int_handler)  # its terminal was closed
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as with Ctrl-C: stop what was started
    show = Show(console(stderr=as_json), nodes, keep=keep)
    try:
        show.run()
    finally:
        if as_json:
            print_json_line(show.outcome)

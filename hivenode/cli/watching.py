"""Following one job until it ends. Talks to the local daemon only, so it outlives the coordinator."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hivenode.cli.client import AdminClient, segment
from hivenode.cli.curves import points
from hivenode.cli.live import Display
from hivenode.cli.plans import picture
from hivenode.cli.progress import JobView
from hivenode.errors import Unavailable
from hivenode.spec.status import JobDetail, JobLogs, Notice, Status

if TYPE_CHECKING:
    from rich.console import Console


def names(client: AdminClient) -> dict[str, str]:
    """Names of the members, by id."""
    return {member.node: member.name for member in client.get("/v1/status", Status).members}


def watch(client: AdminClient, job: str, out: Console) -> JobDetail:
    """Show plan, progress and what befalls it; returns the job as it ended.

    Raises:
        Unavailable: the local daemon has been gone for too long.
    """
    path = f"/v1/jobs/{segment(job)}"
    view = JobView(job, names(client))
    if (logs := client.get_if_there(f"{path}/logs", JobLogs)) is not None:
        view.recall(points(logs.lines))
    with Display(out, view) as display:
        planned = 0
        for notice in client.follow(f"?job={segment(job)}"):
            for line in view.hear(notice, time.monotonic()) if notice is not None else ():
                display.tell(line, "yellow" if notice is not None and notice.kind == "member" else "")
            detail = client.get_if_there(path, JobDetail) if _asks(notice, view, planned) else None
            if detail is not None:
                for line in view.take(detail):
                    display.tell(line)
                if detail.plan is not None and detail.summary.attempt > planned:
                    planned = detail.summary.attempt
                    out.print(picture(detail.plan, view.names))
            display.update()
            if detail is not None and view.ended:
                return detail
    raise Unavailable(f"The daemon for {client.home} has stopped.", fix="Start it again with `hivenode up`.")


def _asks(notice: Notice | None, view: JobView, planned: int) -> bool:
    """Whether to look at the whole job: the stream is new, there is an attempt not shown yet, or it ended."""
    if notice is None:
        return True
    return notice.kind == "job" and view.summary is not None and (view.ended or view.summary.attempt > planned)

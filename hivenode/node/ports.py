"""The world as a node sees it: everything outside that it touches is handed in, so that the same node runs as a daemon
and in simulation."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hivenode.admin.doctor import Instruments
from hivenode.errors import HiveError, Unavailable
from hivenode.jobs.desk import ReadableJobLog
from hivenode.jobs.host import WorkerHost
from hivenode.jobs.work import Workspace
from hivenode.net.local import Resources, WorkerLimits
from hivenode.net.messages import ProfileReply
from hivenode.net.transport import Transport
from hivenode.spec.status import JoinResult
from hivenode.store.ports import BlobStore, Journal
from hivenode.trust.credentials import Credentials


async def _nobody_answers(peer: str, address: str) -> str:
    raise Unavailable("There is no network.", fix="Ask a daemon.")


async def _nobody_pairs(code: str, address: str) -> JoinResult:
    raise Unavailable("There is no network.", fix="Ask a daemon.")


@dataclass(frozen=True)
class Ports:
    """The world as a node sees it.

    Args:
        wall: seconds since 1970.
        limits: what one worker may use.
        profile: this machine as measured, once it is, given what is asked about (`running` and `paused` are filled in
            here).
        join: leave this hive for the token's; the daemon restarts the node afterwards.
        stop: ask the process to end.
        admin_url: where the admin endpoint listens.
        free: bytes left on the disk that the blobs are on.
    """

    transport: Transport
    journal: Journal
    blobs: BlobStore
    workers: WorkerHost
    workspace: Workspace
    job_log: ReadableJobLog
    wall: Callable[[], float]
    rng: random.Random
    limits: Callable[[], WorkerLimits]
    profile: Callable[[tuple[str, ...]], Awaitable[ProfileReply]]
    join: Callable[[str], Awaitable[JoinResult]]
    stop: Callable[[], None]
    admin_url: Callable[[], str]
    home: str
    free: Callable[[], int]
    seeds: tuple[str, ...] = ()
    """Addresses at which a member may answer."""
    instruments: Instruments | None = None
    """For the doctor; None where there is no real network."""
    on_battery: Callable[[], bool] = lambda: False
    """Whether the machine runs on battery now."""
    adopt: Callable[[Credentials], None] = lambda credentials: None
    """Keep new credentials on disk, and show their certificate from here on."""
    pair: Callable[[str, str], Awaitable[JoinResult]] = _nobody_pairs
    """Join with a pairing code, of the member at an address or, with "", of one heard nearby."""
    appeal: Callable[[str, str], Awaitable[str]] = _nobody_answers
    """Ask for a new certificate without a link: member's id and address."""
    lends: Callable[[], Resources] = Resources
    """What the machine's owner lends to jobs: models, packages, private data."""
    fail: Callable[[HiveError], None] | None = None
    """Ask the process to end with an error; None: just to end."""

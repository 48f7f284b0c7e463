"""Every setting, with its unit, default and reason."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from hivenode.config.addresses import full_address, ip_address
from hivenode.spec.data import DataSpec

DEFAULT_PORT = 7447
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class NodeSettings(_Section):
    """Who this node is to people."""

    name: str = Field(
        "",
        description="Name shown to people, 1 to 63 letters, digits, '.', '_' or '-'. Empty: this machine's host name."
        " The node's id, by which machines know it, comes from its key and not from here.",
    )

    @field_validator("name", mode="after")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name:
            return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-._")[:63] or "node"
        if not re.fullmatch(_NAME, name):
            raise ValueError("give 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")
        return name


class NetworkSettings(_Section):
    """Where other nodes of the hive reach this one, and how it finds them. Every connection is mutually
    authenticated: who is not of the hive is turned away."""

    listen: str = Field(
        "0.0.0.0",  # noqa: S104 (a node exists to be reached; strangers fail the TLS handshake)
        description="IP address to listen on. 0.0.0.0: all of IPv4; '::': also IPv6; 127.0.0.1: this machine only.",
    )
    port: Port = Field(
        DEFAULT_PORT,
        description="TCP port for other nodes; open it in the firewall (workers have their own: worker.ports). 0: any"
        " free one.",
    )
    advertise: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Addresses (HOST or HOST:PORT) that others are told to dial, best first. Empty: those of this"
        " machine's interfaces, without container bridges. Set it behind NAT or with several networks.",
    )
    seeds: tuple[str, ...] = Field(
        (),
        max_length=256,
        description="Addresses (HOST or HOST:PORT) of members to dial at the start, for networks without multicast."
        " Members once met are remembered, so one seed that is often up is enough.",
    )
    discovery: bool = Field(
        True,
        description="Announce this node and look for others of its hive by multicast DNS. What is heard is only a"
        " hint where to dial; it is never trusted.",
    )
    interfaces: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="IP addresses of the interfaces that discovery uses. Empty: all but loopback and container"
        " bridges.",
    )

    full_mesh: int = Field(
        64,
        ge=8,
        le=128,
        description="Members up to which everybody keeps a link to everybody. In a larger hive each node keeps about"
        " log2(n) + 4, and dials the others when it has something to say to them. The same on all nodes.",
    )
    pool: int = Field(
        16,
        ge=4,
        le=128,
        description="Links at most that are dialled because there is something to say, and closed after 20 s of"
        " silence.",
    )

    @field_validator("listen", mode="after")
    @classmethod
    def _ip(cls, listen: str) -> str:
        return ip_address(listen)

    @field_validator("interfaces", mode="after")
    @classmethod
    def _ips(cls, interfaces: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(ip_address(address) for address in interfaces)

    @field_validator("advertise", "seeds", mode="after")
    @classmethod
    def _with_port(cls, addresses: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        port = info.data.get("port", 0) if info.field_name == "advertise" else DEFAULT_PORT
        return tuple(full_address(address, port) for address in addresses)


class MembershipSettings(_Section):
    """How it is found out who is alive."""

    profile: Literal["lan", "wan", "local"] = Field(
        "lan",
        description="Pace of failure detection (SWIM with Lifeguard, the numbers of memberlist). lan: probes each"
        " second; wan: each 5 s and more patient; local: all nodes on one machine.",
    )


class TrustSettings(_Section):
    """What this node does where it keeps the hive's authority key (the founder's node, and others with the admin
    role)."""

    certificate_days: float = Field(
        30.0,
        ge=0.0001,
        le=3650.0,
        description="Life of the certificates it makes, days. Nodes renew theirs by themselves after half to four"
        " fifths of it. The shorter, the sooner a revoked node is shut out even by members that have not heard of it;"
        " but if every node with the admin role is off for longer than what is left, the others part.",
    )


class ElectionSettings(_Section):
    """Who coordinates."""

    heartbeat_seconds: float = Field(
        0.5,
        ge=0.05,
        le=60,
        description="How often the coordinator tells the others that it is there, seconds.",
    )
    timeout_seconds: tuple[float, float] = Field(
        (3.0, 4.5),
        description="Each node stands for election after a silence drawn from this range, seconds. The width keeps two"
        " from standing at once; the lower end, at least twice the heartbeat, rides out a lost one.",
    )
    quorum: int = Field(
        0,
        ge=0,
        le=4096,
        description="Votes a coordinator needs. 0: as many as are there, so each side of a split network goes on. With"
        " N, a side with fewer than N waits instead.",
    )

    priority: int = Field(
        5,
        ge=0,
        le=10,
        description="How much you want this machine to coordinate, against the others of the hive. Among equals, those"
        " on mains power, well linked and long up go first; a higher priority goes before all of that.",
    )
    transfer_seconds: float = Field(
        30.0,
        ge=1,
        le=86400,
        description="A coordinator hands over to a member that has been clearly better placed for this long, seconds;"
        " at once when it goes on battery itself, or stops.",
    )

    @model_validator(mode="after")
    def _patient(self) -> ElectionSettings:
        low, high = self.timeout_seconds
        if low < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"timeout_seconds begins at {low}, below twice heartbeat_seconds ({self.heartbeat_seconds})"
            )
        if high <= low:
            raise ValueError(f"timeout_seconds must rise, and {high} is not above {low}")
        return self


class FeedSettings(_Section):
    """How what nodes state reaches the others."""

    sync_seconds: float = Field(
        5.0,
        ge=0.1,
        le=3600,
        description="How often a node compares what it holds with one other, seconds. News is pushed at once; this"
        " finds what got lost.",
    )
    seal_events: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="The coordinator has the members replace old events by what follows from them once there are so"
        " many of them. Less often costs disk, memory and time to start; more often costs a little work.",
    )
    seal_after_days: float = Field(
        7.0,
        ge=0.01,
        le=3650,
        description="Age from which events may be sealed, days. What a node that was away states about an earlier time"
        " counts as said then at the latest.",
    )
    patience_days: float = Field(
        30.0,
        ge=0.01,
        le=3650,
        description="A member silent for longer is not waited for when old events are sealed, days. It catches up"
        " when it is back; but if a hive was split for longer, its sides cannot be made one again.",
    )
    keep_jobs_days: float = Field(
        90.0,
        ge=0.01,
        le=36500,
        description="How long an ended job stays in the list, days; its model stays for good. The coordinator's"
        " setting counts, and must be the same on all nodes or nearly so.",
    )


class WorkerSettings(_Section):
    """What jobs may use of this machine."""

    enabled: bool = Field(True, description="Take part in jobs. false: only coordinate, submit and keep copies.")
    threads: int = Field(0, ge=0, le=4096, description="CPU threads that one worker uses. 0: one for each core.")
    memory_bytes: int = Field(
        0,
        ge=0,
        description="Memory that one worker may take, bytes; beyond it the worker fails and not the machine."
        " 0: 60 % of the RAM. Otherwise at least 268435456 (256 MiB), which a framework needs to start.",
    )
    nice: int = Field(
        10,
        ge=0,
        le=19,
        description="Scheduling priority of workers, 0 (like everything else) to 19 (only what is left over). At 10 the"
        " machine stays pleasant for its owner, and idle time is still used.",
    )
    max_jobs: int = Field(
        4,
        ge=1,
        le=256,
        description="Jobs that this machine works on at once; they share its memory and cores.",
    )
    ports: tuple[int, int] = Field(
        (0, 0),
        description="First and last TCP port on which workers listen for each other; open them in the firewall."
        " [0, 0]: any free port.",
    )
    prewarm: tuple[Literal["torch", "transformers", "keras", "sklearn"], ...] = Field(
        (),
        max_length=4,
        description="Frameworks to load when the node starts, so that the first job begins at once. Each costs memory"
        " (torch about 200 MiB, keras 500, scikit-learn 100); others are loaded when a job needs them.",
    )

    @field_validator("memory_bytes", mode="after")
    @classmethod
    def _enough(cls, size: int) -> int:
        if 0 < size < 256 << 20:
            raise ValueError(f"{size} bytes are too few for any framework; give 0 or at least {256 << 20}")
        return size

    @field_validator("ports", mode="after")
    @classmethod
    def _range(cls, ports: tuple[int, int]) -> tuple[int, int]:
        low, high = ports
        if ports != (0, 0) and not 1 <= low <= high <= 65535:
            raise ValueError(f"[{low}, {high}] is not a range of ports; give [first, last] or [0, 0]")
        return ports


class TrainingSettings(_Section):
    """How workers of this machine train together with others'."""

    trusted_subnets: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Networks, like 192.168.1.0/24, on which nobody listens in or interferes: there torch jobs may"
        " average by torch.distributed, which is neither encrypted nor authenticated, where that is faster. All nodes"
        " of a job have to trust the addresses of all. Empty: everything between workers is encrypted.",
    )

    @field_validator("trusted_subnets", mode="after")
    @classmethod
    def _networks(cls, subnets: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for text in subnets:
            try:
                found.append(str(ipaddress.ip_network(text)))
            except ValueError as error:
                raise ValueError(f"'{text}' is not a network such as 192.168.1.0/24: {error}") from None
        return tuple(found)


class JobSettings(_Section):
    """How hard the hive tries for a job, where this node coordinates it or works on it."""

    copies: int = Field(
        2,
        ge=1,
        le=16,
        description="Nodes that keep each checkpoint and model, its maker included. With 2, any one may die.",
    )
    hold_gb: int = Field(
        64,
        ge=0,
        le=1 << 20,
        description="Room for models and checkpoints on this machine, gigabytes (2^30 bytes). When they take more, it"
        " keeps nothing more for others; it also leaves 1 GB of the disk free. 0: it keeps no copies.",
    )
    allowed_packages: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Python packages installed here whose factories jobs may call as models (python:PACKAGE.MODULE:"
        "FACTORY). Their code runs in workers; name only what you would run yourself.",
    )
    max_attempts: int = Field(
        5,
        ge=1,
        le=1000,
        description="Attempts at a job before it is given up. Going on without a lost node is not a new attempt.",
    )
    reading_seconds: float = Field(
        300.0,
        ge=0.0,
        le=86400.0,
        description="How long a job waits for a node that is still reading private data of its own for the first time,"
        " seconds; then it begins without that node, which may join it later. The coordinator's setting counts.",
    )


class ModelSettings(_Section):
    """Models that this machine has and jobs may begin from."""

    directories: dict[str, str] = Field(
        {},
        max_length=64,
        description="Folders with a transformers config.json and safetensors, by the names that jobs call them"
        ' (hf:NAME), like { minilm = "/srv/models/minilm" }. Only nodes that have one take part in a job with it.',
    )


class DataSettings(_Section):
    """Data of this machine that jobs may train on here, and that never leave it."""

    private: dict[str, DataSpec] = Field(
        {},
        max_length=64,
        description="What private:NAME means on this node: a data section as in a job, such as"
        ' { xrays = { source = "images:/srv/xrays" } }. Others learn the name, the shape and the number of samples.',
    )


class AdminSettings(_Section):
    """The endpoint for this machine's own person: command line, dashboard, metrics."""

    host: str = Field(
        "127.0.0.1",
        description="Loopback address to listen on; no other is accepted. From elsewhere, use a tunnel (ssh -L).",
    )
    port: Port = Field(7448, description="TCP port of the endpoint. 0: any free one; the command line finds it.")

    @field_validator("host", mode="after")
    @classmethod
    def _loopback(cls, host: str) -> str:
        if host != "localhost" and not ipaddress.ip_address(ip_address(host)).is_loopback:
            raise ValueError(f"{host} is not a loopback address; give 127.0.0.1 or ::1")
        return host


class LogSettings(_Section):
    """What the daemon says, on standard error, and what it keeps of what jobs say."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is written. debug tells of every dial and every slow request."
    )
    format: Literal["auto", "json", "text"] = Field(
        "auto", description="Form of a line. auto: text on a terminal, else one JSON object a line."
    )
    keep_megabytes: int = Field(
        256,
        ge=16,
        le=1 << 20,
        description="Room for the logs of jobs, megabytes (2^20 bytes); the jobs longest silent are forgotten first."
        " One job takes at most 4.",
    )


class Settings(_Section):
    """Everything that can be set."""

    node: NodeSettings = Field(default_factory=NodeSettings)
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    membership: MembershipSettings = Field(default_factory=MembershipSettings)
    trust: TrustSettings = Field(default_factory=TrustSettings)
    election: ElectionSettings = Field(default_factory=ElectionSettings)
    feeds: FeedSettings = Field(default_factory=FeedSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    jobs: JobSettings = Field(default_factory=JobSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)
    logs: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _ports_apart(self) -> Settings:
        if self.network.port == self.admin.port != 0:
            raise ValueError(f"network.port and admin.port are both {self.network.port}; give each its own")
        return self

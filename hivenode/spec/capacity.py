"""What the machines of a hive offer to one more piece of work."""

from __future__ import annotations

import msgspec


class NodeCapacity(msgspec.Struct, frozen=True):
    """One machine, as it measured itself.

    Attributes:
        flops: float32 FLOP/s that a model reaches in one more worker now.
        product_flops: what a large matrix product reaches there with the machine to itself.
        memory_bytes: free for a worker now.
        base_memory_bytes: of those, what a worker takes before it holds a model.
        bandwidth: bytes/s of its own line: the best that one to a peer was measured at, if any was.
        lines: peers to which it has measured its line.
        paused: why it takes no work now; empty when it does.
    """

    node: str
    name: str
    flops: float
    product_flops: float
    memory_bytes: int
    base_memory_bytes: int
    cores: int
    bandwidth: float
    running: int = 0
    paused: str = ""
    self: bool = False
    lines: int = 0

    @property
    def room_bytes(self) -> int:
        """For a model and all that comes with it."""
        return max(0, self.memory_bytes - self.base_memory_bytes)


class HiveCapacity(msgspec.Struct, frozen=True):
    """All machines that may work; `missing` names those that did not answer."""

    nodes: tuple[NodeCapacity, ...]
    missing: tuple[str, ...] = ()

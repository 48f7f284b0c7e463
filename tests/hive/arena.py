"""Election cores in virtual time, over links that delay, with crashes, restarts, freezes and partitions."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable

from hivenode.hive.election import Effect, Election, ElectionSettings, Leader, Persist, Send
from hivenode.hive.standing import ORDINARY, UNABLE
from hivenode.net.messages import Message
from hivenode.spec.values import Epoch


class Arena:
    """Nodes named n0, n1, ...; those in `followers` may not coordinate.

    Args:
        kind: the class of election to run.
        detect: seconds until the others know of a crash.
        standings: of the voters; `ORDINARY` where none is given. Everybody knows them at once.
        council: how many of those alive vote, first come first; all if not given.
        disk: seconds a write takes, which what comes after it waits for.
    """

    def __init__(
        self,
        voters: int,
        *,
        seed: int,
        quorum: int = 0,
        followers: int = 0,
        detect: float = 1.0,
        kind: type[Election] = Election,
        standings: dict[str, int] | None = None,
        council: int | None = None,
        disk: tuple[float, float] = (0.0, 0.0),
        delay: tuple[float, float] = (0.0005, 0.005),
        loss: float = 0.0,
        settings: ElectionSettings | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.voters = tuple(f"n{i}" for i in range(voters))
        self.all = (*self.voters, *(f"w{i}" for i in range(followers)))
        self.settings = settings or ElectionSettings(quorum=quorum)
        self.standings = dict.fromkeys(self.voters, ORDINARY) | (standings or {})
        self._council, self._disk, self._delay, self._loss = council, disk, delay, loss
        self._writing: dict[str, float] = {}
        self.disks: dict[str, bytes | None] = dict.fromkeys(self.all)
        self.nodes: dict[str, Election] = {}
        self.told: list[tuple[float, str, Epoch | None]] = []
        """What each node acted upon, and when."""
        self.messages = 0
        self.deaf: dict[tuple[str, str], None] = {}
        self._detect, self._kind = detect, kind
        self._believed_gone: dict[str, dict[str, None]] = {node: {} for node in self.all}
        self._frozen: dict[str, list[Callable[[], None]]] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._lives = itertools.count()
        for node in self.all:
            self._boot(node)
        for node in self.all:
            self._tell(node)

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            due, node = min((max(self.now, e.deadline()), n) for n, e in self.nodes.items() if n not in self._frozen)
            if self._queue and self._queue[0][0] <= due:
                if self._queue[0][0] > until:
                    break
                self.now, _, event = heapq.heappop(self._queue)
                event()
            elif due <= until:
                self.now = due
                self._act(node, self.nodes[node].tick(due))
            else:
                break
        self.now = until

    def crash(self, node: str) -> None:
        del self.nodes[node]
        for other in self.all:
            if other != node and other not in self._believed_gone[node]:
                self._at(self._detect, lambda o=other: self.believes_gone(o, node) if node not in self.nodes else None)

    def restart(self, node: str) -> None:
        self._believed_gone[node] = {other: None for other in self.all if other not in self.nodes and other != node}
        self._boot(node)
        for other in self.nodes:
            self._believed_gone[other].pop(node, None)
            self._tell(other)

    def freeze(self, node: str) -> None:
        self._frozen[node] = []

    def thaw(self, node: str) -> None:
        waiting = self._frozen.pop(node)
        if self.nodes[node].deadline() <= self.now:
            self._act(node, self.nodes[node].tick(self.now))
        for event in waiting:
            event()

    def split(self, *sides: Iterable[str], detect: float | None = None) -> None:
        """No message crosses; after `detect` seconds (default: the arena's) each side holds the other dead."""
        groups = [tuple(side) for side in sides]
        for one, two in itertools.permutations(groups, 2):
            for a, b in itertools.product(one, two):
                self.deaf[a, b] = None
                self._at(
                    self._detect if detect is None else detect,
                    lambda a=a, b=b: self.believes_gone(a, b) if (a, b) in self.deaf else None,
                )

    def heal(self) -> None:
        self.deaf.clear()
        for node in self.nodes:
            self._believed_gone[node] = {other: None for other in self.all if other not in self.nodes}
            self._tell(node)

    def stands(self, node: str, standing: int) -> None:
        """From now on this is its standing, and everybody knows."""
        self.standings[node] = standing
        for other in self.nodes:
            self._tell(other)

    def believes_gone(self, node: str, other: str) -> None:
        self._believed_gone[node][other] = None
        if node in self.nodes:
            self._tell(node)

    # --- what can be asked ----------------------------------------------------------------------------------------

    def leader(self) -> Epoch:
        """The one leader that everybody running follows, and that knows it leads."""
        leaders = {election.leader for election in self.nodes.values()}
        assert len(leaders) == 1, {n: str(e.leader) for n, e in self.nodes.items()}
        (leader,) = leaders
        assert leader is not None
        assert self.nodes[leader.node].leading
        return leader

    def epochs(self) -> list[Epoch]:
        """All epochs anybody has led, in order."""
        return [epoch for _, node, epoch in self.told if epoch is not None and epoch.node == node]

    def check(self) -> None:
        """What must hold of the whole history: no node ever follows two leaders with the same counter, or goes
        back."""
        for node in self.all:
            followed = [epoch for _, who, epoch in self.told if who == node and epoch is not None]
            for before, after in itertools.pairwise(followed):
                assert after == before or after.counter > before.counter, (node, before, after)

    # --- the network ----------------------------------------------------------------------------------------------

    def _boot(self, node: str) -> None:
        self.nodes[node] = self._kind(
            node,
            settings=self.settings,
            rng=random.Random(f"{self.rng.random()}/{next(self._lives)}"),
            state=self.disks[node],
        )
        self._act(node, self.nodes[node].start(self.now))
        self._tell(node)

    def _tell(self, node: str) -> None:
        gone = self._believed_gone[node]
        alive = tuple(n for n in self.voters if n not in gone and self.standings[n] != UNABLE)
        others = tuple(n for n in self.all if n not in gone)
        if node in self.nodes:
            voters = alive if self._council is None else tuple(sorted(alive, key=lambda n: int(n[1:]))[: self._council])
            effects = self.nodes[node].electorate(
                self.now, alive, self.voters, node in alive, others, voters=tuple(sorted(voters)),
                standings=self.standings,
            )  # fmt: skip
            self._act(node, effects)

    def _act(self, node: str, effects: Iterable[Effect]) -> None:
        if self._disk == (0.0, 0.0):
            self._carry_out(node, effects)
            return
        ready = max(self.now, self._writing.get(node, self.now))
        election = self.nodes[node]
        for effect in effects:
            if isinstance(effect, Persist):
                ready += self.rng.uniform(*self._disk)
            self._at(
                ready - self.now,
                lambda effect=effect: self._carry_out(node, [effect]) if self.nodes.get(node) is election else None,
            )
        self._writing[node] = ready

    def _carry_out(self, node: str, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(state=state):
                    self.disks[node] = state
                case Leader(epoch=epoch):
                    self.told.append((self.now, node, epoch))
                case Send(peer=peer, message=message):
                    self._send(node, peer, message)

    def _send(self, node: str, peer: str, message: Message) -> None:
        self.messages += 1
        if (node, peer) not in self.deaf and (not self._loss or self.rng.random() >= self._loss):
            self._at(self.rng.uniform(*self._delay), lambda: self._arrive(peer, node, message))

    def _arrive(self, node: str, peer: str, message: Message) -> None:
        if node in self._frozen:
            self._frozen[node].append(lambda: self._arrive(node, peer, message))
        elif node in self.nodes:
            self._act(node, self.nodes[node].receive(self.now, peer, message))

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        assert seconds < math.inf
        heapq.heappush(self._queue, (self.now + seconds, next(self._serial), event))

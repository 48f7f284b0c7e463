"""A node's place in the election: how fit it says it is to coordinate, and whom it tells the election of."""

from __future__ import annotations

import asyncio
from random import Random

from hivenode.hive.council import FULL, council
from hivenode.hive.leadership import Electorate
from hivenode.hive.standing import UNABLE, SelfAssessment, Signs
from hivenode.hive.swim import PRESENT, Member, MemberState
from hivenode.node.services import Services
from hivenode.spec.values import Epoch, Role

ASSESS_SECONDS = 1.0
"""Between two looks at how fit this node is to coordinate."""
ELECTORATE_SECONDS = 0.1
"""How long the election is spared news of members unless they go or lead, to hear several at once; in a hive of more
than `FULL` longer in proportion, as it takes longer to go through them."""


class Candidacy:
    def __init__(self, node: Services) -> None:
        self._node = node
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From now on this node is up, which counts for it."""
        priority, turn = self._node.settings.election.priority, Random(self._node.me).random()
        self._assessment = SelfAssessment(priority, asyncio.get_running_loop().time(), turn)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # --- the others ---------------------------------------------------------------------------------------------

    def electorate_soon(self, member: Member) -> None:
        """Tell the election of a member in a moment: of those that are there, several say something new at once."""
        leader = self._node.leadership.leader
        self._electorate_within(leads=member.leads > (leader.counter if leader is not None else 0))

    def _electorate_within(self, *, leads: bool) -> None:
        """`leads`: somebody says that it leads, and others wait to hear that."""
        wait = ELECTORATE_SECONDS * (1.0 if leads else max(1.0, self._node.membership.present / FULL))
        due = asyncio.get_running_loop().time() + wait
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(due, self.electorate)

    def electorate(self) -> None:
        """Tell the election who may vote and who may stand, and keep the links that this takes."""
        node = self._node
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not node.ready:
            return
        present = {member.node: member for member in node.membership.members if member.state in PRESENT}
        alive = tuple(one for one in present if not node.roles.revoked(one))
        may = node.roles.holders(Role.coordinator)
        standings = {one: present[one].standing for one in may if one in present}
        able = tuple(one for one, standing in standings.items() if standing != UNABLE)
        voters = able if node.settings.election.quorum else council(able, node.roles.serial)
        told = [Epoch(present[one].leads, one) for one in able if present[one].leads]
        waited = node.leadership.waiting
        node.leadership.electorate(
            Electorate(
                alive=able,
                known=tuple(one for one in may if self._known(one)),
                eligible=node.me in able,
                followers=alive if len(alive) <= FULL else self._near(alive),
                voters=voters,
                standings=standings,
                told=max(told, default=None),
            )
        )
        leading = node.leadership.leading
        node.book.need("heartbeats", alive if leading and len(alive) <= FULL else ())
        node.book.need("votes", voters if leading or node.me in voters else ())
        node.book.need("jobs", tuple(sorted(node.coordinator.executors)) if leading else ())
        if node.leadership.waiting != waited:
            self.tell(node.leadership.leader)

    def admitted(self) -> None:
        """Somebody is of the hive now, as we hear."""
        self._electorate_within(leads=False)

    def links_changed(self) -> None:
        if self._node.leadership.leading and self._node.membership.present > FULL:
            self.electorate()  # who is linked gets heartbeats

    def _known(self, node: str) -> bool:
        member = self._node.membership.member(node)
        return member is None or member.state is not MemberState.left

    def _near(self, alive: tuple[str, ...]) -> tuple[str, ...]:
        """Of a large hive, those that get heartbeats without being voters: who is linked, and who works for us."""
        node = self._node
        links = {*node.ports.transport.links, *(node.coordinator.executors if node.leadership.leading else ())}
        return tuple(one for one in alive if one in links)

    # --- ourselves ----------------------------------------------------------------------------------------------

    def assess(self) -> None:
        """Say how fit we are to coordinate, if that has changed, and whether we do."""
        node = self._node
        if not node.ready:
            return
        now = asyncio.get_running_loop().time()
        reaches = node.ports.transport.reaches
        others = [one for one in node.leadership.voters if one != node.me]
        signs = Signs(
            # Who cannot write, or is not believed, cannot coordinate.
            able=node.leadership.able and not node.replication.trouble and node.me not in node.feeds.forked,
            battery=node.ports.on_battery(),
            health=node.membership.health,
            linked=sum(map(reaches, others)) / len(others) if others else 1.0,
            members=node.membership.present,
        )
        leader = node.leads()
        tells = leader is not None and node.membership.present > FULL
        standing, leads = self._assessment.assess(now, signs), leader.counter if leader is not None and tells else 0
        if node.membership.declare(standing, leads):
            self.electorate()

    async def keep_assessing(self) -> None:
        while True:
            await asyncio.sleep(ASSESS_SECONDS)
            self.assess()

    # --- the outcome --------------------------------------------------------------------------------------------

    def leader_changed(self, epoch: Epoch | None) -> None:
        node = self._node
        node.coordinator.lead(epoch if epoch is not None and epoch.node == node.me else None)
        self.assess()
        self.tell(epoch)
        node.changed.notify()

    def tell(self, epoch: Epoch | None) -> None:
        """Tell people who watch."""
        node = self._node
        node.notices.tell(
            "coordinator",
            {
                "node": epoch.node if epoch else "",
                "name": node.roles.name(epoch.node) if epoch else "",
                "epoch": str(epoch) if epoch else "",
                "counter": epoch.counter if epoch else node.leadership.highest.counter,
                "waiting": node.leadership.waiting,
            },
        )

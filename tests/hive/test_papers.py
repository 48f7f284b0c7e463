"""Certificates over a year of virtual time: who renews whose, what happens while those that can are away, and who gets
the authority's key."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from hivenode.errors import HiveError, Refused, Unavailable
from hivenode.hive.papers import Papers
from hivenode.hive.roles import Roles
from hivenode.net.messages import AuthorityKey, AuthorityRequest, Renew, Renewed, Request, Response
from hivenode.spec.events import NodeAdmitted
from hivenode.spec.values import Role
from hivenode.tasks import TaskGroup
from hivenode.trust.authority import Authority
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity
from tests.simulation.loop import run

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86400.0
DAYS = 30.0
EVERYBODY = tuple(Role)
PLAIN = (Role.coordinator, Role.worker, Role.submitter)


class Household:
    """Some machines that are on or off, all reachable from each other while they are on."""

    def __init__(self, rng: random.Random, names: tuple[str, ...], admins: tuple[str, ...] = ("ash",)) -> None:
        # After some months a double has fewer digits left for the seconds than the loop counts on.
        asyncio.get_running_loop()._clock_resolution = 1e-6  # type: ignore[attr-defined]
        self.authority = Authority.from_seed(b"household")
        self.rng = rng
        self.on: set[str] = set(names)
        self.linked_to: dict[str, set[str]] = {}
        """Whom a machine can reach; everybody if it is not named."""
        self.renewals: dict[str, list[float]] = {name: [] for name in names}
        self.asked: list[tuple[str, str]] = []
        self.appeals = 0
        self.skews: dict[str, float] = {}
        self.events: list[tuple[str, NodeAdmitted]] = []
        self.papers: dict[str, Papers] = {}
        self.roles: dict[str, Roles] = {}
        self.tasks = TaskGroup(self._failed)
        self.defects: list[BaseException] = []
        self.identities = {name: Identity.from_seed(name.encode()) for name in names}
        self.names = {identity.node_id: name for name, identity in self.identities.items()}
        self._serial = 0
        for name in names:
            self._move_in(name, EVERYBODY if name in admins else PLAIN, founder=name == names[0])

    def _move_in(self, name: str, roles: tuple[Role, ...], *, founder: bool) -> None:
        identity = self.identities[name]
        self._serial += 1
        grant = self.authority.grant(identity.public_key, name, roles, serial=self._serial)
        credentials = Credentials(
            identity=identity,
            hive_id=self.authority.hive_id,
            authority_pem=self.authority.certificate_pem,
            authority_key=self.authority.public_key,
            certificate_pem=self.authority.certify(
                identity.public_key, now=datetime.fromtimestamp(self.wall(name), UTC), lifetime=timedelta(days=DAYS)
            ),
            grant=grant,
            authority=self.authority if founder else None,
        )
        self.roles[name] = Roles(self.authority.public_key, grant)
        self.events.append((identity.node_id, NodeAdmitted(grant=grant)))
        for view in self.roles.values():
            for author, body in self.events:
                view.apply(author, 1, body)

        def adopt(changed: Credentials) -> None:
            self.renewals[name].append(self.wall(name))

        self.papers[name] = Papers(
            credentials,
            lifetime=timedelta(days=DAYS),
            wall=lambda: self.wall(name),
            rng=random.Random(self.rng.getrandbits(64)),
            roles=self.roles[name],
            links=lambda: [self.identities[other].node_id for other in self.reached(name) if self.good(other)],
            doors=lambda: [(identity.node_id, other) for other, identity in self.identities.items()],
            call=lambda peer, request, timeout: self.call(name, peer, request),
            appeal=lambda peer, address: self.appeal(name, address),
            adopt=adopt,
            tasks=self.tasks,
        )

    def wall(self, name: str = "") -> float:
        return START.timestamp() + asyncio.get_running_loop().time() + self.skews.get(name, 0.0)

    def reached(self, name: str) -> list[str]:
        if name not in self.on or not self.good(name):
            return []
        return sorted(other for other in self.on & self.linked_to.get(name, self.on) if other != name)

    def good(self, name: str) -> bool:
        """Whether its certificate lets it keep links."""
        paper = self.papers[name].paper
        return paper is not None and not paper.trouble(self.wall())

    async def call(self, name: str, peer: str, request: Request) -> Response:
        other = self.names[peer]
        if other not in self.reached(name):
            raise Unavailable("It is off.", fix="Start it.")
        assert isinstance(request, Renew | AuthorityRequest)
        self.asked.append((name, other))
        return await self.papers[other].serve(self.identities[name].node_id, request)

    async def appeal(self, name: str, address: str) -> str:
        self.appeals += 1
        if not {name, address} <= self.on or not self.good(address):
            raise Unavailable("It cannot be reached.", fix="Start it.")
        return await self.papers[address].vouch(self.identities[name].node_id)

    def grant(self, name: str, *roles: Role) -> None:
        self._serial += 1
        identity = self.identities[name]
        body = NodeAdmitted(grant=self.authority.grant(identity.public_key, name, roles, serial=self._serial))
        self.events.append((identity.node_id, body))
        for other, view in self.roles.items():
            view.apply(identity.node_id, 1, body)
            self.papers[other].look()

    def start(self, *names: str) -> None:
        for name in names or tuple(self.papers):
            self.papers[name].start()

    def switch(self, name: str, on: bool) -> None:
        (self.on.add if on else self.on.discard)(name)
        for papers in self.papers.values():
            papers.look()

    def _failed(self, name: str, error: BaseException) -> None:
        self.defects.append(error)

    async def end(self) -> None:
        await self.tasks.close()
        assert self.defects == []


NAMES = ("ash", "birch", "cedar", "dogwood", "elm")


@pytest.mark.parametrize("seed", range(3))
def test_over_a_year_no_certificate_ends_and_nobody_asks_more_than_it_must(seed: int) -> None:
    async def story(rng: random.Random) -> None:
        home = Household(rng, NAMES)
        home.start()
        for _ in range(365 * 4):
            await asyncio.sleep(DAY / 4)
            assert all(home.good(name) for name in NAMES)
            assert not any(papers.trouble for papers in home.papers.values())
        for name in NAMES:
            times = home.renewals[name]
            gaps = [later - earlier for earlier, later in pairwise(times)]
            assert 365 / (0.8 * DAYS) - 1 <= len(times) <= 365 / (0.5 * DAYS) + 1
            assert all(0.5 * DAYS * DAY - 1 <= gap <= 0.8 * DAYS * DAY + LATENESS for gap in gaps)
        assert len(home.asked) == sum(len(home.renewals[name]) for name in NAMES[1:])
        # They all joined in the same second, and yet no two ask within the same minute.
        moments = sorted(at for times in home.renewals.values() for at in times)
        assert min(later - earlier for earlier, later in pairwise(moments)) > 60
        await home.end()

    run(story, seed=seed, until=500 * DAY)


LATENESS = 3600.0
"""`papers.LOOK_SECONDS`: so late a due renewal may be noticed."""


def test_while_the_founder_is_off_another_admin_renews() -> None:
    async def story(rng: random.Random) -> None:
        home = Household(rng, NAMES)
        home.start()
        home.grant("birch", *EVERYBODY)
        await asyncio.sleep(60)
        assert home.papers["birch"].authority is not None
        assert home.papers["cedar"].authority is None
        home.switch("ash", False)
        for _ in range(200):
            await asyncio.sleep(DAY)
            assert all(home.good(name) for name in NAMES[1:])
        home.switch("ash", True)  # its own has expired meanwhile; it signs itself a new one
        await asyncio.sleep(DAY)
        assert home.good("ash")
        home.grant("birch", *PLAIN)
        await asyncio.sleep(60)
        assert home.papers["birch"].authority is None
        await home.end()

    run(story, until=500 * DAY)


def test_while_nobody_can_sign_it_is_said_in_time_and_all_is_well_when_the_founder_is_back() -> None:
    async def story(rng: random.Random) -> None:
        home = Household(rng, NAMES)
        home.start()
        await asyncio.sleep(40 * DAY)
        home.switch("ash", False)
        told = 0
        while any(home.good(name) for name in NAMES[1:]):
            await asyncio.sleep(3600)
            for name in NAMES[1:]:
                paper, trouble = home.papers[name].paper, home.papers[name].trouble
                assert paper is not None
                left = paper.ends - home.wall()
                if left > 0.2 * DAYS * DAY + 3600:
                    assert trouble == ""
                elif 0 < left < 0.2 * DAYS * DAY - 3600:
                    told += 1
                    assert "is not renewed" in trouble
                    assert "Start ash" in trouble
        assert told > 4 * 24 * 4
        assert all("so the others turn it away" in home.papers[name].trouble for name in NAMES[1:])
        tries = home.appeals
        await asyncio.sleep(DAY)
        assert 0 < home.appeals - tries < 4 * 4 * DAY / 300  # they go on trying, and not without pause
        home.on.add("ash")
        await asyncio.sleep(600)
        assert all(home.good(name) for name in NAMES)
        assert not any(papers.trouble for papers in home.papers.values())
        await home.end()

    run(story, until=500 * DAY)


def test_a_machine_away_for_months_gets_a_new_certificate_from_whoever_it_reaches() -> None:
    """Also where it reaches only one that cannot sign, which passes the request on."""

    async def story(rng: random.Random) -> None:
        home = Household(rng, NAMES)
        home.start()
        home.switch("elm", False)
        await asyncio.sleep(35 * DAY)
        assert not home.good("elm")
        home.papers["elm"]._doors = lambda: [(home.identities["cedar"].node_id, "cedar")]
        home.switch("elm", True)
        await asyncio.sleep(60)
        assert home.good("elm")
        assert ("cedar", "ash") in home.asked
        await home.end()

    run(story, until=500 * DAY)


def test_a_revoked_machine_gets_no_certificate_from_anybody() -> None:
    async def story(rng: random.Random) -> None:
        home = Household(rng, NAMES)
        home.start()
        home.grant("elm")
        await asyncio.sleep(31 * DAY)
        assert home.renewals["elm"] == []
        assert not home.good("elm")
        for name in ("ash", "birch"):
            with pytest.raises(Refused, match="not a member"):
                await home.papers[name].vouch(home.identities["elm"].node_id)
        with pytest.raises(Refused, match="not a member"):
            await home.papers["ash"].vouch(Identity.create().node_id)
        await home.end()

    run(story, until=500 * DAY)


def test_a_certificate_of_a_signer_whose_clock_is_wrong_is_not_taken() -> None:
    async def story(rng: random.Random) -> None:
        home = Household(rng, ("ash", "birch"))
        home.skews["ash"] = 3 * DAY
        home.start()
        await asyncio.sleep(25 * DAY)
        assert home.renewals["birch"] == []
        home.skews["ash"] = 0.0
        await asyncio.sleep(DAY)
        assert home.renewals["birch"]
        await home.end()

    run(story, until=500 * DAY)


def test_the_authoritys_key_goes_to_admins_only_and_only_the_true_one_is_kept() -> None:
    async def story(rng: random.Random) -> None:
        home = Household(rng, ("ash", "birch", "cedar"))
        home.start()
        node: Callable[[str], str] = lambda name: home.identities[name].node_id  # noqa: E731
        with pytest.raises(Refused, match="does not have the admin role"):
            await home.papers["ash"].serve(node("birch"), AuthorityRequest())
        with pytest.raises(Refused, match="does not keep the hive's authority key"):
            home.papers["birch"].require("let nobody in", "Make the invite")
        other = Authority.from_seed(b"another")
        liar = home.papers["ash"]
        liar._credentials = replace(liar._credentials, authority=other)
        home.grant("birch", *EVERYBODY)
        await asyncio.sleep(60)
        assert home.papers["birch"].authority is None
        with pytest.raises(Refused, match="not yet the hive's authority key"):
            home.papers["birch"].require("let nobody in", "Make the invite")
        liar._credentials = replace(liar._credentials, authority=home.authority)
        home.switch("ash", True)
        await asyncio.sleep(60)
        kept = home.papers["birch"].authority
        assert kept is not None
        assert kept.public_key == home.authority.public_key
        key = await home.papers["ash"].serve(node("birch"), AuthorityRequest())
        assert isinstance(key, AuthorityKey)
        assert key.key.hex() not in repr(key)
        renewed = await home.papers["birch"].serve(node("cedar"), Renew(node=node("cedar")))
        assert isinstance(renewed, Renewed)
        with pytest.raises(HiveError):
            await home.papers["cedar"].serve(node("birch"), Renew(node=node("ash")))
        await home.end()

    run(story, until=500 * DAY)

"""The pairing code that a member shows: one at a time, for ten minutes, good for one guess."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from hivenode.errors import HiveError, InvalidInput, NotFound, Refused
from hivenode.logs import get_logger
from hivenode.spec.members import PairingStatus
from hivenode.spec.status import InviteIssued
from hivenode.spec.values import Name, Role
from hivenode.tasks import Signal
from hivenode.trust.invites import read_token
from hivenode.trust.pairing_codes import MAX_STARTS, Exchange, Shared, make_code, proves, read_code

CODE_SECONDS = 600.0
INVITE_SECONDS = 300.0
"""Of the invite that a right code is exchanged for: it is used at once."""
SESSION_BYTES = 16
_AGAIN = "Take a new code with `hivenode pair` on a member."

log = get_logger("pairing")


@dataclass
class _Open:
    code: str
    roles: tuple[Role, ...]
    ends: float
    ends_at: float
    state: str = "open"
    detail: str = ""
    member: str = ""
    invite: str = ""
    starts: int = 0
    exchanges: dict[bytes, Shared] = field(default_factory=dict)


class PairingDesk:
    """
    Args:
        wall: seconds since 1970.
        may_invite: raises Refused where this node lets nobody in.
        invite: makes an invite: roles, uses, seconds.
        make: makes a code.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float],
        may_invite: Callable[[], object],
        invite: Callable[[tuple[Role, ...], int, float], Awaitable[InviteIssued]],
        make: Callable[[], str] = make_code,
    ) -> None:
        self._wall = wall
        self._may_invite = may_invite
        self._invite = invite
        self._make = make
        self._held: _Open | None = None
        self._changed = Signal()

    # --- for the member's person ----------------------------------------------------------------------------------

    def open(self, roles: tuple[Role, ...], seconds: float = CODE_SECONDS) -> PairingStatus:
        """Show a new code; one that is open already is void from here on.

        Raises:
            Refused: this node does not keep the authority's key.
            InvalidInput: no roles.
        """
        self._may_invite()
        if not roles:
            raise InvalidInput("Whoever joins needs at least one role.", fix=f"Roles are {', '.join(Role)}.")
        self._end("closed", "A newer code was made.")
        self._held = _Open(self._make(), roles, _now() + seconds, self._wall() + seconds)
        log.info("pairing code open", roles=[role.value for role in roles], seconds=seconds)
        return self.status()

    def close(self) -> PairingStatus:
        """Take the code back."""
        self._end("closed", "It was taken back.")
        return self.status()

    def status(self) -> PairingStatus:
        """How it stands with the latest code."""
        self._expire()
        held = self._held
        if held is None:
            return PairingStatus("none")
        return PairingStatus(
            held.state,
            held.code if held.state == "open" else "",
            tuple(role.value for role in held.roles),
            held.ends_at,
            held.detail,
            held.member,
        )

    async def wait(self, state: str, seconds: float) -> PairingStatus:
        """As `status`, once it is another than `state`, or after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while self.status().state == state:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.status()

    def admitted(self, invite: str, name: str) -> None:
        """Somebody has joined with this invite."""
        held = self._held
        if held is not None and held.state == "paired" and held.invite == invite:
            held.state, held.detail, held.member = "joined", f"{name} has joined.", name
            self._changed.notify()

    # --- for the machine that wants in ----------------------------------------------------------------------------

    @property
    def showing(self) -> bool:
        """Whether a code is open."""
        self._expire()
        return self._held is not None and self._held.state == "open"

    def begin(self, message: bytes, address: str) -> tuple[bytes, bytes]:
        """A machine at `address` begins: a session, and our message.

        Raises:
            NotFound: no code is open.
            Refused: its message is malformed, or too many have begun.
        """
        held = self._require()
        if held.starts >= MAX_STARTS:
            self._end("void", f"Too many tries, the last from {address}.")
            raise Refused("There were too many tries with this code: it is void.", fix=_AGAIN)
        held.starts += 1
        exchange = Exchange(read_code(held.code), joiner=False)
        shared = exchange.finish(message)
        session = secrets.token_bytes(SESSION_BYTES)
        held.exchanges[session] = shared
        return session, exchange.message

    async def confirm(self, session: bytes, proof: bytes, sealed_name: bytes, address: str) -> tuple[bytes, bytes]:
        """The machine proves that it has the code: our proof, and an invite's token, sealed. A wrong proof is the one
        guess, and the code is void.

        Raises:
            NotFound: no code is open, or the session is not (any more).
            Refused: the proof is wrong.
        """
        held = self._require()
        shared = held.exchanges.pop(session, None)
        if shared is None:
            raise NotFound("This exchange is over, or never began.", fix="Begin again with the same code.")
        if not proves(shared.joiner_proof, proof):
            self._end("void", f"A machine at {address} gave a wrong code.")
            log.warning("a wrong pairing code was given: it is void", address=address)
            raise Refused("The code is wrong, and void now: there is one guess.", fix=_AGAIN)
        name = _name(shared.open(sealed_name, joiner=True))
        # From here on nobody else gets in with this code, whatever becomes of the invite.
        self._end("paired", f"{name} at {address} gave the code and joins now.")
        held.member, held.ends = name, _now() + INVITE_SECONDS
        try:
            issued = await self._invite(held.roles, 1, INVITE_SECONDS)
        except HiveError as error:
            held.state, held.detail = "void", str(error)
            self._changed.notify()
            raise
        held.invite = read_token(issued.token).id
        log.info("paired", member=name, address=address, invite=held.invite)
        return shared.member_proof, shared.seal(issued.token.encode(), joiner=False)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _require(self) -> _Open:
        if not self.showing:
            raise NotFound("No pairing code is open here.", fix=_AGAIN)
        assert self._held is not None
        return self._held

    def _expire(self) -> None:
        held = self._held
        if held is None or _now() < held.ends:
            return
        if held.state == "paired":
            held.state, held.detail = "expired", f"{held.member} gave the code and then did not join."
            self._changed.notify()
        self._end("expired", "Nobody has used it in time.")

    def _end(self, state: str, detail: str) -> None:
        held = self._held
        if held is not None and held.state == "open":
            held.state, held.detail = state, detail
            held.exchanges.clear()
            self._changed.notify()


def _name(data: bytes) -> str:
    try:
        return msgspec.msgpack.decode(data, type=Name)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(
            f"The name that the machine gives itself is malformed: {error}.", fix="Update hivenode on that machine."
        ) from error


def _now() -> float:
    return asyncio.get_running_loop().time()

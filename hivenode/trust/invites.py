"""Invites: one word that lets another machine in. The book of them keeps only a hash of each secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import string
from collections.abc import Callable
from typing import Annotated

import msgspec

from hivenode.errors import Corrupted, Exhausted, InvalidInput, Refused
from hivenode.spec.values import HiveId, Role

PREFIX = "HIVE1-"
SECRET_BYTES = 16
ID_BYTES = 5
OPEN_INVITES = 256
"""Most invites that may be unexpired at one time."""
REMEMBER_SECONDS = 7 * 86400.0
"""How long an expired invite is remembered, so that its user is told why it is refused."""

_CHECK_BYTES = 4
_ALPHABET = frozenset(string.ascii_uppercase + "234567")
_FIX = "Copy the whole token again, from HIVE1- to its end."


class Invite(msgspec.Struct, frozen=True):
    """Where to go and what to say there. `hive` pins the authority: the joiner cannot be led to another."""

    hive: HiveId
    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=16)]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=64)]

    def token(self) -> str:
        """`HIVE1-` and base32 text, one word, with a checksum."""
        packed = msgspec.msgpack.encode((_unbase(self.hive), self.addresses, self.id, self.secret))
        return PREFIX + _base(packed + _checksum(packed))

    def __repr__(self) -> str:
        return f"Invite({self.id}, hive={self.hive})"


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    hive: Annotated[bytes, msgspec.Meta(min_length=20, max_length=20)]
    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=16)]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=64)]


def read_token(text: str) -> Invite:
    """The invite in a token; line breaks, spaces and lower case are forgiven.

    Raises:
        InvalidInput: it is not a token, of a newer kind, cut short or mistyped.
    """
    word = "".join(text.split()).upper()
    if not word.startswith(PREFIX):
        if word.startswith("HIVE") and "-" in word[:8]:
            raise InvalidInput(
                "This invite was made by another version of hivenode.",
                fix="Use the same version on both machines.",
            )
        raise InvalidInput("This is not an invite token; one begins with HIVE1-.", fix=_FIX)
    body = word[len(PREFIX) :]
    for place, character in enumerate(body, len(PREFIX) + 1):
        if character not in _ALPHABET:
            raise InvalidInput(
                f"The invite token has a typo: '{character}' at character {place} is never in one.", fix=_FIX
            )
    try:
        data = base64.b32decode(body + "=" * (-len(body) % 8))
    except binascii.Error:
        raise InvalidInput("The invite token is incomplete.", fix=_FIX) from None
    packed, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    # The last character has bits that decoding ignores; a typo there is one all the same.
    if _checksum(packed) != check or _base(data) != body:
        raise InvalidInput("The invite token has a typo or is incomplete: its checksum does not match.", fix=_FIX)
    try:
        found = msgspec.msgpack.decode(packed, type=_Packed)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"The invite token cannot be read: {error}.", fix="Make a new invite.") from error
    return Invite(_base(found.hive).lower(), found.addresses, found.id, found.secret)


class _Page(msgspec.Struct, frozen=True):
    """One invite as the book keeps it."""

    id: str
    secret_hash: bytes
    roles: tuple[Role, ...]
    uses: int
    expires_at: float
    used_by: tuple[str, ...] = ()


class InviteBook:
    """The invites a node has issued. Pure: the caller makes `state()` durable before it acts on an answer.

    Args:
        state: what `state()` gave, or None for an empty book. Raises Corrupted if it is neither.
    """

    def __init__(self, state: bytes | None) -> None:
        self._pages: dict[str, _Page] = {}
        if state:
            try:
                pages = msgspec.msgpack.decode(state, type=tuple[_Page, ...])
            except msgspec.MsgspecError as error:
                raise Corrupted(
                    f"The book of invites cannot be read: {error}.",
                    fix="Use the newest version of hivenode you have run here.",
                ) from error
            self._pages = {page.id: page for page in pages}

    def state(self) -> bytes:
        return msgspec.msgpack.encode(tuple(self._pages.values()))

    def issue(
        self,
        hive: str,
        addresses: tuple[str, ...],
        roles: tuple[Role, ...],
        *,
        uses: int,
        expires_at: float,
        rng_bytes: Callable[[int], bytes],
        now: float | None = None,
    ) -> Invite:
        """A new invite.

        Args:
            uses: how many different nodes may join with it.
            expires_at: seconds since 1970.
            rng_bytes: cryptographic randomness outside of simulation.
            now: seconds since 1970; when given, long expired invites are forgotten.

        Raises:
            Exhausted: `OPEN_INVITES` are open already.
        """
        if now is not None:
            self._pages = {i: page for i, page in self._pages.items() if page.expires_at + REMEMBER_SECONDS > now}
        if len(self._pages) >= OPEN_INVITES:
            self._forget_oldest(now)
        invite = Invite(hive, tuple(addresses), _base(rng_bytes(ID_BYTES)).lower(), rng_bytes(SECRET_BYTES))
        self._pages[invite.id] = _Page(invite.id, _hash(invite.secret), tuple(roles), uses, expires_at)
        return invite

    def redeem(self, id: str, secret: bytes, node: str, now: float) -> tuple[Role, ...]:
        """Count a use by `node` and answer the roles it gets. The same node again (its answer was
        lost) is not a second use.

        Raises:
            Refused: unknown id or wrong secret (not told apart), expired, or used up.
        """
        page = self._pages.get(id)
        known = hmac.compare_digest(_hash(secret), page.secret_hash if page is not None else bytes(32))
        fix = "Make a new invite on the node that founded the hive."
        if page is None or not known:
            raise Refused(f"There is no invite {id[:32]!r} with this secret.", fix=fix)
        if now >= page.expires_at:
            raise Refused(f"The invite {id} has expired.", fix=fix)
        if node not in page.used_by:
            if len(page.used_by) >= page.uses:
                raise Refused(f"The invite {id} has been used {page.uses} times, as often as it may be.", fix=fix)
            self._pages[id] = msgspec.structs.replace(page, used_by=(*page.used_by, node))
        return page.roles

    def _forget_oldest(self, now: float | None) -> None:
        """Room for one more: an expired invite goes first, then one that is used up; an open one never."""
        gone = [page for page in self._pages.values() if now is not None and page.expires_at <= now]
        gone += [page for page in self._pages.values() if len(page.used_by) >= page.uses]
        if not gone:
            raise Exhausted(
                f"{len(self._pages)} invites are open already.",
                fix="Use fewer invites, each with more uses, or let some expire.",
            )
        del self._pages[gone[0].id]


def _base(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=")


def _unbase(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"hivenode invite 1\0" + data).digest()[:_CHECK_BYTES]


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(b"hivenode invite secret\0" + secret).digest()

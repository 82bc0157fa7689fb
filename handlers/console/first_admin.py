"""The one-time link with which the first admin gets in: short-lived, good once, kept as a hash in memory alone."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from adapters.admins import alone_at_the_first, has_admin
from adapters.hashing import Hasher
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.settings import Settings
from handlers.operators import NewAdmin, Unacceptable, checked, create_admin

LINK_S = 15 * 60.0


class NotMade(Exception):
    """What keeps the link's reader out, in words for them."""


@dataclass(frozen=True, slots=True)
class KnownAdmin:
    """The admin of a `dev`, whose password stands in the ready file: the link signs them in."""

    email: str
    password: SecretStr

    async def enter(self, _: Mapping[str, str]) -> tuple[str, str]:
        """Address and password to sign in with."""
        return self.email, self.password.get_secret_value()


class FirstAdmin:
    """Nobody is an admin yet: whoever has the link becomes one."""

    def __init__(self, settings: Settings, database: Database, personal: PersonalData) -> None:
        self._settings = settings
        self._database = database
        self._personal = personal

    async def is_missing(self) -> bool:
        """Is there nobody who could sign in as an admin?"""
        async with self._database.connection() as connection:
            return not await has_admin(connection)

    async def enter(self, typed: Mapping[str, str]) -> tuple[str, str]:
        """Make the account that was typed; address and password to sign in with. Raises `NotMade`."""
        async with self._database.connection() as kept, alone_at_the_first(kept):
            return await self._enter(typed)

    async def _enter(self, typed: Mapping[str, str]) -> tuple[str, str]:
        if not await self.is_missing():
            raise NotMade("Somebody is an admin by now: sign in, or ask them for an invitation.")
        wanted = [typed.get(name, "").strip() for name in ("email", "firstName", "lastName")]
        try:
            admin = checked(self._settings, NewAdmin(wanted[0], typed.get("password", ""), wanted[1], wanted[2]))
        except Unacceptable as fault:
            raise NotMade(f"That cannot be: {fault}") from None
        hasher = Hasher(self._settings.argon2, threads=1, waiting_max=1)
        try:
            made = await create_admin(self._database, self._personal, hasher, admin)
        finally:
            hasher.close()
        if not made:
            raise NotMade("This address is registered already.")
        return admin.email, admin.password


class OneTimeLink:
    """A link that lets one person in, once, within a quarter of an hour."""

    def __init__(self, way: KnownAdmin | FirstAdmin) -> None:
        self._way = way
        self._hash: bytes | None = None
        self._good_until = 0.0
        self._using = asyncio.Lock()

    @property
    def makes(self) -> bool:
        """Does its reader choose address and password?"""
        return isinstance(self._way, FirstAdmin)

    @property
    def is_open(self) -> bool:
        return self._hash is not None and time.monotonic() < self._good_until

    def new(self) -> str:
        """Make its token, which is known to the caller alone; an earlier one is void."""
        token = secrets.token_urlsafe(32)
        self._hash, self._good_until = hashlib.sha256(token.encode()).digest(), time.monotonic() + LINK_S
        return token

    def opens(self, token: str) -> bool:
        """Is this the token, and still good? It is not used up by being looked at."""
        seen = hashlib.sha256(token.encode()).digest()
        return self.is_open and self._hash is not None and hmac.compare_digest(seen, self._hash)

    async def use(self, typed: Mapping[str, str]) -> tuple[str, str]:
        """Address and password to sign in with; the link is spent then. Raises `NotMade`, which spends nothing."""
        async with self._using:
            if not self.is_open:
                raise NotMade("This link was used already, or its time is over.")
            found = await self._way.enter(typed)
            self._hash = None
        return found

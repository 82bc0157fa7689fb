"""The end of accounts, in the group `jobs`: pending ones end, addresses come free, and what was deleted is erased.

Every step may be repeated, and several processes may be at it: one that dies leaves its user to the next.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError

from adapters.avatar_store import remove_all
from adapters.cache import SharedCache
from adapters.erasure import (
    claim_erasure,
    erase_user,
    free_addresses,
    give_back_erasure,
    note_swept,
    pending_since,
    sweep_rows,
    version_of,
)
from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.settings import Settings
from adapters.streams import EVENT_GROUPS, EVENTS_STREAM, LETTERS_STREAM, REPLAYS_STREAM, delete_messages
from adapters.unit_of_work import unit_of_work
from contracts.events import subject_of
from contracts.wire import Empty
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

PERIOD_S = 2.0
USERS_MAX = 100
"""Of each kind in one go; those that are left come with the next."""
MESSAGES_MAX = 500
"""Of a user and a stream in one go."""
SWEEP_S = 25.0
"""Below the lease: what is not done by then is another go's."""


class Erasure:
    """Ends what is over, for ever."""

    def __init__(
        self,
        database: Database,
        personal: PersonalData,
        client: Client,
        shared: SharedCache,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        wake_relay: Callable[[], None],
    ) -> None:
        self._database = database
        self._personal = personal
        self._client = client
        self._js = client.jetstream()
        self._shared = shared
        self._settings = settings
        self._now = now
        self._wake_relay = wake_relay

    async def run(self) -> None:
        """Look again and again; what is away is waited for."""
        while True:
            await asyncio.sleep(PERIOD_S * random.uniform(0.5, 1.5))
            try:
                await self.end_pending()
                await self.free_addresses()
                for _ in range(USERS_MAX):
                    if not await self.erase_one():
                        break
            except (Unavailable, Overloaded, Stale, NatsError, TimeoutError, OSError) as error:
                log.warning("erasing waits", error=type(error).__name__)

    async def end_pending(self) -> None:
        """Accounts whose address nobody has verified in time are deleted, and their address is free at once."""
        before = self._now() - self._settings.lifetimes.unverified_account
        async with self._database.connection() as connection:
            pending = await pending_since(connection, before, users_max=USERS_MAX)
        for user_id in pending:
            await self._end(user_id)

    async def _end(self, user_id: UUID) -> None:
        at = self._now()
        async with unit_of_work(self._database, self._personal, _trail("pending"), announce=self._announce) as work:
            user = await work.users.lock(user_id)
            if user is None or user.email_verified or user.last_login_at is not None:
                return
            await work.end_pending(user, by="system", at=at)
            await work.commit(Empty())
        log.info("pending account ended", userId=str(user_id))

    def _announce(self, _: Mapping[UUID, int]) -> None:
        self._wake_relay()  # which tells every process, this one too

    async def free_addresses(self) -> None:
        """Addresses of accounts that were deleted long enough ago may be taken again."""
        before = self._now() - timedelta(seconds=self._settings.email_reuse_after_seconds)
        async with self._database.connection() as connection:
            await free_addresses(connection, deleted_before=before, users_max=USERS_MAX)

    async def erase_one(self) -> bool:
        """Take a user whose time has come as far as one go allows; False when there is none."""
        at = self._now()
        before = at - timedelta(seconds=self._settings.erase_after_seconds)
        async with self._database.connection() as connection:
            user_id = await claim_erasure(connection, EVENT_GROUPS, deleted_before=before, at=at)
        if user_id is None:
            return False
        async with self._database.transaction() as connection:
            if await erase_user(connection, user_id, _trail("erasure"), at=at):
                log.info("user erased", userId=str(user_id))
        self._wake_relay()
        async with asyncio.timeout(SWEEP_S):
            is_done = await self._sweep(user_id)
        async with self._database.connection() as connection:
            if is_done:
                await note_swept(connection, user_id, begun_at=at, at=self._now())
            else:
                await give_back_erasure(connection, user_id)
        return True

    async def _sweep(self, user_id: UUID) -> bool:
        """Delete what is left of a user outside of their row; True when nothing is."""
        async with self._database.transaction() as connection:
            await sweep_rows(connection, user_id)
            version = await version_of(connection, user_id)
        await self._shared.drop({user_id: version})  # a floor without a body: nothing older can be read or put back
        await remove_all(self._client, user_id)
        streams = {
            EVENTS_STREAM: f"users.events.v1.*.{user_id}",
            LETTERS_STREAM: f"users.dead-letters.*.*.{user_id}",
            REPLAYS_STREAM: f"users.replay.*.*.{user_id}",
        }
        last = subject_of("UserErased", user_id)
        done = [
            await delete_messages(self._js, stream, subject, messages_max=MESSAGES_MAX, but=last)
            for stream, subject in streams.items()
        ]
        return all(done)


def _trail(what: str) -> Trail:
    return Trail(request_id=f"{what}-{uuid4()}")

"""When sessions are used: noted in the process, written behind the requests, so that none waits for it."""

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from adapters.bounded import BoundedDict
from adapters.postgres import Database
from adapters.sessions import touch
from domain.refusals import Overloaded, Stale, Unavailable
from domain.session import Standing

log = structlog.get_logger()

COARSE = timedelta(minutes=1)
_GATHER_S = 0.1
_SESSIONS_MAX = 10_000


class Activity:
    """Who is active is not idle, although no refresh has come: a session's use is written once a minute at most, or
    four times in its idle time where that is short. It raises no version: caches and listeners need not know."""

    def __init__(self, database: Database, idle: timedelta) -> None:
        self._database = database
        self._coarse = min(COARSE, idle / 4)
        self._noted: BoundedDict[UUID, datetime] = BoundedDict(_SESSIONS_MAX)
        self._unwritten: BoundedDict[UUID, datetime] = BoundedDict(_SESSIONS_MAX)
        self._some = asyncio.Event()

    def note(self, stands: Standing, at: datetime) -> None:
        """A token of this session was accepted now."""
        known = max(stands.last_active_at, self._noted.get(stands.session_id, stands.last_active_at))
        if at < known + self._coarse:
            return
        self._noted[stands.session_id] = at
        self._unwritten[stands.session_id] = at
        self._some.set()

    async def run(self) -> None:
        """For ever: write what was noted, many sessions by one statement. What cannot be written is let go."""
        while True:
            await self._some.wait()
            await asyncio.sleep(_GATHER_S)
            self._some.clear()
            seen = dict(self._unwritten)
            self._unwritten.clear()
            try:
                async with self._database.connection() as connection:
                    await touch(connection, seen, at_least_after=self._coarse)
            except (Unavailable, Overloaded, Stale) as error:
                log.warning("when sessions were used is not written", error=type(error).__name__, sessions=len(seen))

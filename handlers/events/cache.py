"""The group `cache`: keeps L2 from showing what is no longer so."""

from collections.abc import Sequence
from uuid import UUID

from adapters.cache import SharedCache
from adapters.event_log import StoredEvent
from adapters.gathering import Gathering


class Cache:
    """Leaves each event's version as a floor. What was missed while Redis was away is made up for at once: the
    generation is raised on its return, so that nothing written before can be read."""

    def __init__(self, shared: SharedCache) -> None:
        self._shared = shared
        self._missed = True  # whatever happened before this process was there
        self._drop = Gathering(self._drop_all)

    async def handle(self, stored: StoredEvent) -> str:
        """Never fails: a cache that is away has nothing to lose."""
        return await self._drop(stored)

    async def _drop_all(self, events: Sequence[StoredEvent]) -> Sequence[str]:
        if self._missed and await self._shared.forget_all():
            self._missed = False
        versions: dict[UUID, int] = {}
        for stored in events:
            user_id = stored.event.aggregate_id
            versions[user_id] = max(stored.event.version, versions.get(user_id, 0))
        if not await self._shared.drop(versions):
            self._missed = True
            return ["redis_away"] * len(events)
        return ["dropped"] * len(events)

    async def catch_up(self) -> None:
        """Asked each second: after an outage no event need come to make up for what was missed."""
        if self._missed and await self._shared.forget_all():
            self._missed = False

"""The group `cache`: keeps L2 from showing what is no longer so."""

from adapters.cache import SharedCache
from adapters.event_log import StoredEvent


class Cache:
    """Leaves each event's version as a floor. What was missed while Redis was away is made up for at once: the
    generation is raised on its return, so that nothing written before can be read."""

    def __init__(self, shared: SharedCache) -> None:
        self._shared = shared
        self._missed = True  # whatever happened before this process was there

    async def handle(self, stored: StoredEvent) -> str:
        """Never fails: a cache that is away has nothing to lose."""
        if self._missed and await self._shared.forget_all():
            self._missed = False
        if not await self._shared.drop(stored.event.aggregate_id, stored.event.version):
            self._missed = True
            return "redis_away"
        return "dropped"

    async def catch_up(self) -> None:
        """Asked each second: after an outage no event need come to make up for what was missed."""
        if self._missed and await self._shared.forget_all():
            self._missed = False

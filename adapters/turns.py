"""One at a time for each key: who wants what another has in hand waits for its end, and is woken by it."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """Within this process alone. It holds as many keys as there are blocks in work, and forgets each at its end."""

    def __init__(self) -> None:
        self._in_hand: dict[Hashable, asyncio.Event] = {}

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """The block runs while no other of this key does."""
        while key in self._in_hand:
            await self._in_hand[key].wait()
        self._in_hand[key] = asyncio.Event()
        try:
            yield
        finally:
            self._in_hand.pop(key).set()

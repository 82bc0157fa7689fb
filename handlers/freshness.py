"""What a write tells everybody: this process at once, every other over the bus; and whether we hear the others."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from uuid import UUID, uuid4

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from adapters.bounded import BoundedDict
from adapters.cache import LocalCache, SharedCache
from adapters.gathering import ITEMS_MAX
from adapters.nats import INVALIDATE, invalidation, send, settle
from adapters.users import Account
from domain.session import Standing

log = structlog.get_logger()

BEAT_S = 0.5
LATE_S = 2.0
BEATS = "users.relay.beat"
_UNTOLD_MAX = 10_000
"""Beyond these the relay and the group `cache`, which say the same again, are early enough."""


class Freshness:
    """Drops what is no longer so. L1 is trusted only while this process hears its own heartbeat over the bus: the
    beat travels on the same connection as the invalidations, so whoever hears it has heard them too."""

    def __init__(
        self,
        client: Client,
        accounts: LocalCache[Account],
        standings: LocalCache[Standing],
        shared: SharedCache,
        *,
        wake_relay: Callable[[], None],
    ) -> None:
        self._client = client
        self._locals = (accounts, standings)
        self._shared = shared
        self._wake_relay = wake_relay
        self._beat = f"{BEATS}.{uuid4().hex}"
        self._heard = -LATE_S
        self._sent = 0
        self._lost_at = 0
        self._untold: BoundedDict[UUID, int] = BoundedDict(_UNTOLD_MAX)
        self._undropped: BoundedDict[UUID, int] = BoundedDict(_UNTOLD_MAX)
        self._written = asyncio.Event()
        self._told = asyncio.Event()

    async def start(self) -> None:
        """Listen; the first beat that comes back makes L1 trusted."""
        await self._client.subscribe(f"{INVALIDATE}.>", cb=self._on_invalidation)
        await self._client.subscribe(self._beat, cb=self._on_beat)
        await settle(self._client)

    def announce(self, touched: Mapping[UUID, int]) -> None:
        """Right after a commit: users and their versions now. The local drop is done when this returns."""
        for user_id, version in touched.items():
            self._drop(user_id, version)
            self._untold[user_id] = max(version, self._untold.get(user_id, 0))
        self._wake_relay()
        self._written.set()

    def lose_trust(self) -> None:
        """The connection was away, or dropped messages: an invalidation may have been among them.

        Only a beat that is sent after this brings trust back: an older one may still be waiting to be heard.
        """
        self._lost_at = self._sent
        for local in self._locals:
            local.is_trusted = False
            local.clear()

    def loops(self) -> dict[str, Coroutine[None, None, None]]:
        """To beat, and to tell of what was written, for ever. Not in a group of their own, which cancels them once:
        a cancellation may be swallowed."""
        return {
            "beat": self._keep_beating(),
            "invalidations": self._tell_everybody(),
            "shared cache": self._drop_shared(),
        }

    async def _keep_beating(self) -> None:
        """Send a beat, and see whether the last ones came back."""
        loop = asyncio.get_running_loop()
        while True:
            self._sent += 1
            await send(self._client, self._beat, str(self._sent).encode())
            if loop.time() - self._heard > LATE_S and any(local.is_trusted for local in self._locals):
                log.warning("invalidations may be missed; reading from the database")
                self.lose_trust()
            await asyncio.sleep(BEAT_S)

    async def _tell_everybody(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            told, self._untold = self._untold, BoundedDict(_UNTOLD_MAX)
            for user_id, version in told.items():
                await send(self._client, f"{INVALIDATE}.{user_id}", invalidation(user_id, version))
                self._undropped[user_id] = max(version, self._undropped.get(user_id, 0))
            self._told.set()

    async def _drop_shared(self) -> None:
        """All that was written while Redis was busy with the last ones goes in one round trip."""
        while True:
            await self._told.wait()
            self._told.clear()
            while self._undropped:
                some = min(len(self._undropped), ITEMS_MAX)
                await self._shared.drop(dict(self._undropped.popitem(last=False) for _ in range(some)))

    def _drop(self, user_id: UUID, version: int) -> None:
        for local in self._locals:
            local.drop(user_id, version)

    async def _on_invalidation(self, message: Msg) -> None:
        try:
            body = json.loads(message.data)
            self._drop(UUID(str(body["id"])), int(body["version"]))
        except (ValueError, KeyError, TypeError):
            log.warning("unreadable invalidation", subject=message.subject)

    async def _on_beat(self, message: Msg) -> None:
        if int(message.data) <= self._lost_at:
            return
        self._heard = asyncio.get_running_loop().time()
        for local in self._locals:
            local.is_trusted = True

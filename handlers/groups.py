"""The event groups: each takes what its durables hand out, and a watch sees one that no longer does."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from adapters.nats import leave
from adapters.settings import Settings
from adapters.streams import Durable, provision, pull
from adapters.telemetry import Metrics
from domain.refusals import Unavailable
from handlers.delivery import hand_back
from handlers.endings import let_end
from handlers.measures import note_consumer

log = structlog.get_logger()

IN_WORK_MAX = 64
"""Deliveries of a durable that a process has in work at once."""
BREATH_S = 0.1
"""From a message to its delivery: what comes meanwhile shares its round trips. All that was asked for waits no more."""
PULL_S = 1.0
"""How long the server keeps a pull open: so long a new one may take after a cut, and a stop."""
WATCH_S = 2.0
SILENT_S = 60.0
_OVER = frozenset({"404", "408"})
"""Statuses with which a pull ends in order; after any other the next one waits a little."""


class GroupIsSilent(Exception):
    """A group has work waiting and does not pull: the process must end, so that a fresh one does its work."""


class Taker:
    """Takes a durable's messages, never more than it can work on; at a stop none is left to wait out its ack time."""

    def __init__(self, client: Client, durable: Durable, deliver: Callable[[Msg], Coroutine[None, None, None]]) -> None:
        self._client = client
        self.durable = durable
        self._deliver = deliver
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._taken: list[Msg] = []
        self._breath: asyncio.TimerHandle | None = None
        self._work: set[asyncio.Task[None]] = set()
        self.last_active = time.monotonic()
        self._room = asyncio.Event()
        self._pull_over = asyncio.Event()
        self._pull_over.set()
        self._awaited = 0
        self.is_stopping = False

    async def start(self) -> None:
        """Listen for what the durable will hand out."""
        self._subscription = await self._client.subscribe(self._inbox, cb=self._on_message)

    async def run(self) -> None:
        """Ask for as many as there is room for, for ever; one pull is open at a time."""
        while not self.is_stopping:
            self._room.clear()
            room = IN_WORK_MAX - self.in_work
            if room <= 0:
                await self._room.wait()
                continue
            self._pull_over.clear()
            self._awaited = room
            asked = await pull(self._client, self.durable, inbox=self._inbox, messages_max=room, expires_s=PULL_S)
            try:
                async with asyncio.timeout(PULL_S + 0.5 if asked else 0.25):
                    await self._pull_over.wait()
            except TimeoutError:
                continue

    async def _on_message(self, message: Msg) -> None:
        if not message.reply.startswith("$JS.ACK."):
            await self._on_status(message)
        else:
            if not self._taken:
                self._breath = asyncio.get_running_loop().call_later(BREATH_S, self._start_work)
            self._taken.append(message)
            self._awaited -= 1
            if self._awaited == 0:
                self._start_work()
                self._pull_over.set()

    async def _on_status(self, message: Msg) -> None:
        """A pull has ended, or nobody serves the durable: the watch makes it again, if it was deleted."""
        if (message.headers or {}).get("Status") not in _OVER:
            await asyncio.sleep(WATCH_S / 4)
        self._pull_over.set()

    def _start_work(self) -> None:
        if self._breath is not None:
            self._breath.cancel()
        if self.is_stopping:
            return  # `stop` hands them back once no pull of ours is open: earlier they would come straight back to us
        taken, self._taken = self._taken, []
        for message in taken:
            context = copy_context()  # of this delivery alone, also for what is logged of its end
            task = asyncio.create_task(self._deliver(message), context=context)
            self._work.add(task)
            task.add_done_callback(self._on_done, context=context)

    @property
    def in_work(self) -> int:
        return len(self._taken) + len(self._work)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a delivery broke off; it comes again after its ack time", exc_info=error)
        self.last_active = time.monotonic()
        self._room.set()

    async def stop(self, *, within_s: float) -> None:
        """Take no more, hand back what was not begun, and let end what is in work; what is late is handed back, too.

        The open pull is waited for: what the server hands out while we unsubscribe would reach nobody. Only then is
        anything handed back: the server would put it straight into that pull again, until its deliveries are used up.
        """
        until = asyncio.get_running_loop().time() + within_s
        self.is_stopping = True
        if self._subscription is not None and self._client.is_connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(PULL_S + 0.5):
                    await self._pull_over.wait()
            await leave(self._client, [self._subscription])
        taken, self._taken = self._taken, []
        for message in taken:
            await hand_back(message)
        await let_end(self._work, until=until)


async def watch(js: JetStreamContext, settings: Settings, takers: Sequence[Taker], metrics: Metrics) -> None:
    """Look after every group for ever; raises `GroupIsSilent` for one that sleeps over its work."""
    while True:
        await asyncio.sleep(WATCH_S)
        for taker in takers:
            try:
                await _look_after(js, settings, taker, metrics)
            except (NatsError, TimeoutError, OSError, Unavailable) as error:
                log.warning("cannot look after a group", durable=taker.durable.name, error=type(error).__name__)


async def _look_after(js: JetStreamContext, settings: Settings, taker: Taker, metrics: Metrics) -> None:
    """Measure a group, and make its durable again where it was deleted: that one starts at the stream's beginning, and
    the inbox keeps it from repeating an effect."""
    durable = taker.durable
    try:
        info: Any = await js.consumer_info(durable.stream, durable.name)
    except NotFoundError:
        log.error("a group's durable was deleted; making it again", durable=durable.name)
        await provision(js, settings, (durable.group,))
        return
    note_consumer(metrics, durable, info)
    silent_s = time.monotonic() - taker.last_active
    idle = not (taker.in_work or taker.is_stopping)
    if info.num_pending and not info.num_waiting and idle and silent_s > SILENT_S:
        raise GroupIsSilent(f"{durable.name} has work waiting and does not pull")

"""Figures that are read, not counted: a process' own every second, what all processes share by the group `jobs`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo

from adapters.backlog import backlog, letters_by_kind, outbox_backlog
from adapters.keys import Keys
from adapters.postgres import Database
from adapters.redis import Redis
from adapters.settings import Settings
from adapters.smtp import Mailer, MailUnavailable
from adapters.streams import EVENT_GROUPS, TAKING_GROUPS, Durable, durables, stream_configs
from adapters.telemetry import Metrics
from contracts.health import Health
from domain.refusals import Overloaded, Stale, Unavailable
from handlers.context import Context

log = structlog.get_logger()

PROCESS_S = 1.0
SHARED_S = 5.0
MAIL_S = 15.0
MAIL_FRESH_S = 60.0
"""A mail server that took a mail so lately need not be asked whether it is there."""
MAIL_PROBE_S = 10.0
_BREAKER_STATES = ("closed", "half open", "open")
READ_S = 15.0
"""How long one reading of figures may take."""


async def _read(read: Callable[[], Awaitable[None]]) -> None:
    """Read some figures once; whatever goes wrong, the process goes on, and the figures stay what they were."""
    try:
        async with asyncio.timeout(READ_S):
            await read()
    except (Unavailable, Overloaded, Stale, NatsError, TimeoutError, OSError) as error:
        log.debug("figures cannot be read", error=type(error).__name__)  # `dependency_up` says so
    except Exception:
        log.exception("figures cannot be read")


async def watch_dependencies(check: Callable[[], Awaitable[Health]], metrics: Metrics) -> None:
    """For ever: does everything answer that this process needs?"""

    async def probe() -> None:
        for found in (await check()).checks:
            metrics.up.labels(found.name).set(found.status == "healthy")

    while True:
        await _read(probe)
        await asyncio.sleep(SHARED_S)


async def watch_process(database: Database, redis: Redis, metrics: Metrics) -> None:
    """For ever: how full is the pool, and which servers are left alone?"""
    metrics.connections_max.set(database.connections_max)
    while True:
        metrics.connections.set(database.in_use)
        for name, breaker in (("database", database.breaker), ("redis", redis.breaker)):
            metrics.breakers.labels(name).set(_BREAKER_STATES.index(breaker.state))
        await asyncio.sleep(PROCESS_S)


async def watch_requests(ctx: Context) -> None:
    """For ever: queues, limits and caches of a process that answers requests."""
    metrics = ctx.metrics
    metrics.in_work_max.set(ctx.settings.requests_max)
    metrics.hash_queue_max.set(ctx.hasher.places_max)
    while True:
        metrics.hash_queue.set(ctx.hasher.places_taken)
        metrics.redis_away.set(ctx.limits.redis_is_away)
        for level, cache in (("l1", ctx.accounts.local), ("l2", ctx.accounts.shared), ("standing", ctx.standings)):
            metrics.cache_hits.labels(level).set(cache.hits)
            metrics.cache_misses.labels(level).set(cache.misses)
        await asyncio.sleep(PROCESS_S)


async def watch_mail(mailer: Mailer, metrics: Metrics) -> None:
    """For ever: is the mail server there? One that has just taken a mail is not asked."""

    async def ask() -> None:
        metrics.up.labels("smtp").set(await mail_answers(mailer))

    while True:
        await _read(ask)
        await asyncio.sleep(MAIL_S)


async def mail_answers(mailer: Mailer) -> bool:
    """Is the mail server there? Takes ten seconds at most."""
    if time.monotonic() - mailer.taken_at < MAIL_FRESH_S:
        return True
    try:
        async with asyncio.timeout(MAIL_PROBE_S):
            await mailer.probe()
    except (MailUnavailable, TimeoutError):
        return False
    return True


def note_keys(keys: Keys, metrics: Metrics, *, file_is_usable: bool) -> None:
    """Which keys this process uses, and when the next ones take over."""
    metrics.key_file_unusable.set(not file_is_usable)
    for purpose, ring in keys.rings.items():
        for kid in ring.keys:
            metrics.keys_in_force.labels(purpose, kid).set(kid == ring.in_force)
        left_s = ring.successor.from_s - time.time() if ring.successor else 0.0
        metrics.key_takes_over.labels(purpose).set(max(left_s, 0.0))


class SharedFigures:
    """Reads what stands in tables and streams, so that it is known also where the group that it is about is dead."""

    def __init__(self, database: Database, js: JetStreamContext, settings: Settings, metrics: Metrics) -> None:
        self._database = database
        self._js = js
        self._settings = settings
        self._metrics = metrics
        self._letters_seen: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """For ever; what cannot be read keeps its last figure, and `dependency_up` says why."""
        while True:
            for read in (self.read_tables, self.read_streams):
                await _read(read)
            await asyncio.sleep(SHARED_S)

    async def read_tables(self) -> None:
        """Outbox, letters, replays and erasures."""
        metrics = self._metrics
        async with self._database.connection() as connection:
            waiting, age_s = await outbox_backlog(connection)
            found = await backlog(connection, erase_after=timedelta(seconds=self._settings.erase_after_seconds))
            letters = await letters_by_kind(connection, "dead")
            held = await letters_by_kind(connection, "held")
        metrics.relay_waiting.set(waiting)
        metrics.relay_lag.set(age_s)
        metrics.letters_unannounced.set(found.letters_unannounced)
        metrics.erasure_overdue.set(found.erasure_overdue_s)
        metrics.replays_running.set(found.replays_running)
        metrics.replay_idle.set(found.replay_idle_s)
        self._letters_seen |= letters.keys()
        for group, reason in self._letters_seen:
            metrics.letters_open.labels(group, reason).set(letters.get((group, reason), 0))
        for group in EVENT_GROUPS:
            metrics.letters_held.labels(group).set(sum(n for (of, _), n in held.items() if of == group))

    async def read_streams(self) -> None:
        """How full each stream is, and how far each group has come."""
        for config in stream_configs(self._settings):
            name = str(config.name)
            found = await self._js.stream_info(name)
            self._metrics.stream_messages.labels(name).set(found.state.messages)
            self._metrics.stream_bytes.labels(name).set(found.state.bytes)
            if (found.config.max_bytes or -1) > 0:
                self._metrics.stream_bytes_max.labels(name).set(found.config.max_bytes or 0)
        for durable in durables(TAKING_GROUPS):
            note_consumer(self._metrics, durable, await self._js.consumer_info(durable.stream, durable.name))


def note_consumer(metrics: Metrics, durable: Durable, info: ConsumerInfo) -> None:
    """How far a group has come, and whether somebody asks for its messages."""
    metrics.consumer_pending.labels(durable.name).set(info.num_pending or 0)
    metrics.consumer_unacked.labels(durable.name).set(info.num_ack_pending or 0)
    metrics.consumer_pulls.labels(durable.name).set(info.num_waiting or 0)

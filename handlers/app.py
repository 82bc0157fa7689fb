"""Composition: everything built once, in order, and taken down in the opposite order.

Long-lived loops live in one task group: if one dies, the process ends and says why.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import structlog
from nats.aio.client import Client
from starlette.routing import BaseRoute

from adapters.avatar_store import AvatarStore
from adapters.avatar_uploads import AvatarUploads
from adapters.cache import STANDING_SECONDS, AccountCache, LocalCache, SharedCache
from adapters.environment import unknown_variables
from adapters.hashing import Hasher
from adapters.idempotency import IdempotencyKeys
from adapters.key_rotation import RELOAD_S
from adapters.keys import BadKeys, Keys
from adapters.limits import Limits
from adapters.mail_caps import MailCaps
from adapters.migrations import require_current
from adapters.nats import AnsweringClient, close, connect
from adapters.password_rules import PasswordRules
from adapters.personal_data import PersonalData
from adapters.pictures import Pictures
from adapters.postgres import Database
from adapters.redis import Redis
from adapters.seal_keys import SealKeys
from adapters.settings import Settings
from adapters.smtp import Mailer
from adapters.streams import EVENT_GROUPS, TAKING_GROUPS, durables, provision
from adapters.telemetry import Metrics
from adapters.tokens import TokenMint
from adapters.tracing import exported_traces
from adapters.two_factor import TwoFactorSecrets
from adapters.users import Account, StoredAccounts
from contracts.api import OPERATIONS
from domain.session import Standing
from handlers.activity import Activity
from handlers.answer_steps import AnswerSteps
from handlers.clock import now
from handlers.console.app import Wishes, console_beside
from handlers.context import Context, device_info
from handlers.dead_letters import Announcer
from handlers.delivery import Deliverer, EventHandler
from handlers.dispatcher import QUEUE, Dispatcher, pair
from handlers.endings import START_S, Ended, Loops, NotWanted, wanted
from handlers.erasure import Erasure
from handlers.events.audit import Audit
from handlers.events.cache import Cache
from handlers.events.email import Email
from handlers.freshness import Freshness
from handlers.given_up import GivenUp
from handlers.groups import Taker, watch
from handlers.jobs import clear_away, keep_current
from handlers.leftovers import remove_leftovers
from handlers.measures import SharedFigures, note_keys, watch_dependencies, watch_mail, watch_process, watch_requests
from handlers.once import Once
from handlers.reconciler import Reconciler
from handlers.relay import Relay
from handlers.replays import Replayer
from handlers.sealing import Sealer
from handlers.table import HANDLERS
from handlers.uploads import Acknowledger
from handlers.vitals import Vitals, http_routes, http_server

log = structlog.get_logger()

End = Callable[[], Awaitable[None]]
"""Ends in order what has begun: all that have are called side by side at a stop."""
GROUPS = ("requests", "relay", *EVENT_GROUPS, "jobs")
"""What `run` starts where no group is named."""
ALL_GROUPS = (*GROUPS, "console")
DRAIN_S = 6.0
"""How long a stop waits for requests and deliveries in work."""


@dataclass(frozen=True, slots=True)
class Means:
    """What all groups of a process share."""

    settings: Settings
    metrics: Metrics
    database: Database
    personal: PersonalData
    secrets: TwoFactorSecrets
    redis: Redis
    shared_cache: SharedCache
    bus: Client
    gaps: "Gaps"
    relay: Relay
    sealer: Sealer
    announcer: Announcer
    vitals: Vitals
    on_closed: Callable[[], Awaitable[None]]
    ends: list[End]


class Gaps:
    """Passes on that messages of the bus may have been missed, to whoever remembers what they said."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.heard_by: list[Callable[[], None]] = []

    def happened(self) -> None:
        """The link was cut, or the client library dropped messages."""
        self._metrics.bus_gaps.inc()
        for hear in self.heard_by:
            hear()


async def serve(
    settings: Settings,
    keys: Keys,
    groups: Sequence[str],
    *,
    stop: asyncio.Event,
    on_ready: Callable[[int | None], Awaitable[None]],
    pages: Sequence[BaseRoute] = (),
    with_http: bool = True,
    wishes: Wishes | None = None,
) -> None:
    """Run groups until `stop`; `on_ready` is told the HTTP port once all of them serve.

    Raises `Unavailable` when a server does not answer at the start, `Ended` when something is lost for good,
    or the start hangs. A stop ends a start, too. Whatever the end is, `stop` is set, and what is in work ends in order.
    """
    for name in unknown_variables():
        log.warning("no such setting; it is ignored", variable=name)
    closed = asyncio.Event()

    async def on_closed() -> None:
        closed.set()

    async with AsyncExitStack() as stack, ended_in_order(stop) as ends:
        with suppress(NotWanted):
            async with wanted("the start", unless=stop, within_s=START_S):
                means = await _build(stack, settings, keys, ends, on_closed)
                loops = await stack.enter_async_context(Loops())
                _start_upkeep(loops, means, keys)
                await _start_events(stack, loops, means, groups)
                if "requests" in groups:
                    await _start_requests(stack, loops, means, keys)
                port = await _start_http(stack, means, pages) if with_http else None
                if "console" in groups:
                    console = console_beside(
                        settings, means.database, means.personal, means.vitals.check, loops.start, wishes, on_closed
                    )
                    await stack.enter_async_context(console)
                await on_ready(port)
            await _either(stop, closed)
        if closed.is_set() and not stop.is_set():
            raise Ended("a NATS connection was closed for good")


@asynccontextmanager
async def ended_in_order(stop: asyncio.Event) -> AsyncIterator[list[End]]:
    """What has begun by the end of the block is ended, however that comes: a request in work has its answer."""
    ends: list[End] = []
    try:
        yield ends
    finally:
        stop.set()
        log.info("stopping")
        async with asyncio.TaskGroup() as stopping:
            for end in ends:
                stopping.create_task(_reported(end()))


async def _build(
    stack: AsyncExitStack, settings: Settings, keys: Keys, ends: list[End], on_closed: Callable[[], Awaitable[None]]
) -> Means:
    await stack.enter_async_context(exported_traces(settings))  # before any connection, which may be listened to
    metrics = Metrics()
    database = await Database.connect(settings)
    stack.push_async_callback(database.close)
    await require_current(settings.database_url.get_secret_value())
    redis = Redis(settings.redis)
    stack.push_async_callback(redis.close)
    gaps = Gaps(metrics)
    bus = await connect(settings, name="events", on_closed=on_closed, on_gap=gaps.happened)
    stack.push_async_callback(close, bus)
    await provision(bus.jetstream(), settings, TAKING_GROUPS)
    personal = PersonalData(keys)
    relay = Relay(database, bus, personal, metrics, fence=settings.relay_fence)
    return Means(
        settings, metrics, database, personal, TwoFactorSecrets(keys), redis, SharedCache(redis), bus, gaps, relay,
        Sealer(database, bus, SealKeys(keys), metrics), Announcer(database, bus),
        Vitals(settings, database, bus, redis), on_closed, ends,
    )  # fmt: skip


def _erasure(means: Means) -> Erasure:
    return Erasure(
        means.database, means.personal, means.bus, means.shared_cache, means.settings, now=now,
        wake_relay=means.relay.wake,
    )  # fmt: skip


def _start_upkeep(loops: Loops, means: Means, keys: Keys) -> None:
    """What every process does, whichever its groups."""
    loops.start(_keep_keys_read(keys, means.metrics), "keys")
    loops.start(watch_dependencies(means.vitals.check, means.metrics), "dependencies")
    loops.start(watch_process(means.database, means.redis, means.metrics), "figures of the process")


async def _start_events(stack: AsyncExitStack, loops: Loops, means: Means, groups: Sequence[str]) -> None:
    """The relay, the jobs, and the event groups, of which each hands back what it holds at its end."""
    if "relay" in groups:
        loops.start(means.relay.run(), "relay")
    if "jobs" in groups:
        loops.start(clear_away(means.database), "jobs")
        loops.start(keep_current(means.database, "keys of users", means.personal.rewrap), "keys of users")
        loops.start(
            keep_current(means.database, "second-factor secrets", means.secrets.seal_anew), "second-factor secrets"
        )
        loops.start(_erasure(means).run(), "erasure")
        figures = SharedFigures(means.database, means.bus.jetstream(), means.settings, means.metrics)
        loops.start(figures.run(), "figures")
        loops.start(Replayer(means.database, means.bus, means.personal, now=now).run(), "replays")
        reconciler = Reconciler(means.database, means.bus.jetstream(), means.settings, means.metrics)
        loops.start(reconciler.run(), "reconciler")
        loops.start(means.sealer.run(), "seals")
        loops.start(remove_leftovers(means.database, AvatarStore(means.bus)), "avatars")
    chosen = [group for group in EVENT_GROUPS if group in groups]
    if not chosen and "jobs" not in groups:
        return
    client = await connect(means.settings, name="groups", on_closed=means.on_closed)
    stack.push_async_callback(close, client)
    deliver = {group: taking.deliver for group, taking in _deliverers(stack, loops, means, chosen).items()}
    if "jobs" in groups:
        deliver["jobs"] = GivenUp(means.database, client, means.metrics, means.announcer.wake).deliver
    takers = [Taker(client, durable, deliver[durable.group]) for durable in durables(deliver)]
    for taker in takers:
        means.ends.append(partial(taker.stop, within_s=DRAIN_S))
        await taker.start()
        loops.start(taker.run(), taker.durable.name)
    loops.start(watch(means.bus.jetstream(), means.settings, takers, means.metrics), "watch")
    loops.start(means.announcer.run(), "letters")


def _deliverers(stack: AsyncExitStack, loops: Loops, means: Means, groups: Sequence[str]) -> dict[str, Deliverer]:
    handlers: dict[str, tuple[EventHandler, EventHandler]] = {}
    if "email" in groups:
        settings = means.settings
        mailer = Mailer.of(settings)
        stack.push_async_callback(mailer.close)
        loops.start(watch_mail(mailer, means.metrics), "mail server")
        caps = MailCaps(Limits(means.redis, enabled=settings.rate_limits == "on"), means.personal, settings)
        email = Email(means.database, mailer, caps, settings, means.metrics, now)
        handlers["email"] = email.handle, email.handle_replayed
    if "audit" in groups:
        audit = Audit(means.database, means.personal)
        handlers["audit"] = audit.handle, audit.handle
    if "cache" in groups:
        cache = Cache(means.shared_cache)
        handlers["cache"] = cache.handle, cache.handle
        loops.start(_every_second(cache.catch_up), "cache")
    return {
        group: Deliverer(
            group,
            handle,
            handle_replayed,
            means.database,
            means.personal,
            means.metrics,
            pauses_s=means.settings.delivery_pauses,
            in_order=group in means.settings.in_order,
            wake_announcer=means.announcer.wake,
        )
        for group, (handle, handle_replayed) in handlers.items()
    }


async def _start_requests(stack: AsyncExitStack, loops: Loops, means: Means, keys: Keys) -> None:
    """Everything that answers a request, and who answers; at its end those it has taken in are answered."""
    settings = means.settings
    hasher = Hasher(
        settings.argon2, threads=settings.hash_threads, waiting_max=settings.hash_queue,
        counted=means.metrics.password_hashes.inc,
    )  # fmt: skip
    stack.callback(hasher.close)
    accounts, standings = LocalCache[Account](), LocalCache[Standing](seconds=STANDING_SECONDS)
    freshness = Freshness(means.bus, accounts, standings, means.shared_cache, wake_relay=means.relay.wake)
    means.gaps.heard_by.append(freshness.lose_trust)
    await freshness.start()
    for name, loop in freshness.loops().items():
        loops.start(loop, name)
    activity = Activity(means.database, settings.lifetimes.idle)
    loops.start(activity.run(), "activity")
    client = await connect(settings, name="requests", on_closed=means.on_closed, client=AnsweringClient())
    stack.push_async_callback(close, client)
    ctx = Context(
        settings=settings,
        database=means.database,
        personal=means.personal,
        secrets=means.secrets,
        hasher=hasher,
        passwords=PasswordRules(settings),
        mint=TokenMint(keys, settings.access_algorithm),
        pictures=Pictures(),
        avatars=AvatarStore(means.bus),
        avatar_uploads=AvatarUploads(means.bus),
        limits=Limits(means.redis, enabled=settings.rate_limits == "on"),
        accounts=AccountCache(accounts, means.shared_cache, StoredAccounts(means.database)),
        standings=standings,
        activity=activity,
        metrics=means.metrics,
        announce=freshness.announce,
        now=now,
        check_health=means.vitals.check,
    )
    steps = AnswerSteps(settings.answer_ms_step)
    loops.start(steps.keep(means.database), "answer steps")
    once = Once(ctx, IdempotencyKeys(means.database, keys))
    dispatcher = Dispatcher(ctx, client, pair(OPERATIONS, HANDLERS), once, steps)
    await Acknowledger(client, means.bus, QUEUE).start()
    means.ends.append(partial(dispatcher.stop, within_s=DRAIN_S))
    await dispatcher.start()
    loops.start(watch_requests(ctx), "figures of requests")
    if settings.rate_limits == "off":
        log.warning("rate limits are off")
    await asyncio.to_thread(device_info, "Mozilla/5.0", None)  # its tables are loaded before the first request comes
    log.info("hashing", hashesPerSecond=round(await asyncio.to_thread(hasher.hashes_per_second)), hint=_HASHING_HINT)


async def _start_http(stack: AsyncExitStack, means: Means, pages: Sequence[BaseRoute]) -> int:
    settings = means.settings
    routes = [*http_routes(means.vitals.check, means.metrics.registry), *pages]
    return await stack.enter_async_context(http_server(routes, host=settings.http_host, port=settings.http_port))


_HASHING_HINT = "where set-up finds a C compiler it compiles argon2 for the processor, which makes it faster"


async def _keep_keys_read(keys: Keys, metrics: Metrics) -> None:
    """A rotation reaches every process without a restart; a file that cannot be used changes nothing."""
    file_is_usable = True
    while True:
        note_keys(keys, metrics, file_is_usable=file_is_usable)
        await asyncio.sleep(RELOAD_S)
        try:
            if await asyncio.to_thread(keys.reload):
                file_is_usable = True
                log.info("keys read again")
        except BadKeys as error:
            file_is_usable = False
            log.error("the key file cannot be used; going on with the keys read before", error=str(error))


async def _reported(ending: Awaitable[None]) -> None:
    """One part that cannot be ended in order must not cut the other short."""
    try:
        await ending
    except Exception:
        log.exception("not stopped in order")


async def _every_second(act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await act()
        await asyncio.sleep(1)


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()

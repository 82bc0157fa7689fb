"""What dashboards are told of tables and streams is what stands there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest_asyncio
from nats.aio.client import Client

from adapters.embedded import EmbeddedServers
from adapters.event_log import Trail
from adapters.inbox import add_letter
from adapters.nats import close, connect
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.settings import Settings
from adapters.smtp import Mailer
from adapters.streams import EVENT_GROUPS, LETTERS_STREAM, TAKING_GROUPS, provision
from adapters.telemetry import Metrics
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from handlers.dead_letters import Announcer
from handlers.endings import Loops
from handlers.measures import SharedFigures, watch_mail
from tests.builders import a_user, settings_of
from tests.program import eventually

DAY_S = 86_400


@asynccontextmanager
async def announcing(database: Database, bus: Client) -> AsyncIterator[None]:
    async with Loops() as loops:
        loops.start(Announcer(database, bus).run(), "letters")
        yield


@pytest_asyncio.fixture
async def settings(servers: EmbeddedServers, database_url: str) -> Settings:
    return settings_of(database_url, nats_url=servers.addresses.nats_worker_url)


@pytest_asyncio.fixture
async def bus(settings: Settings) -> AsyncIterator[Client]:
    async def on_closed() -> None:
        return

    client = await connect(settings, name="test", on_closed=on_closed)
    await provision(client.jetstream(), settings, TAKING_GROUPS)
    yield client
    await close(client)


def figure(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def bury(database: Database, *, reason: str, body: bytes = b"{}", headers: dict[str, str] | None = None) -> None:
    async with database.connection() as connection:
        await add_letter(
            connection, group="email", event_id=uuid4(), user_id=None, event_type="UserLogin", reason=reason,
            error="Error", message="", subject="users.events.v1.UserLogin.x", body=body, headers=headers or {},
            deliveries=1, stream="USER_EVENTS", stream_sequence=1, durable="email",
        )  # fmt: skip


async def test_what_waits_in_the_tables_is_told_and_gone_when_it_is_over(
    database: Database, owner: asyncpg.Connection, bus: Client, settings: Settings, personal: PersonalData, trail: Trail
) -> None:  # fmt: skip
    metrics, reason = Metrics(), f"made_up_{uuid4().hex}"
    figures = SharedFigures(database, bus.jetstream(), settings, metrics)
    user, job_id = a_user(), uuid4()
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(user)
        await work.commit(Empty())
    for _ in range(4):
        await bury(database, reason=reason)
    await owner.execute(
        "UPDATE dead_letters SET state = 'held' WHERE id = (SELECT id FROM dead_letters WHERE reason = $1 LIMIT 1)",
        reason,
    )
    due_s = settings.erase_after_seconds + 3 * DAY_S
    await owner.execute(
        "UPDATE users SET status = 'deleted', deleted_at = now() - make_interval(secs => $2) WHERE id = $1",
        user.id, due_s,
    )  # fmt: skip
    await owner.execute("UPDATE outbox SET created_at = now() - interval '1 hour' WHERE user_id = $1", user.id)
    await owner.execute(
        "INSERT INTO replay_jobs (id, created_by, asked, rate, careful, created_at, leased_until) "
        "VALUES ($1, $1, '{}', 1, true, now() - interval '10 minutes', now() + interval '1 hour')",
        job_id,
    )

    await figures.read_tables()
    assert figure(metrics, "dead_letters_open", group="email", reason=reason) == 3
    assert (figure(metrics, "dead_letters_unannounced") or 0) >= 3
    assert (figure(metrics, "dead_letters_held", group="email") or 0) >= 1
    assert (figure(metrics, "relay_lag_seconds") or 0) >= 3600
    assert (figure(metrics, "erasure_overdue_seconds") or 0) >= 3 * DAY_S
    assert (figure(metrics, "replay_jobs_running") or 0) >= 1
    assert (figure(metrics, "replay_idle_seconds") or 0) >= 600

    await owner.execute("UPDATE dead_letters SET state = 'discarded' WHERE reason = $1", reason)
    await owner.execute("UPDATE users SET is_swept = true WHERE id = $1", user.id)
    await owner.execute("DELETE FROM outbox WHERE user_id = $1", user.id)
    await owner.execute("DELETE FROM replay_jobs WHERE id = $1", job_id)
    await figures.read_tables()
    assert figure(metrics, "dead_letters_open", group="email", reason=reason) == 0
    assert (figure(metrics, "erasure_overdue_seconds") or 0) < 3 * DAY_S
    assert (figure(metrics, "relay_lag_seconds") or 0) < 3600
    assert (figure(metrics, "replay_idle_seconds") or 0) < 600


async def test_a_full_stream_of_letters_holds_them_back_counts_them_and_loses_none(
    database: Database, bus: Client, settings: Settings
) -> None:
    js, metrics, reason = bus.jetstream(), Metrics(), f"made_up_{uuid4().hex}"
    figures = SharedFigures(database, js, settings, metrics)
    await js.purge_stream(LETTERS_STREAM)
    await provision(js, settings.model_copy(update={"letters_bytes_max": 1024**2}), ())
    try:
        for _ in range(3):
            await bury(database, reason=reason, body=b"x" * 600_000)
        async with announcing(database, bus):

            async def the_first_is_told() -> bool:
                await figures.read_tables()
                await figures.read_streams()
                return (figure(metrics, "stream_messages", stream=LETTERS_STREAM) or 0) >= 1

            await eventually(the_first_is_told, within_s=10, what="the first letter to be announced")
            assert (figure(metrics, "dead_letters_unannounced") or 0) >= 2
            assert figure(metrics, "dead_letters_open", group="email", reason=reason) == 3
            assert figure(metrics, "stream_bytes_max", stream=LETTERS_STREAM) == 1024**2
    finally:
        await provision(js, settings, ())

    async def all_are_told() -> bool:
        await figures.read_tables()
        return figure(metrics, "dead_letters_unannounced") == 0

    async with announcing(database, bus):
        await eventually(all_are_told, within_s=30, what="the others to be announced")
    await figures.read_streams()
    assert (figure(metrics, "stream_bytes", stream=LETTERS_STREAM) or 0) > 1_800_000
    assert {name for name in EVENT_GROUPS if figure(metrics, "event_consumer_pending", group=name) is not None} == set(
        EVENT_GROUPS
    )


async def test_a_letter_is_announced_without_the_headers_that_cannot_be_sent_again(
    database: Database, bus: Client
) -> None:
    odd = {"kept": "x", "a name of words": "x", "caf\u00e9": "x", " Nats-Rollup": "all", "Nats-Expected-Stream": "Y"}
    too_many = {f"X-{number}": "a" * 4000 for number in range(16)}  # JetStream takes 64 KiB, with those that we add
    await bury(database, reason=f"made_up_{uuid4().hex}", headers=too_many)
    await bury(database, reason=f"made_up_{uuid4().hex}", headers=odd)
    js = bus.jetstream()

    async def nothing_waits() -> bool:
        async with database.connection() as rows:
            return not await rows.fetchval("SELECT count(*) FROM dead_letters WHERE announced_at IS NULL")

    async with announcing(database, bus):
        await eventually(nothing_waits, within_s=20, what="the letter to be announced")
    told = await js.get_last_msg(LETTERS_STREAM, "users.dead-letters.email.UserLogin.unknown")
    names = {name for name in told.headers or {} if not name.startswith("Dead-Letter-")}
    assert names == {"kept", "Original-Nats-Expected-Stream", "Nats-Msg-Id"}


async def test_a_mail_server_that_is_not_there_is_told() -> None:
    metrics = Metrics()
    nobody = Mailer("smtp://127.0.0.1:1", sender="Accounts <accounts@example.org>")
    watching = asyncio.create_task(watch_mail(nobody, metrics))

    async def is_told() -> bool:
        return figure(metrics, "dependency_up", dependency="smtp") == 0

    try:
        await eventually(is_told, within_s=5, what="the figure of the mail server")
    finally:
        watching.cancel()
        await asyncio.wait([watching])

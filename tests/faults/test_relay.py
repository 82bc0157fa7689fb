"""Relays that die and sleep: every user's events stand in order, once."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import psutil  # type: ignore[import-untyped]
import pytest

from tests.faults.house import House, Run
from tests.faults.ledger import require_stream
from tests.gateway import PASSWORD, Gateway, database, new_email
from tests.program import until

WINDOW_S = 5
NAP_S = 2.0  # within the duplicate window
ASLEEP_S = 11.0  # past the duplicate window, and past PostgreSQL's patience with a transaction that does nothing
_HOLDS_LOCKS = "SELECT count(*) FROM pg_stat_activity WHERE client_port = ANY($1) AND state = 'idle in transaction'"
_WAITING = "SELECT count(*) FROM outbox"
_CLAIMS = "SELECT FROM idempotency_keys WHERE user_id = $1 AND reply_sealed IS NULL FOR UPDATE"
_WAITS_FOR = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
_LAST_ANNOUNCED = """
SELECT max(e.position) FROM events e WHERE NOT EXISTS (SELECT FROM outbox o WHERE o.position = e.position)"""


async def signed_up(client: Gateway) -> tuple[UUID, str]:
    """A user that may sign in at once, and an access token."""
    email = new_email()
    user_id = UUID((await client.register(email)).data["user"]["id"])
    found = (await client.call("auth.login", email=email, password=PASSWORD)).data
    return user_id, found["tokens"]["accessToken"]


async def sign_up(client: Gateway, count: int) -> list[tuple[UUID, str]]:
    """So many of them, a few at once: each takes a hash."""
    few = asyncio.Semaphore(16)

    async def one() -> tuple[UUID, str]:
        async with few:
            return await signed_up(client)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def last_announced(house: House) -> int:
    """The highest place in the outbox that a relay has dealt with, as far as is committed."""
    async with database(house.ready) as rows:
        return int(await rows.fetchval(_LAST_ANNOUNCED))


async def until_drained(house: House) -> None:
    async with database(house.ready) as rows, asyncio.timeout(25):
        while await rows.fetchval(_WAITING):
            await asyncio.sleep(0.05)


async def put_to_sleep_with_locks(house: House, relay: Run) -> None:
    """SIGSTOP a relay in the middle of a pass: it holds users' locks, and may have published some of their events."""
    async with database(house.ready) as rows, asyncio.timeout(20):
        while True:
            relay.send(signal.SIGSTOP)
            connections = psutil.Process(relay.process.pid).net_connections()
            if await rows.fetchval(_HOLDS_LOCKS, [found.laddr.port for found in connections]):
                return
            relay.send(signal.SIGCONT)
            await asyncio.sleep(0.013)


@asynccontextmanager
async def transaction_left_open(house: House, user: tuple[UUID, str], client: Gateway) -> AsyncIterator[None]:
    """One of the service's own transactions has its place in the outbox and does not commit while the block lasts.

    It waits for the row of its idempotency key, which is written last, and which we hold.
    """
    user_id, access = user
    async with database(house.ready) as first, database(house.ready) as last, asyncio.TaskGroup() as writing:
        first_lock, last_lock = first.transaction(), last.transaction()
        await first_lock.start()
        await first.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user_id)
        key = {"Idempotency-Key": f"key-of-{uuid4()}"}
        write = writing.create_task(client.call("profile.update", access=access, headers=key, bio="committed late"))
        await last_lock.start()
        async with asyncio.timeout(5):
            while not await last.fetch(_CLAIMS, user_id):
                await asyncio.sleep(0.01)
        await first_lock.rollback()
        async with asyncio.timeout(5):
            while not await first.fetchval(_WAITS_FOR, last.get_server_pid()):
                await asyncio.sleep(0.01)
        try:
            yield
        finally:
            await last_lock.rollback()
        assert (await write).ok


@pytest.mark.timeout(240)
async def test_relays_that_die_and_sleep_keep_every_users_order(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    settings = {
        "USER_SERVICE_DUPLICATE_WINDOW_SECONDS": str(WINDOW_S),
        "USER_SERVICE_REQUIRE_VERIFIED_EMAIL": "false",
        "USER_SERVICE_STATEMENT_MS_MAX": "30000",  # the transaction that is left open waits so long for a lock
    }
    async with house.run("requests", **settings), house.gateway() as client:
        relays = [house.run("relay", **settings) for _ in range(3)]
        try:
            await asyncio.gather(*(relay.start() for relay in relays))
            [busy, late, *others] = await sign_up(client, 202)
            stop = asyncio.Event()
            writes: dict[UUID, int] = dict.fromkeys((user_id for user_id, _ in [busy, late, *others]), 0)

            async def write(user: tuple[UUID, str], pause_s: float) -> None:
                while not stop.is_set():
                    await asyncio.sleep(pause_s * random.uniform(0, 2))
                    reply = await client.call("profile.update", access=user[1], bio=f"write {uuid4()}")
                    assert reply.ok or reply.code == "OVERLOADED", reply.body
                    writes[user[0]] += reply.ok

            async with asyncio.TaskGroup() as writers:
                for _ in range(8):
                    writers.create_task(write(busy, 0.04))
                for user in others:
                    writers.create_task(write(user, 3.0))
                await until(lambda: all(writes[id] for id, _ in others), within_s=20, what="every writer to have begun")
                async with transaction_left_open(house, late, client):
                    await put_to_sleep_with_locks(house, relays[0])
                    await relays[0].kill()
                    await put_to_sleep_with_locks(house, relays[1])
                    await asyncio.sleep(NAP_S)
                    relays[1].send(signal.SIGCONT)
                    announced = await last_announced(house)
                writes[late[0]] += 1
                await put_to_sleep_with_locks(house, relays[1])
                await asyncio.sleep(ASLEEP_S)
                before = sum(writes.values())
                relays[1].send(signal.SIGCONT)
                await until(lambda: sum(writes.values()) > before + 100, within_s=20, what="writes after it woke")
                stop.set()
            await until_drained(house)
            assert not relays[1].has_ended, relays[1].log[-3000:]
            assert not relays[2].has_ended, relays[2].log[-3000:]
        finally:
            await asyncio.gather(*(relay.stop() for relay in relays))

    async with database(house.ready) as rows:
        found = await rows.fetch("SELECT id, version FROM users WHERE id = ANY($1)", list(writes))
        committed_late = await rows.fetchval("SELECT max(position) FROM events WHERE aggregate_id = $1", late[0])
    versions = {row["id"]: row["version"] for row in found}
    assert versions == {user_id: 3 + count for user_id, count in writes.items()}
    assert committed_late < announced
    events = await require_stream(house.ready, versions)
    record_testsuite_property("relays: events of the busiest user", len(events[busy[0]]))
    record_testsuite_property("relays: events of all", sum(map(len, events.values())))

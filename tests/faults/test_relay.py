"""Relays that die and sleep: every user's events stand in order, once."""

import asyncio
import signal
from uuid import UUID, uuid4

import psutil  # type: ignore[import-untyped]

from tests.faults.house import House, Run
from tests.faults.ledger import require_stream
from tests.gateway import PASSWORD, Gateway, database, new_email
from tests.program import until

ASLEEP_S = 11.0  # past the duplicate window, and past PostgreSQL's patience with a transaction that does nothing
_HOLDS_LOCKS = "SELECT count(*) FROM pg_stat_activity WHERE client_port = ANY($1) AND state = 'idle in transaction'"
_WAITING = "SELECT count(*) FROM outbox"


async def signed_up(client: Gateway) -> tuple[UUID, str]:
    """A user that may sign in at once, and an access token."""
    email = new_email()
    user_id = UUID((await client.register(email)).data["user"]["id"])
    found = (await client.call("auth.login", email=email, password=PASSWORD)).data
    return user_id, found["tokens"]["accessToken"]


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


async def test_relays_that_die_and_sleep_keep_every_users_order(house: House) -> None:
    window = {"USER_SERVICE_DUPLICATE_WINDOW_SECONDS": "2", "USER_SERVICE_REQUIRE_VERIFIED_EMAIL": "false"}
    async with house.run("requests", **window), house.gateway() as client:
        relays = [house.run("relay", **window) for _ in range(3)]
        try:
            await asyncio.gather(*(relay.start() for relay in relays))
            users = await asyncio.gather(*(signed_up(client) for _ in range(41)))
            stop = asyncio.Event()
            writes: dict[UUID, int] = dict.fromkeys((user_id for user_id, _ in users), 0)

            async def write(user_id: UUID, access: str, pause_s: float) -> None:
                while not stop.is_set():
                    reply = await client.call("profile.update", access=access, bio=f"write {uuid4()}")
                    assert reply.ok, reply.body
                    writes[user_id] += 1
                    await asyncio.sleep(pause_s)

            async with asyncio.TaskGroup() as writers:
                for _ in range(8):
                    writers.create_task(write(*users[0], 0.02))
                for user in users[1:]:
                    writers.create_task(write(*user, 0.25))
                await until(lambda: all(writes.values()), within_s=20, what="every writer to have written")
                await relays[0].kill()
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
    versions = {row["id"]: row["version"] for row in found}
    assert all(versions[user_id] == 3 + count for user_id, count in writes.items())
    await require_stream(house.ready, versions)

"""A hundred thousand dead letters: looked through in time, and replayed once each though the worker is killed."""

import asyncio
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import pytest
from argon2 import PasswordHasher

from tests.faults.house import House
from tests.faults.test_dead_letters import ended
from tests.gateway import PASSWORD, Gateway, database

LETTERS = int(os.environ.get("LETTERS", "100000"))
LOOK_MS_MAX = 300
ROUNDS = 20
ALL_BUT_AUDIT = ("requests", "relay", "email", "cache", "jobs")
_MISSED = """
INSERT INTO dead_letters (id, group_name, event_id, n, user_id, event_type, reason, error, message, subject, body,
    headers, attempts, deliveries, stream_sequence, version, announced_at, created_at)
SELECT gen_random_uuid(), 'audit', e.id, 1, e.aggregate_id, e.type, 'attempts_exhausted',
    (ARRAY['DiskFull', 'Unavailable', 'ValueError'])[1 + l.sequence % 3], 'no room for ' || e.id, l.subject, l.body,
    '{}', '[]', 8, l.sequence, e.version, now(), now() - l.sequence * interval '10 ms'
FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bigint[]) AS l (id, subject, body, sequence)
JOIN events e ON e.id = l.id"""

_UNDONE = """
SELECT EXISTS (SELECT FROM events e CROSS JOIN unnest('{email,cache}'::text[]) AS g (name)
    WHERE e.position > $1 AND NOT EXISTS (SELECT FROM inbox i WHERE i.event_id = e.id AND i.group_name = g.name))"""

pytestmark = pytest.mark.soak


async def letters_of_audit(house: House, folder: Path) -> None:
    """Users come in while nobody keeps the audit log; then every event of theirs is a letter, and off the stream."""
    file, password_hash = folder / "users.jsonl", PasswordHasher(1, 1024, 1).hash(PASSWORD)
    with file.open("w") as lines:
        for number in range(LETTERS // 2):
            user = {"email": f"u{number}@example.net", "firstName": "Ada", "lastName": "L", "emailVerified": True}
            lines.write(json.dumps(user | {"passwordHash": password_hash}) + "\n")
    async with database(house.ready) as rows:
        before = await rows.fetchval("SELECT coalesce(max(position), 0) FROM events")
    async with house.run(*ALL_BUT_AUDIT):
        code, said, err = await house.command("users", "import", str(file), "--json")
        assert code == 0, (said, err)
        async with database(house.ready) as rows, asyncio.timeout(900):
            while await rows.fetchval("SELECT EXISTS (SELECT FROM outbox)"):
                await asyncio.sleep(1)
            while await rows.fetchval(_UNDONE, before):
                await asyncio.sleep(1)
            await rows.execute("DELETE FROM dead_letters")
    async with house.worker() as nc, database(house.ready) as rows:
        js = nc.jetstream()
        subscription = await js.pull_subscribe("users.events.v1.>", stream="USER_EVENTS")
        left = (await js.stream_info("USER_EVENTS")).state.messages
        while left:
            messages = await subscription.fetch(min(500, left), timeout=10)
            left -= len(messages)
            columns = zip(
                *((json.loads(m.data)["id"], m.subject, m.data, m.metadata.sequence.stream) for m in messages),
                strict=True,
            )
            await rows.execute(_MISSED, *map(list, columns))
            for message in messages:
                await message.ack()
        await js.purge_stream("USER_EVENTS")


async def vacuumed(rows: asyncpg.Connection) -> None:
    """PostgreSQL looks every minute whether a fifth of a table is new: indexes alone answer for what it has seen."""
    is_done = (
        "SELECT last_autovacuum IS NOT NULL AND n_ins_since_vacuum < 1000 + 0.2 * n_live_tup "
        "FROM pg_stat_user_tables WHERE relname = 'dead_letters'"
    )
    async with asyncio.timeout(150):
        while not await rows.fetchval(is_done):
            await asyncio.sleep(1)


async def look(client: Gateway, access: str) -> dict[str, float]:
    """Medians in milliseconds of what an operator looks at."""
    page: dict[str, Any] = (await client.call("admin.dead-letters.list", access=access, limit=100)).body
    letter_id, cursor = page["data"][0]["id"], page["pagination"]["nextCursor"]
    asks: dict[str, dict[str, Any]] = {
        "groups": {},
        "list": {"limit": 100},
        "list deeper": {"limit": 100, "cursor": cursor},
        "list page": {"limit": 100, "page": 100},
        "list type": {"limit": 100, "type": "UserRegistered", "reason": "attempts_exhausted"},
        "get": {"letterId": letter_id},
        "replay": {"all": True, "dryRun": True},
    }
    found = {}
    for name, body in asks.items():
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            reply = await client.call(f"admin.dead-letters.{name.split()[0]}", access=access, **body)
            took.append((time.perf_counter() - began) * 1000)
            assert reply.ok, (name, reply.body)
        found[name] = round(median(took), 1)
    return found


@pytest.mark.timeout(3000)
async def test_a_hundred_thousand_letters_are_looked_through_and_replayed_once_each(
    house: House, tmp_path: Path
) -> None:
    await letters_of_audit(house, tmp_path)
    async with database(house.ready) as rows:
        letters = await count(rows, "dead_letters WHERE state = 'dead'")
        assert letters >= LETTERS  # the admin's own events are among them
        others = await count(rows, "inbox WHERE group_name <> 'audit'")
        async with house.run() as run, house.gateway() as client:
            admin = await client.admin()
            print(f"\nmedian ms in front of {letters} letters that have just come: {await look(client, admin)}")
            await vacuumed(rows)
            looks = await look(client, admin)
            print(f"median ms once PostgreSQL has been through its table: {looks}")
            began = time.perf_counter()
            begun = await client.call(
                "admin.dead-letters.replay", access=admin, all=True, rate=1000, atOnce=True, timeout=60
            )
            job_id = begun.data["jobId"]
            print(f"{begun.data['matched']} fixed for the replay in {time.perf_counter() - began:.1f} s")
            async with asyncio.timeout(900):
                while await count(rows, "replay_items WHERE outcome IS NOT NULL") < letters // 2:
                    await asyncio.sleep(0.5)
            await run.kill()
        async with house.run(), house.gateway() as client:
            admin, deadline = await client.admin(), time.monotonic() + 1800
            while (job := await job_of(client, admin, job_id))["state"] == "running":
                assert time.monotonic() < deadline, job
                await asyncio.sleep(1)
            print(f"all of them in {time.perf_counter() - began:.0f} s, with a SIGKILL at the half: {job}")
            job = await ended(client, admin, job_id)
        assert (job["state"], job["done"] + job["alreadyHandled"], job["failedAgain"]) == ("done", letters, 0)
        assert await count(rows, "replay_items WHERE outcome IS NULL OR ended_at IS NULL") == 0
        assert await count(rows, "dead_letters WHERE state <> 'replayed' AND group_name = 'audit'") == 0
        each_once = "(SELECT event_id FROM audit_logs WHERE event_id IN (SELECT event_id FROM replay_items) {}) AS a"
        assert await count(rows, each_once.format("")) == letters
        assert await count(rows, each_once.format("GROUP BY event_id HAVING count(*) > 1")) == 0
        async with house.worker() as nc:
            for group in ("email", "cache"):
                info = await nc.jetstream().consumer_info("USER_REPLAYS", f"{group}-replay")
                assert info.delivered is None or info.delivered.consumer_seq == 0, group
        replayed_to_others = "inbox WHERE group_name <> 'audit' AND event_id IN (SELECT event_id FROM replay_items)"
        assert await count(rows, replayed_to_others) == others
    slow = {name: took for name, took in looks.items() if took > LOOK_MS_MAX}
    assert not slow


async def job_of(client: Gateway, access: str, job_id: str) -> dict[str, Any]:
    found = await client.call("admin.dead-letters.jobs.get", access=access, jobId=job_id, limit=1)
    return dict(found.data["job"])


async def count(rows: asyncpg.Connection, what: str) -> int:
    found: int = await rows.fetchval(f"SELECT count(*) FROM {what}")
    return found

"""Letters are written whatever their message holds, and each has a number of its own."""

import asyncio
from uuid import UUID, uuid4

from adapters.inbox import add_letter, record_attempt
from adapters.postgres import Connection, Database
from domain.refusals import Stale


async def bury(connection: Connection, event_id: UUID, *, stream: str, text: str = "") -> None:
    await add_letter(
        connection, group="email", event_id=event_id, user_id=None, event_type="UserLogin", reason="unauthentic",
        error="Unauthentic", message=text, subject=f"users.events.{text}", body=text.encode(),
        headers={f"X-{text}": text}, deliveries=1, stream=stream, stream_sequence=1,
    )  # fmt: skip


async def test_a_nul_in_a_message_keeps_no_letter_from_being_written(database: Database) -> None:
    event_id = uuid4()
    async with database.connection() as connection:
        await record_attempt(connection, "email", event_id, 1, "Error", "a\x00b", "trace\x00")
        await bury(connection, event_id, stream="USER_EVENTS", text="a\x00b")
        row = await connection.fetchrow("SELECT message, body, headers FROM dead_letters WHERE event_id = $1", event_id)
    assert row
    assert (row["message"], row["body"], row["headers"]) == ("a\ufffdb", b"a\x00b", {"X-a\ufffdb": "a\ufffdb"})


async def test_an_event_and_its_replay_that_die_at_once_are_two_letters(database: Database) -> None:
    event_id = uuid4()
    async with database.connection() as first, database.connection() as second:
        open_one = first.transaction()
        await open_one.start()
        await bury(first, event_id, stream="USER_EVENTS")
        waiting = asyncio.create_task(bury(second, event_id, stream="USER_REPLAYS"))
        await asyncio.sleep(0.1)
        await open_one.commit()
        try:
            await waiting
        except Stale:  # it was numbered like the other: the delivery is held, and tried again
            await bury(second, event_id, stream="USER_REPLAYS")
        await bury(second, event_id, stream="USER_REPLAYS")
        rows = await second.fetch("SELECT n, stream FROM dead_letters WHERE event_id = $1 ORDER BY n", event_id)
    assert [tuple(row) for row in rows] == [(1, "USER_EVENTS"), (2, "USER_REPLAYS")]

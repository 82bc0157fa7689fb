"""Letters are written whatever their message holds, and each has a number of its own."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from adapters.inbox import add_letter, mark_done, record_attempt
from adapters.letters import discard_letters, group_letters, list_letters, restore_letters
from adapters.postgres import Connection, Database
from adapters.replays import begin_job
from contracts.dead_letters import DiscardLetters, GetJob, GroupLetters, ListLetters, ReplayLetters, RestoreLetters
from domain.refusals import Stale
from handlers.jobs import clear_once
from tests.builders import NOW


async def bury(connection: Connection, event_id: UUID, *, stream: str, text: str = "") -> None:
    await add_letter(
        connection, group="email", event_id=event_id, user_id=None, event_type="UserLogin", reason="unauthentic",
        error="Unauthentic", message=text, subject=f"users.events.{text}", body=text.encode(),
        headers={f"X-{text}": text}, deliveries=1, stream=stream, stream_sequence=1, durable="email",
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


SHAPES = [
    ("450 4.2.1 <ada@example.com>: busy, 12.5 s", "450 4.2.1 <*>: busy, * s"),
    ("550 5.1.1 no such mailbox", "550 5.1.1 no such mailbox"),
    ("event 0192f0c1-8d2e-7b5a-9c3d-1e2f3a4b5c6d is gone", "event * is gone"),
    ("KeyError: 'displayName' at 0x7f3a9c", "KeyError: * at *"),
    ('"a" and "b" differ', "* and * differ"),
    ("port 54321 refuses, 3 tries", "port * refuses, 3 tries"),
    ("sha 9f86d081884c7d659a2feaa0c55ad015", "sha *"),
    ("", ""),
]


@pytest.mark.parametrize(("message", "shape"), SHAPES, ids=lambda text: text[:12] or "none")
async def test_a_cause_is_what_does_not_differ_from_letter_to_letter(
    database: Database, message: str, shape: str
) -> None:
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT letter_shape($1)", message) == shape


async def test_letters_of_one_cause_are_counted_together_and_paged_without_a_gap(database: Database) -> None:
    kind = f"Kind{uuid4().hex[:8]}"
    async with database.transaction() as connection:  # one transaction: all are written at the same time
        for number in range(25):
            await add_letter(
                connection, group="email", event_id=uuid4(), user_id=uuid4(), event_type=kind, reason="mail_refused",
                error="Refused", message=f"no {number}{number}{number}{number}", subject="s", body=b"{}", headers={},
                deliveries=1, stream="USER_EVENTS", stream_sequence=number, durable="email",
            )  # fmt: skip
    async with database.connection() as connection:
        groups = await group_letters(connection, GroupLetters(type=kind))
        assert [(cause.letters, cause.users, cause.text) for cause in groups.causes] == [(25, 25, "no *")]
        seen, cursor = [], None
        while True:
            letters, pagination = await list_letters(connection, ListLetters(type=kind, limit=10, cursor=cursor))
            seen += [letter.id for letter in letters]
            if (cursor := pagination.next_cursor) is None:
                break
        assert (len(seen), len(set(seen))) == (25, 25)


async def test_a_discarded_letter_whose_event_was_handled_since_stays_closed(database: Database) -> None:
    event_id = uuid4()
    async with database.connection() as connection:
        await bury(connection, event_id, stream="USER_EVENTS")
        row = await connection.fetchrow("SELECT id FROM dead_letters WHERE event_id = $1", event_id)
        assert row
        one = {"ids": [row["id"]], "why": "a test"}
        assert await discard_letters(connection, DiscardLetters.model_validate(one), by=uuid4(), at=NOW) == 1
        assert await discard_letters(connection, DiscardLetters.model_validate(one), by=uuid4(), at=NOW) == 0
        await mark_done(connection, "email", {event_id: "sent"})
        assert await restore_letters(connection, RestoreLetters.model_validate(one), by=uuid4(), at=NOW) == 0


async def test_closed_letters_go_after_ninety_days_with_their_replays(database: Database) -> None:
    now = datetime.now(UTC)
    past, lately = now - timedelta(days=91), now - timedelta(days=89)
    letters = {
        (state, at): uuid4()
        for at in (past, lately)
        for state in ("dead", "held", "replayed", "failed_again", "discarded")
    }
    async with database.connection() as connection:
        for (state, at), event_id in letters.items():
            await bury(connection, event_id, stream="USER_EVENTS")
            await record_attempt(connection, "email", event_id, 1, "Error", "", "")
            await connection.execute(
                "UPDATE dead_letters SET state = $2, state_at = $3 WHERE event_id = $1", event_id, state, at
            )
            await connection.execute("UPDATE delivery_attempts SET at = $2 WHERE event_id = $1", event_id, at)
        ids = [
            row["id"]
            for row in await connection.fetch(
                "SELECT id FROM dead_letters WHERE event_id = ANY($1)", list(letters.values())
            )
        ]
        async with database.transaction() as inside:
            job_id, _ = await begin_job(inside, ReplayLetters(ids=ids), by=uuid4(), at=now)
        await connection.execute(
            "UPDATE replay_jobs SET state = 'cancelled', ended_at = $2 WHERE id = $1", job_id, past
        )
    await clear_once(database)
    async with database.connection() as connection:
        kept = await connection.fetch(
            "SELECT event_id FROM dead_letters WHERE event_id = ANY($1)", list(letters.values())
        )
        attempts = await connection.fetchval(
            "SELECT count(*) FROM delivery_attempts WHERE event_id = ANY($1)", list(letters.values())
        )
        jobs = await connection.fetchval("SELECT count(*) FROM replay_jobs WHERE id = $1", job_id)
    gone = {letters[state, past] for state in ("replayed", "failed_again", "discarded")}
    assert {row["event_id"] for row in kept} == set(letters.values()) - gone
    assert (attempts, jobs) == (5, 0)


def test_a_place_that_no_replay_has_is_refused() -> None:
    job = {"jobId": str(uuid4())}
    assert GetJob.model_validate(job | {"after": 2**31 - 1}).after == 2**31 - 1
    with pytest.raises(ValidationError):
        GetJob.model_validate(job | {"after": 2**31})


@pytest.mark.parametrize(
    "named",
    [{}, {"all": True, "group": "email"}, {"ids": [str(UUID(int=7))], "type": "UserLogin"}],
    ids=["none", "all", "ids"],
)
def test_letters_are_named_in_one_way_of_three(named: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReplayLetters.model_validate(named)

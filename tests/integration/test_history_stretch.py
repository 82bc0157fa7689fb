"""A stretch of history by times is the stretch by positions, and what its group has done is counted."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from adapters.embedded import EmbeddedServers
from adapters.history_replays import DISORDER, Stretch, count_stretch, position_at, sample_stretch
from adapters.migrations import migrate
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database, role_of
from handlers.event_commands import _bound
from handlers.history_replays import NotPossible, replay_history
from handlers.terminal import Failure
from tests.builders import NOW, settings_of

EVENTS = 600
"""One each minute, two of three positions in use, every fourth one done by `audit`, the last ones not announced yet."""
_FILL = """
WITH users AS (
    INSERT INTO user_keys (user_id, wrapped) SELECT gen_random_uuid(), '' FROM generate_series(1, 5) RETURNING user_id
), numbered AS (
    SELECT user_id, row_number() OVER () AS number FROM users
), added AS (
    INSERT INTO events (position, id, aggregate_id, version, type, occurred_at, data, metadata) OVERRIDING SYSTEM VALUE
    SELECT n * 3 / 2, gen_random_uuid(), user_id, 1 + n / 5, 'UserLogin', $1::timestamptz + n * interval '1 minute'
        + CASE WHEN n % 7 = 0 THEN interval '3 minutes' ELSE interval '0' END, '{}', '{}'
    FROM generate_series(1, $2::integer) AS n JOIN numbered ON number = 1 + n % 5 RETURNING id, position
), done AS (
    INSERT INTO inbox (group_name, event_id, outcome) SELECT 'audit', id, 'x' FROM added WHERE position % 4 = 0
)
INSERT INTO outbox (position, user_id, version) SELECT position, gen_random_uuid(), 1 FROM added
ORDER BY position DESC LIMIT 10"""


@pytest_asyncio.fixture
async def rows(servers: EmbeddedServers, empty_database: str) -> AsyncIterator[Connection]:
    await migrate(empty_database, app_role=role_of(servers.addresses.database_url))
    database = await Database.connect(settings_of(empty_database))
    async with database.connection() as connection:
        await connection.execute(_FILL, NOW, EVENTS)
        yield connection
    await database.close()


async def test_times_lead_to_positions(rows: Connection) -> None:
    for minute in (-5, 0, 1, 77, 300, EVENTS - 1, EVENTS + 20):
        at = NOW + timedelta(minutes=minute)
        first = await position_at(rows, at - DISORDER)
        assert (
            await rows.fetchval("SELECT count(*) FROM events WHERE position < $1 AND occurred_at >= $2", first, at) == 0
        )
        behind = await position_at(rows, at + DISORDER)
        assert (
            await rows.fetchval("SELECT count(*) FROM events WHERE position >= $1 AND occurred_at < $2", behind, at)
            == 0
        )


async def test_what_is_done_and_what_is_not_announced_is_not_delivered(rows: Connection) -> None:
    whole = Stretch("audit", 0, 2**62, None, None)
    found = await count_stretch(rows, whole)
    done: int = await rows.fetchval(
        "SELECT count(*) FROM events e JOIN inbox i ON i.event_id = e.id "
        "WHERE e.position NOT IN (SELECT position FROM outbox)"
    )
    assert (found.matched, found.already_handled) == (EVENTS - 10, done)
    assert (await count_stretch(rows, Stretch("email", 0, 2**62, None, None))).to_deliver == EVENTS - 10
    since, until = NOW + timedelta(minutes=100), NOW + timedelta(minutes=200)
    by_time = await count_stretch(rows, Stretch("email", 0, 2**62, since, until))
    expected = await rows.fetchval(
        "SELECT count(*) FROM events WHERE occurred_at >= $1 AND occurred_at < $2", since, until
    )
    assert by_time.matched == expected
    assert (by_time.oldest, by_time.newest) == (
        await rows.fetchval("SELECT min(occurred_at) FROM events WHERE occurred_at >= $1", since),
        await rows.fetchval("SELECT max(occurred_at) FROM events WHERE occurred_at < $1", until),
    )
    sample = await sample_stretch(rows, whole, events_max=5)
    assert [event.position for event in sample] == sorted(event.position for event in sample)
    assert not [event for event in sample if event.position % 4 == 0]


async def test_of_an_erased_user_nothing_is_delivered(rows: Connection) -> None:
    await rows.execute("DELETE FROM user_keys")
    found = await count_stretch(rows, Stretch("email", 0, 2**62, None, None))
    assert (found.matched, found.to_deliver) == (EVENTS - 10, 0)


async def test_a_group_that_is_none_is_refused(database: Database, personal: PersonalData) -> None:
    with pytest.raises(NotPossible, match="email, audit, cache"):
        await replay_history(
            database, personal, "nobody", 1, 2, at_work_from=None, dry_run=True, rate=1, careful=True, by="a test"
        )


@pytest.mark.parametrize("text", ["2026-03-01T12:00", "yesterday", "-1", "9" * 30])
def test_a_bound_is_a_position_or_a_time_with_its_zone(text: str) -> None:
    assert _bound("120") == 120
    assert _bound("2026-03-01T12:00:00Z") == NOW
    with pytest.raises(Failure, match="neither a position"):
        _bound(text)

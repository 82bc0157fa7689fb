"""The event store: versions in order, nothing changed afterwards, personal parts gone with their key."""

import json
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.event_log import StoredEvent, Trail, events_by_id, is_same, unsent_events
from adapters.keys import CannotOpen
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from domain.user import User
from tests.builders import NOW, ORIGIN, a_user


async def _register(database: Database, personal: PersonalData, trail: Trail) -> User:
    """An account with four events."""
    user = a_user()
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        user.request_verification(
            token_id=uuid4(), not_me_token_id=uuid4(), expires_at=NOW, reason="registration", at=NOW
        )
        assert await work.users.add(user)
        user.change({"bio": "A marked life", "notifications": {"sms": True}}, expected_revision=1, at=NOW)
        user.refuse_password(origin=ORIGIN, at=NOW)
        locked = await work.users.lock(user.id)
        assert locked is not None
        await work.users.save(user)
        await work.commit(Empty())
    return user


async def _events(database: Database, personal: PersonalData, user_id: UUID) -> list[StoredEvent]:
    async with database.connection() as connection:
        return (await unsent_events(connection, personal, [user_id], events_max=100))[0]


async def test_events_follow_the_version_of_their_user(
    database: Database, personal: PersonalData, trail: Trail
) -> None:
    user = await _register(database, personal, trail)
    events = [stored.event for stored in await _events(database, personal, user.id)]
    assert [(event.version, event.type) for event in events] == [
        (1, "UserRegistered"),
        (2, "EmailVerificationRequested"),
        (3, "ProfileUpdated"),
        (4, "LoginFailed"),
    ]
    assert {event.aggregate_id for event in events} == {user.id}
    assert {event.metadata.request_id for event in events} == {trail.request_id}
    assert events[0].data == {
        "userId": str(user.id), "email": user.email, "firstName": "Ada", "lastName": "Lovelace",
        "origin": "registration",
    }  # fmt: skip
    assert events[2].data["changed"] == {
        "bio": "A marked life",
        "notifications": {"email": True, "push": True, "sms": True},
    }


async def test_a_version_is_given_once(database: Database, personal: PersonalData, trail: Trail) -> None:
    user = await _register(database, personal, trail)
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        locked = await work.users.lock(user.id)
        assert locked is not None
        locked.version = 1
        locked.session_ended(uuid4(), reason="logout", at=NOW)
        with pytest.raises(asyncpg.UniqueViolationError):
            await work.users.save(locked)
    assert len(await _events(database, personal, user.id)) == 4


async def test_what_is_taken_back_leaves_no_event(database: Database, personal: PersonalData, trail: Trail) -> None:
    user = await _register(database, personal, trail)
    told: list[object] = []
    async with unit_of_work(database, personal, trail, announce=told.append) as work:
        locked = await work.users.lock(user.id)
        assert locked is not None
        locked.change_role("admin", reason="never mind", at=NOW)
        await work.users.save(locked)
    assert told == []
    assert len(await _events(database, personal, user.id)) == 4


@pytest.mark.parametrize("table", ["events", "audit_logs"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET id = gen_random_uuid()", "DELETE FROM {}", "TRUNCATE {}", "ALTER TABLE {} DISABLE TRIGGER ALL",
        "DROP TABLE {}",
    ],
)  # fmt: skip
async def test_the_application_changes_no_history(database: Database, table: str, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.connection() as connection:
            await connection.execute(statement.format(table))


async def test_the_application_cannot_go_round_the_triggers(database: Database) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.connection() as connection:
            await connection.execute("SET session_replication_role = replica")


@pytest.mark.parametrize("statement", ["UPDATE events SET version = 9", "DELETE FROM events", "TRUNCATE events"])
async def test_even_the_owner_is_stopped(
    database: Database, personal: PersonalData, trail: Trail, owner: asyncpg.Connection, statement: str
) -> None:
    await _register(database, personal, trail)
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await owner.execute(statement)


async def test_a_row_tells_nothing_personal(
    database: Database, personal: PersonalData, trail: Trail, owner: asyncpg.Connection
) -> None:
    user = await _register(database, personal, trail)
    rows = await owner.fetch("SELECT e::text AS text FROM events e WHERE aggregate_id = $1", user.id)
    assert len(rows) == 4
    secret = (user.email, "Ada", "Lovelace", "marked", "192.0.2", "Mozilla")
    for row in rows:
        assert not [word for word in secret if word in row["text"]]
    assert trail.request_id in rows[0]["text"]


async def test_a_body_is_the_same_each_time(database: Database, personal: PersonalData, trail: Trail) -> None:
    user = await _register(database, personal, trail)
    first = [stored.body for stored in await _events(database, personal, user.id)]
    again = [stored.body for stored in await _events(database, PersonalData(personal._keys), user.id)]
    assert first == again
    body = json.loads(first[0])
    assert list(body) == ["id", "type", "aggregateId", "aggregateType", "version", "timestamp", "data", "metadata"]
    assert body["metadata"] == {"requestId": trail.request_id, "actorId": None, "sessionId": None, "locale": "en"}


async def test_an_event_is_found_by_its_id(database: Database, personal: PersonalData, trail: Trail) -> None:
    user = await _register(database, personal, trail)
    stored = (await _events(database, personal, user.id))[0]
    async with database.connection() as connection:
        assert await events_by_id(connection, personal, [stored.event.id, uuid4()]) == {stored.event.id: stored}
    assert (stored.ip, stored.user_agent, stored.traceparent) == (trail.ip, trail.user_agent, trail.traceparent)


async def test_destroying_the_key_erases_what_is_personal(
    database: Database, personal: PersonalData, trail: Trail
) -> None:
    user = await _register(database, personal, trail)
    before = await _events(database, personal, user.id)
    async with database.connection() as connection:
        await connection.execute("DELETE FROM user_keys WHERE user_id = $1", user.id)
    after = await _events(database, personal, user.id)
    assert [stored.event.version for stored in after] == [1, 2, 3, 4]
    for old, stored in zip(before, after, strict=True):
        body = json.loads(stored.body)
        assert body["erased"] is True
        assert set(body["data"]) == set(old.event.data)
        assert (stored.ip, stored.user_agent) == (None, None)
        assert is_same(stored, str(user.id), stored.event.type, old.body)  # sent before the erasure
        assert is_same(stored, str(user.id), stored.event.type, stored.body)
    registered = after[0].event.data
    assert registered["email"] is registered["firstName"] is registered["lastName"] is None
    assert registered["origin"] == "registration"
    assert after[2].event.data["changed"] is None
    assert not any(word in stored.body for stored in after for word in (b"marked", b"Ada", user.email.encode()))


async def test_a_personal_part_moved_to_another_event_does_not_open(
    database: Database, personal: PersonalData, trail: Trail, owner: asyncpg.Connection
) -> None:
    user = await _register(database, personal, trail)
    rows = await owner.fetch("SELECT id, personal FROM events WHERE aggregate_id = $1 ORDER BY version", user.id)
    wrapped = await owner.fetchval("SELECT wrapped FROM user_keys WHERE user_id = $1", user.id)
    place = f"events.personal:{rows[0]['id']}"
    assert personal.open(wrapped, user.id, rows[0]["personal"], place=place) is not None
    for sealed, owner_id in ((rows[1]["personal"], user.id), (rows[0]["personal"], uuid4())):
        with pytest.raises(CannotOpen):
            personal.open(wrapped, owner_id, sealed, place=place)


async def test_only_the_event_itself_is_the_same(database: Database, personal: PersonalData, trail: Trail) -> None:
    user = await _register(database, personal, trail)
    stored, second = (await _events(database, personal, user.id))[:2]
    body = json.loads(stored.body)
    said = str(user.id), stored.event.type
    assert is_same(stored, *said, stored.body)
    assert is_same(stored, *said, json.dumps(body, indent=2).encode())
    forged = [
        body | {"data": body["data"] | {"email": "evil@example.org"}},
        body | {"version": 2},
        body | {"metadata": body["metadata"] | {"actorId": str(uuid4())}},
        body | {"erased": True},
        body | {"extra": 1},
        {name: value for name, value in body.items() if name != "timestamp"},
        json.loads(second.body),
        [],
        {},
    ]
    for other in forged:
        assert not is_same(stored, *said, json.dumps(other).encode())
    for junk in (b"", b"{", b"\xff", b"null", stored.body[:-1]):
        assert not is_same(stored, *said, junk)
    assert not is_same(stored, str(uuid4()), stored.event.type, stored.body)
    assert not is_same(stored, str(user.id), "UserDeleted", stored.body)
    assert not is_same(stored, "", "", stored.body)


async def test_an_erased_event_is_no_licence_to_forge(database: Database, personal: PersonalData, trail: Trail) -> None:
    user = await _register(database, personal, trail)
    stored = (await _events(database, personal, user.id))[0]
    erased = replace(stored, event=stored.event.model_copy(update={"erased": True}))
    body = json.loads(stored.body)
    assert is_same(erased, str(user.id), "UserRegistered", stored.body)
    assert not is_same(erased, str(user.id), "UserRegistered", json.dumps(body | {"version": 5}).encode())
    assert not is_same(erased, str(user.id), "UserRegistered", json.dumps(body | {"id": str(uuid4())}).encode())

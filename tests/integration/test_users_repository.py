"""Users under their row's lock: no version twice, no version left out, no change lost."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.sessions import NewSession
from adapters.unit_of_work import UnitOfWork, unit_of_work
from adapters.users import Candidate, StoredAccounts, candidate_of
from contracts.wire import Empty
from domain.refusals import Stale, StateConflict
from domain.session import Session
from domain.user import User
from tests.builders import NOW, ORIGIN, a_user

ROUNDS, AT_ONCE = 50, 10
IDLE = timedelta(days=14)


class Repository:
    """Use cases as short as they get."""

    def __init__(self, database: Database, personal: PersonalData, trail: Trail) -> None:
        self._means = (database, personal, trail)
        self.announced: dict[UUID, set[int]] = {}

    def _announce(self, touched: Mapping[UUID, int]) -> None:
        """Of two commits, whoever made the later one may be the first to know."""
        for user_id, version in touched.items():
            self.announced.setdefault(user_id, set()).add(version)

    async def add(self, user: User) -> bool:
        database, personal, trail = self._means
        async with unit_of_work(database, personal, trail, announce=self._announce) as work:
            added = await work.users.add(user)
            if added:
                await work.commit(Empty())
        return added

    async def change(self, user_id: UUID, changes: dict[str, object], *, expected_revision: int | None = None) -> User:
        database, personal, trail = self._means
        async with unit_of_work(database, personal, trail, announce=self._announce) as work:
            user = await self._locked(work, user_id)
            user.change(changes, expected_revision=expected_revision, at=NOW)
            await work.users.save(user)
            await work.commit(Empty())
        return user

    async def refuse_password(self, user_id: UUID) -> None:
        database, personal, trail = self._means
        async with unit_of_work(database, personal, trail, announce=self._announce) as work:
            user = await self._locked(work, user_id)
            user.refuse_password(origin=ORIGIN, at=NOW)
            await work.users.save(user)
            await work.commit(Empty())

    async def sign_in(self, seen: Candidate, *, one_statement: bool) -> None:
        """By what was read of the user, without a lock."""
        database, personal, trail = self._means
        async with unit_of_work(
            database, personal, trail, announce=self._announce, one_statement=one_statement
        ) as work:
            user, new = work.users.trust(seen), _new_session(seen.user)
            user.sign_in(session_id=new.session.id, method="password", known_device=True, origin=ORIGIN, at=NOW)
            await work.users.save(user, session=new)
            await work.commit(Empty())

    async def _locked(self, work: UnitOfWork, user_id: UUID) -> User:
        user = await work.users.lock(user_id)
        assert user is not None
        return user


@pytest.fixture
def repository(database: Database, personal: PersonalData, trail: Trail) -> Repository:
    return Repository(database, personal, trail)


async def _versions(owner: asyncpg.Connection, user_id: UUID) -> list[int]:
    rows = await owner.fetch("SELECT version FROM events WHERE aggregate_id = $1 ORDER BY position", user_id)
    return [row["version"] for row in rows]


async def test_changes_at_once_are_all_counted(
    repository: Repository, database: Database, owner: asyncpg.Connection
) -> None:
    user = a_user()
    await repository.add(user)
    for number in range(ROUNDS):
        changed = await asyncio.gather(
            *(repository.change(user.id, {"bio": f"round {number}, writer {writer}"}) for writer in range(AT_ONCE))
        )
        assert sorted(one.revision for one in changed) == [2 + number * AT_ONCE + i for i in range(AT_ONCE)]
    written = ROUNDS * AT_ONCE
    stored = await StoredAccounts(database).account(user.id)
    assert stored is not None
    assert (stored.user.revision, stored.user.version) == (1 + written, 1 + written)
    assert await _versions(owner, user.id) == list(range(1, written + 2))
    assert repository.announced[user.id] == set(range(1, written + 2))


async def test_of_one_expected_revision_one_wins(repository: Repository, database: Database) -> None:
    user = a_user()
    await repository.add(user)
    outcomes = await asyncio.gather(
        *(repository.change(user.id, {"bio": f"writer {i}"}, expected_revision=1) for i in range(AT_ONCE)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, User) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, StateConflict) for outcome in outcomes) == AT_ONCE - 1
    stored = await StoredAccounts(database).account(user.id)
    assert stored is not None
    assert stored.user.revision == 2


async def test_guesses_at_once_are_all_counted(repository: Repository, owner: asyncpg.Connection) -> None:
    user = a_user()
    await repository.add(user)
    await asyncio.gather(*(repository.refuse_password(user.id) for _ in range(20)))
    assert await owner.fetchval("SELECT failed_login_attempts FROM users WHERE id = $1", user.id) == 20
    assert await _versions(owner, user.id) == [1, 2, 3, 4, 5, 6]  # registered; 1, 2, 4, 8 and 16 failures


async def test_of_one_address_one_account_comes(repository: Repository, owner: asyncpg.Connection) -> None:
    address = uuid4().hex
    users = [
        a_user(email=f"{address}@Example.org" if i % 2 else f"{address.upper()}@example.ORG") for i in range(AT_ONCE)
    ]
    added = await asyncio.gather(*(repository.add(user) for user in users))
    assert sum(added) == 1
    ids = [user.id for user in users]
    for table, column in (
        ("users", "id"),
        ("user_profiles", "user_id"),
        ("user_keys", "user_id"),
        ("outbox", "user_id"),
    ):
        assert await owner.fetchval(f"SELECT count(*) FROM {table} WHERE {column} = ANY($1)", ids) == 1, table
    assert len(repository.announced) == 1


async def test_what_was_waited_for_is_read_afterwards(repository: Repository, database: Database) -> None:
    """The profile is another row: joined without a lock it would be read as it was before the wait."""
    user = a_user()
    await repository.add(user)
    async with database.transaction() as connection:
        await connection.execute("SELECT 1 FROM users WHERE id = $1 FOR UPDATE", user.id)
        await connection.execute("UPDATE user_profiles SET bio = 'new', theme = 'dark' WHERE user_id = $1", user.id)
        await connection.execute("UPDATE users SET first_name = 'Augusta' WHERE id = $1", user.id)
        waiting = asyncio.create_task(repository.change(user.id, {"location": "London"}))
        await _until_waiting(database)
        assert not waiting.done()
    changed = await waiting
    assert (changed.first_name, changed.profile.bio, changed.profile.theme) == ("Augusta", "new", "dark")
    stored = await StoredAccounts(database).account(user.id)
    assert stored is not None
    assert (stored.profile.bio, stored.profile.theme, stored.profile.location) == ("new", "dark", "London")


async def _until_waiting(database: Database) -> None:
    async with database.connection() as connection, asyncio.timeout(5):
        while True:
            if await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ):
                return
            await asyncio.sleep(0.01)


async def test_what_was_saved_is_read(repository: Repository, database: Database) -> None:
    user = a_user()
    await repository.add(user)
    changes: dict[str, object] = {
        "first_name": "Augusta", "display_name": "A. A. L.", "bio": "Wrote\nnotes.", "website": "https://a.example",
        "location": "London", "timezone": "Europe/London", "language": "fr", "theme": "dark",
        "notifications": {"sms": True}, "social_links": ["https://b.example/ü"],
    }  # fmt: skip
    await repository.change(user.id, changes)
    stored = await StoredAccounts(database).account(user.id)
    assert stored is not None
    shown = stored.profile.model_dump()
    assert {name: shown[name] for name in changes if name in shown and name != "notifications"} == {
        name: value for name, value in changes.items() if name not in {"first_name", "notifications"}
    }
    assert shown["notifications"] == {"email": True, "push": True, "sms": True}
    assert (stored.user.first_name, stored.user.revision, stored.profile.revision) == ("Augusta", 2, 2)


def _new_session(user: User) -> NewSession:
    session = Session(
        id=uuid4(), user_id=user.id, remember_me=False, auth_time=NOW, amr=("pwd",), created_at=NOW,
        last_active_at=NOW, expires_at=NOW + timedelta(days=7), ended_at=None,
    )  # fmt: skip
    return NewSession(session=session, token_hash=uuid4().bytes, device_info={}, ip=None, user_agent=None)


@pytest.mark.parametrize("one_statement", [True, False])
async def test_a_sign_in_stands_only_if_nothing_changed_since_its_user_was_read(
    repository: Repository, database: Database, owner: asyncpg.Connection, *, one_statement: bool
) -> None:
    user = a_user(email=f"{uuid4().hex}@example.org")
    await repository.add(user)
    async with database.connection() as connection:
        first, second = [
            await candidate_of(connection, user.email, device_hash=None, session_cap=1, idle=IDLE, at=NOW)
            for _ in range(2)
        ]
    assert first
    assert second
    await repository.sign_in(first, one_statement=one_statement)
    assert repository.announced[user.id] == {1, 2}
    with pytest.raises(Stale):
        await repository.sign_in(second, one_statement=one_statement)
    assert await owner.fetchval("SELECT count(*) FROM user_sessions WHERE user_id = $1", user.id) == 1
    assert await _versions(owner, user.id) == [1, 2]
    assert await owner.fetchval("SELECT count(*) FROM outbox WHERE user_id = $1", user.id) == 2
    async with database.connection() as connection:
        third = await candidate_of(connection, user.email, device_hash=None, session_cap=1, idle=IDLE, at=NOW)
    assert third
    assert len(third.sessions_past_cap) == 1


async def test_a_row_that_was_mended_by_hand_is_not_signed_in_over(
    repository: Repository, database: Database, owner: asyncpg.Connection
) -> None:
    """Whoever suspends an account by SQL raises no version."""
    for change in ("status = 'suspended'", "role = 'moderator'", "password_hash = 'another'", "email_verified = true"):
        user = a_user(email=f"{uuid4().hex}@example.org")
        await repository.add(user)
        async with database.connection() as connection:
            seen = await candidate_of(connection, user.email, device_hash=None, session_cap=10, idle=IDLE, at=NOW)
        assert seen
        await owner.execute(f"UPDATE users SET {change} WHERE id = $1", user.id)
        with pytest.raises(Stale):
            await repository.sign_in(seen, one_statement=True)
        assert await owner.fetchval(f"SELECT {change} FROM users WHERE id = $1", user.id)
        assert await owner.fetchval("SELECT count(*) FROM user_sessions WHERE user_id = $1", user.id) == 0


async def test_a_deleted_user_is_not_there(
    repository: Repository, database: Database, owner: asyncpg.Connection, personal: PersonalData, trail: Trail
) -> None:
    user = a_user(email=f"{uuid4().hex}@example.org")
    await repository.add(user)
    async with database.connection() as connection:
        found = await candidate_of(connection, user.email, device_hash=None, session_cap=10, idle=IDLE, at=NOW)
    assert found is not None
    assert (found.user.id, found.user.password_hash, found.device_known) == (user.id, user.password_hash, False)
    await owner.execute("UPDATE users SET status = 'deleted' WHERE id = $1", user.id)
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.lock(user.id) is None
        assert await work.users.lock(uuid4()) is None
    async with database.connection() as connection:
        assert await candidate_of(connection, user.email, device_hash=None, session_cap=10, idle=IDLE, at=NOW) is None
    assert await StoredAccounts(database).account(user.id) is None

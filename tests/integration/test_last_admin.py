"""The last admin stays, whoever goes at the same time."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.admins import require_another_admin
from adapters.postgres import Database
from domain.refusals import StateConflict
from tests.builders import NOW
from tests.program import RACE_ROUNDS

ROUNDS, AT_ONCE = RACE_ROUNDS, 20
_ADD = """
INSERT INTO users (id, email, email_key, password_hash, first_name, last_name, role, status, email_verified,
    last_password_change, created_at, updated_at)
SELECT id, id::text, id::text, '', '', '', 'admin', $2, $3, $4, $4, $4 FROM unnest($1::uuid[]) AS id"""


async def _add_admins(
    owner: asyncpg.Connection, count: int, *, status: str = "active", verified: bool = True
) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    await owner.execute(_ADD, ids, status, verified, NOW)
    return ids


@pytest.fixture
async def no_admins(owner: asyncpg.Connection) -> None:
    await owner.execute("UPDATE users SET role = 'user' WHERE role = 'admin'")


async def _step_down(database: Database, user_id: UUID) -> None:
    async with database.transaction() as connection:
        await connection.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user_id)
        await require_another_admin(connection, user_id)
        await connection.execute("UPDATE users SET role = 'user' WHERE id = $1", user_id)


@pytest.mark.usefixtures("no_admins")
async def test_of_all_admins_that_go_at_once_one_stays(database: Database, owner: asyncpg.Connection) -> None:
    ids = await _add_admins(owner, AT_ONCE)
    for _ in range(ROUNDS):
        await owner.execute("UPDATE users SET role = 'admin' WHERE id = ANY($1)", ids)
        outcomes = await asyncio.gather(*(_step_down(database, user_id) for user_id in ids), return_exceptions=True)
        assert sum(isinstance(outcome, StateConflict) for outcome in outcomes) == 1
        assert sum(outcome is None for outcome in outcomes) == AT_ONCE - 1
        assert await owner.fetchval("SELECT count(*) FROM users WHERE role = 'admin' AND status = 'active'") == 1


@pytest.mark.usefixtures("no_admins")
@pytest.mark.parametrize(("status", "verified"), [("suspended", True), ("deleted", True), ("active", False)])
async def test_who_cannot_sign_in_is_no_admin_left_behind(
    database: Database, owner: asyncpg.Connection, status: str, *, verified: bool
) -> None:
    (last,) = await _add_admins(owner, 1)
    await _add_admins(owner, 1, status=status, verified=verified)
    with pytest.raises(StateConflict):
        await _step_down(database, last)
    await _add_admins(owner, 1)
    await _step_down(database, last)

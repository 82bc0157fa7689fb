"""Every page of the operators' lists is served by an index: no walk over all users or the whole log."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from adapters import audit_log, user_list
from adapters.cursors import COUNTED_MAX
from adapters.embedded import EmbeddedServers
from adapters.migrations import migrate
from adapters.postgres import Connection, Database, role_of
from contracts.admin import ListAuditLogs, ListUsers, UserSort
from tests.builders import settings_of

ROWS = 50_000
SORTS = get_args(UserSort)
_USERS = """
INSERT INTO users (id, email, email_key, password_hash, first_name, last_name, role, status, email_verified,
    last_password_change, created_at, updated_at, last_login_at)
SELECT md5(n::text)::uuid, md5(n::text) || '@example.org', md5(n::text) || '@example.org', '!',
    (ARRAY['Ada', 'Grace', 'Alan', 'Edsger', 'Barbara'])[1 + n % 5],
    translate(md5((-n)::text), '0123456789', 'ghijklmnop'),
    CASE WHEN n % 2000 = 0 THEN 'admin' WHEN n % 500 = 1 THEN 'moderator' ELSE 'user' END,
    CASE WHEN n % 100 = 3 THEN 'suspended' WHEN n % 20 = 4 THEN 'deleted' ELSE 'active' END,
    true, now(), now() - n * interval '1 s', now(), CASE WHEN n % 3 > 0 THEN now() - (n % 9000) * interval '7 s' END
FROM generate_series(1, $1::integer) AS n"""
_PROFILES = "INSERT INTO user_profiles (user_id, created_at, updated_at) SELECT id, created_at, created_at FROM users"
_AUDIT = """
INSERT INTO audit_logs (id, user_id, action, resource, success, created_at)
SELECT gen_random_uuid(), md5((n % 997)::text)::uuid,
    CASE WHEN n % 3 = 0 THEN 'login_refused' WHEN n % 4000 = 1 THEN 'role_change_refused' ELSE 'user_login' END, 'user',
    NOT (n % 3 = 0 OR n % 4000 = 1), now() - n * interval '1 s'
FROM generate_series(1, $1::integer) AS n"""


@pytest_asyncio.fixture(scope="module")
async def many(servers: EmbeddedServers) -> AsyncIterator[Connection]:
    """A database of its own with many users and audit rows."""
    addresses = servers.addresses
    admin = await asyncpg.connect(addresses.database_admin_url)
    await admin.execute(f"CREATE DATABASE many OWNER {role_of(addresses.database_owner_url)}")
    url = f"{addresses.database_owner_url.rpartition('/')[0]}/many"
    await migrate(url, app_role=role_of(addresses.database_url))
    owner = await asyncpg.connect(url)  # no deadline of the service's holds for the filling
    await owner.execute(_USERS, ROWS)
    await owner.execute(_PROFILES)
    await owner.execute(_AUDIT, ROWS)
    await owner.execute("VACUUM ANALYZE users, user_profiles, audit_logs")
    await owner.close()
    database = await Database.connect(settings_of(url))
    async with database.connection() as connection:
        yield connection
    await database.close()
    await admin.execute("DROP DATABASE many")
    await admin.close()


async def plan_of(connection: Connection, statement: str, values: list[Any]) -> dict[str, Any]:
    """How a statement was carried out."""
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *values)
    found: dict[str, Any] = json.loads(text)[0]["Plan"]
    return found


def steps_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(step for child in plan.get("Plans", []) for step in steps_of(child))]


async def require_index(connection: Connection, statement: str, values: list[Any], *, rows_max: int) -> None:
    """No step reads a table from end to end, nor sorts or throws away more than so many rows."""
    steps = steps_of(await plan_of(connection, statement, values))
    walked = {step["Relation Name"] for step in steps if step["Node Type"] == "Seq Scan"}
    assert not walked & {"users", "audit_logs"}, (statement, values)
    for step in steps:
        read = step["Actual Rows"] * step["Actual Loops"] + step.get("Rows Removed by Filter", 0)
        assert read <= rows_max, (step, statement, values)


async def test_a_total_is_counted_where_it_is_small_and_estimated_where_it_is_not(many: Connection) -> None:
    for asked, exact in (({"role": "admin"}, 25), ({"status": "suspended"}, 500), ({"search": "nobody at all"}, 0)):
        for limit in (10, 20, 100):
            query = ListUsers.model_validate(asked | {"limit": limit, "status": asked.get("status", "active")})
            _, pagination = await user_list.list_users(many, query)
            assert (pagination.total, pagination.total_is_estimate) == (exact, False)
    users, pagination = await user_list.list_users(many, ListUsers())
    assert len(users) == 20
    assert pagination.total_is_estimate
    assert COUNTED_MAX < pagination.total < 1.2 * ROWS


async def test_a_cursor_leads_through_all_of_them_once(many: Connection) -> None:
    for sort in SORTS:
        seen: list[UUID] = []
        cursor: str | None = None
        while True:
            query = ListUsers.model_validate({"sort": sort, "status": "suspended", "limit": 100, "cursor": cursor})
            users, pagination = await user_list.list_users(many, query)
            seen += [user.id for user in users]
            cursor = pagination.next_cursor
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == ROWS // 100


SOMEBODY = UUID("c4ca4238-a0b9-2382-0dcc-509a6f75849b")  # md5 of 1
AUDITED: list[dict[str, Any]] = [
    {"user_id": SOMEBODY},
    {"action": "user_login"},
    {"action": "role_change_refused"},
    {"success": True},
    {"success": False},
    {"from_": datetime.now(UTC) - timedelta(hours=2), "to": datetime.now(UTC) - timedelta(hours=1)},
]


@pytest.mark.parametrize("one", range(len(AUDITED)))
@pytest.mark.parametrize("other", range(len(AUDITED)))
async def test_every_filter_of_the_audit_log_has_an_index(many: Connection, one: int, other: int) -> None:
    query = AUDITED[one] | AUDITED[other]
    page = audit_log.page_of(ListAuditLogs.model_validate(query))
    await require_index(many, page.statement, page.values, rows_max=500)


@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("action", ["user_login", "login_refused", "role_change_refused", "never_heard_of"])
async def test_what_never_happens_is_known_at_once(many: Connection, action: str, *, success: bool) -> None:
    page = audit_log.page_of(ListAuditLogs(action=action, success=success))
    await require_index(many, page.statement, page.values, rows_max=500)

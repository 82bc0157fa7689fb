"""Lists of fifty thousand users: every page comes out of an index, and reads little more than it shows."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from adapters.embedded import EmbeddedServers
from adapters.migrations import migrate
from adapters.postgres import role_of
from adapters.user_list import list_users
from contracts.admin import ListUsers
from tests.builders import NOW

USERS = 50_000
READ_MAX = 12_000
"""Rows that a page may look at: a count goes to 10,000, and so does the deepest page by number."""
SORTED_MAX = 12_000
NAMES = ("Ada", "Alan", "Grace", "Edsger", "Barbara", "Donald", "Frances", "Žofia", "Katherine", "Leslie")
SYLLABLES = ("ba", "ko", "ri", "mu", "te", "sol", "van", "dor", "lin", "gre")


def _surname(number: int) -> str:
    return "".join(SYLLABLES[number // 10**digit % 10] for digit in range(3)).capitalize()


def _people() -> Iterator[tuple[object, ...]]:
    """Names and addresses go together, and so do age and surname: what misleads a planner."""
    for n in range(USERS):
        first, last = NAMES[n % 10], _surname(n // 50)
        status = "suspended" if n % 100 == 3 else "deleted" if n % 50 == 4 else "active"
        role = "admin" if n % 2000 == 0 else "moderator" if n % 500 == 1 else "user"
        address = f"{first}.{last}{n}@example.com".lower()
        signed_in = None if n % 3 == 0 else NOW - timedelta(seconds=7 * n)
        yield (
            UUID(int=n + 1),
            address,
            address,
            "",
            first,
            last,
            role,
            status,
            signed_in,
            NOW,
            NOW - timedelta(seconds=11 * n),
            NOW,
        )


_COLUMNS = (
    "id", "email", "email_key", "password_hash", "first_name", "last_name", "role", "status", "last_login_at",
    "last_password_change", "created_at", "updated_at",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module")
async def filled(servers: EmbeddedServers) -> AsyncIterator[asyncpg.Connection]:
    """A database of its own, which nobody else has to read through."""
    addresses, name = servers.addresses, f"lists_{uuid4().hex}"
    admin = await asyncpg.connect(addresses.database_admin_url)
    await admin.execute(f"CREATE DATABASE {name} OWNER {role_of(addresses.database_owner_url)}")
    url = f"{addresses.database_owner_url.rpartition('/')[0]}/{name}"
    await migrate(url, app_role=role_of(addresses.database_url))
    owner = await asyncpg.connect(url)
    await owner.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await owner.copy_records_to_table("users", records=_people(), columns=_COLUMNS)
    await owner.execute("INSERT INTO user_profiles (user_id, created_at, updated_at) SELECT id, $1, $1 FROM users", NOW)
    await owner.execute("VACUUM ANALYZE")
    yield owner
    await owner.close()
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


class Watched:
    """A connection that explains what it is asked to do."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.plans: list[dict[str, Any]] = []

    async def prepare(self, statement: str, *, name: str | None = None) -> "Watched.Statement":
        return Watched.Statement(self, statement, name)

    class Statement:
        def __init__(self, watched: "Watched", text: str, name: str | None) -> None:
            self._watched, self._text, self._name = watched, text, name

        async def _prepared(self, values: tuple[object, ...]) -> Any:  # noqa: ANN401 - asyncpg's
            connection = self._watched._connection
            if not self._text.startswith("EXPLAIN"):
                explained = f"EXPLAIN (ANALYZE, FORMAT JSON) {self._text}"
                plan = await (await connection.prepare(explained, name="")).fetchval(*values)
                self._watched.plans.append(json.loads(plan)[0]["Plan"])
            return await connection.prepare(self._text, name=self._name)

        async def fetch(self, *values: object) -> list[asyncpg.Record]:
            return list(await (await self._prepared(values)).fetch(*values))

        async def fetchval(self, *values: object) -> object:
            return await (await self._prepared(values)).fetchval(*values)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _faults(watched: Watched) -> list[str]:
    found = []
    for plan in watched.plans:
        for node in _nodes(plan):
            loops, kind = node["Actual Loops"], node["Node Type"]
            read = loops * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            if kind == "Sort" and sum(inner["Actual Rows"] for inner in node["Plans"]) > SORTED_MAX:
                found.append("sorts much")
            if "Relation Name" in node and read > READ_MAX:
                found.append(f"{kind} of {read:g} rows of {node['Relation Name']}")
    return found


SORTS = ("createdAt", "-createdAt", "email", "lastLoginAt")
FILTERS: tuple[dict[str, str], ...] = (
    {}, {"status": "active"}, {"status": "suspended"}, {"status": "deleted"}, {"role": "user"}, {"role": "moderator"},
    {"role": "admin"}, {"role": "admin", "status": "suspended"}, {"role": "user", "status": "suspended"},
    {"role": "moderator", "status": "active"},
)  # fmt: skip
SEARCHES = (
    "ada.bababa0@example.com", "ada.bab", "ada", "gra", "Grace S", "žof", "ž", "a", "zq", "ba", "solsol", "xyzzy",
    "o'b", "nobody@", "'-.", "%",
)  # fmt: skip


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("where", FILTERS, ids=lambda where: "+".join(where.values()) or "all")
async def test_every_page_comes_out_of_an_index(filled: asyncpg.Connection, sort: str, where: dict[str, str]) -> None:
    watched = Watched(filled)
    first, pages = await list_users(watched, ListUsers.model_validate({"sort": sort, "limit": 100} | where))  # type: ignore[arg-type]
    if pages.next_cursor:
        more = {"sort": sort, "limit": 100, "cursor": pages.next_cursor} | where
        second, _ = await list_users(watched, ListUsers.model_validate(more))  # type: ignore[arg-type]
        assert not {user.id for user in first} & {user.id for user in second}
    assert _faults(watched) == []


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("search", SEARCHES)
async def test_every_search_is_served_by_an_index(filled: asyncpg.Connection, sort: str, search: str) -> None:
    watched = Watched(filled)
    query = ListUsers.model_validate({"sort": sort, "search": search, "limit": 20})
    await list_users(watched, query)  # type: ignore[arg-type]
    assert _faults(watched) == []


@pytest.mark.parametrize("sort", SORTS)
async def test_the_deepest_page_by_number_and_one_far_beyond_it(filled: asyncpg.Connection, sort: str) -> None:
    watched, cursor = Watched(filled), None
    for _ in range(150):
        query = ListUsers.model_validate({"sort": sort, "limit": 100, "cursor": cursor})
        _, pages = await list_users(filled, query)  # type: ignore[arg-type]
        cursor = pages.next_cursor
    await list_users(watched, ListUsers.model_validate({"sort": sort, "limit": 100, "cursor": cursor}))  # type: ignore[arg-type]
    assert max(node["Actual Rows"] for plan in watched.plans[:1] for node in _nodes(plan)) <= 200
    await list_users(watched, ListUsers.model_validate({"sort": sort, "limit": 100, "page": 100}))  # type: ignore[arg-type]
    assert _faults(watched) == []


async def test_a_total_above_the_bound_is_near_and_says_that_it_is_an_estimate(filled: asyncpg.Connection) -> None:
    real = await filled.fetchval("SELECT count(*) FROM users WHERE status <> 'deleted'")
    _, pages = await list_users(filled, ListUsers())  # type: ignore[arg-type]
    assert pages.total_is_estimate
    assert abs(pages.total - real) < real * 0.1
    _, pages = await list_users(filled, ListUsers(search="ada", status="suspended"))  # type: ignore[arg-type]
    assert (pages.total, pages.total_is_estimate) == (0, False)
    _, pages = await list_users(filled, ListUsers(status="suspended"))  # type: ignore[arg-type]
    assert (pages.total, pages.total_is_estimate) == (500, False)


async def test_the_directory_follows_whatever_writes_a_user(filled: asyncpg.Connection) -> None:
    async def found(**query: object) -> list[str]:
        users, _ = await list_users(filled, ListUsers.model_validate(query))  # type: ignore[arg-type]
        return [user.email for user in users]

    user_id, at = UUID(int=10**6), NOW + timedelta(days=1)
    row = (user_id, "li@example.org", "li@example.org", "", "小龙", "李", "user", "active", None, at, at, at)
    transaction = filled.transaction()
    await transaction.start()
    await filled.copy_records_to_table("users", records=[row], columns=_COLUMNS)
    await filled.execute("INSERT INTO user_profiles (user_id, created_at, updated_at) VALUES ($1, $2, $2)", user_id, at)
    for search in ("小龙 李", "小", "龙 李", "李", "li@", "li@example.org"):
        assert await found(search=search) == ["li@example.org"], search
    await filled.execute(
        "UPDATE users SET last_name = 'Žižková', role = 'admin', status = 'suspended' WHERE id = $1", user_id
    )
    for search in ("žižk", "ŽIŽKOVÁ", "ižk"):
        assert await found(search=search, role="admin", status="suspended") == ["li@example.org"], search
    assert await found(search="龙 李") == []
    assert await found(search="žižková", status="active") == []
    await filled.execute(
        "UPDATE users SET email = '', email_key = 'erased', first_name = '', last_name = '' WHERE id = $1", user_id
    )
    assert await found(search="li@") == await found(search="žižková") == []
    await filled.execute("DELETE FROM users WHERE id = $1", user_id)
    assert await filled.fetchval("SELECT count(*) FROM user_directory WHERE id = $1", user_id) == 0
    await transaction.rollback()


async def test_a_name_that_stands_far_behind_in_the_order_is_not_walked_to(filled: asyncpg.Connection) -> None:
    """A first name that is a tenth of all, in an order that has it far behind: found and sorted, not walked to."""
    watched = Watched(filled)
    users, _ = await list_users(watched, ListUsers(search="Žof", sort="email", limit=20))  # type: ignore[arg-type]
    assert len({user.first_name for user in users}) == 1
    assert [user.email for user in users] == sorted(user.email for user in users)
    assert _faults(watched) == []

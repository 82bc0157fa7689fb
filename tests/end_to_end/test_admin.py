"""What operators of the accounts see, and that every look of theirs is written down."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.gateway import PASSWORD, Gateway, Reply, database, new_email
from tests.program import Dev

ADMIN: dict[str, dict[str, Any]] = {
    "admin.users.list": {},
    "admin.users.get": {"userId": str(uuid4())},
    "admin.audit-logs.list": {},
}
LETTERS = str.maketrans("0123456789", "ghijklmnop")


def new_surname() -> str:
    """A name that nobody else has."""
    return f"Zq{uuid4().hex[:14].translate(LETTERS)}"


async def family(client: Gateway, surname: str, count: int) -> list[dict[str, Any]]:
    """Accounts of one surname, in the order of their registration."""
    replies = [
        await client.call(
            "auth.register", email=new_email(), password=PASSWORD, firstName=f"Ada {number}", lastName=surname,
            acceptTerms=True,
        )
        for number in range(count)
    ]  # fmt: skip
    return [reply.data["user"] for reply in replies]


async def listed(client: Gateway, **query: Any) -> Reply:  # noqa: ANN401 - JSON
    reply = await client.call("admin.users.list", access=await client.admin(), **query)
    assert reply.ok, reply.body
    return reply


def ids(reply: Reply) -> list[str]:
    return [user["id"] for user in reply.data]


@pytest.mark.parametrize("operation", sorted(ADMIN))
async def test_an_admin_operation_is_for_admins(client: Gateway, operation: str) -> None:
    body = ADMIN[operation]
    plain = (await client.signed_in())["tokens"]["accessToken"]
    assert (await client.call(operation, access=plain, **body)).code == "FORBIDDEN"
    assert (await client.call(operation, **body)).code == "AUTHENTICATION_REQUIRED"
    assert (await client.call(operation, access="x.y.z", **body)).code == "INVALID_TOKEN"
    basic = {"Authorization": "Basic YTpi"}
    assert (await client.call(operation, headers=basic, **body)).code == "AUTHENTICATION_REQUIRED"


async def test_what_counts_is_the_role_of_the_row(dev: Dev, client: Gateway) -> None:
    found = await client.signed_in()
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET role = 'moderator' WHERE id = $1", UUID(found["user"]["id"]))
    for operation in ("admin.users.list", "admin.audit-logs.list"):
        assert (await client.call(operation, access=found["tokens"]["accessToken"])).ok


async def test_pages_hold_everybody_once_and_in_order(client: Gateway) -> None:
    surname = new_surname()
    users = [user["id"] for user in await family(client, surname, 7)]
    pages = [await listed(client, search=surname, sort="createdAt", page=page, limit=3) for page in (1, 2, 3, 4)]
    assert [ids(page) for page in pages] == [users[:3], users[3:6], users[6:], []]
    first, last = pages[0].body["pagination"], pages[2].body["pagination"]
    assert (first["total"], first["totalIsEstimate"], first["totalPages"]) == (7, False, 3)
    assert (first["page"], first["hasNext"], first["hasPrev"]) == (1, True, False)
    assert (last["page"], last["hasNext"], last["hasPrev"], last["nextCursor"]) == (3, False, True, None)


@pytest.mark.parametrize("sort", ["createdAt", "-createdAt", "email", "lastLoginAt"])
async def test_cursors_lead_through_every_order(client: Gateway, sort: str) -> None:
    surname = new_surname()
    await family(client, surname, 7)
    whole = ids(await listed(client, search=surname, sort=sort, limit=100))
    walked: list[str] = []
    cursor: str | None = None
    while len(walked) < 8:
        place = {} if cursor is None else {"cursor": cursor}
        page = await listed(client, search=surname, sort=sort, limit=2, **place)
        walked += ids(page)
        cursor = page.body["pagination"]["nextCursor"]
        if cursor is None:
            break
    assert walked == whole
    assert len(set(walked)) == 7


async def test_the_orders_are_what_they_say(client: Gateway) -> None:
    surname = new_surname()
    users = await family(client, surname, 4)
    by_time = [user["id"] for user in users]
    assert ids(await listed(client, search=surname)) == by_time[::-1]
    assert ids(await listed(client, search=surname, sort="createdAt")) == by_time
    by_email = [user["id"] for user in sorted(users, key=lambda user: str(user["email"]))]
    assert ids(await listed(client, search=surname, sort="email")) == by_email


async def test_a_search_finds_beginnings_of_names_and_addresses(client: Gateway) -> None:
    surname = new_surname()
    (user,) = await family(client, surname, 1)
    for search in (
        surname,
        surname.lower()[:12],
        surname.upper(),
        user["email"],
        user["email"][:14],
        f"ada 0 {surname}",
    ):
        assert user["id"] in ids(await listed(client, search=search, limit=100)), search
    for search in ("%", "_", "\\", f"{surname}%", f"%{surname[1:]}", "' OR 1=1 --"):
        assert ids(await listed(client, search=search)) == [], search


async def test_filters_take_role_and_status(dev: Dev, client: Gateway) -> None:
    surname = new_surname()
    one, two, three = [user["id"] for user in await family(client, surname, 3)]
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET status = 'suspended' WHERE id = $1", UUID(one))
        await rows.execute("UPDATE users SET role = 'moderator' WHERE id = $1", UUID(two))
    assert ids(await listed(client, search=surname, status="suspended")) == [one]
    assert ids(await listed(client, search=surname, role="moderator")) == [two]
    assert ids(await listed(client, search=surname, role="user", status="active")) == [three]
    assert ids(await listed(client, search=surname, role="admin")) == []
    assert {user["role"] for user in (await listed(client, role="admin")).data} == {"admin"}


async def test_a_page_past_row_10000_names_the_cursor(client: Gateway) -> None:
    access = await client.admin()
    assert (await client.call("admin.users.list", access=access, page=100, limit=100)).ok
    for page, limit in ((101, 100), (10_000, 2)):
        reply = await client.call("admin.users.list", access=access, page=page, limit=limit)
        assert reply.code == "VALIDATION_ERROR"
        (fault,) = reply.body["error"]["details"]
        assert fault["field"] == "page"
        assert "nextCursor" in fault["message"]


@pytest.mark.parametrize("query", [{"limit": 101}, {"limit": 0}, {"page": 0}, {"sort": "name"}, {"role": "king"}])
async def test_a_query_out_of_bounds_is_refused(client: Gateway, query: dict[str, Any]) -> None:
    reply = await client.call("admin.users.list", access=await client.admin(), **query)
    assert reply.code == "VALIDATION_ERROR"
    assert [fault["field"] for fault in reply.body["error"]["details"]] == list(query)


async def test_an_account_is_shown_whole_and_without_its_secrets(client: Gateway) -> None:
    found = await client.signed_in(headers={"Client-Ip": "192.0.2.77", "User-Agent": "curl/8"})
    access, user_id = await client.admin(), found["user"]["id"]
    shown = (await client.call("admin.users.get", access=access, userId=user_id)).data
    assert set(shown) == {"user", "profile", "security", "sessions"}
    assert (shown["user"]["id"], shown["profile"]["userId"]) == (user_id, user_id)
    (session,) = shown["sessions"]
    assert (session["ipAddress"], session["userAgent"]) == ("192.0.2.77", "curl/8")
    assert "argon2" not in str(shown)
    assert (await client.call("admin.users.get", access=access, userId=str(uuid4()))).code == "NOT_FOUND"


async def test_every_look_of_an_admin_is_an_audit_row(dev: Dev, client: Gateway) -> None:
    found, access, marker = await client.signed_in(), await client.admin(), uuid4().hex
    user_id = found["user"]["id"]
    looks: list[tuple[str, dict[str, Any], str]] = [
        ("admin.users.list", {"search": "ada"}, "users_listed"),
        ("admin.users.get", {"userId": user_id}, "user_viewed"),
        ("admin.audit-logs.list", {"userId": user_id}, "audit_log_listed"),
    ]
    admin_id = (await client.call("me.get", access=access)).data["user"]["id"]
    for operation, query, action in looks:
        headers = {"Request-Id": f"{marker}-{action}", "Client-Ip": "192.0.2.9"}
        assert (await client.call(operation, access=access, headers=headers, **query)).ok
        logs = await client.call("admin.audit-logs.list", access=access, action=action, limit=100)
        (entry,) = [row for row in logs.data if row["requestId"] == f"{marker}-{action}"]
        assert (entry["actorId"], entry["success"], entry["action"]) == (admin_id, True, action)
    async with database(dev.ready) as rows:
        searched = await rows.fetchrow("SELECT * FROM audit_logs WHERE request_id = $1", f"{marker}-users_listed")
    assert searched is not None
    assert "ada" not in str(searched["details"])  # a search is somebody's name or address


async def test_the_audit_log_filters_and_pages(client: Gateway) -> None:
    found = await client.signed_in()
    user_id, access = found["user"]["id"], await client.admin()
    for _ in range(3):
        await client.call("auth.login", email=found["user"]["email"], password="Wrong-Password-1")
    query: dict[str, Any] = {"userId": user_id, "action": "login_refused", "success": False}
    whole = await client.call("admin.audit-logs.list", access=access, **query, limit=100)
    mine = [row["id"] for row in whole.data]
    assert len(mine) >= 3
    times = [row["createdAt"] for row in whole.data]
    assert times == sorted(times, reverse=True)
    first = await client.call("admin.audit-logs.list", access=access, **query, limit=1)
    cursor = first.body["pagination"]["nextCursor"]
    second = await client.call("admin.audit-logs.list", access=access, **query, limit=1, cursor=cursor)
    assert [first.data[0]["id"], second.data[0]["id"]] == mine[:2]
    none = await client.call("admin.audit-logs.list", access=access, **query, to=times[-1])
    assert none.data == []

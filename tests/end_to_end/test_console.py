"""The console of a running `dev`: who gets in, what keeps strangers out, and what each page shows and does."""

import json
import re
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from handlers.console.door import POLICY
from tests.authenticator import enrolled
from tests.console import Browser, Page, browser
from tests.gateway import PASSWORD, Gateway, database, new_email, registration
from tests.people import account, signed_in
from tests.program import Dev, eventually

PAGES = (
    "/", "/letters", "/letters/list", "/jobs", "/users", "/timeline?of=admin@example.com", "/audit", "/inbox", "/again",
)  # fmt: skip


@pytest_asyncio.fixture
async def visitor(dev: Dev) -> AsyncIterator[Browser]:
    async with browser(dev.ready["consoleUrl"]) as found:
        yield found


@pytest_asyncio.fixture
async def operator(dev: Dev, visitor: Browser) -> Browser:
    """The admin that `dev` made, signed in."""
    admin = dev.ready["admin"]
    page = await visitor.sign_in(admin["email"], admin["password"])
    assert (page.status, page.path, page.heading) == (200, "/", "Overview"), page.text
    return visitor


def require_a_safe_page(page: Page) -> None:
    """No script and no style but our own files, nothing that another site could use, nothing kept by the browser."""
    assert page.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "server" not in page.headers
    assert not re.search(
        r"<script(?![^>]* src=\"/static/)|<style|<[a-z][^<>]*\s(style|on\w+)=|=\"javascript:", page.text
    )
    assert "eyJ" not in page.text, "a token stands on a page"


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_safe_and_can_be_used_by_keyboard(operator: Browser, path: str) -> None:
    page = await operator.get(path)
    assert page.status == 200, page.text
    require_a_safe_page(page)
    assert page.text.count("<h1>") == 1
    assert 'class="skip" href="#main"' in page.text
    assert '<nav aria-label="Areas">' in page.text
    for field in re.findall(r"<(?:input|select)\b[^>]*>", page.text):
        before = page.text[: page.text.index(field)]
        is_labelled = before.rfind("<label") > before.rfind("</label") or "aria-label" in field
        assert 'type="hidden"' in field or is_labelled, field


@pytest.mark.parametrize("path", ["/login", "/nothing", "/letters/nothing", "/inbox/..%2Fready"])
async def test_what_a_stranger_sees_is_safe_too(visitor: Browser, path: str) -> None:
    page = await visitor.get(path)
    assert page.status in {200, 404}
    require_a_safe_page(page)
    assert (
        "httponly" in (await visitor.client.get(f"{visitor.base}/login")).headers.get("set-cookie", "httponly").lower()
    )


@pytest.mark.parametrize("path", PAGES[:-1])
async def test_nobody_sees_a_page_who_is_not_signed_in(visitor: Browser, path: str) -> None:
    page = await visitor.get(path)
    assert (page.path.partition("?")[0], page.heading) == ("/login", "Sign in")
    part = await visitor.get("/overview/history", **{"HX-Request": "true"})
    assert (part.text, part.headers["hx-redirect"]) == ("", "/login")


async def test_a_wrong_password_is_told_and_the_page_asked_for_comes_after_the_right_one(
    dev: Dev, visitor: Browser
) -> None:
    admin = dev.ready["admin"]
    login = await visitor.get("/audit?action=user_login")
    wrong = await visitor.send(login, "/login", email=admin["email"], password="Wrong-Password-1")
    assert (wrong.status, wrong.said) == (401, "Email or password is wrong.")
    planted = visitor.client.cookies["console-visitor"]
    assert "console" not in visitor.client.cookies
    page = await visitor.send(wrong, "/login", email=admin["email"], password=admin["password"])
    assert page.path == "/audit?action=user_login"
    assert visitor.client.cookies["console"] != planted, "a sign-in makes a new cookie"


async def test_a_second_factor_is_asked_for_and_a_wrong_code_lets_nobody_in(client: Gateway, visitor: Browser) -> None:
    app = await enrolled(client)
    async with database(client.ready) as rows:
        await rows.execute("UPDATE users SET role = 'moderator' WHERE id = $1", app.user_id)
    step = await visitor.sign_in(app.email, PASSWORD)
    assert step.path == "/login/code"
    wrong = await visitor.send(step, "/login/code", code=app.wrong_code())
    assert (wrong.status, wrong.said) == (401, "The code is not valid.")
    assert (await visitor.get("/users")).heading == "Sign in"
    step = await visitor.sign_in(app.email, PASSWORD)
    page = await visitor.send(step, "/login/code", code=await app.fresh_code())
    assert (page.status, page.heading) == (200, "Overview")


async def test_an_account_without_rights_is_shown_out(client: Gateway, visitor: Browser) -> None:
    person = await account(client)
    page = await visitor.sign_in(person.email, PASSWORD)
    assert (page.status, page.said) == (401, "This account has no rights that the console could use.")
    async with database(client.ready) as rows:
        left = await rows.fetchval(
            "SELECT count(*) FROM user_sessions WHERE user_id = $1 AND ended_at IS NULL", person.uuid
        )
    assert left == 0


async def test_a_form_that_nobody_was_shown_does_nothing(client: Gateway, operator: Browser) -> None:
    person = await account(client)
    path = f"/users/{person.id}/suspend"
    _, fields = (await operator.get(path)).form(path)
    fields["why"] = "a test"
    async with browser(operator.base) as stranger:
        theirs = (await stranger.get("/login")).form("/login")[1]["token"]
    for changed in ({}, {"token": theirs}, {"token": "0" * 64}, {"token": "é"}):
        sent = {name: value for name, value in fields.items() if name != "token"} | changed
        page = await operator.post(path, sent)
        assert page.status == 403
    for origin in ("https://evil.example", f"{operator.base}0", "null"):
        assert (await operator.post(path, fields, origin=origin)).status == 403
    assert (await operator.get("/users", Host="evil.example")).status == 421
    assert (await operator.client.put(f"{operator.base}{path}", headers={"Origin": operator.base})).status_code == 405
    assert (await operator.post(path, fields | {"why": "x" * 70_000})).status == 403, "more than a form holds"
    shown = await client.call("admin.users.get", access=await client.admin(), userId=person.id)
    assert shown.data["user"]["status"] == "active"
    assert (await operator.post(path, fields)).said == "The account is suspended."


async def test_an_act_says_what_will_happen_asks_who_it_is_and_is_audited(client: Gateway, operator: Browser) -> None:
    person = await signed_in(client)
    user = await operator.get(f"/users/{person.id}")
    assert person.email in user.text
    assert f"/users/{person.id}/suspend" in user.links
    assert f"/users/{person.id}/activate" not in user.links
    asked = await operator.get(f"/users/{person.id}/suspend")
    assert "All sessions end, and nobody can sign in" in asked.said
    again = await operator.get(f"/again?next=/users/{person.id}/suspend?why=seen%2520at%2520night")
    wrong = await operator.send(again, "/again", password="Wrong-Password-1")
    assert (wrong.status, wrong.said) == (401, "Email or password is wrong.")
    asked = await operator.send(again, "/again", password=client.ready["admin"]["password"])
    assert asked.form("/suspend")[1]["why"] == "seen at night"
    done = await operator.send(asked, "/suspend", why="seen at night & strange")
    assert (done.path, done.said) == (f"/users/{person.id}", "The account is suspended.")
    assert (await client.call("me.get", access=person.access)).code == "INVALID_TOKEN"

    async def is_audited() -> bool:
        page = await operator.get(f"/audit?userId={person.id}&action=user_status_changed")
        return "seen at night &amp; strange" in page.text

    await eventually(is_audited, within_s=10, what="the audit row")


async def test_a_moderator_acts_on_users_alone_and_sees_no_letters(client: Gateway, visitor: Browser) -> None:
    moderator, user = await account(client, "moderator"), await account(client)
    page = await visitor.sign_in(moderator.email, PASSWORD)
    assert page.heading == "Overview"
    assert "/letters" not in page.links
    for path in ("/letters", "/letters/list", "/jobs", "/inbox", "/letters/replay?all=yes"):
        assert (await visitor.get(path)).status == 403, path
    admin_id = (await client.call("me.get", access=await client.admin())).data["user"]["id"]
    of_admin, of_user = await visitor.get(f"/users/{admin_id}"), await visitor.get(f"/users/{user.id}")
    assert "What you can do" not in of_admin.text
    assert f"/users/{user.id}/unlock" in of_user.links
    assert f"/users/{user.id}/role" not in of_user.links
    asked = await visitor.get(f"/users/{admin_id}/revoke-sessions")
    refused = await visitor.send(asked, "/revoke-sessions", why="out with you")
    assert (refused.status, "may not do this" in refused.said) == (409, True)
    done = await visitor.send(await visitor.get(f"/users/{user.id}/unlock"), "/unlock", why="they asked")
    assert done.said == "The account is unlocked."


async def test_who_lost_the_role_sees_no_figures_any_more(client: Gateway, visitor: Browser) -> None:
    moderator = await account(client, "moderator")
    await visitor.sign_in(moderator.email, PASSWORD)
    assert (await visitor.get("/overview/history")).status == 200
    async with database(client.ready) as rows:
        await rows.execute("UPDATE users SET role = 'user' WHERE id = $1", moderator.uuid)

    async def is_refused() -> bool:
        return (await visitor.get("/overview/history")).status == 403

    await eventually(is_refused, within_s=15, what="the loss of the role")
    assert [(await visitor.get(path)).status for path in ("/", "/overview/now", "/overview/letters")] == [403] * 3


async def test_what_a_stranger_wrote_is_text_on_every_page(client: Gateway, operator: Browser) -> None:
    hostile = "<img/src=x onerror=alert(1)>\"'&"
    email = new_email()
    headers = {"User-Agent": hostile, "Request-Id": hostile.replace(" ", "/"), "Client-Ip": "192.0.2.9"}
    user = (await client.call("auth.register", headers=headers, **registration(email))).data["user"]
    other = headers | {"Request-Id": f"{headers['Request-Id']}2"}
    await client.call("auth.login", headers=other, email=email, password="Wrong-Password-1")
    letter = await a_letter(
        client, UUID(user["id"]), message=hostile, headers={hostile: hostile}, body=hostile.encode()
    )
    script = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E"
    for path in (
        *(f"/letters/{letter}", f"/users/{user['id']}", f"/timeline?of={email}", "/letters", "/letters/list", "/audit"),
        *(f"/users?search={script}", f"/letters?type={script}", f"/inbox?to={script}", f"/audit?action={script}"),
    ):
        page = await operator.get(path)
        assert page.status == 200, page.text
        require_a_safe_page(page)
        assert "<img/src" not in page.text
        assert "<script>" not in page.text
    assert "&lt;img/src=x" in (await operator.get(f"/letters/{letter}")).text


async def a_letter(client: Gateway, user_id: UUID, *, message: str, headers: dict[str, str], body: bytes) -> UUID:
    """A letter that stands in the table; no group has written it."""
    letter_id, event_id = uuid4(), uuid4()
    attempt = {"attempt": 1, "error": "Odd", "message": message, "trace": message, "at": "2026-01-01T00:00:00Z"}
    async with database(client.ready) as rows:
        await rows.execute(
            "INSERT INTO dead_letters (id, group_name, event_id, n, user_id, event_type, reason, error, message, "
            "subject, body, headers, attempts, deliveries, stream, stream_sequence, announced_at) "
            "VALUES ($1, 'email', $2, 1, $3, 'UserRegistered', 'attempts_exhausted', 'Odd', $4, $5, $6, $7, $8, 3, "
            "'USER_EVENTS', $9, now())",
            letter_id, event_id, user_id, message, f"users.events.v1.UserRegistered.{user_id}", body,
            json.dumps(headers), json.dumps([attempt]), event_id.int % 2**60,
        )  # fmt: skip
    return letter_id


async def test_the_filter_is_in_the_address(client: Gateway, operator: Browser) -> None:
    user = (await client.register()).data["user"]
    letters = [await a_letter(client, UUID(user["id"]), message=f"no {n}", headers={}, body=b"{}") for n in range(3)]
    asked = f"/letters/list?userId={user['id']}&type=UserRegistered&from=2020-01-01T00:00"
    page = await operator.get(asked)
    assert all(f"/letters/{letter}" in page.links for letter in letters)
    assert page.form("/letters/list")[1]["userId"] == user["id"]
    assert page.form("/letters/list")[1]["from"] == "2020-01-01T00:00"
    replay = next(link for link in page.links if link.startswith("/letters/replay?"))
    assert f"userId={user['id']}" in replay
    plan = await operator.get(replay)
    assert "3 letters would be replayed" in plan.said
    assert (await operator.get(asked.replace("UserRegistered", "UserLogin"))).text.count("No letters match.") == 1
    assert "no 1" in (await operator.get(f"/letters?userId={user['id']}")).text
    wrong = await operator.get("/letters?userId=nobody")
    assert (wrong.status, "userId" in wrong.said) == (400, True)

    discard = await operator.get(f"/letters/discard?userId={user['id']}")
    assert "3 letters will be closed without a replay" in discard.said
    done = await operator.send(discard, "/letters/discard", why="made by a test")
    assert done.said == "3 letters were discarded."
    chosen = await operator.get(f"/letters/restore?id={letters[0]}&id={letters[1]}")
    assert (await operator.send(chosen, "/letters/restore", why="two of them")).said == "2 letters were restored."
    listed = await operator.get(f"/letters/list?userId={user['id']}&state=discarded")
    assert f"/letters/{letters[2]}" in listed.links
    rest = await operator.get(f"/letters/discard?userId={user['id']}")
    assert (await operator.send(rest, "/letters/discard", why="made by a test")).said == "2 letters were discarded."
    found = await operator.get("/users?status=active&role=admin")
    assert client.ready["admin"]["email"] in found.text
    assert user["email"] not in found.text


async def test_a_button_that_is_pressed_twice_acts_once(client: Gateway, operator: Browser) -> None:
    user = (await client.register()).data["user"]
    await a_letter(client, UUID(user["id"]), message="twice", headers={}, body=b"{}")
    address, fields = (await operator.get(f"/letters/replay?userId={user['id']}")).form("/letters/replay")
    first, second = [await operator.post(address, fields | {"rate": "50"}) for _ in range(2)]
    assert first.path == second.path
    assert first.path.startswith("/jobs/")


async def test_live_figures_are_columns_of_one_length(client: Gateway, operator: Browser) -> None:
    await client.register()

    async def has_figures() -> bool:
        found = (await operator.client.get(f"{operator.base}/overview/history")).json()
        assert {len(found[name]) for name in ("at", "requests_s", "deliveries_s", "redelivered")} == {len(found["at"])}
        assert found["waiting"].keys() == {"email", "audit", "cache"}
        return any(found["requests_s"]) and any(found["deliveries_s"])

    await eventually(has_figures, within_s=30, what="requests and deliveries to be seen")
    part = await operator.get("/overview/now")
    for name in ("database", "nats", "redis", "email", "audit", "cache"):
        assert name in part.text
    assert part.text.count("healthy") > 4


async def test_the_inbox_shows_a_mail_without_any_right(client: Gateway, operator: Browser) -> None:
    await client.register(email := new_email())
    await client.mail_to(email, "verify-email")
    (path,) = [link for link in (await operator.get(f"/inbox?to={email}")).links if re.fullmatch(r"/inbox/\d+", link)]
    mail = await operator.get(path)
    require_a_safe_page(mail)
    assert any("/verify-email?token=" in link for link in mail.links)
    assert '<iframe class="mail" sandbox=""' in mail.text
    html = await operator.get(f"{path}/html")
    assert "; sandbox;" in html.headers["content-security-policy"]
    assert "script-src" not in html.headers["content-security-policy"]
    for name in ("ready", "..%2Fready", "00", "%2Fetc%2Fpasswd"):
        assert (await operator.get(f"/inbox/{name}")).status == 404


async def test_signing_out_ends_the_session_here_and_there(dev: Dev, client: Gateway, visitor: Browser) -> None:
    moderator = await account(client, "moderator")
    page = await visitor.sign_in(moderator.email, PASSWORD)
    cookie = visitor.client.cookies["console"]
    out = await visitor.send(page, "/logout")
    assert out.heading == "Sign in"
    async with database(dev.ready) as rows:
        left = await rows.fetchval(
            "SELECT count(*) FROM user_sessions WHERE user_id = $1 AND ended_at IS NULL", moderator.uuid
        )
    assert left == 0
    visitor.client.cookies.set("console", cookie)
    assert (await visitor.get("/users")).heading == "Sign in"


async def test_a_session_that_ended_elsewhere_is_over_here(client: Gateway, visitor: Browser) -> None:
    moderator = await account(client, "moderator")
    await visitor.sign_in(moderator.email, PASSWORD)
    ended = await client.call(
        "admin.users.revoke-sessions", access=await client.admin(), userId=moderator.id, reason="a test"
    )
    assert ended.data["revoked"] == 1
    assert (await visitor.get("/users")).heading == "Sign in"

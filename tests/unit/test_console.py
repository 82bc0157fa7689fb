"""The console without a service: its doors, its sessions, what it reads from an address, and the files it was given."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from adapters.bus_client import BusFailure
from domain.session import Lifetimes
from handlers.console import sessions
from handlers.console.acts import ACTS
from handlers.console.door import POLICY, Door
from handlers.console.filters import LETTERS, read_filters
from handlers.console.first_admin import LINK_S, KnownAdmin, NotMade, OneTimeLink
from handlers.console.looks import STATIC, address, render
from handlers.console.sessions import Pending, Session, Sessions
from handlers.console.visit import Means, Refused, Visit, safe_path, signed_in

VENDOR = STATIC / "vendor"


def a_session(**changed: Any) -> Session:  # noqa: ANN401 - the fields of a session
    fields: dict[str, Any] = {"user_id": "1", "email": "a@example.com", "role": "admin"}
    return Session(
        **(fields | changed),
        access=SecretStr("an access token"),
        refresh=SecretStr("a refresh token"),
        has_second_factor=False,
    )


def test_what_others_wrote_is_what_they_published_and_comes_with_its_licence() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    told = {name: sum_ for sum_, name in (line.split() for line in lines)}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.name != "SHA256SUMS"
    }
    assert found == told
    for library in ("htmx", "uplot"):
        assert f"{library}-LICENSE.txt" in found
        assert any(name.startswith(f"{library}-") and name.endswith(".js") for name in found)


def test_our_own_pages_hold_no_script_and_no_style() -> None:
    for path in (Path(STATIC).parent / "templates").glob("*.html"):
        text = path.read_text()
        assert "| safe" not in text
        assert "<style" not in text
        assert "style=" not in text
        assert "<script>" not in text
        assert "hx-on" not in text, "htmx would make a function of it, which the policy forbids"


@pytest.fixture
async def door() -> AsyncIterator[httpx.AsyncClient]:
    async def yes(_: object) -> Response:
        return PlainTextResponse("yes")

    app = Door(Starlette(routes=[Route("/", yes, methods=["GET", "POST"])]), "https://console.example.com")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="https://console.example.com"
    ) as found:
        yield found


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://console.example.com"}, 200),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "null", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "http://console.example.com"}, 403),
        ({"Origin": "https://console.example.com:8443"}, 403),
        ({"Origin": "https://console.example.com", "Host": "127.0.0.1:9091"}, 421),
        ({"Origin": "https://console.example.com", "Host": "evil.example"}, 421),
    ],
)
async def test_a_form_must_come_from_this_very_origin(
    door: httpx.AsyncClient, headers: Mapping[str, str], status: int
) -> None:
    reply = await door.post("/", headers=dict(headers))
    assert reply.status_code == status
    assert reply.headers["content-security-policy"] == POLICY
    assert "max-age" in reply.headers["strict-transport-security"]


def test_a_session_is_over_when_nobody_used_it_but_not_by_being_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    held = Sessions(idle_s=60)
    cookie = held.open(a_session())
    clock += 59
    assert held.find(cookie) is not None
    clock += 59
    assert held.find(cookie, keeps=False) is not None
    clock += 2
    assert held.find(cookie) is None
    assert held.find("") is None


def test_sessions_are_bounded_and_the_least_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 3)
    held = Sessions()
    first, second, third = (held.open(a_session()) for _ in range(3))
    held.find(first)
    fourth = held.open(a_session())
    assert [held.find(cookie) is None for cookie in (first, second, third, fourth)] == [False, True, False, False]


def test_a_form_belongs_to_one_cookie_of_one_process() -> None:
    held, other = Sessions(), Sessions()
    token = held.form_token("mine")
    assert held.is_own_form("mine", token)
    assert not held.is_own_form("theirs", token)
    assert not held.is_own_form("", held.form_token(""))
    assert not other.is_own_form("mine", token)


def test_no_cookie_and_no_token_is_kept_as_it_is() -> None:
    held = Sessions()
    cookie = held.open(a_session())
    held.wait("a cookie", Pending(SecretStr("a challenge")))
    assert cookie not in repr(vars(held._open))
    assert "an access token" not in repr(held.find(cookie))
    assert "a challenge" not in repr(held.waiting("a cookie"))


async def test_a_link_is_good_once_and_for_a_quarter_of_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    link = OneTimeLink(KnownAdmin("admin@example.com", SecretStr("a password")))
    assert not link.opens("")
    void, token = link.new(), link.new()
    assert (link.opens(void), link.opens(token), link.opens(token)) == (False, True, True)
    assert token not in repr(vars(link))
    assert await link.use({}) == ("admin@example.com", "a password")
    assert not link.opens(token)
    with pytest.raises(NotMade):
        await link.use({})
    late = link.new()
    clock += LINK_S
    assert not link.opens(late)
    with pytest.raises(NotMade):
        await link.use({})


@pytest.mark.parametrize(
    ("wanted", "leads_to"),
    [
        ("/letters?cause=1", "/letters?cause=1"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
    ],
)
def test_a_sign_in_leads_to_pages_of_this_console_alone(wanted: str, leads_to: str) -> None:
    assert safe_path(wanted) == leads_to


def test_times_of_an_address_are_utc_unless_they_say_otherwise() -> None:
    asked = {
        "from": "2026-01-02T03:04",
        "to": "2026-01-02T03:04:05+02:00",
        "group": " email ",
        "type": " ",
        "else": "x",
    }
    assert read_filters(asked, LETTERS) == {
        "from": "2026-01-02T03:04:00+00:00", "to": "2026-01-02T03:04:05+02:00", "group": "email",
    }  # fmt: skip
    assert read_filters({"from": "yesterday"}, LETTERS) == {"from": "yesterday"}, "the service says what is wrong"


def test_an_address_holds_what_says_something() -> None:
    assert address("/letters", {"group": "", "type": None, "id": ["1", "2"]}, state="de ad") == (
        "/letters?id=1&id=2&state=de+ad"
    )
    assert address("/letters", {"group": ""}) == "/letters"


def test_a_value_that_a_page_was_not_given_is_an_error_and_no_blank() -> None:
    with pytest.raises(Exception, match="'says' is undefined"):
        render("bare.html", title="x")
    assert "&lt;b&gt;" in render("bare.html", title="x", says="<b>")


@pytest.mark.parametrize("code", ["REAUTHENTICATION_REQUIRED", "TWO_FACTOR_REQUIRED", "FORBIDDEN"])
async def test_a_proof_that_is_asked_for_is_shown_and_then_the_act_goes_on(code: str) -> None:
    async def act(visit: Visit) -> Response:
        assert visit.sent("why") == "a & b"
        raise Refused({"code": code, "message": "No."})

    means = Means(None, Sessions(), secure=False, has_inbox=False, needs_second_factor=False)  # type: ignore[arg-type]  # nobody is asked here
    cookie = means.sessions.open(a_session())
    app = Starlette(routes=[Route("/users/1/suspend", signed_in(means, act), methods=["POST"])])
    sent = {"token": means.sessions.form_token(cookie), "why": "a & b"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://console") as client:
        reply = await client.post("/users/1/suspend?x=1&why=old", data=sent, headers={"Cookie": f"console={cookie}"})
    if code == "FORBIDDEN":
        assert (reply.status_code, "No." in reply.text) == (403, True)
        return
    assert reply.status_code == 303
    path = {"REAUTHENTICATION_REQUIRED": "/again", "TWO_FACTOR_REQUIRED": "/second-factor"}[code]
    assert httpx.URL(reply.headers["location"]).path == path
    assert httpx.URL(reply.headers["location"]).params["next"] == "/users/1/suspend?x=1&why=a+%26+b"


async def test_a_lost_answer_to_a_renewal_is_asked_for_again_within_the_grace() -> None:
    class Lossy:
        waited_s = 0.0

        async def ask(
            self, operation: str, body: Mapping[str, object], headers: Mapping[str, str], *, timeout_s: float = 10
        ) -> dict[str, Any]:
            if operation == "me.get":
                is_new = headers["Authorization"] == "Bearer new"
                return {"data": {"user": 1}} if is_new else {"error": {"code": "TOKEN_EXPIRED", "message": "Over."}}
            assert body == {"refreshToken": "a refresh token"}
            self.waited_s += timeout_s
            if self.waited_s < 3 * timeout_s:
                raise BusFailure("no answer")
            return {"data": {"tokens": {"accessToken": "new", "refreshToken": "next"}}}

    bus = Lossy()
    means = Means(bus, Sessions(), secure=False, has_inbox=False, needs_second_factor=False)  # type: ignore[arg-type]
    session = a_session()
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("127.0.0.1", 1)})
    assert await Visit(means, request, session, means.sessions.open(session)).call("me.get") == {"data": {"user": 1}}
    assert session.refresh.get_secret_value() == "next"
    assert bus.waited_s < Lifetimes().grace.total_seconds()


async def test_a_renewal_that_somebody_gave_up_waiting_for_is_not_begun_again_by_another() -> None:
    class Slow:
        spent = 0
        may_answer = asyncio.Event()

        async def ask(self, operation: str, _: object, headers: Mapping[str, str], **__: object) -> dict[str, Any]:
            if operation == "me.get":
                is_new = headers["Authorization"] == "Bearer new"
                return {"data": {"user": 1}} if is_new else {"error": {"code": "TOKEN_EXPIRED", "message": "Over."}}
            self.spent += 1
            await self.may_answer.wait()
            return {"data": {"tokens": {"accessToken": "new", "refreshToken": "next"}}}

    bus = Slow()
    means = Means(bus, Sessions(), secure=False, has_inbox=False, needs_second_factor=False)  # type: ignore[arg-type]
    session = a_session()
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("127.0.0.1", 1)})
    visit = Visit(means, request, session, means.sessions.open(session))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await visit.call("me.get")
    others = [asyncio.create_task(visit.call("me.get")) for _ in range(3)]
    await asyncio.sleep(0.05)
    bus.may_answer.set()
    assert await asyncio.gather(*others) == [{"data": {"user": 1}}] * 3
    assert bus.spent == 1


def test_a_cookie_is_the_hosts_own_where_there_is_https() -> None:
    for secure, name in ((True, "__Host-console"), (False, "console")):
        means = Means(None, Sessions(), secure=secure, has_inbox=False, needs_second_factor=False)  # type: ignore[arg-type]
        response = PlainTextResponse("")
        means.set_cookie(response, means.cookie_name, "value")
        said = response.headers["set-cookie"]
        assert said.startswith(f"{name}=value;")
        assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(said.split("; "))
        assert ("Secure" in said) == secure


def test_every_act_is_for_whoever_may_do_it() -> None:
    user = {"id": "2", "role": "user", "status": "active", "twoFactorEnabled": True}
    admin, moderator = a_session(), a_session(role="moderator")

    def open_to(session: Session, **changed: object) -> set[str]:
        return {name for name, act in ACTS.items() if act.is_open_to(session, user | changed)}

    assert open_to(admin) == ACTS.keys() - {"activate"}
    assert open_to(moderator) == ACTS.keys() - {"activate", "role"}
    assert open_to(moderator, role="moderator") == set()
    assert open_to(admin, id="1") == {"unlock", "revoke-sessions", "require-password-reset"}
    assert open_to(admin, status="suspended", twoFactorEnabled=False) == ACTS.keys() - {"suspend", "reset-two-factor"}
    assert open_to(admin, status="deleted") == set()

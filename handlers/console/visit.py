"""One request of somebody signed in: what was sent, what the service answers them, and the page that they are shown."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import SecretStr
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from adapters.bus_client import BusFailure
from adapters.operator_bus import OperatorBus
from contracts.wire import ErrorCode
from handlers.console.looks import render
from handlers.console.sessions import Session, Sessions

Form = ImmutableMultiDict[str, str]
COOKIE_BYTES_MAX = 128
FORM_BYTES_MAX = 64 * 1024
FORM_S = 10.0
FIELDS_MAX = 1100
"""Room for a thousand letters that were chosen, and the other fields of that form."""
LOOK_S = 5.0
LOOK_PATIENCE_S = 2.0
"""So long a page that shows no operation's answer may trust what the service said of its reader."""
RENEWAL_S, RENEWAL_TRIES = 3.0, 3
"""In all within the ten seconds in which a refresh token that was spent a moment ago is answered for once more."""
_OVER = frozenset({"TOKEN_EXPIRED", "INVALID_TOKEN"})
_NO_ANSWER = "load the page again to see what has become of it; the overview says what is away."
_PROOFS = {"REAUTHENTICATION_REQUIRED": "/again", "TWO_FACTOR_REQUIRED": "/second-factor"}
"""Where what is asked for is shown."""
_OUTAGES = frozenset({"SERVICE_UNAVAILABLE", "OVERLOADED", "DEADLINE_EXCEEDED"})


@dataclass(frozen=True, slots=True)
class Means:
    """What every page works with."""

    bus: OperatorBus
    sessions: Sessions
    secure: bool
    """Is it reached by https alone?"""
    has_inbox: bool
    needs_second_factor: bool
    """Is nothing shown to whoever has not shown one?"""

    @property
    def cookie_name(self) -> str:
        """A name that a browser takes from no other host, where there is https."""
        return "__Host-console" if self.secure else "console"

    @property
    def visitor_cookie_name(self) -> str:
        """Of whoever is not signed in yet, so that a page for them never takes the place of a session: a link from
        elsewhere brings no cookie along, and is answered as if nobody were signed in."""
        return "__Host-console-visitor" if self.secure else "console-visitor"

    @property
    def device_cookie_name(self) -> str:
        return "__Host-console-device" if self.secure else "console-device"

    def set_cookie(self, response: Response, name: str, value: str, *, age_s: int | None = None) -> None:
        """No script reads it, no other site sends it."""
        response.set_cookie(name, value, max_age=age_s, path="/", httponly=True, samesite="strict", secure=self.secure)


class Refused(Exception):
    """What the service answered instead of doing it."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error["code"]))
        self.code = str(error["code"])
        self.error = dict(error)

    @property
    def says(self) -> str:
        """For the reader: the service's own words, field by field, and when to come back."""
        faults = [f"{fault['field']}: {fault['message']}" for fault in self.error.get("details") or ()]
        wait = self.error.get("retryAfter")
        return " ".join([str(self.error["message"]), *faults, *([f"Try again in {wait} s."] if wait else [])])


class SignedOut(Exception):
    """The session is over; whoever asks signs in again."""


class Stranger(Exception):
    """A form that no page of this session held."""


def call_headers(request: Request, means: Means) -> dict[str, str]:
    """What a gateway says of its user: for limits, sessions and audit."""
    said = {"Request-Id": f"console-{secrets.token_hex(12)}"}
    if request.client is not None:
        said["Client-Ip"] = request.client.host
    agent = request.headers.get("user-agent", "")[:500]
    if agent.isascii() and agent.isprintable() and agent:
        said["User-Agent"] = agent
    device = request.cookies.get(means.device_cookie_name, "")
    if device.isascii() and device.isprintable() and 0 < len(device) <= COOKIE_BYTES_MAX:
        said["Device-Token"] = device
    return said


@dataclass(slots=True)
class Visit:
    """A request with its session."""

    means: Means
    request: Request
    session: Session
    cookie: str
    form: Form = field(default_factory=ImmutableMultiDict)

    @property
    def address(self) -> Mapping[str, str]:
        """The fields of the address that say something."""
        return {name: value for name, value in self.request.query_params.items() if value.strip()}

    def sent(self, name: str) -> str:
        """A field of the form, or nothing."""
        return self.form.get(name, "").strip()

    async def call(self, operation: str, **body: object) -> dict[str, Any]:
        """The reply's envelope, as whoever is signed in; raises `Refused`, `SignedOut`, and `BusFailure` where nobody
        answers, or nobody could do what was asked.

        A form's act is done once, however often its button was pressed.
        """
        session = self.session
        headers = call_headers(self.request, self.means)
        if once := self.sent("once"):
            headers["Idempotency-Key"] = once
        for _ in range(2):
            access = session.access
            headers["Authorization"] = f"Bearer {access.get_secret_value()}"
            reply = await self.means.bus.ask(operation, body, headers)
            error = reply.get("error")
            if error is None:
                return reply
            if error["code"] in _OUTAGES:
                raise BusFailure(error["message"])
            if error["code"] not in _OVER:
                raise Refused(error)
            await self._renew(access)
        raise SignedOut

    async def _renew(self, seen: SecretStr) -> None:
        """Spend the refresh token once, however many requests have found the access token over."""
        session = self.session
        if session.access is not seen:
            return
        if session.renewing is None or session.renewing.done():
            session.renewing = asyncio.create_task(self._spend())
        # Whoever gives up waiting must not lose the answer, nor let another spend the token again: it is spent by then.
        await asyncio.shield(session.renewing)

    async def _spend(self) -> None:
        reply = await self._renewal({"refreshToken": self.session.refresh.get_secret_value()})
        error = reply.get("error")
        if error is None:
            self.take(reply["data"]["tokens"])
        elif error["code"] in _OUTAGES | {"RATE_LIMITED"}:
            raise BusFailure(error["message"])
        else:
            self.means.sessions.close(self.cookie)
            raise SignedOut

    async def _renewal(self, body: dict[str, str]) -> dict[str, Any]:
        """A lost answer is asked for again while the service still gives it: later the spent token counts as stolen."""
        headers = call_headers(self.request, self.means)
        for _ in range(RENEWAL_TRIES - 1):
            with suppress(BusFailure):
                return await self.means.bus.ask("auth.refresh", body, headers, timeout_s=RENEWAL_S)
        return await self.means.bus.ask("auth.refresh", body, headers, timeout_s=RENEWAL_S)

    def take(self, tokens: Mapping[str, Any]) -> None:
        """New tokens of the same session."""
        self.session.access = SecretStr(tokens["accessToken"])
        self.session.refresh = SecretStr(tokens["refreshToken"])

    async def look(self, *, now: float) -> None:
        """Ask anew, now and then, whether they are still who they were; raises `Refused` and `SignedOut`.

        While nobody can say, they are: that something is away is what these pages are for.
        """
        if now - self.session.looked_at < LOOK_S:
            return
        try:
            async with asyncio.timeout(LOOK_PATIENCE_S):
                user = (await self.call("me.get"))["data"]["user"]
        except (BusFailure, TimeoutError):
            return
        self.session.role, self.session.email = user["role"], user["email"]
        self.session.has_second_factor &= user["twoFactorEnabled"]
        self.session.looked_at = now

    def page(self, template: str, *, status: int = 200, **values: object) -> Response:
        """A whole page."""
        said, self.session.said = self.session.said, None
        return HTMLResponse(self.part(template, said=said, **values), status)

    def part(self, template: str, **values: object) -> str:
        """A page's text, or a piece of one."""
        shared = {
            "me": self.session,
            "path": self.request.url.path,
            "form_token": self.means.sessions.form_token(self.cookie),
            "once": secrets.token_urlsafe(24),
            "has_inbox": self.means.has_inbox,
            "here": self.here,
            "paged": "cursor" in self.request.query_params,
        }
        return render(template, **(shared | values))

    @property
    def here(self) -> str:
        """This page's path and filters."""
        return path_of(self.request)

    def to(self, path: str, *, said: str | None = None) -> Response:
        """On to another page, which tells what was done."""
        if said is not None:
            self.session.said = said
        if self.request.headers.get("hx-request") == "true":
            return Response(status_code=200, headers={"HX-Redirect": path})
        return RedirectResponse(path, 303)


Act = Callable[[Visit], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


def signed_in(means: Means, act: Act, *, by_itself: bool = False, before_proofs: bool = False) -> Endpoint:
    """An endpoint for whoever is signed in; others are led to the sign-in, and back here afterwards.

    `by_itself` marks what a page asks without its reader: that keeps no session from being idle. `before_proofs` marks
    what is had without the second factor, where one is needed.
    """

    async def answer(request: Request) -> Response:
        cookie = request.cookies.get(means.cookie_name, "")[:COOKIE_BYTES_MAX]
        session = means.sessions.find(cookie, keeps=not by_itself)
        if session is None:
            return _led_to_sign_in(request)
        visit = Visit(means, request, session, cookie)
        if means.needs_second_factor and not session.has_second_factor and not before_proofs:
            return visit.to(f"{_PROOFS['TWO_FACTOR_REQUIRED']}?{urlencode({'next': _back(visit)})}")
        return await _answered(visit, act)

    return answer


async def _answered(visit: Visit, act: Act) -> Response:
    """The page, or one that says why not."""
    try:
        if visit.request.method == "POST":
            visit.form = await own_form(visit.request, visit.means, visit.cookie)
        return await act(visit)
    except SignedOut:
        return _led_to_sign_in(visit.request)
    except Stranger:
        says = "This form was not shown to you, or it is too old. Go back, load the page again, and send it anew."
        return visit.page("refused.html", status=403, title="Not done", says=says)
    except Refused as refusal:
        return _refused(visit, refusal)
    except BusFailure as failure:
        return visit.page("refused.html", status=503, title="No answer", says=f"{failure}: {_NO_ANSWER}")


def _refused(visit: Visit, refusal: Refused) -> Response:
    if refusal.code in _PROOFS:
        return visit.to(f"{_PROOFS[refusal.code]}?{urlencode({'next': _back(visit)})}")
    known = ErrorCode.__members__.get(refusal.code)
    status = known.number if known else 400
    titles = {403: "You may not do this", 404: "Not found", 409: "Not done"}
    return visit.page("refused.html", status=status, title=titles.get(status, "Not done"), says=refusal.says)


def _back(visit: Visit) -> str:
    """The page whose form was sent, with the reason that was typed; the overview, where a piece of a page was asked."""
    if visit.request.headers.get("hx-request") == "true":
        return "/"
    why = visit.sent("why")
    if not why:
        return visit.here
    asked = [(name, value) for name, value in visit.request.query_params.multi_items() if name != "why"]
    return f"{visit.request.url.path}?{urlencode([*asked, ('why', why)])}"


async def own_form(request: Request, means: Means, cookie: str) -> Form:
    """The fields of a form that this session was shown; raises `Stranger` for any other."""
    body = b""
    try:
        async with asyncio.timeout(FORM_S):
            async for part in request.stream():
                body += part
                if len(body) > FORM_BYTES_MAX:
                    raise Stranger
    except TimeoutError as error:
        raise Stranger from error
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError as error:
        raise Stranger from error
    form = ImmutableMultiDict(pairs)
    token = form.get("token", "")
    if not means.sessions.is_own_form(cookie, token):
        raise Stranger
    return form


def path_of(request: Request) -> str:
    """The path that was asked for, with its query."""
    query = request.url.query
    return f"{request.url.path}?{query}" if query else request.url.path


def safe_path(wanted: str) -> str:
    """A page of this console, whatever the address asked for."""
    is_ours = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted and wanted.isprintable()
    return wanted if is_ours and wanted.isascii() else "/"


def _led_to_sign_in(request: Request) -> Response:
    wanted = path_of(request)
    path = "/login" if request.method == "POST" or wanted == "/" else f"/login?{urlencode({'next': wanted})}"
    if request.headers.get("hx-request") == "true":
        return Response(status_code=200, headers={"HX-Redirect": "/login"})
    return RedirectResponse(path, 303)

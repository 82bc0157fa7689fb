"""The way in and out: password, second factor, one-time link."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from adapters.bus_client import BusFailure
from domain.permissions import PERMISSIONS
from domain.refusals import Overloaded, Stale, Unavailable
from handlers.console.first_admin import NotMade, OneTimeLink
from handlers.console.looks import render
from handlers.console.sessions import Pending, Session, new_cookie
from handlers.console.visit import (
    COOKIE_BYTES_MAX,
    Form,
    Means,
    Refused,
    SignedOut,
    Stranger,
    Visit,
    call_headers,
    own_form,
    path_of,
    safe_path,
    signed_in,
)

DEVICE_S = 180 * 86_400
_STALE = "This page was too old, or it was not shown to you. Here is a fresh one."
_NO_ANSWER = "The service does not answer over NATS. Try again in a moment."


def login_routes(means: Means, first: OneTimeLink | None) -> list[BaseRoute]:
    """Everything that is had without a session, and the end of one."""
    door = Way(means, first)
    return [
        Route("/login", door.password, methods=["GET", "POST"]),
        Route("/login/code", door.code, methods=["GET", "POST"]),
        Route("/first", door.first, methods=["GET", "POST"]),
        Route("/logout", signed_in(means, logout, before_proofs=True), methods=["POST"]),
    ]


class Way:
    """The pages of a visitor who is nobody yet; a cookie tells one from another, and ends with the sign-in."""

    def __init__(self, means: Means, first: OneTimeLink | None) -> None:
        self._means = means
        self._first = first

    async def password(self, request: Request) -> Response:
        """Address and password."""
        next_path = safe_path(request.query_params.get("next", "/"))

        async def act(form: Form, _: str) -> Response:
            body = {"email": form.get("email", "").strip(), "password": form.get("password", "")}
            return await self._sign_in(request, body, next_path)

        return await self._step(request, "login.html", act)

    async def code(self, request: Request) -> Response:
        """The second factor of whoever has shown the password."""
        cookie = self._cookie(request)
        pending = self._means.sessions.waiting(cookie)
        challenge = pending.challenge if pending else None
        if pending is None or challenge is None:
            return RedirectResponse("/login", 303)

        async def act(form: Form, cookie: str) -> Response:
            shown = form.get("code", "").strip()
            kind = "code" if shown.isdigit() and len(shown) == 6 else "backupCode"
            body = {"challengeToken": challenge.get_secret_value(), kind: shown}
            data = await self._ask(request, "auth.two-factor", body)
            self._means.sessions.done(cookie)
            return await self._let_in(request, data, pending.next_path, has_second_factor=True)

        return await self._step(request, "code.html", act)

    async def first(self, request: Request) -> Response:
        """The one-time link: it is taken out of the address at once, and used up by the form alone."""
        if self._first is None:
            return RedirectResponse("/login", 303)
        token = request.query_params.get("token")
        if token is not None:
            return self._took_link(request, is_good=self._first.opens(token))
        cookie = self._cookie(request)
        pending = self._means.sessions.waiting(cookie)
        if pending is None or pending.challenge is not None:
            return RedirectResponse("/login", 303)
        if not self._first.is_open:
            return self._took_link(request, is_good=False)
        link = self._first

        async def act(form: Form, cookie: str) -> Response:
            email, password = await link.use(form)
            self._means.sessions.done(cookie)
            return await self._sign_in(request, {"email": email, "password": password}, "/")

        return await self._step(request, "first.html", act, makes=link.makes)

    def _took_link(self, request: Request, *, is_good: bool) -> Response:
        if not is_good:
            words = "This link was used already, or its time is over. Sign in, or start the console again for another."
            return self._page(request, "login.html", says=words, status=403, action="/login")
        return self._aside(Pending(None), "/first")

    def _aside(self, pending: Pending, path: str) -> Response:
        """Go on there, under a fresh cookie: with one that somebody has planted they would go on, too."""
        cookie = new_cookie()
        self._means.sessions.wait(cookie, pending)
        response = RedirectResponse(path, 303)
        self._means.set_cookie(response, self._means.visitor_cookie_name, cookie)
        return response

    async def _sign_in(self, request: Request, body: dict[str, str], next_path: str) -> Response:
        data = await self._ask(request, "auth.login", body)
        if data.get("twoFactorRequired"):
            return self._aside(Pending(SecretStr(data["challengeToken"]), next_path), "/login/code")
        return await self._let_in(request, data, next_path, has_second_factor=False)

    async def _let_in(
        self, request: Request, data: dict[str, Any], next_path: str, *, has_second_factor: bool
    ) -> Response:
        """A session under a new cookie, for whose role there is anything to do here."""
        user, tokens = data["user"], data["tokens"]
        if not PERMISSIONS[user["role"]]:
            await self._ask(request, "auth.logout", {"refreshToken": tokens["refreshToken"]})
            raise Refused({"code": "FORBIDDEN", "message": "This account has no rights that the console could use."})
        session = Session(
            user["id"],
            user["email"],
            user["role"],
            SecretStr(tokens["accessToken"]),
            SecretStr(tokens["refreshToken"]),
            has_second_factor,
        )
        response = RedirectResponse(next_path, 303)
        self._means.set_cookie(response, self._means.cookie_name, self._means.sessions.open(session))
        if tokens.get("deviceToken"):
            self._means.set_cookie(response, self._means.device_cookie_name, tokens["deviceToken"], age_s=DEVICE_S)
        return response

    async def _ask(self, request: Request, operation: str, body: dict[str, str]) -> dict[str, Any]:
        reply = await self._means.bus.ask(operation, body, call_headers(request, self._means))
        if reply.get("error") is not None:
            raise Refused(reply["error"])
        data: dict[str, Any] = reply["data"]
        return data

    async def _step(
        self,
        request: Request,
        template: str,
        act: Callable[[Form, str], Awaitable[Response]],
        *,
        makes: bool = False,
    ) -> Response:
        """Show a step's form, or act on it; what is wrong is said above the same form."""
        if request.method != "POST":
            return self._page(request, template, makes=makes)
        cookie = self._cookie(request)
        try:
            return await act(await own_form(request, self._means, cookie), cookie)
        except Stranger:
            return self._page(request, template, says=_STALE, status=403, makes=makes)
        except Refused as refusal:
            return self._page(request, template, says=refusal.says, status=401, makes=makes)
        except NotMade as fault:
            return self._page(request, template, says=str(fault), status=400, makes=makes)
        except (BusFailure, Unavailable, Overloaded, Stale):
            return self._page(request, template, says=_NO_ANSWER, status=503, makes=makes)

    def _page(
        self,
        request: Request,
        template: str,
        *,
        says: str | None = None,
        status: int = 200,
        makes: bool = False,
        action: str | None = None,
    ) -> Response:
        cookie = self._cookie(request) or new_cookie()
        token = self._means.sessions.form_token(cookie)
        text = render(template, form_token=token, says=says, action=action or path_of(request), makes=makes)
        response = HTMLResponse(text, status)
        if not self._cookie(request):
            self._means.set_cookie(response, self._means.visitor_cookie_name, cookie)
        return response

    def _cookie(self, request: Request) -> str:
        return request.cookies.get(self._means.visitor_cookie_name, "")[:COOKIE_BYTES_MAX]


async def logout(visit: Visit) -> Response:
    """End the session, here and in the service."""
    visit.means.sessions.close(visit.cookie)
    with suppress(Refused, SignedOut, BusFailure):  # it was over there already, or ends when nobody uses it
        await visit.call("auth.logout", refreshToken=visit.session.refresh.get_secret_value())
    response = RedirectResponse("/login", 303)
    response.delete_cookie(visit.means.cookie_name, path="/", secure=visit.means.secure, httponly=True)
    return response

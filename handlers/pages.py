"""The pages behind the links of our mail, for `dev`: a GET shows a button and changes nothing (mail scanners follow
links); the button does."""

import html
import json
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

Ask = Callable[[str, dict[str, object]], Awaitable[dict[str, object]]]
"""Sends a request over NATS as a gateway would; returns the reply."""

_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:15vh auto;padding:0 1rem}}
button{{font:inherit;padding:.6em 1.4em;border:0;border-radius:.4em;background:#1a56db;color:#fff;cursor:pointer}}
</style>
<h1>{title}</h1>{body}</html>"""
_TOKEN_CHARS_MAX = 256
_ADVICE = "The link may have been used already, or its time is over: ask for a new mail."
_FORM_BYTES_MAX = 1024


def link_pages(ask: Ask) -> list[BaseRoute]:
    """One page for each kind of link that our mail carries."""
    return [_page("/verify-email", "Verify your email address", "users.v1.auth.verify-email", ask)]


def _page(path: str, title: str, subject: str, ask: Ask) -> BaseRoute:
    async def show(request: Request) -> Response:
        if request.method == "GET":
            return _answer(title, _button(title, request.query_params.get("token", "")), 200)
        reply = await ask(subject, {"token": await _posted_token(request)})
        if reply.get("success"):
            return _answer("Done", "<p>Your address is verified. You can close this page.</p>", 200)
        return _answer("That did not work", f"<p>{html.escape(_message(reply))} {_ADVICE}</p>", 400)

    return Route(path, show, methods=["GET", "POST"])


async def _posted_token(request: Request) -> str:
    """The one field of the form; more than a form of ours can hold is not read."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES_MAX:
            return ""
    return parse_qs(body.decode("ascii", "replace")).get("token", [""])[0][:_TOKEN_CHARS_MAX]


def _button(title: str, token: str) -> str:
    value = html.escape(token[:_TOKEN_CHARS_MAX], quote=True)
    return f'<form method="post"><input type="hidden" name="token" value="{value}"><button>{title}</button></form>'


def _message(reply: dict[str, object]) -> str:
    error = reply.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else json.dumps(reply)[:200]


def _answer(title: str, body: str, status: int) -> Response:
    return HTMLResponse(_PAGE.format(title=html.escape(title), body=body), status, headers=_HEADERS)

"""The pages behind the links of our mail, for `dev`: a GET shows a button and changes nothing (mail scanners follow
links); the button does."""

import html
import json
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
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
input{{font:inherit;padding:.5em;width:100%;box-sizing:border-box;margin:.3em 0 1em}}
code{{display:block;overflow-wrap:anywhere;background:#f3f4f6;padding:.8em;border-radius:.4em}}
</style>
<h1>{title}</h1>{body}</html>"""
_TOKEN_CHARS_MAX = 256
_ADVICE = "The link may have been used already, or its time is over: ask for a new mail."
_FORM_BYTES_MAX = 8 * 1024
"""Room for a password of 1,024 bytes, each of them written as %XX."""
_FIELDS_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One kind of link: what its button asks for, and what is said when that is done."""

    path: str
    title: str
    subject: str
    done: str
    words: str = ""
    new_password: bool = False
    shows: str | None = None
    """A field of the reply that the reader has to keep."""


PAGES = (
    Page(
        path="/verify-email",
        title="Verify your email address",
        subject="users.v1.auth.verify-email",
        done="Your address is verified. You can close this page.",
    ),
    Page(
        path="/reset-password",
        title="Set a new password",
        subject="users.v1.auth.reset-password",
        done="Your password is set, and you are signed out everywhere. You can sign in now.",
        new_password=True,
    ),
    Page(
        path="/accept-invitation",
        title="Choose a password",
        subject="users.v1.auth.reset-password",
        done="Your account is ready. You can sign in now.",
        new_password=True,
    ),
    Page(
        path="/cancel-email-change",
        title="Keep the old address",
        subject="users.v1.auth.cancel-email-change",
        done="Your account has its old address. If it was changed already, you are signed out everywhere.",
    ),
    Page(
        path="/not-me",
        title="This was not me",
        subject="users.v1.auth.not-me",
        done="Thank you. Whoever it was is out.",
        words="It ends what somebody else has begun in your name. If they knew your password, it must be reset then.",
    ),
    Page(
        path="/unlock",
        title="Let this device in",
        subject="users.v1.auth.unlock",
        done="This device may sign in now. A gateway keeps this as its cookie and sends it as Device-Token:",
        shows="deviceToken",
    ),
)


def link_pages(ask: Ask) -> list[BaseRoute]:
    """One page for each kind of link that our mail carries."""
    return [*(_route(page, ask) for page in PAGES), Route("/confirm-email-change", _confirm_email_change)]


def _route(page: Page, ask: Ask) -> Route:
    async def show(request: Request) -> Response:
        if request.method != "POST":  # a HEAD, too, only looks
            return _answer(page.title, _form(page, request.query_params.get("token", "")), 200)
        posted = await _posted(request)
        body: dict[str, object] = {"token": posted.get("token", "")[:_TOKEN_CHARS_MAX]}
        if page.new_password:
            body["newPassword"] = posted.get("password", "")
        reply = await ask(page.subject, body)
        if reply.get("success"):
            return _answer("Done", f"<p>{page.done}</p>{_shown(page, reply)}", 200)
        return _answer("That did not work", _refused(page, reply, str(body["token"])), 400)

    return Route(page.path, show, methods=["GET", "POST"])


async def _confirm_email_change(request: Request) -> Response:
    """Only the user who is signed in may confirm, and this page holds nobody's access token."""
    body = json.dumps({"token": request.query_params.get("token", "")[:_TOKEN_CHARS_MAX]})
    # Quoted for the shell: whoever made the link up would else choose what is pasted there.
    line = f"user-service call me.confirm-email-change {shlex.quote(body)} --token ACCESS_TOKEN"
    words = "Your application confirms this while you are signed in. Here, paste this with your access token:"
    return _answer("Confirm your new address", f"<p>{words}</p><code>{html.escape(line)}</code>", 200)


async def _posted(request: Request) -> Mapping[str, str]:
    """The fields of the form; more than a form of ours can hold is not read."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES_MAX:
            return {}
    try:
        found = parse_qs(body.decode("ascii", "replace"), max_num_fields=_FIELDS_MAX, keep_blank_values=True)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}


def _form(page: Page, token: str) -> str:
    value = html.escape(token[:_TOKEN_CHARS_MAX], quote=True)
    words = f"<p>{page.words}</p>" if page.words else ""
    password = (
        '<label>New password<input type="password" name="password" autocomplete="new-password" required autofocus>'
        "</label>"
        if page.new_password
        else ""
    )
    hidden = f'<input type="hidden" name="token" value="{value}">'
    return f'{words}<form method="post">{hidden}{password}<button>{page.title}</button></form>'


def _shown(page: Page, reply: Mapping[str, object]) -> str:
    data = reply.get("data")
    if page.shows is None or not isinstance(data, dict):
        return ""
    return f"<code>{html.escape(str(data.get(page.shows, '')))}</code>"


def _refused(page: Page, reply: Mapping[str, object], token: str) -> str:
    """What was wrong; a password that breaks a rule leaves the link as it is, so the form is there again."""
    error = reply.get("error")
    if not isinstance(error, dict):
        return f"<p>{html.escape(json.dumps(reply)[:200])} {_ADVICE}</p>"
    message = html.escape(str(error.get("message", "")))
    if not page.new_password or error.get("code") not in {"PASSWORD_POLICY_VIOLATION", "VALIDATION_ERROR"}:
        return f"<p>{message} {_ADVICE}</p>"
    details = error.get("details")
    faults = [str(fault.get("message", "")) for fault in details] if isinstance(details, list) else []
    return f"<ul>{''.join(f'<li>{html.escape(fault)}</li>' for fault in faults)}</ul>{_form(page, token)}"


def _answer(title: str, body: str, status: int) -> Response:
    return HTMLResponse(_PAGE.format(title=html.escape(title), body=body), status, headers=_HEADERS)

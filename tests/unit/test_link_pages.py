"""The pages behind mail links: what a GET shows, what the button asks of the service, and what they never repeat."""

import asyncio
import html
import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette

from handlers.events.mails import MAILS
from handlers.pages import link_pages

TOKEN = "Zm9vYmFy" * 5
BUTTONS = {
    "/verify-email": "users.v1.auth.verify-email",
    "/reset-password": "users.v1.auth.reset-password",
    "/accept-invitation": "users.v1.auth.reset-password",
    "/cancel-email-change": "users.v1.auth.cancel-email-change",
    "/not-me": "users.v1.auth.not-me",
    "/unlock": "users.v1.auth.unlock",
}
WITH_PASSWORD = ("/reset-password", "/accept-invitation")
REFUSED = {"success": False, "error": {"code": "INVALID_TOKEN", "message": "The token is <not> valid."}}
WEAK = {
    "success": False,
    "error": {
        "code": "PASSWORD_POLICY_VIOLATION",
        "message": "The password is too weak.",
        "details": [
            {"field": "newPassword", "code": "digit_missing", "message": "Add a digit & more."},
            {"field": "newPassword", "code": "too_short", "message": "Use 8 characters or more."},
        ],
    },
}


@dataclass
class Site:
    """The pages, with a service that answers as a test says and remembers what it was asked."""

    reply: dict[str, object] = field(default_factory=lambda: {"success": True, "data": {}})
    asked: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    async def _ask(self, subject: str, body: dict[str, object]) -> dict[str, object]:
        self.asked.append((subject, body))
        return self.reply

    def send(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, str, dict[str, str]]:
        """Status, page and headers."""
        sent: list[dict[str, Any]] = []
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "",
            "scheme": "http", "query_string": urlencode(query or {}).encode(),
            "headers": [(b"content-type", b"application/x-www-form-urlencoded")], "server": ("localhost", 80),
        }  # fmt: skip
        parts = [body[:1000], body[1000:]]

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: Any) -> None:  # noqa: ANN401 - ASGI
            sent.append(message)

        asyncio.run(Starlette(routes=link_pages(self._ask))(scope, receive, send))
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], b"".join(part["body"] for part in sent[1:]).decode(), headers

    def post(self, path: str, **form: str) -> tuple[int, str, dict[str, str]]:
        return self.send("POST", path, body=urlencode(form).encode())


def test_every_page_that_a_mail_leads_to_is_there() -> None:
    linked = {link.page for mails in MAILS.values() for mail in mails for link in (mail.link, mail.second) if link}

    assert linked == {*BUTTONS, "/confirm-email-change"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", [*BUTTONS, "/confirm-email-change"])
def test_looking_at_a_page_asks_nothing_and_tells_nobody_the_link(path: str, method: str) -> None:
    site = Site()
    status, _, headers = site.send(method, path, query={"token": TOKEN})

    assert (status, site.asked) == (200, [])
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none';")
    assert "script" not in headers["content-security-policy"]


@pytest.mark.parametrize("path", BUTTONS)
def test_the_button_does_what_the_page_is_for(path: str) -> None:
    site = Site()
    _, page, _ = site.send("GET", path, query={"token": TOKEN})
    assert '<form method="post">' in page
    assert f'name="token" value="{TOKEN}"' in page
    assert ('type="password"' in page) == (path in WITH_PASSWORD)

    status, page, _ = site.post(path, token=TOKEN, password="Zoë & Söhne 1843!")
    asked = {"token": TOKEN} | ({"newPassword": "Zoë & Söhne 1843!"} if path in WITH_PASSWORD else {})
    assert (status, site.asked) == (200, [(BUTTONS[path], asked)])
    assert "Söhne" not in page


@pytest.mark.parametrize("path", BUTTONS)
def test_a_refusal_is_shown_as_text(path: str) -> None:
    status, page, _ = Site(REFUSED).post(path, token=TOKEN, password="Analytical-Engine-1843")

    assert status == 400
    assert "The token is &lt;not&gt; valid." in page
    assert TOKEN not in page
    assert "Analytical" not in page


@pytest.mark.parametrize("path", WITH_PASSWORD)
def test_a_weak_password_shows_every_broken_rule_and_the_form_again(path: str) -> None:
    status, page, _ = Site(WEAK).post(path, token=TOKEN, password="short")

    assert status == 400
    assert "<li>Add a digit &amp; more.</li><li>Use 8 characters or more.</li>" in page
    assert f'name="token" value="{TOKEN}"' in page
    assert 'value="short"' not in page


def test_the_longest_password_fits_and_more_than_a_form_is_not_read() -> None:
    site = Site()
    longest = "ü" * 512  # 1,024 bytes, each of them three characters of the form
    site.post("/reset-password", token=TOKEN, password=longest)
    assert site.asked == [("users.v1.auth.reset-password", {"token": TOKEN, "newPassword": longest})]

    site.post("/reset-password", token=TOKEN, password="x" * 9000)
    site.send("POST", "/reset-password", body=b"&".join(b"a=1" for _ in range(50)))
    assert site.asked[1:] == [("users.v1.auth.reset-password", {"token": "", "newPassword": ""})] * 2


def test_unlocking_shows_the_device_token_to_keep() -> None:
    status, page, _ = Site({"success": True, "data": {"deviceToken": "d<1>"}}).post("/unlock", token=TOKEN)

    assert status == 200
    assert "Device-Token" in page
    assert "<code>d&lt;1&gt;</code>" in page


def test_confirming_a_new_address_is_left_to_whoever_is_signed_in() -> None:
    site = Site()
    _, page, _ = site.send("GET", "/confirm-email-change", query={"token": "a'b<c"})

    assert "a'b<c" not in page
    [line] = re.findall("<code>(.*)</code>", page)
    words = shlex.split(html.unescape(line))
    assert json.loads(words[3]) == {"token": "a'b<c"}  # one word, whatever stands in the address
    assert words[4:] == ["--token", "ACCESS_TOKEN"]
    assert site.send("POST", "/confirm-email-change", body=b"token=x")[0] == 405


@pytest.mark.parametrize("path", [*BUTTONS, "/confirm-email-change"])
def test_what_stands_in_the_address_becomes_no_markup(path: str) -> None:
    _, page, _ = Site().send("GET", path, query={"token": '"><script>alert(1)</script>' * 50})

    assert "<script>" not in page
    assert len(page) < 5000

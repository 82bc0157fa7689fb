"""The service as a gateway sees it: requests over NATS, replies with their headers; and what else a test looks at."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import nats
from nats.aio.client import Client as NatsClient

from adapters.mail_sink import read_mail, token_of
from tests import canary

PASSWORD = "Brass-Canary-Sings-1843"
_TO = re.compile(rb"^To:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    """An envelope and its headers."""

    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        return bool(self.body["success"])

    @property
    def data(self) -> Any:  # noqa: ANN401 - JSON
        assert self.ok, self.body
        return self.body["data"]

    @property
    def code(self) -> str:
        return "OK" if self.ok else str(self.body["error"]["code"])


class Gateway:
    """One NATS connection and the mail folder of a running `dev`."""

    def __init__(self, nc: NatsClient, ready: Mapping[str, Any]) -> None:
        self.nc = nc
        self.ready = ready

    async def send(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None, timeout: float = 20
    ) -> Reply:
        """Send raw bytes to a subject."""
        message = await self.nc.request(subject, body, timeout=timeout, headers=dict(headers or {}) or None)
        reply = Reply(json.loads(message.data), message.headers or {})
        canary.overhear(body, reply.body)
        return reply

    async def call(
        self,
        operation: str,
        *,
        access: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 20,
        **body: object,
    ) -> Reply:
        """`call("auth.login", email=…)`: one request of the contract."""
        sent = dict(headers or {})
        if access:
            sent["Authorization"] = f"Bearer {access}"
        return await self.send(f"users.v1.{operation}", json.dumps(body).encode(), headers=sent, timeout=timeout)

    async def register(self, email: str | None = None, *, headers: Mapping[str, str] | None = None) -> Reply:
        return await self.call("auth.register", headers=headers, **registration(email or new_email()))

    async def verified(self, email: str | None = None) -> str:
        """Register and verify by the mail that comes; the address."""
        email = email or new_email()
        (await self.register(email)).data  # noqa: B018 - fails where it was refused
        mail = await self.mail_to(email, "verify-email")
        (await self.call("auth.verify-email", token=token_of(mail))).data  # noqa: B018
        return email

    async def signed_in(self, email: str | None = None, *, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """`{user, tokens}` of a fresh verified user."""
        email = await self.verified(email)
        found: dict[str, Any] = (await self.call("auth.login", headers=headers, email=email, password=PASSWORD)).data
        return found

    async def admin(self) -> str:
        """An access token of the admin that `dev` made."""
        admin = self.ready["admin"]
        reply = await self.call("auth.login", email=admin["email"], password=admin["password"])
        return str(reply.data["tokens"]["accessToken"])

    def mails_to(self, email: str, holding: str = "") -> list[EmailMessage]:
        return [mail for text, mail in _inbox(self.ready["mailDir"]).mails_to(email) if holding in text]

    async def mail_to(self, email: str, holding: str, *, within_s: float = 20) -> EmailMessage:
        """The first mail to an address whose text holds something; waited for."""
        async with asyncio.timeout(within_s):
            while not (found := self.mails_to(email, holding)):
                await asyncio.sleep(0.02)
        return found[0]


class Inbox:
    """A mail folder, of which each mail is read once: it was renamed into place whole, and never changes.

    Of a mail to somebody else its address alone is looked at: a house's mail server runs in the loop that reads here,
    and whoever sends to it would wait while thousands of mails are parsed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self._by_address: dict[str, list[str]] = {}

    def mails_to(self, email: str) -> list[tuple[str, EmailMessage]]:
        """Text and mail, in the order in which they came."""
        for name in set(os.listdir(self._folder)) - self._seen:  # noqa: PTH208 - thousands, fifty times a second
            if name.endswith(".eml"):  # else it is not renamed yet
                self._by_address.setdefault(address_of((self._folder / name).read_bytes()), []).append(name)
                self._seen.add(name)
        return [_parsed(self._folder / name) for name in sorted(self._by_address.get(email, ()))]


@cache
def _parsed(path: Path) -> tuple[str, EmailMessage]:
    mail = read_mail(path)
    body = mail.get_body(("plain",))
    return str(body.get_content()) if body else "", mail


def address_of(mail: bytes) -> str:
    """The one address that a stored mail goes to."""
    found = _TO.search(mail)
    assert found, mail[:2000]
    return found[1].decode()


@cache
def _inbox(folder: str) -> Inbox:
    return Inbox(Path(folder))


@asynccontextmanager
async def gateway(ready: Mapping[str, Any]) -> AsyncIterator[Gateway]:
    """A client of the ready file's `natsUrl`; it never sends later what its caller has given up on."""
    nc = await nats.connect(ready["natsUrl"], allow_reconnect=False, pending_size=0)
    try:
        yield Gateway(nc, ready)
    finally:
        await nc.close()


@asynccontextmanager
async def database(ready: Mapping[str, Any]) -> AsyncIterator[asyncpg.Connection]:
    """The rows, as the application's role sees them."""
    connection = await asyncpg.connect(ready["databaseUrl"])
    try:
        yield connection
    finally:
        await connection.close()


async def stored_events(ready: Mapping[str, Any], subject: str = "users.events.v1.>") -> list[dict[str, Any]]:
    """Every event on the stream, in its order, with its subject and headers."""
    nc = await nats.connect(ready["natsUrl"])
    try:
        js = nc.jetstream()
        info = await js.stream_info("USER_EVENTS", subjects_filter=subject)
        wanted = sum((info.state.subjects or {}).values())
        subscription = await js.pull_subscribe(subject, stream="USER_EVENTS")
        found: list[dict[str, Any]] = []
        while len(found) < wanted:
            for message in await subscription.fetch(min(500, wanted - len(found)), timeout=5):
                found.append(json.loads(message.data) | {"subject": message.subject, "headers": message.headers})
                await message.ack()
        return found
    finally:
        await nc.close()


def registration(email: str) -> dict[str, Any]:
    """A body of `auth.register` that is accepted."""
    return {"email": email, "password": PASSWORD, "firstName": "Ada", "lastName": "Lovelace", "acceptTerms": True}


def new_email() -> str:
    return f"ada-{uuid4().hex[:12]}@example.com"

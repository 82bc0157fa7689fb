"""What is measured: every operation, each caller with a user of its own."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from nats.aio.client import Client

from adapters.mail_sink import read_mail, stored_mails, token_of
from benchmarks.load import Request, Scenario, Tree, send

PASSWORD = "Analytical-Engine-1843"
SESSIONS_EACH = 8
"""Below the cap of sessions a user may have."""
USERS_EACH = 6
"""Users of a caller: each signs in seldom enough to stay below that cap."""


class Cast:
    """Who calls: verified users with tokens, and the admin."""

    def __init__(self, client: Client, tree: Tree, ready: Mapping[str, Any]) -> None:
        self._client = client
        self._tree = tree
        self._mail_dir = Path(ready["mailDir"])
        self._admin = ready["admin"]
        self._turn = 0
        self._callers = 0
        self.emails: list[str] = []
        self.user_ids: list[str] = []
        self.access: list[str] = []
        self.refresh: list[str] = []
        self.devices: list[str] = []
        self.admin_access = ""

    async def gather(self, callers: int) -> None:
        self._callers = callers
        self.emails = [_address() for _ in range(callers * USERS_EACH)]
        await self._ask_all([_registration(email) for email in self.emails])
        await self._tree.settled()
        await self._ask_all([Request("auth.verify-email", {"token": token}) for token in self.mailed_tokens()])
        found = await self._ask_all([_sign_in(email) for email in self.emails])
        self.user_ids = [data["user"]["id"] for data in found]
        self.access = [data["tokens"]["accessToken"] for data in found]
        self.refresh = [data["tokens"]["refreshToken"] for data in found]
        self.devices = [data["tokens"]["deviceToken"] for data in found]
        admin = await self._ask(Request("auth.login", self._admin))
        self.admin_access = admin["tokens"]["accessToken"]

    async def open_sessions(self) -> deque[str]:
        """Access tokens of fresh sessions, for `logout` to end."""
        tokens: deque[str] = deque()
        for _ in range(SESSIONS_EACH):
            found = await asyncio.gather(*(self._ask(_sign_in(email)) for email in self.emails[: self._callers]))
            tokens.extend(data["tokens"]["accessToken"] for data in found)
        return tokens

    def mailed_tokens(self) -> deque[str]:
        """The token of every verification mail that has come; each is handed out once."""
        tokens: deque[str] = deque()
        for path in stored_mails(self._mail_dir):
            if token := token_of(read_mail(path)):
                tokens.append(token)
            path.unlink()
        return tokens

    async def _ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """A few at a time: more at once than the hashing queue holds would be shed."""
        answers: list[Any] = []
        for first in range(0, len(requests), self._callers):
            some = requests[first : first + self._callers]
            answers += await asyncio.gather(*(self._ask(request) for request in some))
        return answers

    async def _ask(self, request: Request) -> Any:  # noqa: ANN401 - JSON
        envelope = await send(self._client, request)
        if not envelope["success"]:
            raise SystemExit(f"{request.operation}: {envelope['error']['code']}")
        return envelope["data"]

    def reads(self) -> list[Scenario]:
        """What changes nothing."""
        return [
            _same("health.check", lambda _: {}),
            _same("health.ready", lambda _: {}),
            _same("auth.jwks", lambda _: {}),
            _same("auth.verify-token", lambda n: {"token": self.access[n]}),
            self._signed_in("me.get", lambda _: {}),
            self._signed_in("profile.get", lambda n: {"userId": self.user_ids[n - 1]}),
            _same("admin.users.list", lambda _: {}, lambda _: self.admin_access),
            _same("admin.users.get", lambda n: {"userId": self.user_ids[n]}, lambda _: self.admin_access),
            _same("admin.audit-logs.list", lambda n: {"userId": self.user_ids[n]}, lambda _: self.admin_access),
        ]

    def writes(self) -> list[Scenario]:
        """What is an event each time."""
        return [
            self._signed_in("me.update", lambda _: {"firstName": self._name()}),
            self._signed_in("profile.update", lambda _: {"bio": self._name()}),
            Scenario(
                "auth.refresh",
                lambda n: Request("auth.refresh", {"refreshToken": self.refresh[n]}),
                lambda n, data: self.refresh.__setitem__(n, data["tokens"]["refreshToken"]),
            ),
        ]

    def _signed_in(self, name: str, body: Callable[[int], Mapping[str, object]]) -> Scenario:
        return _same(name, body, lambda n: self.access[n])

    def _name(self) -> str:
        self._turn += 1
        return f"Ada {self._turn}"

    def login(self) -> Scenario:
        """From a device that is known: no mail."""
        turns = [0] * self._callers

        def next_one(caller: int) -> Request:
            turns[caller] = (turns[caller] + 1) % USERS_EACH
            user = caller + turns[caller] * self._callers
            return _sign_in(self.emails[user], self.devices[user])

        return Scenario("auth.login", next_one)

    def login_elsewhere(self) -> Scenario:
        """From a new device each time: a device token, a mail, and soon a session past the cap besides."""
        return Scenario("auth.login, new device", lambda n: _sign_in(self.emails[n]))


def register() -> Scenario:
    """New accounts; their mails are the stock of `verify_email`."""
    return Scenario("auth.register", lambda _: _registration(_address()))


def resend_verification() -> Scenario:
    """For addresses that have no account: what a stranger can make the service do."""
    return Scenario("auth.resend-verification", lambda _: Request("auth.resend-verification", {"email": _address()}))


def verify_email(tokens: deque[str]) -> Scenario:
    """Each token once; ends when there is none left."""

    def next_one(_: int) -> Request | None:
        return Request("auth.verify-email", {"token": tokens.popleft()}) if tokens else None

    return Scenario("auth.verify-email", next_one)


def logout(tokens: deque[str]) -> Scenario:
    """Each session once; ends when there is none left."""

    def next_one(_: int) -> Request | None:
        return Request("auth.logout", {}, tokens.popleft()) if tokens else None

    return Scenario("auth.logout", next_one)


def _same(
    name: str, body: Callable[[int], Mapping[str, object]], access: Callable[[int], str | None] = lambda _: None
) -> Scenario:
    return Scenario(name, lambda n: Request(name, body(n), access(n)))


def _address() -> str:
    return f"ada-{uuid4().hex[:16]}@example.com"


def _registration(email: str) -> Request:
    names = {"firstName": "Ada", "lastName": "Lovelace", "acceptTerms": True}
    return Request("auth.register", {"email": email, "password": PASSWORD, **names})


def _sign_in(email: str, device: str | None = None) -> Request:
    return Request("auth.login", {"email": email, "password": PASSWORD}, device=device)

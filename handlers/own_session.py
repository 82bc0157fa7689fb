"""An operator's own session on the command line: signed in once, kept in a private file, renewed when it must be."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from nats.aio.client import Client

from adapters.bus_client import bus_client, request
from adapters.private_files import write_private
from adapters.server_urls import where
from handlers.terminal import Failure

TIMEOUT_S = 30.0
_EXPIRED = frozenset({"TOKEN_EXPIRED", "INVALID_TOKEN"})


class Refused(Failure):
    """What the service answered instead of doing it."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        details = [
            f"{detail['field']}: {detail['message']}" if detail["field"] else detail["message"]
            for detail in error.get("details") or ()
        ]
        super().__init__(f"{error['code']}: {' '.join(details) or error['message']}")
        self.code = str(error["code"])


class Operator:
    """Calls operations as whoever signed in on this machine, or as whom a token says."""

    def __init__(self, client: Client, server: str, token: str | None) -> None:
        self._client = client
        self.server = server
        self._token = token

    async def call(self, operation: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
        """The reply's envelope; raises `Refused`. An expired access token is renewed once."""
        if self._token is not None:
            return await self.ask(operation, body, self._token)
        kept = kept_session(self.server)
        try:
            return await self.ask(operation, body, kept["accessToken"])
        except Refused as refusal:
            if refusal.code not in _EXPIRED:
                raise
        renewed = (await self.ask("auth.refresh", {"refreshToken": kept["refreshToken"]}, None))["data"]["tokens"]
        keep_session(self.server, renewed)
        return await self.ask(operation, body, renewed["accessToken"])

    async def ask(self, operation: str, body: Mapping[str, object], access: str | None) -> Any:  # noqa: ANN401
        """One request with an access token, or without; raises `Refused`."""
        headers = {"Request-Id": str(uuid4()), "User-Agent": "user-service-cli"}
        if access is not None:
            headers["Authorization"] = f"Bearer {access}"
        sent = json.dumps(body).encode()
        reply, _ = await request(self._client, f"users.v1.{operation}", sent, headers=headers, timeout_s=TIMEOUT_S)
        error = reply.get("error")
        if isinstance(error, dict):
            raise Refused(error)
        return reply


@asynccontextmanager
async def operator_on(url: str, token: str | None) -> AsyncIterator[Operator]:
    """Somebody who may call the admin operations of the service on this bus."""
    async with bus_client(url) as client:
        yield Operator(client, where(url), token)


def keep_session(server: str, tokens: Mapping[str, Any]) -> None:
    """Remember who is signed in at a server, readable by this user alone."""
    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, json.dumps(_read(path) | {server: dict(tokens)}))


def kept_session(server: str) -> dict[str, Any]:
    """Tokens of who signed in at a server."""
    found: dict[str, Any] | None = _read(_path()).get(server)
    if found is None:
        raise Failure(f"nobody is signed in at {server}: `user-service login`, or give --token")
    return found


def forget_session(server: str) -> None:
    """Nobody is signed in there any more."""
    path = _path()
    left = _read(path)
    if left.pop(server, None) is not None:
        write_private(path, json.dumps(left))


def _path() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "user-service" / "sessions.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Failure(f"{path} cannot be read: remove it, and sign in again") from error
    return found

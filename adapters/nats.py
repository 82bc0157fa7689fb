"""Connections to NATS, and the one way a message leaves this program."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError, Error, NoServersError, OutboundBufferLimitError, SlowConsumerError

from adapters.server_urls import asked, nats_servers
from adapters.settings import Settings
from domain.refusals import Unavailable

log = structlog.get_logger()

INVALIDATE = "users.invalidate"
INBOX_PREFIX = "_INBOX.worker"
CONNECT_S = 5
LEAVE_S = 1.0
_RESERVED_BYTES = 8 * 1024


class MessageTooLarge(Exception):
    """Headers and body together would pass the server's limit, which would cut the connection for good."""

    def __init__(self, size: int, *, max_payload: int) -> None:
        super().__init__(f"{size} bytes, where max_payload is {max_payload}")
        self.size = size
        self.max_payload = max_payload
        self.max_payload_needed = size + _RESERVED_BYTES


class SturdyClient(Client):
    """Mendings of the library. Its read loop ends over three of them, while it says that it is connected; and whoever
    publishes is not cancelled."""

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        """A subject that is no text: nobody could be answered there."""
        try:
            message: Msg = super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            log.warning("unreadable subject")
            return None
        return message

    async def _process_pong(self) -> None:
        """An answer for a `flush` that was given up answers nobody; the library would fall over its cancelled wait."""
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """What cannot be read counts as no headers: the library would end its read loop over it, and fall silent."""
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except Exception as error:  # noqa: BLE001 - whatever a client made up
            log.warning("unreadable headers", error=type(error).__name__)
            return None
        return found

    async def _flush_pending(self, force_flush: bool = False) -> Any:  # noqa: ANN401 - the library's own
        """Who is cancelled while he waits here ends; the library swallows that, and a loop would go on for ever."""
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        flushed = await super()._flush_pending(force_flush)
        if task and task.cancelling() > cancelled:
            raise asyncio.CancelledError
        return flushed


class AnsweringClient(SturdyClient):
    """A connection that only ever answers: what it publishes goes to an inbox, and never to one of ours.

    `allow_responses` lets an answer go to whatever subject a request named, past the worker's other permissions: with
    `$JS.API.STREAM.DELETE.USER_EVENTS` as its reply subject, any gateway could make us delete the stream.
    """

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish an answer; one that was asked for anywhere else is dropped."""
        if not subject.startswith("_INBOX.") or subject.startswith(f"{INBOX_PREFIX}."):
            log.error("an answer was asked for outside of the inboxes", subject=subject[:100])
            return
        await super().publish(subject, payload, reply, headers)


async def connect(
    settings: Settings,
    *,
    name: str,
    on_closed: Callable[[], Awaitable[None]],
    on_gap: Callable[[], None] = lambda: None,
    client: Client | None = None,
) -> Client:
    """A connection that comes back by itself for ever; `on_closed` hears when it is gone for good.

    `on_gap` hears when messages may have been missed: the link was cut, or the library dropped what came too fast.

    Raises `Unavailable` when no server answers now.
    """
    client = client or SturdyClient()

    async def on_disconnected() -> None:
        if not client.is_closed:  # else it is we who left
            log.warning("nats disconnected", connection=name)
            on_gap()

    async def on_reconnected() -> None:
        log.info("nats reconnected", connection=name)

    try:
        async with asyncio.timeout(CONNECT_S):
            await client.connect(
                error_cb=error_reporter(name, on_gap),
                disconnected_cb=on_disconnected,
                reconnected_cb=on_reconnected,
                closed_cb=on_closed,
                **connection_options(settings, name=name),
            )
    except (Error, NoServersError, OSError, TimeoutError) as error:
        log.warning("nats is not available", error=type(error).__name__)
        with asked("NATS", settings.nats_url.get_secret_value()):
            raise Unavailable from error
    return client


def error_reporter(name: str, on_gap: Callable[[], None] = lambda: None) -> Callable[[Exception], Awaitable[None]]:
    """Logs what goes wrong on a connection: refused subjects and dropped messages among it."""

    async def report(error: Exception) -> None:
        log.warning("nats error", connection=name, error=type(error).__name__, says=str(error)[:200])
        if isinstance(error, SlowConsumerError):
            on_gap()

    return report


def connection_options(settings: Settings, *, name: str) -> dict[str, Any]:
    """How every connection of this program behaves."""
    return {
        "servers": nats_servers(settings.nats_url.get_secret_value()),
        "name": f"user-service {name}",
        "inbox_prefix": INBOX_PREFIX,
        "allow_reconnect": True,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.25,
        "connect_timeout": 3,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
    }


async def settle(client: Client) -> None:
    """Wait until the server has seen what was written. One `flush` is no barrier: its PING overtakes the buffer."""
    await client.flush(timeout=5)
    await client.flush(timeout=5)


async def leave(client: Client, subscriptions: Sequence[Subscription]) -> None:
    """End subscriptions, and lose nothing that the server has handed over: their callbacks have had it all then.

    The library's `drain` alone would forget them after a single flush, while messages may still be on their way. A
    server that does not answer is not waited for.
    """
    try:
        async with asyncio.timeout(LEAVE_S):
            for subscription in subscriptions:
                await client._send_unsubscribe(subscription._id)  # noqa: SLF001 - `unsubscribe` drops what still comes
            await settle(client)
            await asyncio.gather(*(subscription.drain() for subscription in subscriptions))  # type: ignore[no-untyped-call]
    except (Error, TimeoutError, OSError) as error:
        log.warning("left the bus without its answer", error=type(error).__name__)


async def close(client: Client) -> None:
    """Send what is buffered and go; a server that is away, or has not answered before, is not waited for."""
    try:
        async with asyncio.timeout(LEAVE_S):
            if client.is_connected and not client._pongs:  # noqa: SLF001 - of each question that is not answered yet
                await settle(client)
    except (Error, TimeoutError, OSError) as error:
        log.warning("nats connection not closed in order", error=type(error).__name__)
    with suppress(Error, OSError, RuntimeError):  # uvloop's word for a transport that is gone already
        async with asyncio.timeout(LEAVE_S):
            await client.close()


HEADERS_BYTES_MAX = 32 * 1024
"""Of a message that goes on: JetStream takes 64 KiB, with what we add."""
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def carriable(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a message's headers that can be published again: the library refuses to send other names, which a
    message may have come with, and strips spaces off, behind which a `Nats-` may hide. None of them where they are too
    many bytes."""
    found = {name: value for name, value in headers.items() if _HEADER_NAME.fullmatch(name)}
    return found if _bytes_of(found) <= HEADERS_BYTES_MAX else {}


def _bytes_of(headers: Mapping[str, str]) -> int:
    return sum(len(name) + len(value.encode()) + 4 for name, value in headers.items()) + 16


def require_fits(client: Client, body: bytes, headers: Mapping[str, str]) -> None:
    """Measure headers and body together; nats-py measures the body alone."""
    size = len(body) + _bytes_of(headers)
    if size > client.max_payload - _RESERVED_BYTES:
        raise MessageTooLarge(size, max_payload=client.max_payload)


async def send(
    client: Client, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, reply: str = ""
) -> bool:
    """Publish now or not at all; False when the link is down. Raises `MessageTooLarge`."""
    require_fits(client, body, headers or {})
    if not client.is_connected:
        return False
    try:
        await client.publish(subject, body, reply=reply, headers=dict(headers) if headers else None)
    except (ConnectionClosedError, OutboundBufferLimitError, Error):
        return False
    return True


def invalidation(user_id: UUID, version: int) -> bytes:
    """What `users.invalidate.<userId>` says: that what was read before this version is no longer so."""
    return json.dumps({"id": str(user_id), "version": version}).encode()

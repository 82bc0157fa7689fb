"""The bus as a gateway or an operator sees it: one request, one answer; or the stream of events as it grows."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from adapters.server_urls import nats_servers, where
from adapters.streams import EVENTS_STREAM

_ROLES = frozenset({"gateway", "admin-gateway", "listener", "operator", "worker"})


class BusFailure(Exception):
    """No answer; the message says why, in one line."""


class BusClient(Client):
    """Knows when the server has refused it something: whoever asked hears of it in no other way."""

    def __init__(self) -> None:
        super().__init__()
        self.is_refused = asyncio.Event()

    async def hear(self, error: Exception) -> None:
        """The library's own callback would print besides."""
        if "permissions violation" in str(error).lower():
            self.is_refused.set()


@asynccontextmanager
async def bus_client(url: str) -> AsyncIterator[BusClient]:
    """A connection that fails at once instead of waiting, and never sends later what its caller has given up on."""
    client = BusClient()
    try:
        await client.connect(
            nats_servers(url), name="user-service command line", allow_reconnect=False, connect_timeout=3,
            pending_size=0, inbox_prefix=inbox_of(url), reconnect_time_wait=0, error_cb=client.hear,
        )  # fmt: skip
    except (NatsError, OSError, TimeoutError) as error:
        if "authorization" in str(error).lower():
            raise BusFailure(
                f"NATS at {where(url)} refuses this user; correct user and password in NATS_URL"
            ) from error
        raise BusFailure(f"no NATS server answers at {where(url)} ({type(error).__name__})") from error
    try:
        yield client
    finally:
        await client.close()


def inbox_of(url: str) -> str:
    """Each role of the bus may listen only under its own prefix."""
    user = unquote(urlsplit(nats_servers(url)[0]).username or "")
    return f"_INBOX.{user}" if user in _ROLES else "_INBOX"


async def request(
    client: Client, subject: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float
) -> tuple[dict[str, object], dict[str, str]]:
    """The reply's envelope and headers; raises `BusFailure` when nobody answers in time."""
    deadline = (datetime.now(UTC) + timedelta(seconds=timeout_s)).isoformat()
    sent = {"Timeout-Ms": str(int(timeout_s * 1000)), "Deadline": deadline, **headers}
    try:
        reply = await _unless_refused(client, client.request(subject, body, timeout=timeout_s, headers=sent))
    except NoRespondersError as error:
        raise BusFailure(f"nobody serves {subject}: does the service run, and may this user ask?") from error
    except (NatsTimeout, TimeoutError) as error:
        raise BusFailure(f"no answer from {subject} within {timeout_s:g} s") from error
    except NatsError as error:
        raise BusFailure(f"{subject}: {error}") from error
    return json.loads(reply.data), dict(reply.headers or {})


async def _unless_refused(client: Client, asking: Coroutine[None, None, Msg]) -> Msg:
    """The answer, unless the server says that this user may not ask: nobody would ever answer then."""
    if not isinstance(client, BusClient):
        return await asking
    answer, refused = asyncio.create_task(asking), asyncio.create_task(client.is_refused.wait())
    try:
        await asyncio.wait([answer, refused], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise BusFailure(
                "NATS does not let this user ask: set NATS_URL to a gateway's, or for admin operations to an operator's"
            )
        return answer.result()
    finally:
        answer.cancel()
        refused.cancel()


async def tail_events(client: Client, *, subject: str, from_start: bool) -> AsyncIterator[Msg]:
    """Every event from now on (or from the first), until the caller has seen enough."""
    subscription = await client.jetstream().pull_subscribe(
        subject,
        stream=EVENTS_STREAM,
        config=ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.ALL if from_start else DeliverPolicy.NEW,
            inactive_threshold=30,
        ),
    )
    while True:
        try:
            for message in await subscription.fetch(50, timeout=2):
                yield message
        except (NatsTimeout, TimeoutError):
            continue
        except NatsError as error:
            raise BusFailure("the connection to NATS was closed: has the service been stopped?") from error

"""The bus as a gateway or an operator sees it: one request, one answer; or the stream of events as it grows."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from adapters.nats import EVENTS_STREAM
from adapters.server_urls import nats_servers, where

_ROLES = frozenset({"gateway", "admin-gateway", "listener", "operator", "worker"})


class BusFailure(Exception):
    """No answer; the message says why, in one line."""


@asynccontextmanager
async def bus_client(url: str) -> AsyncIterator[Client]:
    """A connection that fails at once instead of waiting, and never sends later what its caller has given up on."""
    client = Client()
    try:
        await client.connect(
            nats_servers(url), name="user-service command line", allow_reconnect=False, connect_timeout=3,
            pending_size=0, inbox_prefix=inbox_of(url), reconnect_time_wait=0, error_cb=_quiet,
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


async def _quiet(_: Exception) -> None:
    """Whoever waits for an answer is told; the library would print besides."""


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
        reply = await client.request(subject, body, timeout=timeout_s, headers=sent)
    except NoRespondersError as error:
        raise BusFailure(f"nobody serves {subject}: does the service run, and may this user ask?") from error
    except (NatsTimeout, TimeoutError) as error:
        raise BusFailure(f"no answer from {subject} within {timeout_s:g} s") from error
    except NatsError as error:
        raise BusFailure(f"{subject}: {error}") from error
    return json.loads(reply.data), dict(reply.headers or {})


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

"""The bus as a console sees it, with an operator's rights: a link that comes back by itself, requests with their
answers, and what the server and the service tell of themselves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoServersError

from adapters.bus_client import BusFailure, inbox_of, request
from adapters.nats import CONNECT_S, SturdyClient, close, error_reporter
from adapters.server_urls import nats_servers
from adapters.streams import EVENTS_STREAM, LETTERS_STREAM, durables
from domain.refusals import Unavailable

ASK_S = 10.0
STATS_S = 0.25
"""How long answers of all processes are waited for."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable of a group, as the server counts it."""

    group: str
    name: str
    waiting: int
    """Not handed out yet."""
    unacked: int
    redelivered: int
    """Of those unacknowledged, handed out more than once."""
    delivered: int
    """Deliveries since the durable was made, repeated ones among them."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that answers requests, as it counts itself."""

    id: str
    requests: int
    errors: int


class OperatorBus:
    """Asks as an operator may: operations by their rights, and the server about streams and consumers."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @property
    def is_connected(self) -> bool:
        return bool(self.client.is_connected)

    async def ask(
        self, operation: str, body: Mapping[str, object], headers: Mapping[str, str], *, timeout_s: float = ASK_S
    ) -> dict[str, Any]:
        """The reply's envelope, an error's too; raises `BusFailure` when nobody answers."""
        if not self.is_connected:
            raise BusFailure("NATS is away")  # what was buffered would be carried out later
        sent = json.dumps(body).encode()
        reply, _ = await request(self.client, f"users.v1.{operation}", sent, headers=headers, timeout_s=timeout_s)
        return reply

    async def consumers(self, groups: Sequence[str]) -> list[Consumer]:
        """Every durable of these groups; raises `BusFailure`."""
        js = self.client.jetstream(timeout=2)
        wanted = durables(groups)
        try:
            found: list[Any] = await asyncio.gather(*(js.consumer_info(one.stream, one.name) for one in wanted))
        except (NatsError, TimeoutError, OSError) as error:
            raise BusFailure(f"JetStream: {type(error).__name__}") from error
        return [
            Consumer(
                one.group,
                one.name,
                waiting=info.num_pending or 0,
                unacked=info.num_ack_pending or 0,
                redelivered=info.num_redelivered or 0,
                delivered=info.delivered.consumer_seq if info.delivered else 0,
            )
            for one, info in zip(wanted, found, strict=True)
        ]

    async def streams(self) -> dict[str, int]:
        """The last sequence of the stream of events and of that of letters; raises `BusFailure`."""
        js = self.client.jetstream(timeout=2)
        try:
            return {name: (await js.stream_info(name)).state.last_seq for name in (EVENTS_STREAM, LETTERS_STREAM)}
        except (NatsError, TimeoutError, OSError) as error:
            raise BusFailure(f"JetStream: {type(error).__name__}") from error

    async def processes(self) -> list[Process]:
        """Every process that answers requests now; raises `BusFailure`."""
        answers: list[Process] = []

        async def hear(message: Msg) -> None:
            said = json.loads(message.data)
            figures = said.get("endpoints") or []
            requests, errors = (sum(one.get(name) or 0 for one in figures) for name in ("num_requests", "num_errors"))
            answers.append(Process(str(said["id"]), requests, errors))

        inbox = self.client.new_inbox()
        try:
            subscription = await self.client.subscribe(inbox, cb=hear)
            await self.client.publish("$SRV.STATS.user-service", reply=inbox)
            await asyncio.sleep(STATS_S)
            await subscription.unsubscribe()
        except (NatsError, OSError) as error:
            raise BusFailure(f"NATS: {type(error).__name__}") from error
        return answers


@asynccontextmanager
async def operator_bus(url: str, *, on_closed: Callable[[], Awaitable[None]]) -> AsyncIterator[OperatorBus]:
    """A link while the block lasts; `on_closed` hears when it is gone for good.

    Raises `Unavailable` when no server answers now.
    """
    client = SturdyClient()
    try:
        async with asyncio.timeout(CONNECT_S):
            await client.connect(
                nats_servers(url), name="user-service console", inbox_prefix=inbox_of(url), allow_reconnect=True,
                max_reconnect_attempts=-1, reconnect_time_wait=1, connect_timeout=3, ping_interval=5,
                max_outstanding_pings=2, error_cb=error_reporter("console"), closed_cb=on_closed,
            )  # fmt: skip
    except (NatsError, NoServersError, OSError, TimeoutError) as error:
        raise Unavailable from error
    try:
        yield OperatorBus(client)
    finally:
        await close(client)

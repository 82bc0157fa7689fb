"""Deliveries that the server gave up, because a worker died under each: they become letters all the same.

A delivery whose number is past the attempts becomes a letter before its handler runs; this is the net below that, for
workers that die before they come to it. The server says so once, to a stream that keeps it until we have read it.
"""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError
from structlog.contextvars import bind_contextvars

from adapters.event_log import request_id_of_event
from adapters.inbox import add_letter, done_among
from adapters.postgres import Database
from adapters.streams import EVENT_GROUPS, REPLAYS_STREAM, Durable, durables, message_at
from adapters.telemetry import Metrics
from domain.refusals import Overloaded, Stale, Unavailable
from handlers.delivery import Claim

log = structlog.get_logger()

AGAIN_S = 5.0


_OURS = {durable.name: durable for durable in durables(EVENT_GROUPS)}


class Advisory(NamedTuple):
    """A delivery that the server gave up: of which durable of ours, and what."""

    durable: Durable
    sequence: int
    deliveries: int


def _read(body: bytes) -> Advisory | None:
    """None where it is not about a durable of ours: a listener has its own, and whoever may ask JetStream can have it
    write anything anywhere."""
    try:
        said = json.loads(body)
        durable = _OURS[said["consumer"]]
        found = Advisory(durable, int(said["stream_seq"]), int(said["deliveries"]))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    is_possible = 0 < found.sequence < 2**63 and 0 < found.deliveries < 2**31
    return found if is_possible and said.get("stream") == durable.stream else None


class GivenUp:
    """Writes the letters that no worker lived long enough to write."""

    def __init__(
        self, database: Database, client: Client, metrics: Metrics, wake_announcer: Callable[[], None]
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._js = client.jetstream()
        for group in EVENT_GROUPS:
            metrics.given_up.labels(group)  # a rise from 0 is seen only where a 0 was
        self._wake_announcer = wake_announcer

    async def deliver(self, message: Msg) -> None:
        """See one advisory to its end. It is read again later where a server is away."""
        advisory = _read(message.data)
        if advisory is None:
            log.error("an advisory is none of the server's about a group of ours")
            with suppress(NatsError):
                await message.term()
            return
        try:
            await self._bury(advisory)
        except (Unavailable, Overloaded, Stale, NatsError, TimeoutError, OSError) as error:
            log.warning("a delivery that was given up waits for its letter", error=type(error).__name__)
            with suppress(NatsError):
                await message.nak(delay=AGAIN_S * random.uniform(1, 2))
            return
        await message.ack()

    async def _bury(self, advisory: Advisory) -> None:
        """A letter for what the stream still holds there, unless its group has dealt with it."""
        group, stream, sequence = advisory.durable.group, advisory.durable.stream, advisory.sequence
        given_up = await message_at(self._js, stream, sequence)
        if given_up is None:
            log.warning("a message that was given up is gone", stream=stream, sequence=sequence)
            return
        self._metrics.given_up.labels(group).inc()
        claim = Claim.of(given_up.subject or "", given_up.data or b"", stream, sequence)
        async with self._database.connection() as connection:
            request_id = await request_id_of_event(connection, claim.event_id)
            bind_contextvars(group=group, eventId=str(claim.event_id), requestId=request_id)
            # What is no event of ours keeps nobody's event from being done.
            reason = "unauthentic" if request_id is None else "worker_died"
            if not await done_among(connection, group, [claim.event_id]):
                await add_letter(
                    connection,
                    group=group,
                    event_id=claim.event_id,
                    user_id=claim.user_id,
                    event_type=claim.event_type,
                    reason=reason,
                    error="WorkerDied",
                    message="every delivery ended without an answer",
                    subject=given_up.subject or "",
                    body=given_up.data or b"",
                    headers=dict(given_up.headers or {}),
                    deliveries=advisory.deliveries,
                    stream=stream,
                    stream_sequence=sequence,
                    durable=advisory.durable.name,
                )
                self._metrics.dead_letters.labels(group, reason).inc()
                log.error("dead letter", reason=reason)
        if stream == REPLAYS_STREAM:
            with suppress(NotFoundError):
                await self._js.delete_msg(stream, sequence)  # the queue would hand it to nobody, for ever
        self._wake_announcer()

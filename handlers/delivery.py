"""One wrapper around every event handler: is it ours, is it done, do it, acknowledge; else wait, and at last a letter.

A message is only a pointer: the event is read by its id from PostgreSQL, and one that is not there word for word is no
event of ours. A dependency that is away does not use up attempts: the delivery is held until it is back.
"""

import asyncio
import json
import random
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from structlog.contextvars import bind_contextvars

from adapters.event_log import StoredEvent, Unreadable, events_by_id, is_same
from adapters.gathering import Gathering
from adapters.inbox import (
    add_letter,
    dealt_with_among,
    error_of_attempt,
    forget_attempt,
    is_behind_a_letter,
    is_behind_an_event,
    mark_done,
    record_attempt,
)
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.streams import ACK_WAIT_S, REPLAYS_STREAM, SPARE_DELIVERIES
from adapters.telemetry import Metrics
from adapters.tracing import span
from adapters.turns import Turns
from domain.refusals import Overloaded, Stale, Unavailable
from handlers.endings import CANCEL_S

log = structlog.get_logger()

HOLD_S = 1.0
IN_HAND_S = 2.0
"""So long an event waits for the one before it, which another process may have in hand, before it is held."""
REPLAY_PAUSES_S = (1.0, 5.0)
"""Between the tries of a replay: an operator waits for its outcome, and can have it done again."""
_UNAUTHENTIC = "unauthentic"
REASONS = ("attempts_exhausted", "mail_refused", _UNAUTHENTIC, "worker_died")
_DIED = "WorkerDied"


class Permanent(Exception):
    """No further attempt can help; `reason` is a stable word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


EventHandler = Callable[[StoredEvent], Awaitable[str]]
"""Does what a group does with an event, once or many times with one effect; returns a word for the outcome."""


class Claim(NamedTuple):
    """What a message says it is; where it names no event, its place stands for one."""

    event_id: UUID
    user_id: UUID | None
    event_type: str

    @classmethod
    def of(cls, subject: str, body: bytes, stream: str, sequence: int) -> "Claim":
        parts = subject.split(".")
        return cls(
            _event_id(body) or uuid5(NAMESPACE_URL, f"urn:{stream}:{sequence}"),
            _uuid(parts[-1]),
            _token(parts[3]) if len(parts) == 5 else "unknown",
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as it was handed out: where it claims to belong, and the how-manieth time this is."""

    message: Msg
    event_id: UUID
    user_id: UUID | None
    event_type: str
    number: int
    durable: str
    stream: str
    stream_sequence: int

    @property
    def is_replay(self) -> bool:
        return self.stream == REPLAYS_STREAM

    @classmethod
    def of(cls, message: Msg) -> "Delivery":
        place = message.metadata
        sequence = place.sequence.stream
        claim = Claim.of(message.subject, message.data, place.stream, sequence)
        return cls(message, *claim, place.num_delivered, place.consumer, place.stream, sequence)


class Deliverer:
    """Delivers events to one group, whichever way they come: as they happen, or replayed by an operator."""

    def __init__(
        self,
        group: str,
        handle: EventHandler,
        handle_replayed: EventHandler,
        database: Database,
        personal: PersonalData,
        metrics: Metrics,
        *,
        pauses_s: Sequence[float],
        in_order: bool,
        wake_announcer: Callable[[], None],
    ) -> None:
        self.group = group
        self._handle = handle
        self._handle_replayed = handle_replayed
        self._database = database
        self._personal = personal
        self._metrics = metrics
        self._pauses_s = pauses_s
        self._in_order = in_order
        self._wake_announcer = wake_announcer
        self._look_up = Gathering(self._look_up_all)
        self._note = Gathering(self._note_all)
        self._turns = Turns()
        self._alone = asyncio.Lock()
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """A figure's first rise is seen only where it stood at 0 before."""
        self._metrics.redeliveries.labels(self.group)
        for outcome in ("put_off", "dead"):
            self._metrics.deliveries.labels(self.group, outcome)
        for reason in REASONS:
            self._metrics.dead_letters.labels(self.group, reason)

    async def deliver(self, message: Msg) -> None:
        """See one delivery to its end: acknowledged, put off, or buried. Never raises but for a cancellation."""
        delivery = Delivery.of(message)
        bind_contextvars(group=self.group, eventId=str(delivery.event_id))
        if delivery.number > 1:
            self._metrics.redeliveries.labels(self.group).inc()
        began = time.perf_counter()
        outcome = "handed_back"
        beating = asyncio.create_task(_beat(message))
        try:
            outcome = await self._deliver_traced(delivery)
        except asyncio.CancelledError:
            await self._note_nobody_died(delivery)
            await hand_back(message)
            raise
        finally:
            beating.cancel()
            self._metrics.deliveries.labels(self.group, outcome).inc()
            self._metrics.delivery_seconds.labels(self.group).observe(time.perf_counter() - began)

    async def _deliver_traced(self, delivery: Delivery) -> str:
        """In a span of the trace that the message carries on, where traces are on."""
        parent = (delivery.message.headers or {}).get("traceparent")
        with span("consumer", self.group, delivery.event_type, parent=parent) as around:
            outcome = await self._deliver(delivery)
            if around is not None:
                around.note("outcome", outcome)
            return outcome

    async def _deliver(self, delivery: Delivery) -> str:
        while True:
            try:
                # A second copy waits, to find it done; in order, all that is of one user does.
                async with self._turns.of(delivery.user_id if self._in_order else delivery.event_id):
                    return await self._attempt(delivery)
            except (Unavailable, Overloaded, Stale):
                # Our own database is away: hold on, so that its outage does not use up this event's attempts.
                await asyncio.sleep(HOLD_S * random.uniform(0.5, 1.5))

    async def _attempt(self, delivery: Delivery) -> str:
        found, done, dead = await self._look_up(delivery.event_id)
        if isinstance(found, Unreadable):  # a key is missing here; another process may have it
            return await self._put_off(delivery, found)
        if found is None or not is_same(found, str(delivery.user_id), delivery.event_type, delivery.message.data):
            return await self._bury(delivery, _UNAUTHENTIC, "Unauthentic", "no event of ours says this")
        bind_contextvars(requestId=found.event.metadata.request_id)
        # Of a dead one the letter waits for an operator, however often the stream has it again.
        if done or (dead and not delivery.is_replay):
            await delivery.message.ack()
            return "already_done" if done else "already_dead"
        if self._in_order and await self._is_behind(found):
            return await self._hold(delivery)
        if delivery.number == 1:
            return await self._do(delivery, found)
        return await self._do_again(delivery, found)

    async def _is_behind(self, stored: StoredEvent) -> bool:
        """Is an earlier event of its user not dealt with? One that another process has in hand is waited for."""
        event, waited_s = stored.event, 0.0
        while True:
            async with self._database.connection() as connection:
                if await is_behind_a_letter(connection, self.group, event.aggregate_id, event.version):
                    return True
                if not await is_behind_an_event(connection, self.group, event.aggregate_id, event.version):
                    return False
            if waited_s >= IN_HAND_S:
                return True
            await asyncio.sleep(IN_HAND_S / 4)
            waited_s += IN_HAND_S / 4

    async def _do_again(self, delivery: Delivery, stored: StoredEvent) -> str:
        async with self._database.connection() as connection:
            before = await error_of_attempt(connection, delivery.durable, delivery.event_id, delivery.number - 1)
        past = delivery.number - len(self._pauses_of(delivery)) - 1
        if past == SPARE_DELIVERIES or (past > 0 and before is not None):
            return await self._bury(delivery, "worker_died", _DIED, "every delivery ended without an answer")
        if before in {None, _DIED}:
            return await self._do_alone(delivery, stored)
        return await self._do(delivery, stored)

    async def _do_alone(self, delivery: Delivery, stored: StoredEvent) -> str:
        """The last delivery ended without an answer: a worker died under this event, or under one beside it.

        So this one is done by itself, and that it was begun is written down before: if the worker dies again, it is
        known under which event, and the others do not become letters along with it. A process that stops in order
        takes that back: nobody died.
        """
        async with self._alone:
            async with self._database.connection() as connection:
                await record_attempt(
                    connection,
                    delivery.durable,
                    delivery.event_id,
                    delivery.number,
                    _DIED,
                    "ended without an answer",
                    "",
                )
            return await self._do(delivery, stored)

    async def _note_nobody_died(self, delivery: Delivery) -> None:
        """The process stops in order, or loses its patience: what `_do_alone` has written down before is not so."""
        if delivery.number == 1:
            return
        with suppress(Unavailable, Overloaded, Stale, TimeoutError):
            async with asyncio.timeout(CANCEL_S / 2), self._database.connection() as connection:
                await forget_attempt(connection, delivery.durable, delivery.event_id, delivery.number, _DIED)

    async def _look_up_all(
        self, event_ids: Sequence[UUID]
    ) -> Sequence[tuple[StoredEvent | Unreadable | None, bool, bool]]:
        """Each event as it stands in our table, whether the group has done it before, and whether a letter stands."""
        async with self._database.connection() as connection:
            found = await events_by_id(connection, self._personal, event_ids)
            done, dead = await dealt_with_among(connection, self.group, event_ids)
        return [(found.get(event_id), event_id in done, event_id in dead) for event_id in event_ids]

    async def _do(self, delivery: Delivery, stored: StoredEvent) -> str:
        try:
            outcome = await (self._handle_replayed if delivery.is_replay else self._handle)(stored)
        except (Unavailable, Overloaded, Stale):
            raise
        except Permanent as error:
            await self._note_failure(delivery, error)
            return await self._bury(delivery, error.reason, type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001 - the edge: recorded, put off, and at last a letter
            return await self._put_off(delivery, error)
        await self._mark_done(delivery, outcome)
        await delivery.message.ack()
        return outcome

    async def _mark_done(self, delivery: Delivery, outcome: str) -> None:
        """Until it stands, however long our database is away: the mail is out, and must not go out again for this."""
        while True:
            try:
                return await self._note((delivery.event_id, outcome))
            except (Unavailable, Overloaded, Stale):
                await asyncio.sleep(HOLD_S * random.uniform(0.5, 1.5))

    async def _note_all(self, outcomes: Sequence[tuple[UUID, str]]) -> Sequence[None]:
        async with self._database.connection() as connection:
            await mark_done(connection, self.group, dict(outcomes))
        return [None] * len(outcomes)

    async def _put_off(self, delivery: Delivery, error: Exception) -> str:
        """Remember the error; try again after a pause that grows with the attempts, or give up."""
        await self._note_failure(delivery, error)
        pauses_s = self._pauses_of(delivery)
        if delivery.number > len(pauses_s):
            return await self._bury(delivery, "attempts_exhausted", type(error).__name__, str(error))
        pause_s = pauses_s[delivery.number - 1]
        await delivery.message.nak(delay=pause_s * random.uniform(1.0, 1.1))
        return "put_off"

    async def _note_failure(self, delivery: Delivery, error: Exception) -> None:
        name, trace = type(error).__name__, "".join(traceback.format_exception(error, limit=8))
        async with self._database.connection() as connection:
            await record_attempt(
                connection, delivery.durable, delivery.event_id, delivery.number, name, str(error), trace
            )
        log.warning("delivery failed", attempt=delivery.number, error=name)

    def _pauses_of(self, delivery: Delivery) -> Sequence[float]:
        return REPLAY_PAUSES_S if delivery.is_replay else self._pauses_s

    async def _hold(self, delivery: Delivery) -> str:
        """Let it wait as a letter, which goes out by itself once what is before it is dealt with."""
        await self._write_letter(delivery, "held", "Held", "an earlier event of this user is not dealt with", "held")
        await delivery.message.term()
        log.info("held behind an earlier event")
        return "held"

    async def _bury(self, delivery: Delivery, reason: str, error: str, message: str) -> str:
        """Write the letter, then terminate: a message must not be gone before its letter stands."""
        await self._write_letter(delivery, reason, error, message, "dead")
        await delivery.message.term()
        self._metrics.dead_letters.labels(self.group, reason).inc()
        log.error("dead letter", reason=reason, error=error)
        self._wake_announcer()
        return "dead"

    async def _write_letter(self, delivery: Delivery, reason: str, error: str, message: str, state: str) -> None:
        async with self._database.connection() as connection:
            await add_letter(
                connection,
                group=self.group,
                event_id=delivery.event_id,
                user_id=delivery.user_id,
                event_type=delivery.event_type,
                reason=reason,
                error=error,
                message=message,
                subject=delivery.message.subject,
                body=delivery.message.data,
                headers=dict(delivery.message.headers or {}),
                deliveries=delivery.number,
                stream=delivery.stream,
                stream_sequence=delivery.stream_sequence,
                durable=delivery.durable,
                state=state,
            )


async def hand_back(message: Msg) -> None:
    """The process stops: another takes it at once instead of after its ack time."""
    with suppress(NatsError):
        await message.nak()


async def _beat(message: Msg) -> None:
    """Tell the server that the delivery is in work: only one whose worker has died goes to another."""
    while True:
        await asyncio.sleep(ACK_WAIT_S / 3)
        with suppress(NatsError):  # a link that is away: the server hands it out again, and the inbox knows it
            await message.in_progress()


def _event_id(body: bytes) -> UUID | None:
    """The id in the body: headers are for others."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return _uuid(said.get("id")) if isinstance(said, dict) else None


def _uuid(text: object) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None


def _token(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:64] or "unknown"

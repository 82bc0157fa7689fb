"""The relay: unsent events onto the stream, each user's in order, however many relays run and whatever dies.

It works on rows of `outbox` (never on positions past the last one seen: transactions commit out of order), locks by
user, and publishes with a fence: the sequence at which the user's last event stands must still be the last there.
"""

import asyncio
import itertools
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import Header
from nats.js.errors import APIError
from structlog.contextvars import bind_contextvars

from adapters.backlog import outbox_backlog
from adapters.bounded import BoundedDict
from adapters.event_log import StoredEvent, unsent_events
from adapters.nats import INVALIDATE, MessageTooLarge, invalidation, require_fits, send
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from adapters.refill import RETENTION, Tail, put_back
from adapters.streams import last_message
from adapters.telemetry import Metrics
from adapters.tracing import span
from contracts.events import SOURCE, SUBJECT_PREFIX, chain_of, subject_of
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

USERS_MAX = 256
EVENTS_MAX = 512
POLL_S = 0.5
BREATH_S = 0.05
"""From being woken to the next pass: what is committed meanwhile goes with it."""
PUBLISH_S = 2.0
PASS_S = 6.0
"""Below PostgreSQL's idle-in-transaction limit: the locks are given back by us, not taken from us."""
_HEARD_MAX = 10_000
ASIDE_MAX = 10_000
"""Users whose next event is too large for the bus or cannot be read: they take no place in a pass, for a while."""
ASIDE_S = 60.0
_WRONG_LAST_SEQUENCE = 10071
_FENCE_TRIES_MAX = 3

# Heads first, then their rows in a second statement: what was committed while we waited for the lock is seen.
_LOCK = """
SELECT user_id, version, stream_sequence FROM relay_heads
WHERE user_id IN (SELECT user_id FROM outbox WHERE user_id <> ALL($3) ORDER BY position LIMIT $1)
ORDER BY user_id LIMIT $2 FOR UPDATE SKIP LOCKED"""
_SENT = """
WITH gone AS (DELETE FROM outbox WHERE position = ANY($1))
UPDATE relay_heads h SET version = row.version, stream_sequence = row.sequence
FROM unnest($2::uuid[], $3::integer[], $4::bigint[]) AS row (user_id, version, sequence)
WHERE h.user_id = row.user_id"""


@dataclass(slots=True)
class Head:
    """A user's last announced event: its version, and where it stands on the stream."""

    user_id: UUID
    version: int
    sequence: int
    is_short: bool = False
    """The stream holds less of the user than was announced: it was lost, and goes through the outbox once more."""


class _StreamIsShort(Exception):
    """The stream holds less of a user than the table says was announced."""


class Relay:
    """One relay; several may run side by side."""

    def __init__(
        self, database: Database, client: Client, personal: PersonalData, metrics: Metrics, *, fence: bool
    ) -> None:
        self._database = database
        self._client = client
        self._js = client.jetstream()
        self._personal = personal
        self._metrics = metrics
        self._fence = fence
        self._woken = asyncio.Event()
        self._heard: BoundedDict[str, int] = BoundedDict(_HEARD_MAX)
        self._aside: BoundedDict[UUID, None] = BoundedDict(ASIDE_MAX)
        self._aside_until = 0.0
        self._max_payload = 0

    def wake(self) -> None:
        """Something was committed, here or elsewhere. A hint only: the relay polls as well."""
        self._woken.set()

    async def run(self) -> None:
        """Announce for ever; outages of either side are waited out. Whoever commits tells us over the bus."""
        await self._client.subscribe(f"{INVALIDATE}.>", cb=self._on_commit)
        measured = 0.0
        loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            more = False
            try:
                more = await self._announce_some()
                self._metrics.relay_set_aside.set(len(self._aside))
                if loop.time() - measured > 1:
                    measured = loop.time()
                    await self._measure()
            except (Unavailable, Overloaded, Stale, NatsError, TimeoutError, OSError) as error:
                log.warning("relay waits", error=type(error).__name__)
                await asyncio.sleep(POLL_S)
            if not more:
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._woken.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(BREATH_S)

    async def _on_commit(self, message: Msg) -> None:
        with suppress(ValueError, KeyError, TypeError):
            self._heard[message.subject] = int(json.loads(message.data)["version"])
        self.wake()

    async def _measure(self) -> None:
        async with self._database.connection() as connection:
            waiting, age_s = await outbox_backlog(connection)
        self._metrics.relay_waiting.set(waiting)
        self._metrics.relay_lag.set(age_s)

    async def _announce_some(self) -> bool:
        """One pass over some users; True when there may be more to do at once."""
        if not self._client.is_connected:
            return False  # what is buffered while away would be sent later, and twice
        self._look_at_the_limit()
        async with self._database.transaction() as connection:
            heads = [Head(*row) for row in await connection.fetch(_LOCK, EVENTS_MAX, USERS_MAX, list(self._aside))]
            if not heads:
                return False
            events, stuck = await unsent_events(
                connection, self._personal, [head.user_id for head in heads], events_max=EVENTS_MAX
            )
            self._aside.update(dict.fromkeys(stuck))
            sent = await self._publish_all(heads, events)
            await self._store(connection, heads, sent)
        self._metrics.relay_published.inc(len(sent))
        await self._invalidate(heads, sent)
        return bool(sent) and len(sent) == len(events) and (len(events) == EVENTS_MAX or len(heads) == USERS_MAX)

    def _look_at_the_limit(self) -> None:
        """What was too large before may fit a server that comes back with another limit; and once in a while all are
        tried again, since a key may have been put back."""
        now = asyncio.get_running_loop().time()
        if self._client.max_payload != self._max_payload or now > self._aside_until:
            self._max_payload, self._aside_until = self._client.max_payload, now + ASIDE_S
            self._aside.clear()

    def _set_aside(self, stored: StoredEvent, error: MessageTooLarge) -> None:
        """Leave a user's events alone until the limit changes: they keep their order, and nobody else waits."""
        log.error(
            "an event is too large for the bus",
            type=stored.event.type,
            userId=str(stored.event.aggregate_id),
            size=error.size,
            maxPayload=error.max_payload,
            advice=f"set max_payload of nats-server to {error.max_payload_needed} or more and restart it; "
            "the event and its user's later ones wait, and go out by themselves then",
        )
        self._aside[stored.event.aggregate_id] = None

    async def _invalidate(self, heads: Sequence[Head], sent: Sequence[StoredEvent]) -> None:
        """Say what the writer should have said right after its commit: it may have died before, or been cut off."""
        moved = {stored.event.aggregate_id for stored in sent}
        for head in heads:
            subject = f"{INVALIDATE}.{head.user_id}"
            if head.user_id in moved and self._heard.pop(subject, 0) < head.version:
                await send(self._client, subject, invalidation(head.user_id, head.version))

    async def _publish_all(self, heads: Sequence[Head], events: Sequence[StoredEvent]) -> list[StoredEvent]:
        """Many users at once, each user's events one after the other; returns what the broker has acknowledged."""
        by_user = {
            user_id: list(group) for user_id, group in itertools.groupby(events, lambda item: item.event.aggregate_id)
        }
        sent: list[StoredEvent] = []
        deadline = asyncio.get_running_loop().time() + PASS_S

        async def publish_user(head: Head) -> None:
            try:
                async with asyncio.timeout_at(deadline):
                    for stored in by_user.get(head.user_id, ()):
                        bind_contextvars(requestId=stored.event.metadata.request_id, eventId=str(stored.event.id))
                        if stored.event.version > head.version:
                            await self._publish_traced(head, stored)
                        sent.append(stored)
            except MessageTooLarge:
                return  # this user is set aside, and the log says why
            except _StreamIsShort:
                head.is_short = True
            except (NatsError, TimeoutError, OSError, Unavailable, Overloaded, Stale) as error:
                log.warning(
                    "event not announced yet", userId=str(head.user_id), error=type(error).__name__, says=str(error)
                )

        async with asyncio.TaskGroup() as users:  # none of them may go on once the locks are given back
            for head in heads:
                users.create_task(publish_user(head))
        short = {head.user_id for head in heads if head.is_short}
        return [stored for stored in sent if stored.event.aggregate_id not in short]

    async def _store(self, connection: Connection, heads: Sequence[Head], sent: Sequence[StoredEvent]) -> None:
        whole = [head for head in heads if not head.is_short]
        await connection.execute(
            _SENT,
            [stored.position for stored in sent],
            [head.user_id for head in whole],
            [head.version for head in whole],
            [head.sequence for head in whole],
        )
        tails = [Tail(head.user_id, head.version, head.sequence) for head in heads if head.is_short]
        if tails:
            count = await put_back(connection, tails, from_position=0, since=datetime.now(UTC) - RETENTION)
            if count:  # else its age has ended it
                log.warning("the stream has lost events; they are announced again", users=len(tails), events=count)
            self.wake()

    async def _publish_traced(self, head: Head, stored: StoredEvent) -> None:
        """Publish one event in a span of its request's trace, where traces are on; its deliveries continue that."""
        with span("producer", "publish", stored.event.type, parent=stored.traceparent) as around:
            await self._publish(head, replace(stored, traceparent=around.traceparent) if around else stored)

    async def _publish(self, head: Head, stored: StoredEvent) -> None:
        """Put one event behind the user's last, and move the head to what is last then."""
        event = stored.event
        for _ in range(_FENCE_TRIES_MAX):
            headers = headers_of(stored)
            if self._fence:
                headers[Header.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(head.sequence)
                headers["Nats-Expected-Last-Subject-Sequence-Subject"] = chain_of(head.user_id)
            try:
                require_fits(self._client, stored.body, headers)
            except MessageTooLarge as error:
                self._set_aside(stored, error)
                raise
            try:
                ack = await self._js.publish(
                    subject_of(event.type, event.aggregate_id), stored.body, timeout=PUBLISH_S, headers=headers
                )
            except APIError as error:
                if error.err_code != _WRONG_LAST_SEQUENCE:
                    raise
            else:
                if ack.duplicate and self._fence:
                    # It is not last there, or the fence had refused: it was deleted, and the server remembers its id.
                    raise TimeoutError("the server remembers its id, and does not have it")
                head.version, head.sequence = event.version, int(ack.seq)
                return
            await self._find_head(head)
            if head.version >= event.version:
                return
        raise TimeoutError("what is last on its subject keeps changing")

    async def _find_head(self, head: Head) -> None:
        """Another message is last: ours (its ack was lost), a later one of ours, an earlier one, or none of ours.

        What counts is what our table says of the message's id; what the message says of itself does not. A later one
        means that another relay was there while this one was paused: all up to it is announced. Raises
        `_StreamIsShort` for an earlier one: what came behind it is to be announced again before anything else.
        """
        head.sequence, message_id = await last_message(self._js, chain_of(head.user_id))
        version = 0 if head.sequence == 0 else await self._version_of(head.user_id, message_id)
        if version is None:
            self._metrics.relay_foreign.inc()
            log.error(
                "a message on a user's subject is no event of theirs", userId=str(head.user_id), sequence=head.sequence
            )
            return
        is_short = version < head.version
        head.version = version
        if is_short:
            raise _StreamIsShort

    async def _version_of(self, user_id: UUID, message_id: str | None) -> int | None:
        try:
            event_id = UUID(message_id or "")
        except ValueError:
            return None
        async with self._database.connection() as connection:
            version: int | None = await connection.fetchval(
                "SELECT version FROM events WHERE id = $1 AND aggregate_id = $2", event_id, user_id
            )
        return version


def headers_of(stored: StoredEvent) -> dict[str, str]:
    """CloudEvents 1.0 attributes, the de-duplication id, and where it came from."""
    event = stored.event
    headers = {
        "Nats-Msg-Id": str(event.id),
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": str(event.id),
        "ce-source": SOURCE,
        "ce-type": f"{SUBJECT_PREFIX}.{event.type}",
        "ce-subject": str(event.aggregate_id),
        "ce-time": event.timestamp.isoformat(),
        "ce-dataschema": f"urn:user-service:events:v1:{event.type}",
        "Request-Id": event.metadata.request_id,
    }
    if stored.traceparent:
        headers["traceparent"] = stored.traceparent
    return headers

"""What a stream holds: how it is, what stands at a place, and all of it from one end to the other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from secrets import token_hex
from uuid import UUID

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from adapters.inbox import AnnouncedLetter
from adapters.postgres import Connection
from adapters.refill import Announced, Tail, versions_of
from adapters.streams import EVENTS_STREAM, LETTERS_STREAM, Durable, last_message, message_at, pull
from contracts.events import SUBJECT_PREFIX, chain_of
from domain.refusals import Unavailable

AT_ONCE = 64
LETTERS_MAX = 200
"""Letters of one user and type that are looked at; where there are more, none of them is announced again."""
ALL = "all"
BATCH_MAX = 2000
BATCH_S = 10.0
IDLE_S = 120.0
"""After so long without a question the server forgets a reader."""
LOOK_S = 6.0
"""Below PostgreSQL's idle-in-transaction limit: locks are held while users are looked for."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as its server describes it."""

    created_at: datetime
    first_sequence: int
    last_sequence: int


async def stream_state(js: JetStreamContext, stream: str) -> StreamState | None:
    """How a stream is now; None where there is none of this name."""
    try:
        info = await js.stream_info(stream)
    except NotFoundError:
        return None
    if info.created is None:
        raise Unavailable  # no server of ours leaves it out
    return StreamState(info.created, info.state.first_seq, info.state.last_seq)


async def message_id_at(js: JetStreamContext, stream: str, sequence: int) -> str | None:
    """The `Nats-Msg-Id` of what stands at a place; None where nothing does any more."""
    message = await message_at(js, stream, sequence) if sequence else None
    return None if message is None else (message.headers or {}).get("Nats-Msg-Id", "")


@asynccontextmanager
async def _a_look() -> AsyncIterator[None]:
    """A while for many questions; raises `NatsError` where the server does not answer them: a `TimeoutError` inside a
    transaction would tell that the database is away."""
    try:
        async with asyncio.timeout(LOOK_S):
            yield
    except OSError as error:
        raise NatsError("JetStream does not answer") from error


async def tails_of(
    js: JetStreamContext, connection: Connection, heads: Sequence[Announced]
) -> tuple[list[Tail], list[UUID]]:
    """What the stream holds last of each user; and the users whose last message is no event of theirs."""
    few = asyncio.Semaphore(AT_ONCE)

    async def last(head: Announced) -> tuple[int, UUID | None]:
        async with few:
            sequence, message_id = await last_message(js, chain_of(head.user_id))
        return sequence, _uuid(message_id)

    async with _a_look():
        found = await asyncio.gather(*(last(head) for head in heads))
    known = await versions_of(connection, [event_id for _, event_id in found if event_id is not None])
    tails: list[Tail] = []
    foreign: list[UUID] = []
    for head, (sequence, event_id) in zip(heads, found, strict=True):
        user_id, version = known.get(event_id, (None, 0)) if event_id is not None else (None, 0)
        if sequence == 0:
            tails.append(Tail(head.user_id, 0, 0))
        elif user_id == head.user_id:
            tails.append(Tail(head.user_id, version, sequence))
        else:
            foreign.append(head.user_id)
    return tails, foreign


async def lost_among(js: JetStreamContext, heads: Sequence[Announced]) -> list[Announced]:
    """Those that do not stand where they were put."""
    few = asyncio.Semaphore(AT_ONCE)

    async def stands(head: Announced) -> bool:
        async with few:
            return await message_id_at(js, EVENTS_STREAM, head.sequence) == str(head.event_id)

    async with _a_look():
        found = await asyncio.gather(*(stands(head) for head in heads))
    return [head for head, is_there in zip(heads, found, strict=True) if not is_there]


@dataclass(frozen=True, slots=True)
class Standing:
    """A message as it stands on the stream, without its body."""

    sequence: int
    subject: str
    message_id: str | None


class EventsReader:
    """Reads the stream of events from a time on, never more than a batch of it at once."""

    def __init__(self, client: Client, *, since: datetime | None) -> None:
        self._client = client
        self._js = client.jetstream()
        self._since = since
        self._place = Durable("", EVENTS_STREAM, f"reader-{token_hex(8)}", f"{SUBJECT_PREFIX}.>")
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._taken: list[Msg] = []
        self._awaited = 0
        self._whole = asyncio.Event()
        self.left = 0
        """How many messages were still to come at the last batch."""

    async def batch(self) -> list[Standing]:
        """The next messages; none where all that stands there was read. Raises `Unavailable` where none comes."""
        if self._subscription is None:
            await self._begin()
        if not self.left:
            info = await self._js.consumer_info(EVENTS_STREAM, self._place.name)
            self.left = info.num_pending or 0
        if not self.left:
            return []
        self._taken, self._awaited = [], min(self.left, BATCH_MAX)
        self._whole.clear()
        await pull(self._client, self._place, inbox=self._inbox, messages_max=self._awaited, expires_s=BATCH_S)
        try:
            async with asyncio.timeout(BATCH_S):
                await self._whole.wait()
        except TimeoutError as error:
            raise Unavailable from error
        self.left = max(self.left - len(self._taken), 0)
        return [_standing(message) for message in self._taken]

    async def _begin(self) -> None:
        self._subscription = await self._client.subscribe(self._inbox, cb=self._on_message)
        await self._js.add_consumer(
            EVENTS_STREAM,
            ConsumerConfig(
                name=self._place.name,
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.ALL if self._since is None else DeliverPolicy.BY_START_TIME,
                opt_start_time=self._since,
                filter_subject=self._place.subject,
                headers_only=True,
                inactive_threshold=IDLE_S,
            ),
        )
        self.left = 0

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._taken.append(message)
        if len(self._taken) == self._awaited or not message.reply:
            self._whole.set()

    async def close(self) -> None:
        """Leave nothing on the server."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            await self._js.delete_consumer(EVENTS_STREAM, self._place.name)


def _standing(message: Msg) -> Standing:
    return Standing(int(message.reply.split(".")[5]), message.subject, (message.headers or {}).get("Nats-Msg-Id"))


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None


async def letters_missing(js: JetStreamContext, letters: Sequence[AnnouncedLetter]) -> list[UUID]:
    """The letters that do not stand on their stream."""
    few = asyncio.Semaphore(AT_ONCE)
    subjects = sorted({letter.subject for letter in letters})

    async def standing(subject: str) -> set[str]:
        async with few:
            return await _letters_under(js, subject)

    async with _a_look():
        found = dict(zip(subjects, await asyncio.gather(*map(standing, subjects)), strict=True))
    return [letter.id for letter in letters if not {str(letter.id), ALL} & found[letter.subject]]


async def _letters_under(js: JetStreamContext, subject: str) -> set[str]:
    """The ids of the letters under one subject; `ALL` besides where there are too many to look at."""
    found: set[str] = set()
    sequence = 1
    for _ in range(LETTERS_MAX):
        try:
            message = await js.get_msg(LETTERS_STREAM, seq=sequence, subject=subject, next=True)
        except NotFoundError:
            return found
        found.add((message.headers or {}).get("Dead-Letter-Id", ""))
        sequence = (message.seq or 0) + 1
    return found | {ALL}

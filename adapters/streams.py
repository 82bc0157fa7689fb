"""The streams of JetStream and the durable consumers on them: how they must be, and what they hold."""

import asyncio
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RawStreamMsg,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from adapters.nats import send
from adapters.settings import Settings
from contracts.avatar import AVATARS_BUCKET, UPLOADS_BUCKET
from domain.refusals import Unavailable

log = structlog.get_logger()

EVENTS_STREAM = "USER_EVENTS"
LETTERS_STREAM = "USER_DEAD_LETTERS"
REPLAYS_STREAM = "USER_REPLAYS"
ADVISORIES_STREAM = "USER_ADVISORIES"
SEALS_STREAM = "USER_AUDIT_SEALS"
SEALS_SUBJECT = "users.audit-seals"
_GIVEN_UP = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
EVENT_GROUPS = ("email", "audit", "cache")
TAKING_GROUPS = (*EVENT_GROUPS, "jobs")
"""Those that take messages from a durable."""
EVENTS_AGE = timedelta(days=90)
"""So long a message stays on the streams of events and letters."""
UPLOAD_S = 3600
"""How long an upload lies in its bucket at most."""
_REPLAYS_BYTES_MAX = 256 * 1024**2
"""Of each replay only some letters are on their way at once; what finds no room is sent later."""
_ADVISORIES_BYTES_MAX = 64 * 1024**2
"""Some hundred thousand."""
_SEALS_BYTES_MAX = 512 * 1024**2
"""Some million heads, two months of one every five seconds; each vouches for all before it."""
_HEAD_BYTES_MAX = 1024
ACK_WAIT_S = 15
"""How long the deliveries of a worker that died lie still; one that lives says so three times in it."""
UNACKED_MAX = 2000
"""Far more than are in work: those that wait out a pause count too, and must not stand in the others' way."""
SPARE_DELIVERIES = 4
"""The server gives up this many deliveries after we did: a letter that could not be written gets its chance."""


def stream_configs(settings: Settings) -> tuple[StreamConfig, ...]:
    """The five streams and the two buckets.

    `discard=new` stops the relay in sight of the alerts instead of dropping what nobody read.
    """
    base = StreamConfig(
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_age=EVENTS_AGE.total_seconds(),
        duplicate_window=settings.duplicate_window_seconds,
    )
    return (
        replace(base, name=EVENTS_STREAM, subjects=["users.events.>"], max_bytes=settings.stream_bytes_max),
        replace(base, name=LETTERS_STREAM, subjects=["users.dead-letters.>"], max_bytes=settings.letters_bytes_max),
        replace(
            base,
            name=REPLAYS_STREAM,
            subjects=["users.replay.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=_REPLAYS_BYTES_MAX,
        ),
        # What the server says when it gives a delivery of ours up; nobody may be listening when it says so.
        replace(
            base,
            name=ADVISORIES_STREAM,
            subjects=[f"{_GIVEN_UP}.{durable.stream}.{durable.name}" for durable in durables(EVENT_GROUPS)],
            retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=_ADVISORIES_BYTES_MAX,
        ),
        # Kept without end, as far as its bytes go: the newest heads must always find room.
        replace(
            base,
            name=SEALS_STREAM,
            subjects=[SEALS_SUBJECT],
            max_age=0,
            max_bytes=_SEALS_BYTES_MAX,
            max_msg_size=_HEAD_BYTES_MAX,
            discard=DiscardPolicy.OLD,
        ),
        _bucket(base, AVATARS_BUCKET, max_age=0, max_bytes=settings.avatar_bytes_max, no_ack=False),
        # JetStream's acknowledgement goes to whatever subject its message names, past every rule of the bus: with one
        # in `users.events.>` a gateway would have it write there (tried). So the service acknowledges in its place.
        _bucket(base, UPLOADS_BUCKET, max_age=UPLOAD_S, max_bytes=settings.upload_bytes_max, no_ack=True),
    )


def _bucket(base: StreamConfig, name: str, *, max_age: float, max_bytes: int, no_ack: bool) -> StreamConfig:
    """The stream behind a bucket, as every client of the object store expects it."""
    return replace(
        base, name=f"OBJ_{name}", subjects=[f"$O.{name}.C.>", f"$O.{name}.M.>"], max_age=max_age, max_bytes=max_bytes,
        no_ack=no_ack, allow_rollup_hdrs=True, allow_direct=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Durable:
    """Where a group takes its messages from: the events, or what is replayed to it alone."""

    group: str
    stream: str
    name: str
    subject: str


GIVEN_UP = Durable("jobs", ADVISORIES_STREAM, "given-up", f"{_GIVEN_UP}.>")
"""Where the group `jobs` hears of deliveries that the server gave up."""


def durables(groups: Collection[str]) -> list[Durable]:
    """Two for each group of events, and that of `jobs`."""
    of_events = [
        durable
        for group in groups
        if group in EVENT_GROUPS
        for durable in (
            Durable(group, EVENTS_STREAM, group, "users.events.v1.>"),
            Durable(group, REPLAYS_STREAM, f"{group}-replay", f"users.replay.{group}.>"),
        )
    ]
    return [*of_events, *([GIVEN_UP] if GIVEN_UP.group in groups else [])]


def consumer_config(settings: Settings, durable: Durable) -> ConsumerConfig:
    """How a durable consumer must be."""
    return ConsumerConfig(
        durable_name=durable.name,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        max_deliver=-1 if durable is GIVEN_UP else settings.delivery_attempts + SPARE_DELIVERIES,
        max_ack_pending=UNACKED_MAX,
        filter_subject=durable.subject,
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """Something on the server is not as this release wants it."""

    what: str
    wanted: object
    found: object


async def provision(js: JetStreamContext, settings: Settings, groups: Sequence[str]) -> None:
    """Create or update streams and durables, read them back and compare; raises `Unavailable` on a difference."""
    async with asyncio.timeout(20):
        for config in stream_configs(settings):
            await _ensure_stream(js, config)
        for durable in durables(groups):
            await _ensure_consumer(js, durable.stream, consumer_config(settings, durable))
    for difference in await differences(js, settings, groups):
        log.error("jetstream differs", what=difference.what, wanted=difference.wanted, found=difference.found)
        raise Unavailable


async def _ensure_stream(js: JetStreamContext, config: StreamConfig) -> None:
    assert config.name  # noqa: S101 - ours, a few lines up
    try:
        found = (await js.stream_info(config.name)).config
    except NotFoundError:
        await js.add_stream(config)
        return
    if _stream_differences(config, found):
        await js.update_stream(config)


async def _ensure_consumer(js: JetStreamContext, stream: str, config: ConsumerConfig) -> None:
    assert config.durable_name  # noqa: S101 - ours, a few lines up
    try:
        found = (await js.consumer_info(stream, config.durable_name)).config
    except NotFoundError:
        await js.add_consumer(stream, config)
        return
    if _consumer_differences(config, found):
        await js.add_consumer(stream, replace(config, deliver_policy=found.deliver_policy))


async def differences(js: JetStreamContext, settings: Settings, groups: Sequence[str]) -> list[Difference]:
    """Every figure of streams and durables that is not what this release wants."""
    found: list[Difference] = []
    for config in stream_configs(settings):
        try:
            found += _stream_differences(config, (await js.stream_info(str(config.name))).config)
        except NotFoundError:
            found.append(Difference(f"stream {config.name}", "present", "missing"))
    for durable in durables(groups):
        wanted = consumer_config(settings, durable)
        try:
            found += _consumer_differences(wanted, (await js.consumer_info(durable.stream, durable.name)).config)
        except NotFoundError:
            found.append(Difference(f"consumer {durable.name}", "present", "missing"))
    return found


def _stream_differences(wanted: StreamConfig, found: StreamConfig) -> list[Difference]:
    names = (
        "subjects", "retention", "discard", "max_age", "max_bytes", "duplicate_window", "storage", "no_ack",
        "allow_rollup_hdrs", "allow_direct",
    )  # fmt: skip
    return _compare(f"stream {wanted.name}", wanted, found, names)


def _consumer_differences(wanted: ConsumerConfig, found: ConsumerConfig) -> list[Difference]:
    names = ("ack_policy", "ack_wait", "max_deliver", "max_ack_pending", "filter_subject")
    return _compare(f"consumer {wanted.durable_name}", wanted, found, names)


def _compare(what: str, wanted: object, found: object, names: tuple[str, ...]) -> list[Difference]:
    return [
        Difference(f"{what}: {name}", getattr(wanted, name), getattr(found, name))
        for name in names
        if getattr(wanted, name) is not None and getattr(wanted, name) != getattr(found, name)
    ]


async def pull(client: Client, durable: Durable, *, inbox: str, messages_max: int, expires_s: float) -> bool:
    """Ask for a durable's next messages, to an inbox; False when the link is down.

    They come as they are there, at most so many, until the pull expires; a message with a `Status` header ends it early
    (ADR-13).
    """
    asked = json.dumps({"batch": messages_max, "expires": int(expires_s * 1e9)}).encode()
    return await send(client, f"$JS.API.CONSUMER.MSG.NEXT.{durable.stream}.{durable.name}", asked, reply=inbox)


async def delete_messages(js: JetStreamContext, stream: str, subject: str, *, messages_max: int, but: str = "") -> bool:
    """Delete what a stream holds under a subject, one message after the other, and overwrite its bytes in the file (a
    purge would leave them there); those of the subject `but` stay. False when there may be more."""
    seq = 1
    for _ in range(messages_max):
        try:
            found = await js.get_msg(stream, seq=seq, subject=subject, next=True)
            if found.subject != but:
                await js.delete_msg(stream, found.seq or 0)
        except NotFoundError:  # none is left, or another process was faster
            return True
        seq = (found.seq or 0) + 1
    return False


async def message_at(js: JetStreamContext, stream: str, sequence: int) -> RawStreamMsg | None:
    """What a stream holds at a sequence, if it still does."""
    try:
        return await js.get_msg(stream, seq=sequence)
    except NotFoundError:
        return None


async def first_unanswered(js: JetStreamContext, group: str) -> str | None:
    """The id of the first event that a group has not answered for yet; None where it has come to the end."""
    info = await js.consumer_info(EVENTS_STREAM, group)
    if not info.num_pending and not info.num_ack_pending:
        return None
    behind = info.ack_floor.stream_seq if info.ack_floor else 0
    try:
        message = await js.get_msg(EVENTS_STREAM, seq=behind + 1, subject="users.events.>", next=True)
    except NotFoundError:
        return None
    return (message.headers or {}).get("Nats-Msg-Id")


async def last_message(js: JetStreamContext, subject: str) -> tuple[int, str | None]:
    """Sequence and `Nats-Msg-Id` of the newest event under a subject; (0, None) when there is none."""
    try:
        message = await js.get_last_msg(EVENTS_STREAM, subject)
    except NotFoundError:
        return 0, None
    return message.seq or 0, (message.headers or {}).get("Nats-Msg-Id")

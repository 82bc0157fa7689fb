"""The heads of the audit log's chain, outside of the database: one after the other on a stream of their own."""

from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta

import structlog
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from adapters.bus_client import BusFailure
from adapters.streams import SEALS_STREAM, SEALS_SUBJECT, message_at
from contracts.audit_seals import AuditHead
from domain.audit_chain import Seal

log = structlog.get_logger()

PUBLISH_S = 2.0
_FOREIGN_MAX = 100
_FETCHED_MAX = 500
_WAIT_S = 5.0
_KEPT_S = 3600
"""Between two fetches half a million rows may be walked, on a machine that is busy."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


async def last_head(js: JetStreamContext, is_ours: Callable[[Seal], bool]) -> tuple[int, Seal | None]:
    """The sequence of the stream's last message (0 where there is none), and the last head of ours among the last few:
    who may ask JetStream anything can have it write there."""
    try:
        message = await js.get_last_msg(SEALS_STREAM, SEALS_SUBJECT)
    except NotFoundError:
        return 0, None
    last = message.seq or 0
    for sequence in range(last, max(0, last - _FOREIGN_MAX), -1):
        head = await _head_at(js, sequence)
        if head is not None and is_ours(head):
            return last, head
        log.error("a message among the heads of the audit log is none of ours", sequence=sequence)
    return last, None


async def _head_at(js: JetStreamContext, sequence: int) -> Seal | None:
    message = await message_at(js, SEALS_STREAM, sequence)
    return None if message is None else _read(message.data or b"")


async def publish_head(js: JetStreamContext, seal: Seal, *, behind_sequence: int) -> int:
    """Put a head behind the message that is the last now; its sequence. Refused where another came in between."""
    headers = {"Nats-Expected-Last-Subject-Sequence": str(behind_sequence)}
    acked = await js.publish(SEALS_SUBJECT, _written(seal), timeout=PUBLISH_S, headers=headers)
    return acked.seq


async def read_heads(js: JetStreamContext) -> AsyncGenerator[tuple[int, Seal | None]]:
    """Every message that the stream holds now, with its sequence, and the head it is, unless it is none."""
    last = (await js.stream_info(SEALS_STREAM)).state.last_seq
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, inactive_threshold=_KEPT_S)
    subscription = await js.pull_subscribe(SEALS_SUBJECT, stream=SEALS_STREAM, config=config)
    left = (await subscription.consumer_info()).num_pending or 0
    while left:
        try:
            messages = await subscription.fetch(min(left, _FETCHED_MAX), timeout=_WAIT_S)
        except NatsError as error:
            raise BusFailure("the stream of published heads does not give them all") from error
        for message in messages:
            if message.metadata.sequence.stream <= last:
                yield message.metadata.sequence.stream, _read(message.data)
        left -= len(messages)


def _written(seal: Seal) -> bytes:
    head = AuditHead(
        number=seal.number, from_position=seal.from_position, to_position=seal.to_position, rows=seal.count,
        content=seal.content.hex(), previous=seal.previous.hex(), sealed_at=_EPOCH + seal.sealed_us * _MICROSECOND,
        hash=seal.hash.hex(), signature=seal.signature,
    )  # fmt: skip
    return head.model_dump_json(by_alias=True).encode()


def _read(body: bytes) -> Seal | None:
    try:
        head = AuditHead.model_validate_json(body)
    except ValidationError:
        return None
    return Seal(
        number=head.number, from_position=head.from_position, to_position=head.to_position, count=head.rows,
        content=bytes.fromhex(head.content), previous=bytes.fromhex(head.previous),
        sealed_us=(head.sealed_at - _EPOCH) // _MICROSECOND, hash=bytes.fromhex(head.hash), signature=head.signature,
    )  # fmt: skip

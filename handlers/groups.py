"""The event groups on FastStream, and the watch over them: a group that no longer pulls must not go unnoticed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from faststream.middlewares import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from adapters.nats import (
    EVENTS_STREAM,
    FETCHES,
    INBOX_PREFIX,
    connection_options,
    consumer_config,
    error_reporter,
    provision,
)
from adapters.settings import Settings
from adapters.telemetry import Metrics
from domain.refusals import Unavailable
from handlers.delivery import Deliverer, GroupIsSilent

log = structlog.get_logger()

WATCH_S = 2.0
SILENT_S = 60.0
GRACE_S = 8.0
"""How long a stop waits for deliveries in work; what takes longer is cancelled and handed back at once."""


async def _as_it_is(message: NatsMessage) -> NatsMessage:
    return message


def make_broker(
    settings: Settings, deliverers: Mapping[str, Deliverer], *, on_closed: Callable[[], Awaitable[None]]
) -> NatsBroker:
    """A broker with a pull subscriber for each group; streams and durables must stand already."""
    options = connection_options(settings, name="groups")
    broker = NatsBroker(
        options.pop("servers"),
        logger=None,
        apply_types=False,
        graceful_timeout=GRACE_S,
        closed_cb=on_closed,
        error_cb=error_reporter("groups"),
        **options,
    )
    for group, deliverer in deliverers.items():
        subscriber = broker.subscriber(
            "users.events.v1.>",
            stream=JStream(EVENTS_STREAM, declare=False),
            durable=group,
            config=consumer_config(settings, group),
            # A batch runs at once and the next is fetched when all of it is done: nothing waits in a local queue.
            pull_sub=PullSub(batch_size=FETCHES[group], timeout=5.0),
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            inbox_prefix=f"{INBOX_PREFIX}.".encode(),
            decoder=_as_it_is,
        )
        subscriber(_delivering(deliverer))
    return broker


def _delivering(deliverer: Deliverer) -> Callable[[NatsMessage], Awaitable[None]]:
    async def deliver(message: NatsMessage) -> None:
        await deliverer.deliver(message.raw_message)

    return deliver


async def watch(
    js: JetStreamContext, settings: Settings, deliverers: Mapping[str, Deliverer], metrics: Metrics
) -> None:
    """Look after every group for ever; raises `GroupIsSilent` for one that sleeps over its work."""
    while True:
        await asyncio.sleep(WATCH_S)
        for group, deliverer in deliverers.items():
            try:
                await _look_after(js, settings, group, deliverer, metrics)
            except (NatsError, TimeoutError, OSError, Unavailable) as error:
                log.warning("cannot look after a group", group=group, error=type(error).__name__)


async def _look_after(
    js: JetStreamContext, settings: Settings, group: str, deliverer: Deliverer, metrics: Metrics
) -> None:
    """Measure a group, and make its durable again where it was deleted: that one starts at the stream's beginning, and
    the inbox keeps it from repeating an effect."""
    try:
        info: Any = await js.consumer_info(EVENTS_STREAM, group)
    except NotFoundError:
        log.error("a group's durable was deleted; making it again", group=group)
        await provision(js, settings, (group,))
        return
    metrics.consumer_pending.labels(group).set(info.num_pending or 0)
    metrics.consumer_unacked.labels(group).set(info.num_ack_pending or 0)
    silent_s = time.monotonic() - deliverer.last_active
    if info.num_pending and not info.num_waiting and not deliverer.in_work and silent_s > SILENT_S:
        raise GroupIsSilent(f"group {group} has work waiting and does not pull")

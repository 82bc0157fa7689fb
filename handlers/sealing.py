"""The sealer: chains what the audit log has got since, signs it, and publishes it outside of the database.

It is no part of any request. Any process with the group `jobs` may do it; the database lets one at a time seal, and the
stream takes heads only in order.
"""

import asyncio
import random
import time

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError

from adapters.audit_heads import last_head, publish_head
from adapters.audit_seals import (
    UnsoundSeal,
    Watermark,
    add_seal,
    age_of_next_s,
    drawn_positions,
    is_settled,
    last_seal,
    newest_seals,
    seals_behind,
    watermark,
)
from adapters.postgres import Database
from adapters.seal_keys import SealKeys
from adapters.telemetry import Metrics
from domain.audit_chain import ROWS_MAX, Seal
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

PERIOD_S = 3.0
SETTLE_S = 40.0
"""Longer than any transaction of ours may take."""
_LOOK_S = 0.05
HEADS_MAX = 1000
"""So many heads are published at a time; and on a stream that has lost them all, so many of the newest."""


class Sealer:
    """Seals for ever."""

    def __init__(self, database: Database, client: Client, keys: SealKeys, metrics: Metrics) -> None:
        self._database = database
        self._client = client
        self._js = client.jetstream()
        self._keys = keys
        self._metrics = metrics
        self._published: Seal | None = None
        self._cut_said: int = 0

    async def run(self) -> None:
        """Until the process ends; what is away is waited for."""
        while True:
            await asyncio.sleep(PERIOD_S * random.uniform(0.5, 1.5))
            try:
                await self.seal_once()
            except (Unavailable, Overloaded, Stale) as error:
                log.warning("sealing waits", error=type(error).__name__)

    async def seal_once(self) -> None:
        """Seal all that nobody can add to any more, and publish every head that is not yet."""
        await self._publish()
        mark = await self._settled()
        if mark is not None:
            try:
                await self._seal_up_to(mark.position)
            except UnsoundSeal as error:
                log.error("nothing is sealed: the last seal is none of ours; see `audit verify`", last=str(error))
        await self._publish()
        async with self._database.connection() as connection:
            age_s = await age_of_next_s(connection, self._published.to_position if self._published else 0)
        self._metrics.audit_unsealed_seconds.set(age_s)

    async def _seal_up_to(self, position: int) -> None:
        while True:
            async with self._database.transaction() as connection:
                seal = await add_seal(
                    connection, up_to=position, published=self._published, sign=self._keys.sign, is_ours=self._is_ours
                )
            if seal is None:
                return
            self._metrics.audit_seals.inc()
            log.info(
                "audit log sealed", seal=seal.number, toPosition=seal.to_position, rows=seal.count,
                hash=seal.hash.hex(), signature=seal.signature,
            )  # fmt: skip
            if seal.count < ROWS_MAX:
                return

    async def _settled(self) -> Watermark | None:
        """How far may be sealed now; None while somebody who began before is not done."""
        ends = time.monotonic() + SETTLE_S
        async with self._database.connection() as connection:
            mark = await watermark(connection)
        while True:
            async with self._database.connection() as connection:
                if await is_settled(connection, mark):
                    return mark
            if time.monotonic() > ends:
                log.warning("sealing waits for a long transaction that writes audit rows")
                return None
            await asyncio.sleep(_LOOK_S)

    async def _publish(self) -> None:
        """Put heads on the stream that it does not have; where it is away, they wait in the table."""
        try:
            sequence, head = await last_head(self._js, self._is_ours)
            async with self._database.connection() as connection:
                last = await last_seal(connection)
                drawn = await drawn_positions(connection)
                self._compare(last, head)
                waiting = (
                    await newest_seals(connection, seals_max=HEADS_MAX)
                    if head is None
                    else await seals_behind(connection, head.number, seals_max=HEADS_MAX)
                )
            self._published = head or self._published
            for seal in waiting:
                if not (seal.is_sound(drawn) and self._is_ours(seal)):
                    log.error("a seal is none of ours, and is not published; see `audit verify`", seal=seal.number)
                    return
                sequence = await publish_head(self._js, seal, behind_sequence=sequence)
                self._published = seal
        except (NatsError, TimeoutError, OSError) as error:
            log.warning("heads of the audit log wait to be published", error=type(error).__name__)

    def _is_ours(self, head: Seal) -> bool:
        return head.hash == head.hashed() and self._keys.is_ours(head.hash, head.signature)

    def _compare(self, last: Seal | None, head: Seal | None) -> None:
        """Say it once when more was published than is there."""
        if head is None or head.number <= (last.number if last else 0) or head.number == self._cut_said:
            return
        self._cut_said = head.number
        self._metrics.audit_cuts.inc()
        log.error(
            "seals are gone from the audit log: `user-service audit verify` names them",
            published=head.number, last=last.number if last else 0,
        )  # fmt: skip

"""`audit verify`: walks rows, seals and published heads side by side, and says what is not as it was sealed."""

import bisect
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from uuid import uuid4

import asyncpg
import structlog
from nats.js import JetStreamContext

from adapters.audit_heads import read_heads
from adapters.audit_log import AuditRow, add_audit_row
from adapters.audit_seals import LoggedRow, drawn_positions, last_seal, newest_position, seal_at, walk_rows, walk_seals
from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.seal_keys import SealKeys
from contracts.events import EVENTS
from domain.audit_chain import Seal, digest_of
from domain.audit_walk import Fault, Walk, forgery
from handlers.clock import now
from handlers.events.audit import action_of
from handlers.operators import operator

log = structlog.get_logger()

Tell = Callable[[int, int], None]
"""Told how much is done, and of how much."""
_ACTIONS_OF_EVENTS = frozenset(action_of(name) for name in EVENTS)
_action_of = lru_cache(maxsize=1000)(action_of)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_POSITION = attrgetter("position")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a walk came to; `unsealed` rows wait for their seal, `unpublished` seals for the bus, and `unnamed` faults
    are beyond those that are named."""

    rows: int
    seals: int
    unsealed: int
    unpublished: int
    faults: list[Fault]
    unnamed: int


class _Rows:
    """The log in pages, from a position on; whatever comes by is looked at for forgeries."""

    def __init__(self, database: Database, walk: Walk, begin: int) -> None:
        self._database = database
        self._walk = walk
        self._page: list[LoggedRow] = []
        self._next: int | None = begin
        self.seen = 0
        self.at = 0

    async def up_to(self, position: int | None) -> AsyncIterator[list[LoggedRow]]:
        """The rows that come next, up to a position, or all that are left."""
        while self._page or await self._turn():
            cut = len(self._page) if position is None else bisect.bisect(self._page, position, key=_POSITION)
            taken, self._page = self._page[:cut], self._page[cut:]
            self.seen += len(taken)
            self.at = taken[-1].position if taken else self.at
            self._look_for_forgeries(taken)
            yield taken
            if self._page:
                return

    async def _turn(self) -> bool:
        if self._next is not None:
            async with self._database.connection() as connection:
                self._page = await walk_rows(connection, self._next)
            last = self._page[-1].position if self._page else _HIGHEST
            self._next = last + 1 if last < _HIGHEST else None
        return bool(self._page)

    def _look_for_forgeries(self, rows: list[LoggedRow]) -> None:
        for row in rows:
            told = _action_of(row.told_by) if row.told_by else None
            why = forgery(row.action, has_event=row.has_event, told=told, actions_of_events=_ACTIONS_OF_EVENTS)
            if why is not None:
                self._walk.forged(row.position, why)


class _Heads:
    """What was published, told to a walk in step with the seals."""

    def __init__(self, found: AsyncIterator[tuple[int, Seal | None]]) -> None:
        self._found = found
        self._next: tuple[int, Seal | None] | None = None

    async def begin(self) -> None:
        """Ask for them: what is published later is none of this walk's."""
        self._next = await anext(self._found, None)

    async def tell(self, walk: Walk, *, up_to: int | None) -> None:
        """The heads that come next, up to a seal's number, or all that are left."""
        while self._next is not None:
            sequence, head = self._next
            if head is None or not walk.is_head(head):
                walk.foreign(sequence)
            elif up_to is None or head.number <= up_to:
                walk.published(head)
            else:
                return
            self._next = await anext(self._found, None)


async def verify(
    database: Database, personal: PersonalData, keys: SealKeys, js: JetStreamContext, *, from_position: int | None,
    tell: Tell,
) -> Verdict:  # fmt: skip
    """Walk the whole log, or from the seal on that a position stands under; what came of it is logged and audited."""
    async with aclosing(read_heads(js)) as found:
        heads = _Heads(found)
        await heads.begin()  # before we ask for the last seal: what is published stands in the table by then
        async with database.connection() as connection:
            first = None if from_position is None else await seal_at(connection, from_position)
            last, end = await last_seal(connection), await newest_position(connection)
        walk = Walk(keys.is_ours, first=first)
        rows = _Rows(database, walk, _LOWEST if first is None else first.from_position)
        seals = 0
        if last is not None:
            async for seal, entries in walk_seals(database, first.number if first else _LOWEST, last.number):
                await heads.tell(walk, up_to=seal.number)
                await _under_seal(walk, rows, walk.seal(seal, entries))
                seals += 1
                tell(rows.at, end)
        await heads.tell(walk, up_to=None)
    sealed = rows.seen
    await _under_none(database, walk, rows)
    waiting = max(0, (last.number if last else 0) - walk.last_published)
    verdict = Verdict(rows.seen, seals, rows.seen - sealed, waiting, walk.end(), walk.unnamed)
    await _note(database, personal, verdict)
    return verdict


async def _under_seal(walk: Walk, rows: _Rows, ends_at: int) -> None:
    """All of them are there to be seen: the last seal was asked for before any row."""
    async for some in rows.up_to(ends_at):
        for row in some:
            walk.row(row.position, digest_of(row.columns))


async def _under_none(database: Database, walk: Walk, rows: _Rows) -> None:
    """What is left: rows that wait for their seal; nobody seals one whose position was never drawn."""
    async for some in rows.up_to(None):
        async with database.connection() as connection:
            drawn = await drawn_positions(connection)
        for row in some:
            if not 1 <= row.position <= drawn:
                walk.forged(row.position, "no row can have this position")


async def _note(database: Database, personal: PersonalData, verdict: Verdict) -> None:
    """Leave on record that somebody has looked, and what they saw."""
    kinds = dict(Counter(str(fault.kind) for fault in verdict.faults))
    say = log.error if verdict.faults else log.info
    say("audit log verified", rows=verdict.rows, seals=verdict.seals, unsealed=verdict.unsealed, faults=kinds)
    row = AuditRow(
        action="audit_verified", success=not verdict.faults, at=now(), resource="audit_log",
        details={"operator": operator(), "rows": verdict.rows, "seals": verdict.seals, "faults": dict(kinds)},
    )  # fmt: skip
    try:
        async with database.connection() as connection:
            await add_audit_row(connection, personal, Trail(request_id=f"cli-{uuid4()}"), row)
    except asyncpg.PostgresError as error:  # who has changed the log may also keep us from writing: say what was found
        log.error("that the audit log was verified is not on record", error=type(error).__name__)

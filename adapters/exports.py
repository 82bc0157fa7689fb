"""All that is held about a user, read at one moment, as much of it as a reply can hold."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import asyncpg

from adapters.audit_log import audit_rows_about, entry_of
from adapters.cursors import make_cursor, not_a_cursor, read_cursor
from adapters.event_log import event_rows_of, opened
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from adapters.users import Account, account_of
from contracts.account import (
    Export,
    Happened,
    KeptAddress,
    KeptSession,
    KnownDevice,
    Logged,
    SecondFactorState,
    SentLink,
)
from contracts.wire import Wire
from domain.refusals import BadToken

Row = asyncpg.Record
Shown = TypeVar("Shown", bound=Wire)

HISTORY_BYTES_MAX = 320 * 1024
"""Of events, and of the audit log: with all else well below nats-server's default `max_payload` of 1 MiB."""
HISTORY_ROWS_MAX = 1000
LISTED_MAX = 200
_ROWS_A_BREATH = 50
_NEWEST = 2**31 - 1
_NEWEST_POSITION = 2**63 - 1

_SESSIONS = """
SELECT id, device_info, host(ip_address) AS ip_address, user_agent, created_at, last_active_at, expires_at, ended_at,
    end_reason, count(*) OVER () AS held
FROM user_sessions WHERE user_id = $1 ORDER BY created_at DESC, id LIMIT $2"""
_DEVICES = """
SELECT session_id, created_at, expires_at, count(*) OVER () AS held
FROM device_tokens WHERE user_id = $1 ORDER BY created_at DESC, hash LIMIT $2"""
# Not whether a link was used: of one to an address that is taken nobody is told.
_LINKS = """
SELECT purpose, address, created_at, expires_at, count(*) OVER () AS held
FROM links WHERE user_id = $1 ORDER BY created_at DESC, id LIMIT $2"""
_ADDRESSES = """
SELECT email_key AS address, until, count(*) OVER () AS held
FROM email_reservations WHERE user_id = $1 ORDER BY until DESC, email_key LIMIT $2"""
_FACTOR = "SELECT enabled_at, cardinality(codes) AS codes FROM second_factors WHERE user_id = $1"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the histories go on: before this version, and before this position of the log."""

    version: int
    position: int


@dataclass(frozen=True, slots=True)
class _Held:
    """The rows as they were read, still sealed."""

    account: Account
    lists: dict[str, list[Row]]
    factor: Row | None
    events: list[Row]
    log: list[Row]


async def read_export(
    database: Database, personal: PersonalData, user_id: UUID, *, after: str | None, at: datetime
) -> Export:
    """What is held, read in one snapshot; opened once the connection is given back.

    Raises `InvalidInput` for a cursor of something else, `BadToken` where there is no such user any more.
    """
    place = _place_of(after)
    async with database.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        held = await _read(connection, user_id, place)
    if held is None:
        raise BadToken
    events, next_version = await _fitting(held.events, "version", place.version, lambda row: _event(row, personal))
    log, next_position = await _fitting(
        held.log, "position", place.position, lambda row: _logged(row, personal, user_id)
    )
    more = next_version > 0 or next_position > 0
    return Export(
        exported_at=at,
        user=held.account.user,
        profile=held.account.profile,
        second_factor=_factor_of(held),
        sessions=[KeptSession.model_validate(dict(row)) for row in held.lists["sessions"]],
        devices=[KnownDevice.model_validate(dict(row)) for row in held.lists["devices"]],
        links=[SentLink.model_validate(dict(row)) for row in held.lists["links"]],
        kept_addresses=[KeptAddress.model_validate(dict(row)) for row in held.lists["keptAddresses"]],
        events=events,
        audit_log=log,
        omitted={name: left for name, rows in held.lists.items() if (left := _left_out(rows))},
        next_cursor=make_cursor(next_version, next_position) if more else None,
    )


def _place_of(cursor: str | None) -> _Place:
    if cursor is None:
        return _Place(_NEWEST, _NEWEST_POSITION)
    version, position = read_cursor(cursor, parts=2)
    try:
        place = _Place(int(version), int(position))
    except ValueError as error:
        raise not_a_cursor() from error
    if not (0 <= place.version <= _NEWEST and 0 <= place.position <= _NEWEST_POSITION):
        raise not_a_cursor()
    return place


async def _read(connection: Connection, user_id: UUID, place: _Place) -> _Held | None:
    account = await account_of(connection, user_id)
    if account is None:
        return None
    statements = {"sessions": _SESSIONS, "devices": _DEVICES, "links": _LINKS, "keptAddresses": _ADDRESSES}
    lists = {name: await connection.fetch(statement, user_id, LISTED_MAX) for name, statement in statements.items()}
    return _Held(
        account,
        lists,
        await connection.fetchrow(_FACTOR, user_id),
        await event_rows_of(connection, user_id, before_version=place.version, events_max=HISTORY_ROWS_MAX),
        await audit_rows_about(connection, user_id, before_position=place.position, rows_max=HISTORY_ROWS_MAX),
    )


async def _fitting(
    rows: Sequence[Row], column: str, before: int, show: Callable[[Row], Shown]
) -> tuple[list[Shown], int]:
    """As many rows as fit, and where the next page goes on: before the last one shown, or 0 where nothing is left."""
    shown: list[Shown] = []
    size = 0
    for number, row in enumerate(rows):
        if number % _ROWS_A_BREATH == 0:
            await asyncio.sleep(0)  # opening them takes a while: others are served in between
        one = show(row)
        size += len(one.model_dump_json(by_alias=True))
        if shown and size > HISTORY_BYTES_MAX:
            return shown, before
        shown.append(one)
        before = row[column]
    return shown, before if len(rows) == HISTORY_ROWS_MAX else 0


def _event(row: Row, personal: PersonalData) -> Happened:
    stored = opened(row, personal)
    event = stored.event
    own = event.metadata.actor_id in {None, event.aggregate_id}
    return Happened(
        version=event.version,
        type=event.type,
        timestamp=event.timestamp,
        data=event.data,
        ip_address=stored.ip if own else None,
        user_agent=stored.user_agent if own else None,
    )


def _logged(row: Row, personal: PersonalData, user_id: UUID) -> Logged:
    entry = entry_of(row, personal)
    own = entry.actor_id in {None, user_id}
    return Logged(
        action=entry.action,
        success=entry.success,
        by_user=None if entry.actor_id is None else own,
        details=entry.details,
        ip_address=entry.ip_address if own else None,
        user_agent=entry.user_agent if own else None,
        created_at=entry.created_at,
    )


def _left_out(rows: Sequence[Row]) -> int:
    return rows[0]["held"] - len(rows) if rows else 0


def _factor_of(held: _Held) -> SecondFactorState:
    factor = held.factor
    on = held.account.user.two_factor_enabled
    if factor is None or not on:
        return SecondFactorState(enabled=on, enabled_at=None, backup_codes_left=0)
    return SecondFactorState(enabled=on, enabled_at=factor["enabled_at"], backup_codes_left=factor["codes"])

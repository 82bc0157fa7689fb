"""Sessions, their refresh tokens, and known devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from adapters.postgres import Connection
from contracts.users import Session as SessionView
from domain.session import Lifetimes, RefreshToken, Session, Standing

_COLUMNS = "id, user_id, remember_me, auth_time, amr, created_at, last_active_at, expires_at, ended_at"
OPEN = """
session AS (
    INSERT INTO user_sessions (id, user_id, refresh_token_hash, device_info, ip_address, user_agent, remember_me, amr,
        auth_time, expires_at, created_at, last_active_at)
    SELECT $22, id, $23, $24, $25, $26, $27, $28, $29, $30, $29, $29 FROM changed RETURNING id
), token AS (
    INSERT INTO refresh_tokens (hash, session_id, expires_at) SELECT $23, id, $30 FROM session
)"""
"""The part of a statement that changes a user (`changed`) and opens a session; its values are `NewSession.values`."""
_PRESENTED = """
SELECT t.session_id, t.used_at, t.used_by, t.expires_at, t.successor_hash, t.successor_sealed,
       next.used_at IS NOT NULL AS successor_used, clock_timestamp() AS at
FROM refresh_tokens t LEFT JOIN refresh_tokens next ON next.hash = t.successor_hash WHERE t.hash = $1"""
_SPEND = """
WITH spent AS (
    UPDATE refresh_tokens SET used_at = $2, used_by = $3, successor_hash = $4, successor_sealed = $5
    WHERE hash = $1 AND used_at IS NULL RETURNING session_id
), next AS (
    INSERT INTO refresh_tokens (hash, session_id, expires_at) SELECT $4, session_id, $6 FROM spent
)
UPDATE user_sessions s SET refresh_token_hash = $4, last_active_at = $2, expires_at = $6
FROM spent WHERE s.id = spent.session_id"""
# The unspent token is spent by the proof, and so is what it was given for moments before: either still gets the next.
_RENEW = """
WITH newest AS (
    SELECT refresh_token_hash AS hash FROM user_sessions WHERE id = $1
), spent AS (
    UPDATE refresh_tokens t SET used_at = coalesce(t.used_at, clock_timestamp()), used_by = coalesce(t.used_by, $2),
        successor_hash = $3, successor_sealed = $4
    FROM newest WHERE t.session_id = $1 AND (
        (t.hash = newest.hash AND t.used_at IS NULL)
        OR (t.successor_hash = newest.hash AND t.successor_sealed IS NOT NULL))
), next AS (
    INSERT INTO refresh_tokens (hash, session_id, expires_at) VALUES ($3, $1, $5)
)
UPDATE user_sessions SET refresh_token_hash = $3, expires_at = $5, last_active_at = $6, auth_time = $7, amr = $8
WHERE id = $1"""
# A successor may be given again only while it is unused; once it is, what was sealed for its predecessor is dropped.
# Tokens past their time go as well: a session holds those of one lifetime, however long it is refreshed.
_FORGET = """
WITH past AS (DELETE FROM refresh_tokens WHERE session_id = $2 AND expires_at <= $3)
UPDATE refresh_tokens SET successor_sealed = NULL WHERE session_id = $2 AND successor_hash = $1 AND expires_at > $3"""
# Rows that somebody has locked are being refreshed or ended; none is waited for, so nobody waits in a circle.
_TOUCH = """
WITH seen AS (
    SELECT s.id, v.at FROM user_sessions s JOIN unnest($1::uuid[], $2::timestamptz[]) AS v (id, at) ON v.id = s.id
    WHERE s.ended_at IS NULL AND s.last_active_at <= v.at - $3::interval FOR UPDATE OF s SKIP LOCKED
)
UPDATE user_sessions s SET last_active_at = seen.at FROM seen WHERE s.id = seen.id"""
DEVICES_MAX = 20
_FORGET_DEVICES = """
DELETE FROM device_tokens WHERE hash IN (
    SELECT hash FROM device_tokens WHERE user_id = $1 ORDER BY created_at DESC, hash OFFSET $2)"""
_STANDING = """
SELECT u.id, u.email, u.role, u.status, u.version, s.id AS session_id, s.amr, s.auth_time,
    s.ended_at IS NOT NULL AS ended, s.expires_at, s.last_active_at, s.created_at
FROM users u JOIN user_sessions s ON s.user_id = u.id WHERE u.id = $1 AND s.id = $2"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """A session to be opened, with its first refresh token and where it comes from."""

    session: Session
    token_hash: bytes
    device_info: dict[str, str]
    ip: str | None
    user_agent: str | None

    @property
    def values(self) -> tuple[object, ...]:
        """The values of `OPEN`."""
        session = self.session
        return (
            session.id, self.token_hash, self.device_info, self.ip, self.user_agent, session.remember_me,
            list(session.amr), session.auth_time, session.expires_at,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spent:
    """A refresh token's row with the successor it was spent for, sealed, as the database's clock says `at`: what one
    process has spent another may be asked about a moment later."""

    token: RefreshToken
    successor_sealed: str | None
    at: datetime


class Sessions:
    """Sessions inside a transaction. Whoever changes one holds its user's row lock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, session_id: UUID) -> Session | None:
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM user_sessions WHERE id = $1",
            session_id,
        )
        return None if row is None else _session(row)

    async def token(self, token_hash: bytes) -> Spent | None:
        row = await self._connection.fetchrow(_PRESENTED, token_hash)
        if row is None:
            return None
        successor_used = row["successor_used"] if row["successor_hash"] is not None else None
        token = RefreshToken(row["session_id"], row["used_at"], row["expires_at"], successor_used, row["used_by"])
        return Spent(token, row["successor_sealed"], row["at"])

    async def spend(
        self,
        session_id: UUID,
        token_hash: bytes,
        *,
        used_by: str,
        successor_hash: bytes,
        successor_sealed: str,
        expires_at: datetime,
        at: datetime,
    ) -> None:
        """Mark a token used and put its successor in its place."""
        await self._connection.execute(_FORGET, token_hash, session_id, at)
        await self._connection.execute(_SPEND, token_hash, at, used_by, successor_hash, successor_sealed, expires_at)

    async def renew(
        self,
        session: Session,
        *,
        used_by: str,
        successor_hash: bytes,
        successor_sealed: str,
        expires_at: datetime,
        at: datetime,
    ) -> None:
        """Write a session's new proof of identity, and put its next refresh token in the place of the one it had."""
        await self._connection.execute(
            _RENEW, session.id, used_by, successor_hash, successor_sealed, expires_at, at, session.auth_time,
            list(session.amr),
        )  # fmt: skip

    async def forget_devices(self, session_id: UUID) -> None:
        """The device that this session made known is a stranger's."""
        await self._connection.execute("DELETE FROM device_tokens WHERE session_id = $1", session_id)

    async def forget_all_devices(self, user_id: UUID, *, but: bytes | None = None) -> None:
        """None is known any more, except for one by its hash: any of them may be a stranger's."""
        await self._connection.execute(
            "DELETE FROM device_tokens WHERE user_id = $1 AND hash IS DISTINCT FROM $2", user_id, but
        )

    async def unended_of(self, user_id: UUID, *, at: datetime) -> list[UUID]:
        """A user's sessions that have neither been ended nor expired, the idle ones too: a longer idle time must not
        bring back what was meant to be ended."""
        rows = await self._connection.fetch(
            "SELECT id FROM user_sessions WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 "
            "ORDER BY created_at", user_id, at,
        )  # fmt: skip
        return [row["id"] for row in rows]

    async def end(self, user_id: UUID, session_ids: Sequence[UUID], *, reason: str, at: datetime) -> list[UUID]:
        """End sessions of a user; returns those that were not over before. `UnitOfWork.end_sessions` alone asks it."""
        if not session_ids:
            return []
        rows = await self._connection.fetch(
            "UPDATE user_sessions SET ended_at = $3, end_reason = $4 "
            "WHERE id = ANY($2) AND user_id = $1 AND ended_at IS NULL RETURNING id",
            user_id, list(session_ids), at, reason,
        )  # fmt: skip
        return [row["id"] for row in rows]

    async def add_device(
        self, user_id: UUID, token_hash: bytes, *, session_id: UUID | None, at: datetime, lifetime: timedelta
    ) -> None:
        """Know a device from here on; past the newest few of a user the oldest are forgotten."""
        await self._connection.execute(_FORGET_DEVICES, user_id, DEVICES_MAX - 1)
        await self._connection.execute(
            "INSERT INTO device_tokens (hash, user_id, session_id, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)",
            token_hash, user_id, session_id, at, at + lifetime,
        )  # fmt: skip


def _session(row: asyncpg.Record) -> Session:
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        remember_me=row["remember_me"],
        auth_time=row["auth_time"],
        amr=tuple(row["amr"]),
        created_at=row["created_at"],
        last_active_at=row["last_active_at"],
        expires_at=row["expires_at"],
        ended_at=row["ended_at"],
    )


async def standing_of(connection: Connection, user_id: UUID, session_id: UUID, lifetimes: Lifetimes) -> Standing | None:
    """Who the bearer of a token is now: one indexed read of both rows."""
    row = await connection.fetchrow(_STANDING, user_id, session_id)
    if row is None:
        return None
    return Standing(
        user_id=row["id"],
        session_id=row["session_id"],
        email=row["email"],
        role=row["role"],
        status=row["status"],
        version=row["version"],
        amr=tuple(row["amr"]),
        auth_time=row["auth_time"],
        session_ended=row["ended"],
        last_active_at=row["last_active_at"],
        expires_at=min(row["expires_at"], row["last_active_at"] + lifetimes.idle, row["created_at"] + lifetimes.family),
    )


async def touch(connection: Connection, seen: Mapping[UUID, datetime], *, at_least_after: timedelta) -> None:
    """Note when sessions were used, where what stands there is older by so much; raises no version."""
    await connection.execute(_TOUCH, list(seen), list(seen.values()), at_least_after)


SESSIONS_MAX = 1000
"""The greatest session cap there can be."""


async def sessions_of(
    connection: Connection, user_id: UUID, *, lifetimes: Lifetimes, at: datetime, sessions_max: int
) -> list[SessionView]:
    """A user's live sessions, newest first."""
    rows = await connection.fetch(
        "SELECT id, device_info, ip_address, user_agent, created_at, last_active_at, expires_at FROM user_sessions "
        "WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 AND last_active_at > $4 AND created_at > $5 "
        "ORDER BY created_at DESC LIMIT $3",
        user_id, at, sessions_max, at - lifetimes.idle, at - lifetimes.family,
    )  # fmt: skip
    return [SessionView.model_validate({**row, "ip_address": _text(row["ip_address"])}) for row in rows]


def _text(address: object) -> str | None:
    return None if address is None else str(address)


async def device_is_known(connection: Connection, token_hash: bytes) -> bool:
    """Is there a user who knows this device?"""
    return bool(
        await connection.fetchval("SELECT true FROM device_tokens WHERE hash = $1 AND expires_at > now()", token_hash)
    )


async def token_is_unused(connection: Connection, token_hash: bytes) -> bool:
    """Is this refresh token unspent, and does its session live?"""
    return bool(
        await connection.fetchval(
            "SELECT true FROM refresh_tokens t JOIN user_sessions s ON s.id = t.session_id "
            "WHERE t.hash = $1 AND t.used_at IS NULL AND s.ended_at IS NULL AND s.expires_at > now()",
            token_hash,
        )
    )

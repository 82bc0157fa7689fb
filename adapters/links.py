"""Mail links: a row for each, good once; its random tokens are kept as hashes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from adapters.postgres import Connection

Purpose = Literal[
    "verification", "invitation", "reset", "email-change", "cancel-email-change", "not-me", "unlock"
]  # fmt: skip
MAILED_MAX = 3
"""How many links of one purpose may be good that were mailed to one address: the oldest gives way to one that is mailed
there, never to one that went elsewhere or nowhere. Who has moved an account to an address of theirs must not push out
what calls that off, nor who asks for more mails than are sent what came with the earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link as it stands: whose, what for, to which address; `session_id` where it speaks of one session."""

    id: UUID
    user_id: UUID
    purpose: Purpose
    address: str
    expires_at: datetime
    used_at: datetime | None = None
    session_id: UUID | None = None

    def is_open(self, at: datetime) -> bool:
        return self.used_at is None and at < self.expires_at


_GIVE_WAY = """
UPDATE links SET used_at = $3 WHERE id IN (
    SELECT l.id FROM links l JOIN links mailed USING (user_id, purpose, address)
    WHERE mailed.id = $1 AND l.used_at IS NULL AND l.expires_at > $3
        AND EXISTS (SELECT FROM link_tokens t WHERE t.link_id = l.id)
    ORDER BY l.created_at DESC, l.id DESC OFFSET $2)"""
_COLUMNS = "l.id, l.user_id, l.purpose, l.address, l.expires_at, l.used_at, l.session_id"


class Links:
    """Links inside a transaction; the user's row lock is held by whoever opens or uses one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def open(self, link: Link, *, at: datetime) -> None:
        await self._connection.execute(
            "INSERT INTO links (id, user_id, purpose, address, created_at, expires_at, session_id) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7)",
            link.id, link.user_id, link.purpose, link.address, at, link.expires_at, link.session_id,
        )  # fmt: skip

    async def newest_open(self, user_id: UUID, purpose: Purpose, address: str, *, at: datetime) -> Link | None:
        """The link of this purpose and address that is good the longest, if one is open."""
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM links l WHERE l.user_id = $1 AND l.purpose = $2 AND l.address = $3 "
            "AND l.used_at IS NULL AND l.expires_at > $4 ORDER BY l.expires_at DESC LIMIT 1",
            user_id, purpose, address, at,
        )  # fmt: skip
        return None if row is None else Link(**row)

    async def use(self, link_id: UUID, *, at: datetime) -> bool:
        """Use a link up; False when somebody did so first, or its time is past."""
        used = await self._connection.fetchval(
            "UPDATE links SET used_at = $2 WHERE id = $1 AND used_at IS NULL AND expires_at > $2 RETURNING true",
            link_id, at,
        )  # fmt: skip
        return bool(used)

    async def void(self, user_id: UUID, *purposes: Purpose, at: datetime) -> bool:
        """Use up every open link of a user that is for one of these purposes; were there any?"""
        done = await self._connection.execute(
            "UPDATE links SET used_at = $3 WHERE user_id = $1 AND purpose = ANY($2) AND used_at IS NULL",
            user_id, list(purposes), at,
        )  # fmt: skip
        return bool(done != "UPDATE 0")

    async def void_all_but(self, user_id: UUID, *kept: Purpose, at: datetime) -> None:
        """Use up every open link of a user, but for those purposes."""
        await self._connection.execute(
            "UPDATE links SET used_at = $3 WHERE user_id = $1 AND purpose <> ALL($2) AND used_at IS NULL",
            user_id, list(kept), at,
        )  # fmt: skip

    async def void_later_than(self, link: Link, *, at: datetime) -> None:
        """Use up every open link of the same purpose that was opened after this one."""
        await self._connection.execute(
            "UPDATE links SET used_at = $4 WHERE user_id = $1 AND purpose = $2 AND used_at IS NULL "
            "AND (created_at, id) > (SELECT created_at, id FROM links WHERE id = $3)",
            link.user_id, link.purpose, link.id, at,
        )  # fmt: skip

    async def void_not_me(self, user_id: UUID, *, at: datetime, but: UUID | None = None) -> None:
        """Use up what disowns a session, as a new password has done all that it could; but not what disowns the session
        that set this password: whoever else might have opened it must not shut its owner out."""
        await self._connection.execute(
            "UPDATE links SET used_at = $2 WHERE user_id = $1 AND purpose = 'not-me' AND used_at IS NULL "
            "AND session_id IS DISTINCT FROM $3",
            user_id, at, but,
        )  # fmt: skip


async def link_by_token(connection: Connection, token_hash: bytes, *purposes: Purpose) -> Link | None:
    """The link that a mail token opens for one of these purposes, used or not; None for an unknown one."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM link_tokens t JOIN links l ON l.id = t.link_id "
        "WHERE t.hash = $1 AND l.purpose = ANY($2)",
        token_hash, list(purposes),
    )  # fmt: skip
    return None if row is None else Link(**row)


async def link_by_id(connection: Connection, link_id: UUID) -> Link | None:
    """A link by the `tokenId` of its event."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM links l WHERE l.id = $1", link_id)
    return None if row is None else Link(**row)


async def add_link_token(connection: Connection, link_id: UUID, token_hash: bytes, *, at: datetime) -> None:
    """One more token that opens this link, which is about to be mailed: a mail that is sent twice carries two, and both
    are good. Of those that were mailed before, the oldest give way."""
    await connection.execute("INSERT INTO link_tokens (hash, link_id) VALUES ($1, $2)", token_hash, link_id)
    await connection.execute(_GIVE_WAY, link_id, MAILED_MAX, at)

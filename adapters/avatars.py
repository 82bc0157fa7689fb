"""Avatars in the database: how a profile keeps one, and the list of objects that no profile shows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from uuid import UUID

from adapters.postgres import Connection
from domain.avatar import Avatar
from domain.refusals import Stale

UNSHOWN_FOR = timedelta(minutes=15)
"""Longer than any request may take: what was put and is not shown by then never will be."""
CLAIMED_FOR = timedelta(minutes=5)


def avatar_json(avatar: Avatar | None) -> dict[str, object] | None:
    """As the column holds it."""
    return None if avatar is None else asdict(avatar)


def avatar_of(value: Mapping[str, object] | None) -> Avatar | None:
    """The column's value as an avatar."""
    return None if value is None else Avatar(**{**value, "id": UUID(str(value["id"]))})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Leftover:
    """The objects of an avatar that is shown no longer, or not yet."""

    avatar_id: UUID
    user_id: UUID
    sizes: Mapping[str, str]


_NOTE = """
INSERT INTO avatar_leftovers (avatar_id, user_id, sizes, due_at) VALUES ($1, $2, $3, now() + $4)
ON CONFLICT (avatar_id) DO NOTHING"""


async def note_before_put(connection: Connection, user_id: UUID, avatar: Avatar) -> None:
    """Before its objects are put: should nothing come of it, they are found again."""
    await connection.execute(_NOTE, avatar.id, user_id, dict(avatar.sizes), UNSHOWN_FOR)


async def note_replaced(connection: Connection, user_id: UUID, avatar: Avatar) -> None:
    """In the transaction that shows it no longer: its objects may go at once."""
    await connection.execute(_NOTE, avatar.id, user_id, dict(avatar.sizes), timedelta(0))


async def note_shown(connection: Connection, avatar: Avatar) -> None:
    """In the transaction that shows it; raises `Stale` when its objects are being removed already."""
    taken = await connection.fetchval(
        "DELETE FROM avatar_leftovers WHERE avatar_id = $1 AND NOT removing RETURNING avatar_id", avatar.id
    )
    if taken is None:
        raise Stale


_CLAIM = """
UPDATE avatar_leftovers SET removing = true, due_at = now() + $2 WHERE avatar_id IN (
    SELECT avatar_id FROM avatar_leftovers WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
) RETURNING avatar_id, user_id, sizes"""


async def claim_leftovers(connection: Connection, *, rows_max: int) -> Sequence[Leftover]:
    """Some that are due, for this process; whoever dies over them leaves them due again a little later."""
    return [Leftover(**row) for row in await connection.fetch(_CLAIM, rows_max, CLAIMED_FOR)]


async def forget_leftover(connection: Connection, avatar_id: UUID) -> None:
    """Its objects are gone."""
    await connection.execute("DELETE FROM avatar_leftovers WHERE avatar_id = $1", avatar_id)


async def shown_avatar(connection: Connection, user_id: UUID) -> Avatar | None:
    """What a user shows now."""
    return avatar_of(await connection.fetchval("SELECT avatar FROM user_profiles WHERE user_id = $1", user_id))

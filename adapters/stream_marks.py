"""What each stream was when it was last looked at, and how far its latest loss is made good."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from adapters.postgres import Connection
from adapters.stream_reader import StreamState
from domain.refusals import Stale

Loss = Literal["made anew", "older than it was", "lacks what was announced"]
LEASE = timedelta(seconds=15)
"""How long a stream is left to the process that looks at it; after a crash another goes on."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A stream as it was; `lost_what` is None unless a loss is being made good. `looked_at` names the lease: another
    process that takes the mark over gives it another, and what is written under this one is refused from then on."""

    stream: str
    looked_at: datetime
    created_at: datetime
    last_sequence: int
    message_id: str | None
    compared_to: int
    lost_what: Loss | None
    refilled_to: UUID | None

    def loss(self, now: StreamState, message_id: str | None) -> Loss | None:
        """What has happened to the stream since; `message_id` is of what stands at the mark now, if anything does."""
        if now.created_at != self.created_at:
            return "made anew"
        if now.last_sequence < self.last_sequence:
            return "older than it was"
        if message_id is not None and message_id != self.message_id:
            return "older than it was"
        return None

    def is_passed(self, now: StreamState) -> bool:
        """Is nothing there any more of what stood there at the mark? It was purged, or its users are erased, or it was
        too old."""
        return 0 < self.last_sequence < now.first_sequence


_LEASE = """
UPDATE stream_marks SET leased_until = now() + $2, looked_at = clock_timestamp()
WHERE stream = $1 AND leased_until < now()
RETURNING stream, looked_at, created_at, last_sequence, message_id, compared_to,
    CASE WHEN refilled_at IS NULL THEN lost_what END AS lost_what, refilled_to"""


async def lease_mark(connection: Connection, stream: str) -> Mark | None:
    """The mark of a stream that nobody looks at now, left to the caller for a while."""
    row = await connection.fetchrow(_LEASE, stream, LEASE)
    return None if row is None else Mark(**row)


async def _write(connection: Connection, mark: Mark, what: str, *values: object) -> int:
    """Change a mark that is still the caller's, else raise `Stale`; how much its latest loss has put back."""
    put_back: int | None = await connection.fetchval(
        f"UPDATE stream_marks SET {what} WHERE stream = $1 AND looked_at = $2 RETURNING put_back",
        mark.stream, mark.looked_at, *values,
    )  # fmt: skip
    if put_back is None:
        raise Stale
    return put_back


async def give_back_mark(connection: Connection, mark: Mark, *, rest: timedelta) -> None:
    """The round is over: after a rest whoever comes first may look."""
    await _write(connection, mark, "leased_until = now() + $3", rest)


async def is_marked(connection: Connection, stream: str) -> bool:
    """Has anybody ever looked at this stream?"""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM stream_marks WHERE stream = $1)", stream))


async def first_mark(
    connection: Connection, stream: str, state: StreamState, message_id: str | None, *, compared_to: int
) -> None:
    """Remember a stream that nobody has looked at before; it is taken for whole."""
    await connection.execute(
        "INSERT INTO stream_marks (stream, created_at, last_sequence, message_id, compared_to) "
        "VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        stream, state.created_at, state.last_sequence, message_id, compared_to,
    )  # fmt: skip


async def move_mark(
    connection: Connection, mark: Mark, state: StreamState, message_id: str | None, *, compared_to: int
) -> None:
    """Nothing is lost up to here."""
    await _write(
        connection, mark, "last_sequence = $3, message_id = $4, compared_to = greatest(compared_to, $5)",
        state.last_sequence, message_id, compared_to,
    )  # fmt: skip


async def note_loss(connection: Connection, mark: Mark, state: StreamState, message_id: str | None, what: Loss) -> None:
    """Open a loss: the stream as it is now is the one that is filled from the first user or letter on."""
    await _write(
        connection, mark,
        "created_at = $3, last_sequence = $4, message_id = $5, lost_at = now(), lost_what = $6, "
        "refilled_to = NULL, refilled_at = NULL, put_back = 0",
        state.created_at, state.last_sequence, message_id, what,
    )  # fmt: skip


async def note_refilled_to(connection: Connection, mark: Mark, to: UUID, put_back: int) -> None:
    """In the transaction of what was put back; the lease is renewed with it."""
    await _write(
        connection, mark, "refilled_to = $3, put_back = put_back + $4, leased_until = now() + $5", to, put_back, LEASE
    )


async def note_refilled(connection: Connection, mark: Mark) -> int:
    """The loss is made good: how much was put back."""
    return await _write(connection, mark, "refilled_at = now()")


@dataclass(frozen=True, slots=True)
class Watched:
    """What there is to say about a stream: when it was looked at, and its latest loss."""

    stream: str
    looked_s_ago: float
    lost_at: datetime | None
    lost_what: Loss | None
    put_back: int
    refilled_at: datetime | None

    @property
    def is_refilling(self) -> bool:
        return self.lost_at is not None and self.refilled_at is None


WATCHED = """
SELECT stream, extract(epoch FROM now() - looked_at)::float8 AS looked_s_ago, lost_at, lost_what, put_back, refilled_at
FROM stream_marks ORDER BY stream"""


async def watched_streams(connection: Connection) -> list[Watched]:
    """Every stream that is looked at."""
    return [Watched(**row) for row in await connection.fetch(WATCHED)]

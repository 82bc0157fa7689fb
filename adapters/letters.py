"""Dead letters as operators look at them: by cause, as a list, one whole; and closed or opened again."""

import base64
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from adapters.cursors import make_cursor, offset_of, pagination, time_and_id
from adapters.postgres import Connection
from adapters.totals import total_of
from contracts.dead_letters import (
    Cause,
    DiscardLetters,
    GroupLetters,
    Letter,
    LetterCounts,
    LetterFilter,
    LetterGroups,
    ListLetters,
    RestoreLetters,
    SomeLetters,
    WholeLetter,
)
from contracts.wire import Pagination

OTHERS_MAX = 20
_COLUMNS = (
    "d.id, d.group_name, d.event_id, d.n, d.user_id, d.event_type, d.version, d.reason, d.error, d.message, d.cause, "
    "d.state, d.state_at, d.deliveries, d.stream, d.stream_sequence, d.created_at"
)
_CONDITIONS = {
    "group": "d.group_name = ${}",
    "type": "d.event_type = ${}",
    "user_id": "d.user_id = ${}",
    "from_": "d.created_at >= ${}",
    "to": "d.created_at < ${}",
    "reason": "d.reason = ${}",
    "cause": "d.cause = ${}",
}


def matching(asked: LetterFilter, state: str) -> tuple[str, list[object]]:
    """`FROM … WHERE …` of the letters in a state that a filter, or a list of ids, names; with its values."""
    named = {name: value for name in _CONDITIONS if (value := getattr(asked, name)) is not None}
    conditions = [_CONDITIONS[name].format(number) for number, name in enumerate(named, start=2)]
    values: list[object] = [state, *named.values()]
    if isinstance(asked, SomeLetters) and asked.ids is not None:
        conditions.append("d.id = ANY($2)")
        values.append(asked.ids)
    return f"FROM dead_letters d WHERE {' AND '.join(['d.state = $1', *conditions])}", values


async def group_letters(connection: Connection, query: GroupLetters) -> LetterGroups:
    """Letters counted by what they died of, the most frequent cause first."""
    found, values = matching(query, query.state)
    rows = await connection.fetch(
        f"SELECT causes.*, l.id AS latest_id, l.group_name, l.event_type, l.reason, "
        f"l.error, l.shape FROM (SELECT d.cause, count(*) AS letters, count(DISTINCT d.user_id) AS users, "
        f"min(d.created_at) AS first_at, max(d.created_at) AS last_at {found} GROUP BY d.cause "
        f"ORDER BY letters DESC, last_at DESC LIMIT ${len(values) + 1}) AS causes, LATERAL ("
        "SELECT * FROM dead_letters l WHERE l.state = $1 AND l.cause = causes.cause AND l.created_at = causes.last_at "
        "LIMIT 1) AS l ORDER BY letters DESC, last_at DESC",
        *values,
        query.limit + 1,
    )
    counts: dict[str, int] = {row["state"]: row["letters"] for row in await connection.fetch(_COUNTS)}
    causes = [
        Cause(
            cause=row["cause"],
            group=row["group_name"],
            type=row["event_type"],
            reason=row["reason"],
            error=row["error"],
            text=row["shape"],
            letters=row["letters"],
            users=row["users"],
            first_at=row["first_at"],
            last_at=row["last_at"],
            latest_id=row["latest_id"],
        )
        for row in rows[: query.limit]
    ]
    return LetterGroups(
        causes=causes,
        more_causes=len(rows) > query.limit,
        counts=LetterCounts(
            dead=counts.get("dead", 0), held=counts.get("held", 0), discarded=counts.get("discarded", 0)
        ),
    )


_COUNTS = """
SELECT state, count(*) AS letters FROM dead_letters WHERE state IN ('dead', 'held', 'discarded') GROUP BY state"""


async def list_letters(connection: Connection, query: ListLetters) -> tuple[list[Letter], Pagination]:
    """A page of letters, newest first, by page number or by the cursor of the page before."""
    found, values = matching(query, query.state)
    after = time_and_id(query.cursor)
    n = len(values) + 1
    beyond = f"AND (d.created_at, d.id) < (${n}::timestamptz, ${n + 1}::uuid)" if after else ""
    n += len(after)
    # Planned for these very values: a cause may be one letter or all of them.
    statement = await connection.prepare(
        f"SELECT {_COLUMNS} {found} {beyond} ORDER BY d.created_at DESC, d.id DESC OFFSET ${n} LIMIT ${n + 1}", name=""
    )
    rows = await statement.fetch(*values, *after, offset_of(query), query.limit + 1)
    counted = await total_of(connection, query, found, values, rows_read=len(rows))
    shown, more = rows[: query.limit], len(rows) > query.limit
    cursor = make_cursor(shown[-1]["created_at"].isoformat(), shown[-1]["id"]) if more else None
    return [letter_of(row) for row in shown], pagination(query, counted=counted, next_cursor=cursor)


_WHOLE = f"""
SELECT {_COLUMNS}, d.state_by, d.state_why, d.subject, d.headers, d.body, d.attempts, e.traceparent,
    coalesce((SELECT jsonb_agg(jsonb_build_object('job_id', i.job_id, 'letter_id', i.letter_id, 'sent_at', i.sent_at,
        'outcome', i.outcome, 'ended_at', i.ended_at) ORDER BY i.sent_at DESC)
        FROM (SELECT i.* FROM dead_letters l JOIN replay_items i ON i.letter_id = l.id
            WHERE l.group_name = d.group_name AND l.event_id = d.event_id AND l.n <= d.n
            ORDER BY i.sent_at DESC NULLS FIRST LIMIT 100) AS i), '[]') AS replays
FROM dead_letters d LEFT JOIN events e ON e.id = d.event_id WHERE d.id = $1"""
_OTHERS = f"""
SELECT {_COLUMNS} FROM dead_letters d WHERE d.group_name = $1 AND d.event_id = $2 AND d.id <> $3
ORDER BY d.n DESC LIMIT {OTHERS_MAX}"""


async def whole_letter(connection: Connection, letter_id: UUID) -> WholeLetter | None:
    """One letter with its exact bytes, every attempt, and what was tried since."""
    row = await connection.fetchrow(_WHOLE, letter_id)
    if row is None:
        return None
    others = await connection.fetch(_OTHERS, row["group_name"], row["event_id"], letter_id)
    return WholeLetter.model_validate(
        {
            **_plain(row),
            "state_by": row["state_by"],
            "state_why": row["state_why"],
            "subject": row["subject"],
            "headers": row["headers"],
            "body_base64": base64.b64encode(row["body"]).decode(),
            "body_text": _as_text(row["body"]),
            "trace_id": _trace_id(row["traceparent"]),
            "attempts": row["attempts"],
            "replays": row["replays"],
            "others": [letter_of(other) for other in others],
        }
    )


async def oldest_and_newest(
    connection: Connection, asked: SomeLetters, *, letters_max: int | None, sample_max: int
) -> tuple[int, datetime | None, datetime | None, list[Letter]]:
    """What a replay would take: how many, the first and last time, and the first few."""
    found, values = matching(asked, "dead")
    oldest_first = f"{found} ORDER BY d.created_at, d.id LIMIT ${len(values) + 1}"
    count, oldest, newest = await connection.fetchrow(
        "SELECT count(*), min(created_at), max(created_at) "
        f"FROM (SELECT d.created_at {oldest_first}) AS taken", *values, letters_max,
    ) or (0, None, None)  # fmt: skip
    rows = await connection.fetch(f"SELECT {_COLUMNS} {oldest_first}", *values, min(sample_max, count))
    return count, oldest, newest, [letter_of(row) for row in rows]


async def discard_letters(connection: Connection, asked: DiscardLetters, *, by: UUID, at: datetime) -> int:
    """Close letters that wait; a replay that comes to one of them leaves it out. How many there were."""
    return await _change(connection, asked, "dead", "discarded", by=by, at=at)


async def restore_letters(connection: Connection, asked: RestoreLetters, *, by: UUID, at: datetime) -> int:
    """Open discarded letters again, unless their group has dealt with the event since. How many there were."""
    not_done = "AND NOT EXISTS (SELECT FROM inbox i WHERE i.group_name = d.group_name AND i.event_id = d.event_id)"
    return await _change(connection, asked, "discarded", "dead", not_done, by=by, at=at)


async def _change(
    connection: Connection, asked: DiscardLetters | RestoreLetters, state: str, to: str, but: str = "", *, by: UUID,
    at: datetime,
) -> int:  # fmt: skip
    """Of an erased user's letters no reason is kept."""
    found, values = matching(asked, state)
    if asked.dry_run:
        return int(await connection.fetchval(f"SELECT count(*) {found} {but}", *values))
    n = len(values) + 1
    done = await connection.execute(
        f"UPDATE dead_letters SET state = ${n}, state_at = ${n + 1}, state_by = ${n + 2}, "
        f"state_why = CASE WHEN body <> '' THEN ${n + 3} END WHERE id IN (SELECT d.id {found} {but} FOR UPDATE)",
        *values, to, at, by, asked.why,
    )  # fmt: skip
    return int(done.rpartition(" ")[2])


def letter_of(row: asyncpg.Record) -> Letter:
    """A row of the columns that every list reads."""
    return Letter.model_validate(_plain(row))


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    values = {name: row[name] for name in _PLAIN}
    return values | {"group": row["group_name"], "type": row["event_type"]}


_PLAIN = (
    "id", "event_id", "n", "user_id", "version", "reason", "error", "message", "cause", "state", "state_at",
    "deliveries", "stream", "stream_sequence", "created_at",
)  # fmt: skip


def _as_text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _trace_id(traceparent: str | None) -> str | None:
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) == 4 else None

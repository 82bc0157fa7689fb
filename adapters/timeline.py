"""What has become of events, read together from all tables that know of it."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from adapters.addresses import email_key
from adapters.event_log import request_id_of_event
from adapters.postgres import Connection
from contracts.timeline import GetTimeline, Step

_USER = "SELECT id FROM users WHERE email_key = $1 ORDER BY status = 'deleted' LIMIT 1"
_EVENTS = """
SELECT e.id, e.type, e.version, e.aggregate_id, e.occurred_at AS at, e.metadata ->> 'requestId' AS request_id,
    o.created_at IS NOT NULL AS unsent
FROM events e LEFT JOIN outbox o ON o.position = e.position
WHERE {} AND e.occurred_at < coalesce($2::timestamptz, 'infinity') ORDER BY e.position DESC LIMIT $3"""
_ACTS = """
SELECT action, success, user_id, actor_id, request_id, created_at AS at FROM audit_logs
WHERE {} AND event_id IS NULL AND created_at < coalesce($2::timestamptz, 'infinity')
ORDER BY created_at DESC LIMIT $3"""
_OF_MAIL = re.compile(r"<?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:\.[\w-]+@\S+)?$")
_OF_REQUEST = "e.metadata ->> 'requestId' = $1", "request_id = $1"
_OF_USER = "e.aggregate_id = $1", "user_id = $1"
_DONE = "SELECT event_id, group_name, outcome, done_at AS at FROM inbox WHERE event_id = ANY($1)"
_ATTEMPTS = """
SELECT event_id, group_name, attempt, error, message, at FROM delivery_attempts WHERE event_id = ANY($1)
ORDER BY at DESC LIMIT 1000"""
_LETTERS = """
SELECT id, event_id, group_name, reason, error, message, state, state_at, state_by, state_why, created_at AS at
FROM dead_letters
WHERE event_id = ANY($1) ORDER BY created_at DESC LIMIT 1000"""
_REPLAYS = """
SELECT i.event_id, i.group_name, i.outcome, i.letter_id, i.sent_at AS at FROM replay_items i
WHERE i.letter_id = ANY($1) AND i.sent_at IS NOT NULL ORDER BY i.sent_at DESC LIMIT 1000"""


async def timeline_of(
    connection: Connection, query: GetTimeline, groups: Sequence[str], *, pauses_s: Sequence[float], now: datetime
) -> tuple[list[Step], bool] | None:
    """The steps in order of time, and whether older ones are left; None for an address that is nobody's."""
    subject: UUID | str | None = query.user_id
    if query.request_id is not None:
        subject = await _request_of(connection, query.request_id)
    if query.email is not None:
        subject = await connection.fetchval(_USER, email_key(query.email))
    if subject is None:
        return None
    events_of, acts_of = _OF_REQUEST if query.request_id is not None else _OF_USER
    events = await connection.fetch(_EVENTS.format(events_of), subject, query.before, query.limit + 1)
    acts = await connection.fetch(_ACTS.format(acts_of), subject, query.before, query.limit + 1)
    found = [*((row, _event) for row in events), *((row, _act) for row in acts)]
    latest = sorted(found, key=lambda one: one[0]["at"], reverse=True)
    shown = latest[: query.limit]
    steps = [step_of(row) for row, step_of in shown]
    of_events = [row for row, step_of in shown if step_of is _event]
    steps += await _what_became_of(of_events, connection, groups, pauses_s, now)
    return sorted(steps, key=lambda step: (step.at, step.version or 0)), len(latest) > query.limit


async def _request_of(connection: Connection, named: str) -> str:
    """The request that an event came from, where the event or a mail of its is named; else what is named."""
    found = _OF_MAIL.match(named)
    return (found and await request_id_of_event(connection, UUID(found[1]))) or named


async def _what_became_of(
    events: Sequence[asyncpg.Record], connection: Connection, groups: Sequence[str], pauses_s: Sequence[float],
    now: datetime,
) -> list[Step]:  # fmt: skip
    by_id = {row["id"]: row for row in events}
    ids = list(by_id)
    done = await connection.fetch(_DONE, ids)
    attempts = await connection.fetch(_ATTEMPTS, ids)
    letters = await connection.fetch(_LETTERS, ids)
    replays = await connection.fetch(_REPLAYS, [row["id"] for row in letters])
    steps = [_of(by_id, row, "done", row["outcome"]) for row in done]
    steps += [
        _of(by_id, row, "failed", f"attempt {row['attempt']}: {row['error']}: {row['message']}") for row in attempts
    ]
    steps += [_of_letter(by_id, row) for row in letters]
    steps += [_change_of(by_id, row) for row in letters if row["state_by"] is not None]
    steps += [
        _of(by_id, row, "replayed", row["outcome"] or "on its way", letter_id=row["letter_id"]) for row in replays
    ]
    closed = {(row["event_id"], row["group_name"]) for row in (*done, *letters)}
    return [*steps, *_waiting(events, groups, closed, attempts, pauses_s, now)]


def _of_letter(by_id: dict[UUID, asyncpg.Record], row: asyncpg.Record) -> Step:
    if row["reason"] == "held":
        return _of(by_id, row, "held", row["message"], letter_id=row["id"])
    return _of(by_id, row, "dead", f"{row['reason']}: {row['error']}: {row['message']}", letter_id=row["id"])


def _change_of(by_id: dict[UUID, asyncpg.Record], row: asyncpg.Record) -> Step:
    """What an operator did to a letter last."""
    step = _of(by_id, row, "discarded" if row["state"] == "discarded" else "restored", row["state_why"] or "")
    return step.model_copy(update={"at": row["state_at"], "actor_id": row["state_by"], "letter_id": row["id"]})


def _waiting(
    events: Sequence[asyncpg.Record], groups: Sequence[str], closed: set[tuple[UUID, str]],
    attempts: Sequence[asyncpg.Record], pauses_s: Sequence[float], now: datetime,
) -> Iterator[Step]:  # fmt: skip
    """What is still to be done with each event, and why it is not done yet."""
    tried = {(row["event_id"], row["group_name"]): row for row in reversed(attempts)}
    for event in events:
        for group in groups:
            if (event["id"], group) in closed:
                continue
            last = tried.get((event["id"], group))
            why = "it is to be announced first" if event["unsent"] else "for the group, or in work there: no answer yet"
            if last is not None:
                number = last["attempt"]
                due = last["at"] + timedelta(seconds=pauses_s[min(number, len(pauses_s)) - 1]) if pauses_s else now
                when = f"again at {due:%H:%M:%S} UTC" if due > now else "in work again, or about to be"
                why = f"{when}, after attempt {number}: {last['error']}: {last['message']}"
            yield Step(
                at=now, kind="waiting", text=why, type=event["type"], event_id=event["id"], version=event["version"],
                group=group, user_id=event["aggregate_id"], request_id=event["request_id"],
            )  # fmt: skip


def _event(row: asyncpg.Record) -> Step:
    return Step(
        at=row["at"], kind="event", text=row["type"], type=row["type"], event_id=row["id"], version=row["version"],
        user_id=row["aggregate_id"], request_id=row["request_id"],
    )  # fmt: skip


def _act(row: asyncpg.Record) -> Step:
    return Step(
        at=row["at"], kind="act", text=row["action"], user_id=row["user_id"], actor_id=row["actor_id"],
        request_id=row["request_id"], success=row["success"],
    )  # fmt: skip


def _of(
    by_id: dict[UUID, asyncpg.Record], row: asyncpg.Record, kind: str, text: str, *, letter_id: UUID | None = None
) -> Step:
    event = by_id[row["event_id"]]
    return Step.model_validate(
        {
            "at": row["at"],
            "kind": kind,
            "text": text,
            "type": event["type"],
            "event_id": event["id"],
            "version": event["version"],
            "group": row["group_name"],
            "letter_id": letter_id,
            "user_id": event["aggregate_id"],
            "request_id": event["request_id"],
        }
    )

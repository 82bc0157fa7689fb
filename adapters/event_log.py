"""The event store and its outbox: appended in the transaction that changes the rows, read by relay and groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import structlog
import uuid_utils.compat as uuid_utils
from pydantic import JsonValue, TypeAdapter

from adapters.keys import CannotOpen
from adapters.personal_data import PersonalData
from adapters.postgres import Connection
from contracts.events import EVENTS, Event, Metadata, personal_fields
from domain.events import DomainEvent

log = structlog.get_logger()

_PERSONAL = {name: personal_fields(model) for name, model in EVENTS.items()}
_OBJECT = TypeAdapter(dict[str, JsonValue])


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """Where a change came from: goes into every event and audit row of its request."""

    request_id: str
    actor_id: UUID | None = None
    session_id: UUID | None = None
    locale: str = "en"
    traceparent: str | None = None
    ip: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it stands in the store, its personal part opened (or null, once its user is erased)."""

    event: Event
    position: int
    traceparent: str | None
    ip: str | None
    user_agent: str | None

    @property
    def body(self) -> bytes:
        """What goes out on the stream, byte for byte the same each time."""
        return self.event.model_dump_json(
            by_alias=True, exclude_none=False, exclude=_without_erased(self.event)
        ).encode()


def _without_erased(event: Event) -> set[str] | None:
    return {"erased"} if event.erased is None else None


APPEND = """
appended AS (
    INSERT INTO events (aggregate_id, occurred_at, metadata, traceparent, id, version, type, data, personal)
    SELECT $1, $2, $3, $4, row.*
    FROM unnest($5::uuid[], $6::integer[], $7::text[], $8::jsonb[], $9::text[])
        AS row (id, version, type, data, personal)
    WHERE EXISTS (SELECT FROM changed)
    ORDER BY 6
    RETURNING position, version
), waiting AS (
    INSERT INTO outbox (position, user_id, version) SELECT position, $1, version FROM appended
)
SELECT EXISTS (SELECT FROM changed)"""
"""The end of a statement that changes a user (`WITH changed AS (… RETURNING id), …`) and appends its events in the same
round trip. Its first nine values are those of `EventLog.values_of`; where nothing is changed nothing is appended."""


class EventLog:
    """Makes rows of events; they are appended by the statement that changes their user."""

    def __init__(self, personal: PersonalData, trail: Trail) -> None:
        self._personal = personal
        self._trail = trail

    def values_of(
        self, user_id: UUID, events: Sequence[DomainEvent], *, last_version: int, wrapped_key: str, at: datetime
    ) -> tuple[object, ...]:
        """The values of `APPEND`: the last event gets `last_version`; the user's row lock is held."""
        ids = [uuid_utils.uuid7() for _ in events]
        split = [self._split(event, id, wrapped_key) for event, id in zip(events, ids, strict=True)]
        trail = self._trail
        metadata = Metadata(
            request_id=trail.request_id, actor_id=trail.actor_id, session_id=trail.session_id, locale=trail.locale
        )
        return (
            user_id,
            at,
            metadata.model_dump(mode="json", by_alias=True),
            trail.traceparent,
            ids,
            list(range(last_version - len(events) + 1, last_version + 1)),
            [type(event).__name__ for event in events],
            [data for data, _ in split],
            [personal for _, personal in split],
        )

    def _split(self, event: DomainEvent, id: UUID, wrapped_key: str) -> tuple[dict[str, JsonValue], str]:
        """What may stand in plain, and the rest under the user's key, with where the request came from."""
        name = type(event).__name__
        model = EVENTS[name].model_validate(event, from_attributes=True)
        data = model.model_dump(mode="json", by_alias=True)
        hidden = {field: data.pop(field) for field in _PERSONAL[name]}
        personal = {"data": hidden, "ip": self._trail.ip, "userAgent": self._trail.user_agent}
        return data, self._personal.seal(wrapped_key, event.user_id, personal, place=_place(id))


_COLUMNS = """e.position, e.id, e.aggregate_id, e.version, e.type, e.occurred_at, e.data, e.personal, e.metadata,
    e.traceparent, k.wrapped FROM events e LEFT JOIN user_keys k ON k.user_id = e.aggregate_id"""
_GET = f"SELECT {_COLUMNS} WHERE e.id = ANY($1)"
_UNSENT = f"""
SELECT {_COLUMNS} JOIN outbox o ON o.position = e.position
WHERE o.user_id = ANY($1) ORDER BY e.aggregate_id, e.version LIMIT $2"""


Unreadable = CannotOpen | ValueError
"""Why an event that is there cannot be read: its key is missing here, or its row is of another shape."""


async def events_by_id(
    connection: Connection, personal: PersonalData, event_ids: Sequence[UUID]
) -> dict[UUID, StoredEvent | Unreadable]:
    """Events as they stand, without those whose id is none of ours."""
    return {row["id"]: _readable(row, personal) for row in await connection.fetch(_GET, event_ids)}


async def request_id_of_event(connection: Connection, event_id: UUID) -> str | None:
    """The request that an event came from; None where there is no such event."""
    found: str | None = await connection.fetchval("SELECT metadata ->> 'requestId' FROM events WHERE id = $1", event_id)
    return found


def _readable(row: asyncpg.Record, personal: PersonalData) -> StoredEvent | Unreadable:
    try:
        return _stored(row, personal)
    except (CannotOpen, ValueError) as error:
        return error


_OF_USER = f"SELECT {_COLUMNS} WHERE e.aggregate_id = $1 AND e.version < $2 ORDER BY e.version DESC LIMIT $3"


async def event_rows_of(
    connection: Connection, user_id: UUID, *, before_version: int, events_max: int
) -> list[asyncpg.Record]:
    """A user's events before one, the newest first, as they are stored; `opened` reads them."""
    return await connection.fetch(_OF_USER, user_id, before_version, events_max)


def opened(row: asyncpg.Record, personal: PersonalData) -> StoredEvent:
    """A row of `event_rows_of` with its personal part. Raises what `Unreadable` names."""
    return _stored(row, personal)


async def unsent_events(
    connection: Connection, personal: PersonalData, user_ids: Sequence[UUID], *, events_max: int
) -> tuple[list[StoredEvent], set[UUID]]:
    """What waits in the outbox for these users, each user's events by version; and the users with an event that cannot
    be read (its key is missing here), which holds up those behind it."""
    found: list[StoredEvent] = []
    stuck: set[UUID] = set()
    for row in await connection.fetch(_UNSENT, user_ids, events_max):
        if row["aggregate_id"] in stuck:
            continue
        read = _readable(row, personal)
        if isinstance(read, StoredEvent):
            found.append(read)
        else:
            stuck.add(row["aggregate_id"])
            log.error(
                "an event cannot be read",
                eventId=str(row["id"]),
                requestId=row["metadata"].get("requestId"),
                error=type(read).__name__,
            )
    return found, stuck


def opened_data(row: asyncpg.Record, personal: PersonalData) -> dict[str, JsonValue]:
    """An event's data with its personal part, null once erased. Raises what `Unreadable` names."""
    opened = personal.open(row["wrapped"], row["aggregate_id"], row["personal"], place=_place(row["id"]))
    hidden = opened.get("data", {}) if isinstance(opened, dict) else {}
    return dict(row["data"] | hidden)


def _stored(row: asyncpg.Record, personal: PersonalData) -> StoredEvent:
    user_id = row["aggregate_id"]
    opened = personal.open(row["wrapped"], user_id, row["personal"], place=_place(row["id"]))
    hidden = opened if isinstance(opened, dict) else {}
    erased = row["personal"] is not None and row["wrapped"] is None
    data: dict[str, JsonValue] = dict.fromkeys(sorted(_PERSONAL.get(row["type"], ()))) | hidden.get("data", {})
    event = Event(
        id=row["id"],
        type=row["type"],
        aggregate_id=user_id,
        version=row["version"],
        timestamp=row["occurred_at"],
        data=row["data"] | data,
        metadata=Metadata.model_validate(row["metadata"]),
        erased=True if erased else None,
    )
    return StoredEvent(event, row["position"], row["traceparent"], hidden.get("ip"), hidden.get("userAgent"))


def is_same(stored: StoredEvent, subject_user: str, subject_type: str, body: bytes) -> bool:
    """Is a delivered message the event it claims to be? Only a message that relay or replay published is."""
    event = stored.event
    if (subject_type, subject_user) != (event.type, str(event.aggregate_id)):
        return False
    if body == stored.body:
        return True
    try:
        said, known = _OBJECT.validate_json(body), _OBJECT.validate_json(stored.body)
    except ValueError:
        return False
    if event.erased:  # the message may be older than the erasure; what it still says is not used
        for part in (said, known):
            part.pop("data", None)
            part.pop("erased", None)
    return said.keys() == known.keys() and _agree(said, known)


def _agree(said: JsonValue, known: JsonValue) -> bool:
    """The same in all that both speak of: another release may know more fields of `data` or `metadata`, or fewer."""
    if isinstance(said, dict) and isinstance(known, dict):
        return all(_agree(said[name], known[name]) for name in said.keys() & known.keys())
    return said == known


def _place(event_id: UUID) -> str:
    return f"events.personal:{event_id}"

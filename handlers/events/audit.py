"""The group `audit`: every event becomes a row, once, with who, what, from where and the request's id."""

import re
from collections.abc import Sequence

from adapters.audit_log import AuditRow, add_audit_rows
from adapters.event_log import StoredEvent, Trail
from adapters.gathering import Gathering
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from contracts.events import EVENTS, personal_fields

_FAILURES = frozenset({"LoginFailed", "RefreshTokenReused"})
_HIDDEN = {name: personal_fields(model) for name, model in EVENTS.items()}


class Audit:
    """Writes the rows. One event makes one row, however often it is delivered: the row is unique by event id."""

    def __init__(self, database: Database, personal: PersonalData) -> None:
        self._database = database
        self._personal = personal
        self._add = Gathering(self._add_all)

    async def handle(self, stored: StoredEvent) -> str:
        """Write the event's row."""
        return await self._add(stored)

    async def _add_all(self, events: Sequence[StoredEvent]) -> Sequence[str]:
        async with self._database.connection() as connection:
            await add_audit_rows(connection, self._personal, [_row(stored) for stored in events])
        return ["audited"] * len(events)


def _row(stored: StoredEvent) -> tuple[Trail, AuditRow]:
    event = stored.event
    hidden = _HIDDEN.get(event.type, frozenset())
    trail = Trail(
        request_id=event.metadata.request_id,
        actor_id=event.metadata.actor_id or event.aggregate_id,
        session_id=event.metadata.session_id,
        ip=stored.ip,
        user_agent=stored.user_agent,
    )
    row = AuditRow(
        action=action_of(event.type),
        success=event.type not in _FAILURES,
        at=event.timestamp,
        user_id=event.aggregate_id,
        resource_id=str(event.aggregate_id),
        details={name: value for name, value in event.data.items() if name not in hidden},
        personal={name: value for name, value in event.data.items() if name in hidden and value is not None},
        event_id=event.id,
    )
    return trail, row


def action_of(event_type: str) -> str:
    """`UserRegistered` is `user_registered` in the log."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event_type).lower()

"""What has become of a user, a mail or a request, in order of time: `users.v1.admin.timeline.get`."""

from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator

from contracts.operations import Operation, Permission
from contracts.wire import Broken, Email, Moment, Page, Text, Timestamp, Wire

StepKind = Literal["act", "event", "done", "failed", "dead", "held", "replayed", "discarded", "restored", "waiting"]


class GetTimeline(Wire):
    """Read a timeline by a user's id or address, or by the id of a request, of one of its events, or of a mail."""

    user_id: UUID | None = None
    email: Email | None = None
    request_id: Annotated[Text, StringConstraints(min_length=1, max_length=256)] | None = Field(
        default=None, description="also an event's id or a mail's Message-ID: the request that it comes from"
    )
    before: Moment | None = Field(default=None, description="events and acts before that time")
    limit: Annotated[int, Field(ge=1, le=100, description="events and acts, the latest of them")] = 50

    @model_validator(mode="after")
    def _name_one(self) -> Self:
        if [self.user_id, self.email, self.request_id].count(None) != 2:
            raise Broken("name_one", "Name a user by id or by address, or a request; one of the three.")
        return self


class Step(Wire):
    """One step: `act` (an audit row that has no event), `event` (committed), or what a group has made of an event."""

    at: Timestamp
    kind: StepKind
    text: str
    type: str | None = Field(default=None, description="of the event")
    event_id: UUID | None = None
    version: int | None = None
    group: str | None = None
    letter_id: UUID | None = None
    user_id: UUID | None = None
    actor_id: UUID | None = Field(default=None, description="who did it: of acts, and of letters discarded or restored")
    request_id: str | None = None
    success: bool | None = None


class Timeline(Page[Step]):
    """Steps in order of time; what still waits stands last, at the time of the reply."""


OPERATIONS = (
    Operation(
        "users.v1.admin.timeline.get",
        GetTimeline,
        Timeline,
        "GET /admin/timeline",
        caller=Permission.AUDIT_READ,
        audits=("timeline_viewed",),
    ),
)

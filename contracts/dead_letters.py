"""What operators do with dead letters: `users.v1.admin.dead-letters.*`."""

from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, JsonValue, StringConstraints, model_validator

from contracts.operations import Operation, Permission
from contracts.wire import Broken, Cursor, Limit100, Moment, Page, PageNumber, Text, Timestamp, Wire

LetterState = Literal["dead", "held", "replayed", "failed_again", "discarded"]
Outcome = Literal["done", "failed_again", "already_handled", "discarded"]
JobState = Literal["running", "stopped", "cancelled", "done"]
LetterReason = Literal["attempts_exhausted", "mail_refused", "worker_died", "unauthentic", "held"]
Word = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
Reason = Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
IDS_MAX = 1000


class LetterFilter(Wire):
    """Which letters: what is given must all hold."""

    group: Literal["email", "audit", "cache"] | None = None
    type: Word | None = None
    user_id: UUID | None = None
    from_: Moment | None = Field(default=None, alias="from", description="written at that time or later")
    to: Moment | None = Field(default=None, description="written before that time")
    reason: LetterReason | None = None
    cause: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")] | None = Field(
        default=None, description="the fingerprint of a group of letters that died of the same"
    )


class GroupLetters(LetterFilter):
    """Count letters by what they died of, the most frequent first."""

    state: LetterState = "dead"
    limit: Limit100 = 50


class Cause(Wire):
    """Letters that died of the same: one group, one event type, one error, and one text but for what varies in it."""

    cause: str
    group: str
    type: str
    reason: str
    error: str
    text: str = Field(description="the error's text with * for what varies")
    letters: int
    users: int
    first_at: Timestamp
    last_at: Timestamp
    latest_id: UUID


class LetterCounts(Wire):
    dead: int
    held: int
    discarded: int


class LetterGroups(Wire):
    causes: list[Cause]
    more_causes: bool
    counts: LetterCounts = Field(description="over all letters, whatever the filter")


class ListLetters(LetterFilter):
    """Read letters, newest first."""

    state: LetterState = "dead"
    page: PageNumber | None = None
    cursor: Cursor | None = None
    limit: Limit100 = 20


class Letter(Wire):
    """A delivery that failed for good."""

    id: UUID
    group: str
    event_id: UUID
    n: int = Field(description="counts this event's letters in this group")
    user_id: UUID | None
    type: str
    version: int | None = Field(description="of the user, where the event is one of ours")
    reason: str
    error: str
    message: str
    cause: str
    state: LetterState
    state_at: Timestamp
    deliveries: int
    stream: str
    stream_sequence: int
    created_at: Timestamp


class LetterPage(Page[Letter]):
    pass


class GetLetter(Wire):
    """Read one letter whole, with what was tried before and after it."""

    letter_id: UUID


class Attempt(Wire):
    attempt: int
    error: str
    message: str
    trace: str
    at: Timestamp


class Replayed(Wire):
    """One time that a letter was handed to its group again."""

    job_id: UUID
    letter_id: UUID = Field(description="this one, or the one before it that failed again")
    sent_at: Timestamp | None
    outcome: Outcome | None
    ended_at: Timestamp | None


class WholeLetter(Letter):
    state_by: UUID | None = Field(description="who discarded or restored it last")
    state_why: str | None = Field(description="and why")
    subject: str
    headers: dict[str, str]
    body_base64: str = Field(description="the exact bytes; empty where the user's data are erased")
    body_text: str | None = Field(description="the same, where they are text")
    trace_id: str | None
    attempts: list[Attempt]
    replays: list[Replayed]
    others: list[Letter] = Field(description="this event's other letters in this group, the newest first")


class LetterShown(Wire):
    letter: WholeLetter


class SomeLetters(LetterFilter):
    """Letters by their ids, or all that a filter names; `all` where no filter is meant."""

    ids: list[UUID] | None = Field(default=None, min_length=1, max_length=IDS_MAX)
    all: bool = False

    @model_validator(mode="after")
    def _name_some(self) -> Self:
        filters = any(getattr(self, name) is not None for name in LetterFilter.model_fields)
        if (self.ids is not None) + filters + self.all != 1:
            raise Broken("name_some", "Name letters by ids, by filters, or by all; one of the three.")
        return self


class ReplayLetters(SomeLetters):
    """Hand letters to their group again: the oldest first, each user's events in their order."""

    dry_run: bool = Field(default=False, description="only say what would be replayed")
    rate: Annotated[float, Field(gt=0, le=1000, description="letters a second")] = 50
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(default=None, description="of the oldest so many")
    at_once: bool = Field(
        default=False, description="not first one, then ten, then all the others, each if the one before went well"
    )
    why: Reason | None = Field(default=None, description="for the audit log")


class ReplayBegun(Wire):
    """`job_id` is null after a dry run, and where nothing matched."""

    job_id: UUID | None
    matched: int
    oldest: Timestamp | None
    newest: Timestamp | None
    sample: list[Letter]


class ListJobs(Wire):
    """Read replays, newest first."""

    page: PageNumber | None = None
    cursor: Cursor | None = None
    limit: Limit100 = 20


class Job(Wire):
    """A replay: letters that were fixed when it began, and how far it has come."""

    id: UUID
    created_by: UUID
    asked: dict[str, JsonValue]
    rate: float
    state: JobState
    why: str | None = Field(description="it stopped")
    total: int
    waiting: int
    sent: int = Field(description="handed to the group, which has not answered yet")
    done: int
    failed_again: int
    already_handled: int
    discarded: int
    created_at: Timestamp
    ended_at: Timestamp | None


class JobPage(Page[Job]):
    pass


class GetJob(Wire):
    """Read a replay with the outcome of each of its letters, in the order of their turns."""

    job_id: UUID
    outcome: Outcome | Literal["waiting"] | None = None
    after: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=0, description="the `place` of the last letter read before"
    )
    limit: Limit100 = 100


class JobItem(Wire):
    place: int
    letter_id: UUID | None = Field(description="null for an event without a letter, of a replay of history")
    event_id: UUID
    user_id: UUID | None
    sent_at: Timestamp | None
    outcome: Outcome | None
    ended_at: Timestamp | None


class JobShown(Wire):
    job: Job
    items: list[JobItem]
    more: bool


class CancelJob(Wire):
    """Send no more letters of a replay; what was sent comes to its end."""

    job_id: UUID


class ResumeJob(Wire):
    """Go on with a replay that stopped or was cancelled, with what is left of it."""

    job_id: UUID


class JobChanged(Wire):
    job: Job


class DiscardLetters(SomeLetters):
    """Close letters without a replay; they can be restored for 90 days."""

    why: Reason
    dry_run: bool = Field(default=False, description="only say how many would be closed")


class RestoreLetters(SomeLetters):
    """Open discarded letters again."""

    why: Reason
    dry_run: bool = Field(default=False, description="only say how many would be open again")


class Discarded(Wire):
    count: int


class Restored(Wire):
    count: int


def _row(name: str, request: type[Wire], reply: type[Wire], route: str, caller: Permission, audits: str) -> Operation:
    writes = caller is not Permission.DEAD_LETTERS_READ and not audits.endswith(("listed", "viewed"))
    return Operation(
        f"users.v1.admin.dead-letters.{name}", request, reply, route, caller=caller, writes=writes, audits=(audits,)
    )


_READ, _REPLAY, _DISCARD = (
    Permission.DEAD_LETTERS_READ,
    Permission.DEAD_LETTERS_REPLAY,
    Permission.DEAD_LETTERS_DISCARD,
)
OPERATIONS = (
    _row("groups", GroupLetters, LetterGroups, "GET /admin/dead-letters/causes", _READ, "dead_letters_listed"),
    _row("list", ListLetters, LetterPage, "GET /admin/dead-letters", _READ, "dead_letters_listed"),
    _row("get", GetLetter, LetterShown, "GET /admin/dead-letters/:id", _READ, "dead_letter_viewed"),
    _row("replay", ReplayLetters, ReplayBegun, "POST /admin/dead-letters/replay", _REPLAY, "dead_letters_replayed"),
    _row("jobs.list", ListJobs, JobPage, "GET /admin/dead-letters/jobs", _REPLAY, "replays_listed"),
    _row("jobs.get", GetJob, JobShown, "GET /admin/dead-letters/jobs/:id", _REPLAY, "replay_viewed"),
    _row("jobs.cancel", CancelJob, JobChanged, "POST /admin/dead-letters/jobs/:id/cancel", _REPLAY, "replay_cancelled"),
    _row("jobs.resume", ResumeJob, JobChanged, "POST /admin/dead-letters/jobs/:id/resume", _REPLAY, "replay_resumed"),
    _row("discard", DiscardLetters, Discarded, "DELETE /admin/dead-letters", _DISCARD, "dead_letters_discarded"),
    _row("restore", RestoreLetters, Restored, "POST /admin/dead-letters/restore", _DISCARD, "dead_letters_restored"),
)

"""Sessions and refresh-token families: when a token may be spent, given again, or ends its family.

RFC 9700 section 4.14.2: a refresh token is spent when used, and a second use ends the family. A short grace for the
direct predecessor lets two tabs race and a lost reply be asked for again without signing anybody out.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from uuid import UUID

from domain.permissions import Role
from domain.user import Status


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things live; a family never outlives `family`, however often it is refreshed."""

    access: timedelta = timedelta(minutes=15)
    refresh: timedelta = timedelta(days=7)
    refresh_remembered: timedelta = timedelta(days=30)
    family: timedelta = timedelta(days=90)
    idle: timedelta = timedelta(days=14)
    grace: timedelta = timedelta(seconds=10)
    device: timedelta = timedelta(days=180)
    challenge: timedelta = timedelta(minutes=5)
    verification_link: timedelta = timedelta(hours=24)
    email_change_link: timedelta = timedelta(hours=24)
    invitation_link: timedelta = timedelta(days=7)
    reset_link: timedelta = timedelta(hours=1)
    unlock_link: timedelta = timedelta(hours=24)
    not_me_link: timedelta = timedelta(days=7)
    cancel_link: timedelta = timedelta(days=7)
    unverified_account: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Session:
    """A family: one sign-in on one device, from login to its end."""

    id: UUID
    user_id: UUID
    remember_me: bool
    auth_time: datetime
    amr: tuple[str, ...]
    created_at: datetime
    last_active_at: datetime
    expires_at: datetime
    ended_at: datetime | None

    def is_live(self, at: datetime, lifetimes: Lifetimes) -> bool:
        return (
            self.ended_at is None
            and at < self.expires_at
            and at < self.created_at + lifetimes.family
            and at < self.last_active_at + lifetimes.idle
        )

    def refresh_lifetime(self, at: datetime, lifetimes: Lifetimes) -> timedelta:
        """How long the next refresh token lives: never past the family's end."""
        wanted = lifetimes.refresh_remembered if self.remember_me else lifetimes.refresh
        return min(wanted, self.created_at + lifetimes.family - at)

    def proven_again(self, at: datetime, *, second_factor: bool) -> "Session":
        """The same session after a new proof of who its bearer is; a second factor that was once shown stays shown."""
        amr = self.amr if "otp" in self.amr or not second_factor else (*self.amr, "otp")
        return replace(self, auth_time=at, amr=amr)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token's row; `successor_used` tells whether the token it was spent for was spent as well."""

    session_id: UUID
    used_at: datetime | None
    expires_at: datetime
    successor_used: bool | None
    used_by: str | None


class Use(Enum):
    """What comes of a presented refresh token."""

    SPEND = "spend"
    GIVE_AGAIN = "give again"
    END_FAMILY = "end the family"
    REFUSE = "refuse"


def judge(token: RefreshToken, session: Session, *, device: str, at: datetime, lifetimes: Lifetimes) -> Use:
    """Decide under the session's lock. `device` is a fingerprint of the Device-Token, else of the User-Agent; `at` is
    told by the clock that told when the token was spent."""
    if not session.is_live(at, lifetimes):
        return Use.REFUSE
    if token.used_at is None:
        return Use.SPEND if at < token.expires_at else Use.REFUSE
    in_grace = at < token.used_at + lifetimes.grace and token.successor_used is False and token.used_by == device
    return Use.GIVE_AGAIN if in_grace else Use.END_FAMILY


@dataclass(frozen=True, slots=True)
class Standing:
    """What counts about a caller now, whatever the token says: the rows of user and session."""

    user_id: UUID
    session_id: UUID
    email: str
    role: Role
    status: Status
    version: int
    amr: tuple[str, ...]
    """How the session was proven: `pwd`, and `otp` where a second factor was shown (RFC 8176)."""
    auth_time: datetime
    session_ended: bool
    last_active_at: datetime
    expires_at: datetime
    """When the session is over if nothing more is heard of it, be it by its tokens, its idle time or its family."""

    @property
    def has_second_factor(self) -> bool:
        return "otp" in self.amr

    def is_older_than(self, auth_time: datetime, *, has_second_factor: bool) -> bool:
        """Does a token tell of a later proof than was known of when this was read? It tells times in whole seconds."""
        return self.auth_time.replace(microsecond=0) < auth_time or (has_second_factor and not self.has_second_factor)

    def is_live(self, at: datetime) -> bool:
        return self.status == "active" and not self.session_ended and at < self.expires_at

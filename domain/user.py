"""The `User` aggregate: its state, its decisions, and the events they leave."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NewType
from uuid import UUID

from domain.avatar import Avatar
from domain.events import (
    AccountLocked,
    AccountUnlocked,
    AvatarUpdated,
    BackupCodesRegenerated,
    BackupCodeUsed,
    DataExported,
    DomainEvent,
    EmailChangeCancelled,
    EmailChanged,
    EmailChangeRequested,
    EmailVerificationRequested,
    EmailVerified,
    LoginFailed,
    PasswordChanged,
    PasswordReset,
    PasswordResetRequested,
    PasswordResetRequired,
    ProfileUpdated,
    RefreshTokenReused,
    RegistrationRepeated,
    SessionRevoked,
    TwoFactorDisabled,
    TwoFactorEnabled,
    UserDeleted,
    UserInvited,
    UserLoggedOut,
    UserLogin,
    UserRegistered,
    UserRoleChanged,
    UserStatusChanged,
)
from domain.permissions import Role
from domain.refusals import (
    AccountSuspended,
    EmailNotVerified,
    NotFound,
    PasswordDisowned,
    PasswordExpired,
    Stale,
    StateConflict,
)

UserId = NewType("UserId", UUID)
Status = Literal["active", "suspended", "deleted"]


@dataclass(slots=True, kw_only=True)
class Profile:
    """What a user shows of themselves, and how they want to be spoken to; `language` None is "not set yet"."""

    display_name: str | None = None
    bio: str | None = None
    website: str | None = None
    location: str | None = None
    timezone: str = "UTC"
    language: str | None = None
    theme: str = "light"
    notifications: dict[str, bool] = field(default_factory=lambda: {"email": True, "push": True, "sms": False})
    social_links: list[str] = field(default_factory=list)
    avatar: Avatar | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The end user's address and client, as the gateway saw them."""

    ip: str | None
    user_agent: str | None
    device_info: dict[str, str]


NAME_FIELDS = frozenset({"first_name", "last_name"})
LOGOUT = "logout"
"""Why a session ends that its bearer leaves."""


@dataclass(slots=True, kw_only=True)
class User:
    """An account under its row's lock: methods decide and record; the repository writes both at once."""

    id: UserId
    email: str
    first_name: str
    last_name: str
    password_hash: str
    role: Role = "user"
    status: Status = "active"
    email_verified: bool = False
    two_factor_enabled: bool = False
    failed_logins: int = 0
    account_locked: bool = False
    lockout_until: datetime | None = None
    last_login_at: datetime | None = None
    last_password_change: datetime
    password_reset_required: bool = False
    deleted_at: datetime | None = None
    revision: int = 1
    version: int = 0
    created_at: datetime
    updated_at: datetime
    profile: Profile = field(default_factory=Profile)
    recorded: list[DomainEvent] = field(default_factory=list)

    @classmethod
    def register(
        cls, id: UserId, *, email: str, first_name: str, last_name: str, password_hash: str, at: datetime, origin: str
    ) -> "User":
        """A new account, its address not verified."""
        user = cls(
            id=id,
            email=email,
            first_name=first_name,
            last_name=last_name,
            password_hash=password_hash,
            last_password_change=at,
            created_at=at,
            updated_at=at,
        )
        user._record(
            UserRegistered(user_id=id, email=email, first_name=first_name, last_name=last_name, origin=origin), at
        )
        return user

    def registration_repeated(self, *, at: datetime) -> None:
        """Somebody tried to register with this address; only its owner is told."""
        self._record(RegistrationRepeated(user_id=self.id, email=self.email), at)

    def request_verification(
        self, *, token_id: UUID, not_me_token_id: UUID, expires_at: datetime, reason: str, at: datetime
    ) -> None:
        self._record(
            EmailVerificationRequested(
                user_id=self.id,
                email=self.email,
                token_id=token_id,
                not_me_token_id=not_me_token_id,
                expires_at=expires_at,
                reason=reason,
            ),
            at,
        )

    def invite(self, *, token_id: UUID, expires_at: datetime, at: datetime) -> None:
        """Ask the owner of the address, by its mailbox alone, to set a password."""
        self._record(UserInvited(user_id=self.id, email=self.email, token_id=token_id, expires_at=expires_at), at)

    def verify_email(self, *, reason: str, at: datetime) -> None:
        """The owner of the address has shown themselves."""
        if self.status == "deleted":
            raise NotFound()
        if not self.email_verified:
            self.email_verified = True
            self._record(EmailVerified(user_id=self.id, email=self.email, reason=reason), at)

    def require_may_change_email(self) -> None:
        """Raises `EmailNotVerified`: only who has shown that an address is theirs may leave it for another."""
        if not self.email_verified:
            raise EmailNotVerified()

    def request_email_change(
        self, new_email: str, *, token_id: UUID, cancel_token_id: UUID, expires_at: datetime, at: datetime
    ) -> None:
        self.require_may_change_email()
        self._record(
            EmailChangeRequested(
                user_id=self.id,
                new_email=new_email,
                token_id=token_id,
                cancel_token_id=cancel_token_id,
                expires_at=expires_at,
            ),
            at,
        )

    def change_email(self, email: str, *, at: datetime) -> None:
        """The owner of the new address has shown themselves: it counts from here."""
        previous, self.email = self.email, email
        self._record(EmailChanged(user_id=self.id, email=email, previous_email=previous), at)

    def cancel_email_change(self, email: str, *, at: datetime) -> None:
        """The owner of the old address wants no change: that address counts from here, as it did or again."""
        self.email = email
        self._record(EmailChangeCancelled(user_id=self.id, email=email), at)

    def delete(self, *, by: str, at: datetime) -> None:
        """The end of the account; its data is erased later. Its sessions are ended before."""
        self.status = "deleted"
        self.deleted_at = at
        self._record(UserDeleted(user_id=self.id, by=by), at)

    def data_exported(self, *, at: datetime) -> None:
        self._record(DataExported(user_id=self.id), at)

    def require_password_hash(self, seen: str) -> None:
        """What was verified outside the lock must still be the password; else the use case runs again."""
        if self.password_hash != seen:
            raise Stale()

    def refuse_password(self, *, origin: Origin, at: datetime) -> None:
        """Count a wrong password; every doubling of the count is an event, so that guessing cannot flood the stream."""
        self.failed_logins += 1
        if self.failed_logins.bit_count() == 1:
            self._record(
                LoginFailed(
                    user_id=self.id,
                    ip=origin.ip,
                    user_agent=origin.user_agent,
                    reason="wrong_password",
                    failures=self.failed_logins,
                ),
                at,
            )

    def refuse_code(self, *, wrong_codes: int, mailed: int, origin: Origin, at: datetime) -> None:
        """Count a wrong second-factor code beside the wrong passwords; the owner is told of so many in a row."""
        self.failed_logins += 1
        if self.failed_logins.bit_count() == 1 or wrong_codes == mailed:
            self._record(
                LoginFailed(
                    user_id=self.id,
                    ip=origin.ip,
                    user_agent=origin.user_agent,
                    reason="wrong_second_factor",
                    failures=self.failed_logins,
                    wrong_codes=wrong_codes,
                ),
                at,
            )

    def is_locked(self, at: datetime) -> bool:
        """Do only known devices get in? A lock ends by itself."""
        return self.account_locked and self.lockout_until is not None and at < self.lockout_until

    def lock(self, *, until: datetime, token_id: UUID, expires_at: datetime, at: datetime) -> None:
        """Too many wrong passwords from everywhere: whoever comes from no known device must wait, or use the link."""
        self.account_locked, self.lockout_until = True, until
        self._record(AccountLocked(user_id=self.id, until=until, token_id=token_id, expires_at=expires_at), at)

    def unlock(self, *, reason: str, at: datetime) -> None:
        """Take the lock off, and forget the failures in a row; nothing to tell where there was no lock."""
        self.failed_logins = 0
        if self.account_locked:
            self.account_locked, self.lockout_until = False, None
            self._record(AccountUnlocked(user_id=self.id, reason=reason), at)

    def require_may_sign_in(self, *, verified_email_required: bool) -> None:
        """What only the holder of the right password is told."""
        if self.status == "suspended":
            raise AccountSuspended()
        if verified_email_required and not self.email_verified:
            raise EmailNotVerified()

    def is_new(self, *, known_device: bool) -> bool:
        """Is a device one to be told of? The first sign-in of all is not."""
        return not known_device and self.last_login_at is not None

    def sign_in(
        self,
        *,
        session_id: UUID,
        method: str,
        known_device: bool,
        token_id: UUID | None = None,
        origin: Origin,
        at: datetime,
    ) -> None:
        """Open a session; `token_id` names the link by which it can be disowned."""
        new_device = self.is_new(known_device=known_device)
        self.failed_logins = 0
        if not self.is_locked(at):  # a lock that stands is kept for those who come from elsewhere
            self.account_locked, self.lockout_until = False, None
        self.last_login_at = at
        self._record(
            UserLogin(
                user_id=self.id,
                ip=origin.ip,
                user_agent=origin.user_agent,
                timestamp=at,
                session_id=session_id,
                method=method,
                new_device=new_device,
                device_info=origin.device_info,
                token_id=token_id,
            ),
            at,
        )

    def require_current_password(self, age_max: timedelta | None, *, at: datetime) -> None:
        """What is told only after every factor was right: raises `PasswordDisowned` or `PasswordExpired`."""
        if self.password_reset_required:
            raise PasswordDisowned()
        if age_max is not None and at >= self.last_password_change + age_max:
            raise PasswordExpired()

    def change_password(self, password_hash: str, *, at: datetime) -> None:
        """Raises `PasswordDisowned` for one that somebody else may know: only the mailbox proves its owner."""
        if self.password_reset_required:
            raise PasswordDisowned()
        self._renew_password(password_hash, at)
        self._record(PasswordChanged(user_id=self.id), at)

    def reset_password(self, password_hash: str, *, at: datetime) -> None:
        """Whoever holds the mail's link owns the address: it is verified, and nothing stands in their way any more."""
        self._renew_password(password_hash, at)
        self._record(PasswordReset(user_id=self.id), at)
        self.unlock(reason="password_reset", at=at)
        self.verify_email(reason="reset", at=at)

    def _renew_password(self, password_hash: str, at: datetime) -> None:
        self.password_hash = password_hash
        self.last_password_change = at
        self.password_reset_required = False
        self.failed_logins = 0

    def request_password_reset(self, *, token_id: UUID, expires_at: datetime, at: datetime) -> None:
        self._record(PasswordResetRequested(user_id=self.id, token_id=token_id, expires_at=expires_at), at)

    def disown_password(self, *, reason: str, at: datetime) -> None:
        """Somebody else may know the password: nobody signs in with it before it is reset."""
        if not self.password_reset_required:
            self.password_reset_required = True
            self._record(PasswordResetRequired(user_id=self.id, reason=reason), at)

    def require_may_enable_two_factor(self) -> None:
        """Raises `StateConflict` where it is on already, `EmailNotVerified` before the address is."""
        if self.two_factor_enabled:
            raise StateConflict()
        if not self.email_verified:
            raise EmailNotVerified()

    def enable_two_factor(self, *, by: str, at: datetime) -> None:
        self.require_may_enable_two_factor()
        self.two_factor_enabled = True
        self._record(TwoFactorEnabled(user_id=self.id, by=by), at)

    def require_two_factor(self) -> None:
        """Raises `StateConflict` where it is off."""
        if not self.two_factor_enabled:
            raise StateConflict()

    def disable_two_factor(self, *, by: str, at: datetime) -> None:
        """From here the password alone is enough; raises `StateConflict` where it is off already."""
        self.require_two_factor()
        self.two_factor_enabled = False
        self._record(TwoFactorDisabled(user_id=self.id, by=by), at)

    def regenerate_backup_codes(self, *, at: datetime) -> None:
        self.require_two_factor()
        self._record(BackupCodesRegenerated(user_id=self.id), at)

    def use_backup_code(self, *, remaining: int, at: datetime) -> None:
        self._record(BackupCodeUsed(user_id=self.id, remaining=remaining), at)

    def session_ended(self, session_id: UUID, *, reason: str, at: datetime) -> None:
        """A session has ended early: its bearer left it, or it was taken away."""
        if reason == LOGOUT:
            self._record(UserLoggedOut(user_id=self.id, session_id=session_id), at)
        else:
            self._record(SessionRevoked(user_id=self.id, session_id=session_id, reason=reason), at)

    def refresh_token_reused(
        self, session_id: UUID, *, token_id: UUID, expires_at: datetime, origin: Origin, at: datetime
    ) -> None:
        self._record(
            RefreshTokenReused(
                user_id=self.id,
                session_id=session_id,
                ip=origin.ip,
                user_agent=origin.user_agent,
                token_id=token_id,
                expires_at=expires_at,
            ),
            at,
        )

    def change(self, changes: dict[str, object], *, expected_revision: int | None, at: datetime) -> None:
        """Change names and profile fields (names of this module); what stays the same is no change and no event.

        Raises `StateConflict` for a revision other than the caller expected.
        """
        if expected_revision is not None and expected_revision != self.revision:
            raise StateConflict()
        changed: dict[str, object] = {}
        for name, value in changes.items():
            target = self if name in NAME_FIELDS else self.profile
            wanted = self.profile.notifications | value if isinstance(value, dict) else value
            if getattr(target, name) != wanted:
                setattr(target, name, wanted)
                changed[name] = wanted
        if changed:
            self.revision += 1
            self._record(ProfileUpdated(user_id=self.id, changed=changed, revision=self.revision), at)

    def change_status(self, status: Status, *, reason: str, at: datetime) -> None:
        if status != self.status:
            self._record(UserStatusChanged(user_id=self.id, from_=self.status, to=status, reason=reason), at)
            self.status = status

    def change_avatar(self, avatar: Avatar | None, *, at: datetime) -> Avatar | None:
        """Show another picture, or none; returns the one that is shown no longer. No revision: a form of the other
        fields that is open meanwhile is not out of date."""
        before = self.profile.avatar
        if avatar != before:
            self.profile.avatar = avatar
            self._record(AvatarUpdated(user_id=self.id, avatar=avatar), at)
        return before

    def change_role(self, role: Role, *, reason: str, at: datetime) -> None:
        if role != self.role:
            self._record(UserRoleChanged(user_id=self.id, from_=self.role, to=role, reason=reason), at)
            self.role = role

    def _record(self, event: DomainEvent, at: datetime) -> None:
        self.version += 1
        self.updated_at = at
        self.recorded.append(event)

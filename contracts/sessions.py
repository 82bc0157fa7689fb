"""The caller's sessions: `users.v1.me.sessions.*`, and the proof that makes one fresh."""

from uuid import UUID

from contracts.operations import Caller, Operation
from contracts.users import Session, Tokens
from contracts.wire import Code, Empty, Page, Secret, Token, Wire


class ListSessions(Wire):
    """Read where the caller is signed in, newest first; all on one page."""


class SessionPage(Page[Session]):
    pass


class RevokeSession(Wire):
    """End one of the caller's sessions."""

    session_id: UUID


class RevokeOtherSessions(Wire):
    """End every session of the caller but this one, or this one too."""

    include_current: bool = False


class SessionsRevoked(Wire):
    """How many were ended."""

    revoked: int


class Reauthenticate(Wire):
    """Prove once more who the caller is: the same session, with a new time of authentication."""

    password: Secret
    code: Code | None = None
    backup_code: Code | None = None


class Reauthenticated(Wire):
    tokens: Tokens


class DisownSession(Wire):
    """Say by the link of a mail that it was somebody else: their session ends, and the password must be reset. By that
    of a verification mail: the account that somebody opened with this address goes."""

    token: Token


OPERATIONS = (
    Operation(
        "users.v1.auth.not-me",
        DisownSession,
        Empty,
        "POST /auth/not-me",
        writes=True,
        emits=("SessionRevoked", "PasswordResetRequired", "UserDeleted"),
        audits=("session_disowned",),
    ),
    Operation(
        "users.v1.me.reauthenticate",
        Reauthenticate,
        Reauthenticated,
        "POST /users/me/reauthenticate",
        caller=Caller.SIGNED_IN,
        writes=True,
        holds_secrets=True,
        emits=("LoginFailed", "AccountLocked", "BackupCodeUsed"),
        audits=("reauthenticated", "login_refused", "two_factor_refused"),
    ),
    Operation(
        "users.v1.me.sessions.list", ListSessions, SessionPage, "GET /users/me/sessions", caller=Caller.SIGNED_IN
    ),
    Operation(
        "users.v1.me.sessions.revoke",
        RevokeSession,
        Empty,
        "DELETE /users/me/sessions/:id",
        caller=Caller.SIGNED_IN,
        writes=True,
        emits=("SessionRevoked",),
    ),
    Operation(
        "users.v1.me.sessions.revoke-others",
        RevokeOtherSessions,
        SessionsRevoked,
        "DELETE /users/me/sessions",
        caller=Caller.SIGNED_IN,
        writes=True,
        emits=("SessionRevoked",),
    ),
)

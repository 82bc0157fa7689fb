"""The rows of users and their profiles: locked for writing, shown for reading."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from adapters.addresses import email_key
from adapters.avatars import avatar_json, avatar_of
from adapters.event_log import APPEND, EventLog
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from adapters.sessions import OPEN, NewSession
from contracts.admin import Security
from contracts.users import Profile as ProfileView
from contracts.users import User as UserView
from domain.refusals import EmailTaken, Stale
from domain.user import Profile, User, UserId

Row = asyncpg.Record

_USER = """u.id, u.email, u.password_hash, u.first_name, u.last_name, u.role, u.status, u.email_verified,
    u.two_factor_enabled, u.failed_login_attempts, u.account_locked, u.lockout_until, u.last_login_at,
    u.last_password_change, u.password_reset_required, u.deleted_at, u.revision, u.version, u.created_at,
    u.updated_at"""
_PROFILE = """p.display_name, p.bio, p.website_url, p.location, p.timezone, p.language, p.theme, p.notifications_email,
    p.notifications_push, p.notifications_sms, p.social_links, p.avatar,
    p.updated_at AS profile_updated_at"""
_FROM = "FROM users u JOIN user_profiles p ON p.user_id = u.id"
# Both rows are locked: a row that only joins would be read as it was before the wait.
_LOCK = f"""
SELECT {_USER}, {_PROFILE}, k.wrapped {_FROM} JOIN user_keys k ON k.user_id = u.id
WHERE u.id = $1 AND u.status <> 'deleted' FOR UPDATE OF u, p"""
# A taken address adds nothing at all, no event either; one that is kept for whoever has left it is taken.
_ADD = f"""
WITH changed AS (
    INSERT INTO users (id, email, email_key, password_hash, first_name, last_name, role, status, email_verified,
        last_password_change, revision, version, created_at, updated_at)
    SELECT $1, $10, $11, $12, $13, $14, $15, 'active', $16, $17, $18, $19, $2, $2
    WHERE NOT EXISTS (SELECT FROM email_reservations r WHERE r.email_key = $11 AND r.until > $2)
    ON CONFLICT (email_key) DO NOTHING RETURNING id
), profile AS (
    INSERT INTO user_profiles (user_id, created_at, updated_at) SELECT id, $2, $2 FROM changed
), head AS (
    INSERT INTO relay_heads (user_id) SELECT id FROM changed
), key AS (
    INSERT INTO user_keys (user_id, wrapped) SELECT id, $20 FROM changed
), {APPEND}"""
_CHANGE = """
WITH changed AS (
    UPDATE users SET updated_at = $2, email_verified = $10, failed_login_attempts = $11, last_login_at = $12,
        first_name = $13, last_name = $14, revision = $15, version = $16, role = $17, status = $18, password_hash = $19,
        last_password_change = $20, email = $22, email_key = $23, two_factor_enabled = $24,
        password_reset_required = $25, account_locked = $26, lockout_until = $27, deleted_at = $28
    WHERE id = $1 AND version = $21 RETURNING id
)"""
_SAVE = f"{_CHANGE}, {APPEND}"
# Nothing is written back that a sign-in does not change, and all of it must still be as it was read: whoever mends a
# row by hand raises no version.
_SIGN_IN = f"""
WITH changed AS (
    UPDATE users SET updated_at = $2, failed_login_attempts = $11, last_login_at = $12, version = $16,
        password_hash = $19, account_locked = $35, lockout_until = $36
    WHERE id = $1 AND version = $21 AND password_hash = $31
        AND (email_verified, first_name, last_name, revision, role, status, last_password_change, two_factor_enabled,
            password_reset_required, account_locked) = ($10, $13, $14, $15, $17, $18, $20, $32, $33, $34)
    RETURNING id
), {OPEN}, {APPEND}"""
_SAVE_PROFILE = """
UPDATE user_profiles SET display_name = $2, bio = $3, website_url = $4, location = $5, timezone = $6, language = $7,
    theme = $8, notifications_email = $9, notifications_push = $10, notifications_sms = $11, social_links = $12,
    updated_at = $13, avatar = $14
WHERE user_id = $1"""


_ADDRESS_IS_TAKEN = "users_email_key_key"


@dataclass(frozen=True, slots=True)
class _Read:
    """What a user's rows were when they were read."""

    wrapped_key: str
    version: int
    password_hash: str
    account_locked: bool
    profile: Profile


class Users:
    """Users inside a transaction: what is read here is locked, what is saved here leaves its events."""

    def __init__(self, connection: Connection, personal: PersonalData, log: EventLog) -> None:
        self._connection = connection
        self._personal = personal
        self._log = log
        self._read: dict[UUID, _Read] = {}
        self.touched: dict[UUID, int] = {}

    async def lock(self, user_id: UUID) -> User | None:
        """The user under its row's lock (guesses at once are all counted); None for unknown and deleted ones."""
        row = await self._connection.fetchrow(_LOCK, user_id)
        if row is None:
            return None
        user = _user(row)
        self._read[user_id] = _Read(
            row["wrapped"], user.version, user.password_hash, user.account_locked, _profile(row)
        )
        return user

    async def lock_each(self, *user_ids: UUID) -> dict[UUID, User | None]:
        """Several users, locked in the order of their ids: two who lock each other never wait in a circle."""
        return {user_id: await self.lock(user_id) for user_id in sorted(set(user_ids))}

    def trust(self, candidate: "Candidate") -> User:
        """A user that was read without a lock: saving it raises `Stale` if its row has changed since."""
        user = candidate.user
        self._read[user.id] = _Read(
            candidate.wrapped_key, user.version, user.password_hash, user.account_locked, user.profile
        )
        return user

    async def add(self, user: User) -> bool:
        """Insert a new user with its events; False when its address is taken.

        Raises `Stale` when it was left by its account at this moment.
        """
        wrapped = self._personal.new_key(user.id)
        try:
            added = await self._connection.fetchval(
                _ADD, *self._events(user, wrapped), user.email, email_key(user.email), user.password_hash,
                user.first_name, user.last_name, user.role, user.email_verified, user.last_password_change,
                user.revision, user.version, wrapped,
            )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name == _ADDRESS_IS_TAKEN:
                raise Stale from error  # it was left a moment ago, and is kept for whoever has left it
            raise
        if added:
            user.recorded.clear()
            self.touched[user.id] = user.version
        return bool(added)

    async def save(self, user: User, *, session: NewSession | None = None) -> None:
        """Write the row and append its events, whose versions follow the row's; open a session with it.

        All of it is one statement. Raises `Stale` when the row is no longer as it was read, `EmailTaken` when the
        address has come to belong to somebody else.
        """
        read = self._read[user.id]
        if user.recorded:
            self.touched[user.id] = user.version  # before it is so: the answer may be lost on its way
        if session is None:
            statement, more = _SAVE, _slow_columns(user)
        else:
            guards = (read.password_hash, user.two_factor_enabled, user.password_reset_required, read.account_locked)
            statement, more = _SIGN_IN, (*session.values, *guards, user.account_locked, user.lockout_until)
        try:
            changed = await self._connection.fetchval(
                statement, *self._events(user, read.wrapped_key), user.email_verified, user.failed_logins,
                user.last_login_at, user.first_name, user.last_name, user.revision, user.version, user.role,
                user.status, user.password_hash, user.last_password_change, read.version, *more,
            )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name == _ADDRESS_IS_TAKEN:
                raise EmailTaken from error
            raise
        if not changed:
            raise Stale
        if user.profile != read.profile:
            await self._save_profile(user)
        user.recorded.clear()

    async def _save_profile(self, user: User) -> None:
        profile = user.profile
        await self._connection.execute(
            _SAVE_PROFILE, user.id, profile.display_name, profile.bio, profile.website, profile.location,
            profile.timezone, profile.language, profile.theme, profile.notifications["email"],
            profile.notifications["push"], profile.notifications["sms"], profile.social_links, user.updated_at,
            avatar_json(profile.avatar),
        )  # fmt: skip

    def _events(self, user: User, wrapped_key: str) -> tuple[object, ...]:
        return self._log.values_of(
            user.id, user.recorded, last_version=user.version, wrapped_key=wrapped_key, at=user.updated_at
        )


def _slow_columns(user: User) -> tuple[object, ...]:
    """What no sign-in writes."""
    return (
        user.email, email_key(user.email), user.two_factor_enabled, user.password_reset_required, user.account_locked,
        user.lockout_until, user.deleted_at,
    )  # fmt: skip


def _user(row: Row) -> User:
    return User(
        id=UserId(row["id"]),
        email=row["email"],
        first_name=row["first_name"],
        last_name=row["last_name"],
        password_hash=row["password_hash"],
        role=row["role"],
        status=row["status"],
        email_verified=row["email_verified"],
        two_factor_enabled=row["two_factor_enabled"],
        failed_logins=row["failed_login_attempts"],
        account_locked=row["account_locked"],
        lockout_until=row["lockout_until"],
        last_login_at=row["last_login_at"],
        last_password_change=row["last_password_change"],
        password_reset_required=row["password_reset_required"],
        deleted_at=row["deleted_at"],
        revision=row["revision"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        profile=_profile(row),
    )


def _profile(row: Row) -> Profile:
    return Profile(
        display_name=row["display_name"],
        bio=row["bio"],
        website=row["website_url"],
        location=row["location"],
        timezone=row["timezone"],
        language=row["language"],
        theme=row["theme"],
        notifications={name: row[f"notifications_{name}"] for name in ("email", "push", "sms")},
        social_links=list(row["social_links"]),
        avatar=avatar_of(row["avatar"]),
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who may be about to sign in, as the rows stood. Each sign-in and each end of a session raises the version, so
    whoever saves the user at this version has seen the right device and the right sessions too."""

    user: User
    wrapped_key: str
    device_known: bool
    sessions_past_cap: list[UUID]


# $2 is the hash of what the device shows, $3 the time.
_DEVICE_KNOWN = "EXISTS (SELECT FROM device_tokens d WHERE d.hash = $2 AND d.user_id = u.id AND d.expires_at > $3)"
_CANDIDATE = f"""
SELECT {_USER}, {_PROFILE}, k.wrapped,
    {_DEVICE_KNOWN} AS device_known,
    ARRAY (
        SELECT s.id FROM user_sessions s WHERE s.user_id = u.id AND s.ended_at IS NULL AND s.expires_at > $3
            AND s.last_active_at > $5
        ORDER BY s.created_at DESC, s.id DESC OFFSET $4
    ) AS past_cap
{_FROM} JOIN user_keys k ON k.user_id = u.id WHERE u.email_key = $1 AND u.status <> 'deleted'"""


async def candidate_of(
    connection: Connection, key: str, *, device_hash: bytes | None, session_cap: int, idle: timedelta, at: datetime
) -> Candidate | None:
    """Whose address this key is, with the sessions that would be too many beside one more; None for an unknown one."""
    row = await connection.fetchrow(_CANDIDATE, key, device_hash, at, session_cap - 1, at - idle)
    return None if row is None else Candidate(_user(row), row["wrapped"], row["device_known"], row["past_cap"])


async def owner_of(connection: Connection, key: str) -> UUID | None:
    """Whose address this key is, or None; read without a lock."""
    owner: UUID | None = await connection.fetchval(
        "SELECT id FROM users WHERE email_key = $1 AND status <> 'deleted'", key
    )
    return owner


@dataclass(frozen=True, slots=True)
class StoredPassword:
    """What a password is checked against, and the address that its tries are counted by."""

    email: str
    password_hash: str
    two_factor_enabled: bool
    device_known: bool


_PASSWORD = f"""
SELECT u.email, u.password_hash, u.two_factor_enabled, {_DEVICE_KNOWN} AS device_known
FROM users u WHERE u.id = $1 AND u.status <> 'deleted'"""


async def password_of(
    connection: Connection, user_id: UUID, *, device_hash: bytes | None = None, at: datetime | None = None
) -> StoredPassword | None:
    """A user's password as it is stored, read without a lock; None for unknown and deleted ones."""
    row = await connection.fetchrow(_PASSWORD, user_id, device_hash, at)
    return None if row is None else StoredPassword(**row)


@dataclass(frozen=True, slots=True)
class Account:
    """A user and its profile as replies show them, read together so that they agree."""

    user: UserView
    profile: ProfileView


_SHOW = f"SELECT {_USER}, {_PROFILE} {_FROM} WHERE u.id = $1 AND u.status <> 'deleted'"


async def account_of(connection: Connection, user_id: UUID) -> Account | None:
    """A user and its profile now; None for unknown and deleted ones."""
    row = await connection.fetchrow(_SHOW, user_id)
    if row is None:
        return None
    user = _user(row)
    return Account(user_view(user), profile_view(user, row["profile_updated_at"]))


def user_view(user: User) -> UserView:
    """A user as every reply shows it."""
    return UserView(
        id=user.id,
        email=user.email,
        first_name=user.first_name,
        last_name=user.last_name,
        role=user.role,
        status=user.status,
        email_verified=user.email_verified,
        two_factor_enabled=user.two_factor_enabled,
        revision=user.revision,
        version=user.version,
        last_login_at=user.last_login_at,
        created_at=user.created_at,
        updated_at=user.updated_at,
    )


def profile_view(user: User, updated_at: datetime) -> ProfileView:
    """A profile as its owner sees it."""
    profile = user.profile
    return ProfileView.model_validate(
        {
            "user_id": user.id,
            "display_name": profile.display_name,
            "bio": profile.bio,
            "website": profile.website,
            "location": profile.location,
            "social_links": profile.social_links,
            "avatar": profile.avatar and asdict(profile.avatar),
            "timezone": profile.timezone,
            "language": profile.language or "en",
            "theme": profile.theme,
            "notifications": profile.notifications,
            "revision": user.revision,
            "updated_at": updated_at,
        }
    )


def view_of_row(row: asyncpg.Record) -> UserView:
    """A user from a row that has `USER_COLUMNS`."""
    return user_view(_user(row))


USER_COLUMNS = f"{_USER}, {_PROFILE} {_FROM}"


class StoredAccounts:
    """Accounts straight from the database, for the caches to fall back on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def account(self, user_id: UUID) -> Account | None:
        """User and profile, read together."""
        async with self._database.connection() as connection:
            return await account_of(connection, user_id)

    async def standing(self, user_id: UUID) -> tuple[str, str, int] | None:
        """Role, status and version."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow("SELECT role, status, version FROM users WHERE id = $1", user_id)
        return None if row is None else (row["role"], row["status"], row["version"])


async def security_of(connection: Connection, user_id: UUID) -> Security:
    """How an account is guarded, for its operators."""
    row = await connection.fetchrow(
        "SELECT failed_login_attempts, coalesce(account_locked AND lockout_until > now(), false) AS account_locked, "
        "CASE WHEN account_locked AND lockout_until > now() THEN lockout_until END AS lockout_until, "
        "last_password_change, two_factor_enabled FROM users WHERE id = $1",
        user_id,
    )
    return Security.model_validate(dict(row or {}))

"""Who is signed in at the console: kept in its memory alone, found by a cookie of which it knows the hash."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import SecretStr

from domain.permissions import PERMISSIONS, Role

IDLE_S = 30 * 60.0
"""A session that nobody used for so long is over."""
PENDING_S = 5 * 60.0
"""How long a sign-in may take from one step to the next."""
SESSIONS_MAX = 1000
PENDING_MAX = 1000


@dataclass(slots=True)
class Session:
    """Somebody signed in, with their tokens; nothing of it ever reaches a page."""

    user_id: str
    email: str
    role: Role
    access: SecretStr
    refresh: SecretStr
    has_second_factor: bool
    looked_at: float = field(default_factory=time.monotonic)
    """When the service was last asked whether they are who they were."""
    renewing: asyncio.Task[None] | None = None
    said: str | None = None
    """What the next page tells of the act before it."""

    def may(self, permission: str) -> bool:
        """By the role that the service named last; each operation decides for itself."""
        return permission in PERMISSIONS[self.role]


@dataclass(frozen=True, slots=True)
class Pending:
    """A sign-in half done: a password was right and a code is due, or a one-time link was opened."""

    challenge: SecretStr | None
    next_path: str = "/"


Kept = TypeVar("Kept")


class _Bounded(Generic[Kept]):
    """By the hash of a cookie; what is old goes, and what was used least recently where there are too many."""

    def __init__(self, *, entries_max: int, idle_s: float) -> None:
        self._entries_max = entries_max
        self._idle_s = idle_s
        self._kept: OrderedDict[bytes, tuple[Kept, float]] = OrderedDict()

    def put(self, cookie: str, value: Kept) -> None:
        self._kept[_hash(cookie)] = value, time.monotonic()
        if len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)

    def get(self, cookie: str, *, keeps: bool = True) -> Kept | None:
        found = self._kept.get(key := _hash(cookie))
        if found is None:
            return None
        value, used = found
        if time.monotonic() - used > self._idle_s:
            del self._kept[key]
            return None
        if keeps:
            self._kept[key] = value, time.monotonic()
            self._kept.move_to_end(key)
        return value

    def pop(self, cookie: str) -> Kept | None:
        value = self.get(cookie)
        self._kept.pop(_hash(cookie), None)
        return value


class Sessions:
    """All who are signed in, and those on their way; a restart signs everybody out."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._open = _Bounded[Session](entries_max=SESSIONS_MAX, idle_s=idle_s)
        self._pending = _Bounded[Pending](entries_max=PENDING_MAX, idle_s=PENDING_S)
        self._form_key = secrets.token_bytes(32)

    def open(self, session: Session) -> str:
        """A session begins, under a cookie that nobody had before."""
        cookie = new_cookie()
        self._open.put(cookie, session)
        return cookie

    def find(self, cookie: str, *, keeps: bool = True) -> Session | None:
        """Whose cookie it is; `keeps` where a person did something, and not a page by itself."""
        return self._open.get(cookie, keeps=keeps)

    def close(self, cookie: str) -> None:
        """It is over."""
        self._open.pop(cookie)

    def wait(self, cookie: str, pending: Pending) -> None:
        """Remember what the next step of a sign-in needs."""
        self._pending.put(cookie, pending)

    def waiting(self, cookie: str) -> Pending | None:
        """What was remembered, if it is not too long ago."""
        return self._pending.get(cookie, keeps=False)

    def done(self, cookie: str) -> None:
        """That sign-in is over, one way or the other."""
        self._pending.pop(cookie)

    def form_token(self, cookie: str) -> str:
        """What a form that this cookie's owner was shown sends back, and no other page can know."""
        return hmac.new(self._form_key, cookie.encode(), hashlib.sha256).hexdigest()

    def is_own_form(self, cookie: str, token: str) -> bool:
        """Was the form shown to this cookie's owner?"""
        return bool(cookie) and hmac.compare_digest(self.form_token(cookie).encode(), token.encode())


def new_cookie() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()

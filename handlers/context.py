"""What every handler is handed: the process' means (`Context`) and this request's circumstances (`Call`)."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from adapters.avatar_store import AvatarStore
from adapters.avatar_uploads import AvatarUploads
from adapters.cache import AccountCache, LocalCache
from adapters.event_log import Trail
from adapters.hashing import Hasher
from adapters.limits import Limits
from adapters.password_rules import PasswordRules
from adapters.personal_data import PersonalData
from adapters.pictures import Pictures
from adapters.postgres import Database
from adapters.settings import Settings
from adapters.telemetry import Metrics
from adapters.tokens import TokenMint, hash_of
from adapters.two_factor import TwoFactorSecrets
from adapters.unit_of_work import Announce, KeepReply, UnitOfWork, unit_of_work
from contracts.health import Health
from contracts.users import User as UserView
from contracts.wire import Wire
from domain.permissions import PERMISSIONS, Role
from domain.refusals import NoCaller
from domain.session import Standing
from domain.user import Origin, User
from handlers.activity import Activity


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, by the rows of user and session; the token only named them."""

    user_id: UUID
    session_id: UUID
    role: Role
    auth_time: datetime
    has_second_factor: bool

    def may(self, permission: str) -> bool:
        return permission in PERMISSIONS[self.role]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request's circumstances, parsed and bounded: what its headers said and who sent it."""

    request_id: str
    subject: str
    client_ip: str | None
    source: str
    """What limits by address count: the end user's address (IPv6 by /64), else the bus client."""
    user_agent: str | None
    device_id: str | None
    device_token: str | None
    locale: str
    traceparent: str | None
    deadline: float
    """In the event loop's clock."""
    caller: Caller | None = None
    keep_reply: KeepReply | None = None
    reply_headers: dict[str, str] = field(default_factory=dict)
    """What the reply will carry whatever it says; a use case that counts tries by itself adds its limits."""

    @property
    def signed_in(self) -> Caller:
        if self.caller is None:
            raise NoCaller
        return self.caller

    @property
    def origin(self) -> Origin:
        return Origin(self.client_ip, self.user_agent, device_info(self.user_agent, self.device_id))

    @property
    def device(self) -> str:
        """A fingerprint of the Device-Token, else of the User-Agent: who may be given a refresh token again."""
        return hash_of(f"token:{self.device_token}" if self.device_token else f"agent:{self.user_agent}").hex()[:32]

    @property
    def device_hash(self) -> bytes | None:
        """How the device that this claims to be is kept at rest, if it is known."""
        return hash_of(self.device_token) if self.device_token else None

    @property
    def trail(self) -> Trail:
        return Trail(
            request_id=self.request_id,
            actor_id=self.caller.user_id if self.caller else None,
            session_id=self.caller.session_id if self.caller else None,
            locale=self.locale,
            traceparent=self.traceparent,
            ip=self.client_ip,
            user_agent=self.user_agent,
        )


def device_info(user_agent: str | None, device_id: str | None) -> dict[str, str]:
    """Family names of browser, system and device, for show only."""
    info = {} if device_id is None else {"deviceId": device_id}
    return info | _families(user_agent or "")


@lru_cache(maxsize=1000)
def _families(user_agent: str) -> dict[str, str]:
    import ua_parser

    parsed = ua_parser.parse(user_agent)
    parts = (("browser", parsed.user_agent), ("os", parsed.os), ("device", parsed.device))
    return {name: part.family[:60] for name, part in parts if part is not None}


Handler = Callable[["Context", Call, Any], Awaitable[Wire]]
Handlers = dict[type[Wire], Handler]
"""A module's table: which function serves which request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The process' means, built once by `app`."""

    settings: Settings
    database: Database
    personal: PersonalData
    secrets: TwoFactorSecrets
    hasher: Hasher
    passwords: PasswordRules
    mint: TokenMint
    pictures: Pictures
    avatars: AvatarStore
    avatar_uploads: AvatarUploads
    limits: Limits
    accounts: AccountCache
    standings: LocalCache[Standing]
    activity: Activity
    metrics: Metrics
    announce: Announce
    now: Callable[[], datetime]
    check_health: Callable[[], Awaitable[Health]]

    def hides(self, account: User | UserView) -> bool:
        """Is nobody to know of this account yet? Where registered emails are hidden, until its address is verified."""
        return self.settings.hide_registered_emails and not account.email_verified

    def unit_of_work(self, call: Call, *, one_statement: bool = False) -> AbstractAsyncContextManager[UnitOfWork]:
        """A transaction of this request: its events and audit rows say where they came from."""
        return unit_of_work(
            self.database,
            self.personal,
            call.trail,
            keep_reply=call.keep_reply,
            announce=self.announce,
            one_statement=one_statement,
        )

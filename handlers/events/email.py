"""The group `email`: events become mail. A link's token is random, made just before sending, kept as a hash."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode
from uuid import UUID

import structlog

from adapters.event_log import StoredEvent
from adapters.links import add_link_token, link_by_id
from adapters.mail_templates import render
from adapters.postgres import Database
from adapters.settings import Settings
from adapters.smtp import Mailer, MailRefused, OutgoingMail, message_id
from adapters.tokens import hash_of, new_secret
from handlers.delivery import EventHandler, Permanent

log = structlog.get_logger()

AT_ONCE_MAX = 4
OLDEST = timedelta(days=7)
"""Mail about something older is no help to anybody, unless an operator replays it."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """Where mail to a user goes now: the stored address, never one that somebody typed or an event carries."""

    address: str
    first_name: str
    language: str | None


class Email:
    """Sends what the templates say. The same event sends the same `Message-ID`: a second delivery is recognisable."""

    def __init__(self, database: Database, mailer: Mailer, settings: Settings, now: Callable[[], datetime]) -> None:
        self._database = database
        self._mailer = mailer
        self._settings = settings
        self._now = now
        self._places = asyncio.Semaphore(AT_ONCE_MAX)
        self._mails: dict[str, EventHandler] = {
            "EmailVerificationRequested": self._verification,
            "EmailVerified": self._welcome,
            "UserLogin": self._new_device,
            "RefreshTokenReused": self._token_reuse,
        }

    async def handle(self, stored: StoredEvent) -> str:
        """Send the event's mail, if it has one and is not too old."""
        if self._now() - stored.event.timestamp > OLDEST:
            return "too_old"
        return await self.handle_replayed(stored)

    async def handle_replayed(self, stored: StoredEvent) -> str:
        """Send the event's mail, if it has one, however old it is: an operator wants it sent."""
        send = self._mails.get(stored.event.type)
        if send is None or not _has_mail(stored):
            return "no_mail"
        async with self._places:
            return await send(stored)

    async def _verification(self, stored: StoredEvent) -> str:
        link_id = UUID(str(stored.event.data["tokenId"]))
        async with self._database.connection() as connection:
            link = await link_by_id(connection, link_id)
            if link is None or not link.is_open(self._now()):
                return "superseded"
            token = new_secret()
            await add_link_token(connection, link.id, hash_of(token))
        values: dict[str, str | datetime] = {"link": self._link("/verify-email", token), "expires_at": link.expires_at}
        return await self._send(stored, "verification", values, address=link.address)

    async def _welcome(self, stored: StoredEvent) -> str:
        return await self._send(stored, "welcome", {})

    async def _new_device(self, stored: StoredEvent) -> str:
        return await self._send(stored, "new_device", _circumstances(stored))

    async def _token_reuse(self, stored: StoredEvent) -> str:
        return await self._send(stored, "token_reuse", _circumstances(stored))

    async def _send(
        self, stored: StoredEvent, template: str, values: Mapping[str, str | datetime], *, address: str | None = None
    ) -> str:
        event = stored.event
        recipient = await self._recipient(event.aggregate_id)
        if recipient is None:
            return "user_gone"
        to = address or recipient.address
        greeting = {"service": self._settings.service_name, "first_name": recipient.first_name}
        mail = render(template, recipient.language or event.metadata.locale, greeting | dict(values))
        try:
            await self._mailer.send(
                OutgoingMail(
                    to=to,
                    subject=mail.subject,
                    text=mail.text,
                    html=mail.html,
                    message_id=message_id(event.id, template, self._mailer.domain),
                    language=mail.language,
                )
            )
        except MailRefused as error:
            raise Permanent("mail_refused", str(error)) from error
        return "sent"

    async def _recipient(self, user_id: UUID) -> Recipient | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT u.email, u.first_name, p.language FROM users u JOIN user_profiles p ON p.user_id = u.id "
                "WHERE u.id = $1 AND u.status <> 'deleted'",
                user_id,
            )
        return None if row is None else Recipient(row["email"], row["first_name"], row["language"])

    def _link(self, path: str, token: str) -> str:
        """Our own address alone: a caller's host never stands in a mail."""
        return f"{self._settings.public_url.rstrip('/')}{path}?{urlencode({'token': token})}"


def _has_mail(stored: StoredEvent) -> bool:
    data = stored.event.data
    match stored.event.type:
        case "EmailVerified":
            return data["reason"] == "registration"
        case "UserLogin":
            return bool(data["newDevice"])
        case _:
            return True


def _circumstances(stored: StoredEvent) -> dict[str, str | datetime]:
    """When and from where, by parsed family names: what a client says of itself is not printed."""
    info = stored.event.data.get("deviceInfo")
    names = [str(info[name]) for name in ("browser", "os") if name in info] if isinstance(info, dict) else []
    return {
        "device": " · ".join(names) or "–",
        "ip": str(stored.event.data.get("ip") or "–"),
        "time": stored.event.timestamp,
    }

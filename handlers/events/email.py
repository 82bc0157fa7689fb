"""The group `email`: events become mail. A link's token is random, made just before sending, kept as a hash."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode
from uuid import UUID

from adapters.event_log import StoredEvent
from adapters.inbox import groups_done, mark_done
from adapters.links import Link, add_link_token, link_by_id
from adapters.mail_caps import MailCaps
from adapters.mail_templates import render
from adapters.postgres import Database
from adapters.recipients import Recipient, active_admins, recipient_of
from adapters.reserved_emails import is_anothers
from adapters.settings import Settings
from adapters.smtp import Mailer, MailRefused, MailUnavailable, OutgoingMail, message_id
from adapters.telemetry import Metrics
from adapters.tokens import hash_of, new_secret
from domain.refusals import Overloaded, Stale, Unavailable
from handlers.delivery import HOLD_S, Permanent
from handlers.events.mails import MAILS, LinkOf, Mail, To, Values

AT_ONCE_MAX = 4
OLDEST = timedelta(days=7)
"""Mail about something older is no help to anybody, unless an operator replays it."""
_UNAVAILABLE_MAX = 3
"""So many mails of one event that the server did not take, and the rest waits for the next attempt."""


@dataclass(frozen=True, slots=True)
class Addressed:
    """One mail of an event to one mailbox; `name` tells it from the event's others, each time it is sent."""

    mail: Mail
    recipient: Recipient
    name: str
    more: Values

    @property
    def part(self) -> str:
        """As which part of the group's work the inbox knows it."""
        return f"email:{self.name}"


class Email:
    """Sends what the table says. The same event sends the same `Message-ID`s: a second delivery is recognisable."""

    def __init__(
        self,
        database: Database,
        mailer: Mailer,
        caps: MailCaps,
        settings: Settings,
        metrics: Metrics,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._mailer = mailer
        self._caps = caps
        self._settings = settings
        self._metrics = metrics
        self._now = now
        self._places = asyncio.Semaphore(AT_ONCE_MAX)
        metrics.deliveries.labels("email", "sent")  # a figure's first rise is seen only where it stood at 0 before

    async def handle(self, stored: StoredEvent) -> str:
        """Send the event's mails, if it has any and is not too old."""
        if self._now() - stored.event.timestamp > OLDEST:
            return "too_old"
        return await self.handle_replayed(stored)

    async def handle_replayed(self, stored: StoredEvent) -> str:
        """Send the event's mails, if it has any, however old it is: an operator wants them sent."""
        mails = [mail for mail in MAILS.get(stored.event.type, ()) if mail.when(stored.event.data, self._settings)]
        if not mails:
            return "no_mail"
        async with self._places:
            addressed = await self._address(stored, mails)
            match addressed:
                case []:
                    return "user_gone"
                case [single]:
                    return await self._send(stored, single)
                case _:
                    return await self._send_each(stored, addressed)

    async def _address(self, stored: StoredEvent, mails: Sequence[Mail]) -> list[Addressed]:
        """Whom each mail goes to; nobody where the user is erased, or deleted and the mail not about that."""
        event = stored.event
        async with self._database.connection() as connection:
            user = await recipient_of(connection, event.aggregate_id)
            if user is None:
                return []
            mails = [mail for mail in mails if mail.also_deleted or not user.is_deleted]
            admins: Sequence[Recipient] = ()
            actor = None
            if any(mail.to is To.ADMINS for mail in mails):
                admins = await active_admins(connection, but=user.user_id)
                actor = event.metadata.actor_id and await recipient_of(connection, event.metadata.actor_id)
        about = {"account": user.address, "actor": actor.address if actor else "–"}
        found: list[Addressed] = []
        for mail in mails:
            if mail.to is To.ADMINS:
                found += [Addressed(mail, admin, f"{mail.template}.{admin.user_id}", about) for admin in admins]
            else:
                found.append(Addressed(mail, user, mail.template, {}))
        return found

    async def _send_each(self, stored: StoredEvent, addressed: Sequence[Addressed]) -> str:
        """Send those that are not out yet; one that fails keeps none of the others back, and is told at the end."""
        event_id = stored.event.id
        async with self._database.connection() as connection:
            done = await groups_done(connection, [one.part for one in addressed], event_id)
        outcomes = ["sent" for one in addressed if one.part in done]
        unavailable: list[MailUnavailable] = []
        refused: list[Permanent] = []
        for one in addressed:
            if one.part in done:
                continue
            try:
                outcome = await self._send(stored, one)
            except Permanent as error:
                refused.append(error)
            except MailUnavailable as error:
                unavailable.append(error)
                if len(unavailable) == _UNAVAILABLE_MAX:
                    break
            else:
                await self._mark_done(one.part, event_id, outcome)
                outcomes.append(outcome)
        for failure in (*unavailable, *refused):
            raise failure
        return "sent" if "sent" in outcomes else outcomes[0]

    async def _mark_done(self, part: str, event_id: UUID, outcome: str) -> None:
        """Until it stands: this mail is out, and must not go out again because a later one of its event fails."""
        while True:
            try:
                async with self._database.connection() as connection:
                    return await mark_done(connection, part, {event_id: outcome})
            except (Unavailable, Overloaded, Stale):
                await asyncio.sleep(HOLD_S * random.uniform(0.5, 1.5))

    async def _send(self, stored: StoredEvent, addressed: Addressed) -> str:
        """The one place where mail leaves: once for each mail, with tokens made for it now."""
        event, mail, recipient = stored.event, addressed.mail, addressed.recipient
        first, second = await self._open_link(stored, mail.link), await self._open_link(stored, mail.second)
        if mail.link is not None and first is None and not mail.without_link:
            return "superseded"
        to = _mailbox(stored, addressed, first)
        if to is None:
            return "superseded"
        if not await self._caps.allow(to, mail.template, name=f"{event.id}:{addressed.name}"):
            self._metrics.mails_capped.labels(mail.template).inc()
            return "capped"
        ways = {**await self._way("", mail.link, first), **await self._way("second_", mail.second, second)}
        values = {**self._facts(stored, addressed), **ways}
        rendered = render(mail.template, recipient.language or event.metadata.locale, values)
        try:
            await self._mailer.send(
                OutgoingMail(
                    to=to,
                    subject=rendered.subject,
                    text=rendered.text,
                    html=rendered.html,
                    message_id=message_id(event.id, addressed.name, self._mailer.domain),
                    language=rendered.language,
                )
            )
        except MailRefused as error:
            raise Permanent("mail_refused", str(error)) from error
        return "sent"

    def _facts(self, stored: StoredEvent, addressed: Addressed) -> Values:
        """What any mail may say, and what this one does beside its links."""
        at, first_name = stored.event.timestamp, addressed.recipient.first_name
        facts: dict[str, str | datetime] = {
            "service": self._settings.service_name,
            "time": at,
            "erased_at": at + timedelta(seconds=self._settings.erase_after_seconds),
        }
        if first_name is not None:
            facts["first_name"] = first_name
        return {**facts, **addressed.more, **addressed.mail.facts(stored)}

    async def _open_link(self, stored: StoredEvent, wanted: LinkOf | None) -> Link | None:
        """The link that an event names, as long as it would still do something."""
        named = None if wanted is None else stored.event.data.get(wanted.field)
        if named is None:
            return None
        async with self._database.connection() as connection:
            link = await link_by_id(connection, UUID(str(named)))
            at = self._now()
            if link is None or not link.is_open(at):
                return None
            if link.purpose == "email-change" and await is_anothers(connection, link.address, link.user_id, at=at):
                return None  # whoever asked is told nothing of it, and whose address it is is not bothered
        return link

    async def _way(self, prefix: str, wanted: LinkOf | None, link: Link | None) -> Values:
        """A new token of a link, at our own address alone: a caller's host never stands in a mail."""
        if wanted is None or link is None:
            return {}
        token = new_secret()
        async with self._database.connection() as connection:
            await add_link_token(connection, link.id, hash_of(token), at=self._now())
        page = f"{self._settings.public_url.rstrip('/')}{wanted.page}"
        return {f"{prefix}link": f"{page}?{urlencode({'token': token})}", f"{prefix}expires_at": link.expires_at}


def _mailbox(stored: StoredEvent, addressed: Addressed, link: Link | None) -> str | None:
    """The stored address that a mail goes to; None where there is none any more."""
    match addressed.mail.to:
        case To.LINK:
            return None if link is None else link.address
        case To.NEW:
            address = addressed.recipient.address
            return address if address == stored.event.data["email"] else None
        case To.PREVIOUS:
            previous = stored.event.data["previousEmail"]
            return None if previous is None else str(previous)
        case To.USER | To.ADMINS:
            return addressed.recipient.address

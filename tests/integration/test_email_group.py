"""Events become mail: to the right mailbox, with a link that opens the right row, and each mail once."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from types import MappingProxyType
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from aiosmtpd.smtp import Envelope
from pydantic_core import to_jsonable_python

from adapters.event_log import StoredEvent, Trail
from adapters.limits import Limits
from adapters.links import Link, Links, Purpose, link_by_token
from adapters.mail_caps import MailCaps
from adapters.mail_sink import link_of
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.redis import Redis
from adapters.smtp import Mailer, MailUnavailable
from adapters.telemetry import Metrics
from adapters.tokens import hash_of
from adapters.unit_of_work import unit_of_work
from contracts.events import EVENTS, Event, Metadata
from contracts.wire import Empty
from domain.user import User
from handlers.delivery import Permanent
from handlers.events.email import OLDEST, Email
from handlers.events.mails import MAILS
from tests.builders import NOW, a_user, settings_of
from tests.integration.mail_server import MailServer

DAY = timedelta(days=1)
PUBLIC_URL = "https://id.example.org"


@dataclass
class Post:
    """The group on real servers, at a time that stands still, and what it has sent."""

    database: Database
    personal: PersonalData
    trail: Trail
    server: MailServer
    email: Email

    async def user(self, *, verified: bool = True, status: str = "active", role: str = "user") -> User:
        user = a_user()
        user.email_verified = verified
        async with unit_of_work(self.database, self.personal, self.trail, announce=lambda _: None) as work:
            assert await work.users.add(user)
            await work.commit(Empty())
        async with self.database.connection() as connection:
            await connection.execute("UPDATE users SET status = $2, role = $3 WHERE id = $1", user.id, status, role)
        return user

    async def link(self, user: User, purpose: Purpose, address: str | None = None) -> Link:
        link = Link(
            id=uuid4(), user_id=user.id, purpose=purpose, address=address or user.email, expires_at=NOW + DAY
        )  # fmt: skip
        async with self.database.transaction() as connection:
            await Links(connection).open(link, at=NOW)
        return link

    async def opened_by(self, mail: EmailMessage, *purposes: Purpose) -> UUID | None:
        """The link that a mail's token opens."""
        token = parse_qs(urlsplit(link_of(mail) or "").query)["token"][0]
        async with self.database.connection() as connection:
            found = await link_by_token(connection, hash_of(token), *purposes)
        return None if found is None else found.id

    async def send(self, stored: StoredEvent) -> list[tuple[str, EmailMessage]]:
        """What the event sends: each mailbox with its mail."""
        before = len(self.server.received)
        await self.email.handle(stored)
        return self.sent(before)

    def sent(self, since: int = 0) -> list[tuple[str, EmailMessage]]:
        return [(to[0], mail) for to, mail in self.server.received[since:]]


def an_event(
    user: User,
    type: str,
    data: Mapping[str, object] = MappingProxyType({}),
    *,
    actor: User | None = None,
    locale: str = "en",
    age: timedelta = timedelta(),
) -> StoredEvent:
    """An event as the delivery reads it from the store; a field that its model does not know yet stays."""
    model = EVENTS[type].model_validate({"userId": user.id, **data})
    event = Event(
        id=uuid4(),
        type=type,
        aggregate_id=user.id,
        version=1,
        timestamp=NOW - age,
        data=to_jsonable_python(dict(data)) | model.model_dump(mode="json", by_alias=True),
        metadata=Metadata(request_id="r", actor_id=None if actor is None else actor.id, locale=locale),
    )
    return StoredEvent(event, 1, None, "192.0.2.7", None)


def text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body is not None
    return str(body.get_content())


@pytest_asyncio.fixture
async def post(database: Database, database_url: str, personal: PersonalData, trail: Trail) -> AsyncIterator[Post]:
    server = MailServer()
    await server.start()
    mailer = Mailer(server.url, sender="Project5 <no-reply@example.org>")
    settings = settings_of(database_url, public_url=PUBLIC_URL, service_name="Project5")
    caps = MailCaps(Limits(Redis(None), enabled=False), personal, settings)
    yield Post(database, personal, trail, server, Email(database, mailer, caps, settings, Metrics(), lambda: NOW))
    await mailer.close()
    await server.stop()


@pytest_asyncio.fixture
async def admins(post: Post, owner: asyncpg.Connection) -> AsyncIterator[list[User]]:
    """The only two admins that there are."""
    await owner.execute("UPDATE users SET role = 'user' WHERE role = 'admin'")
    yield [await post.user(role="admin") for _ in range(2)]
    await owner.execute("UPDATE users SET role = 'user' WHERE role = 'admin'")


LINKED: dict[str, tuple[Purpose, str, dict[str, object]]] = {
    "EmailVerificationRequested": ("verification", "/verify-email", {"reason": "registration"}),
    "UserInvited": ("invitation", "/accept-invitation", {}),
    "AccountLocked": ("unlock", "/unlock", {"until": NOW}),
    "PasswordResetRequested": ("reset", "/reset-password", {}),
    "RefreshTokenReused": ("not-me", "/not-me", {"sessionId": str(uuid4()), "ip": None, "userAgent": None}),
    "UserLogin": (
        "not-me",
        "/not-me",
        {
            "ip": "192.0.2.7", "userAgent": "x", "timestamp": NOW, "sessionId": str(uuid4()), "method": "password",
            "newDevice": True, "deviceInfo": {"browser": "Firefox", "os": "Linux"},
        },
    ),
}  # fmt: skip


def linked_event(user: User, type: str, link: Link) -> StoredEvent:
    more = {"tokenId": link.id, "email": "typed@elsewhere.example", "expiresAt": link.expires_at}
    return an_event(user, type, {**more, **LINKED[type][2]})


@pytest.mark.parametrize("type", LINKED)
async def test_a_link_leads_to_its_page_and_opens_its_row(post: Post, type: str) -> None:
    user = await post.user()
    link = await post.link(user, LINKED[type][0])
    stored = linked_event(user, type, link)

    [(to, mail)] = await post.send(stored)
    url = urlsplit(link_of(mail) or "")
    assert to == user.email
    assert f"{url.scheme}://{url.netloc}{url.path}" == PUBLIC_URL + LINKED[type][1]
    assert await post.opened_by(mail, LINKED[type][0]) == link.id
    assert len(parse_qs(url.query)["token"][0]) >= 43  # 256 bits

    [(_, again)] = await post.send(stored)
    assert again["Message-ID"] == mail["Message-ID"] == f"<{stored.event.id}.{MAILS[type][0].template}@example.org>"
    assert link_of(again) != link_of(mail)


@pytest.mark.parametrize("how", ["used", "expired", "unknown"])
@pytest.mark.parametrize("type", LINKED)
async def test_a_closed_link_is_never_sent(post: Post, type: str, how: str) -> None:
    user = await post.user()
    link = await post.link(user, LINKED[type][0])
    async with post.database.connection() as connection:
        if how == "used":
            await Links(connection).use(link.id, at=NOW)
        elif how == "expired":
            await connection.execute("UPDATE links SET expires_at = $2 WHERE id = $1", link.id, NOW)
        else:
            await connection.execute("DELETE FROM links WHERE id = $1", link.id)

    mails = await post.send(linked_event(user, type, link))
    if MAILS[type][0].without_link:  # a warning is worth reading without
        assert [link_of(mail) for _, mail in mails] == [None]
    else:
        assert mails == []


PLAIN: dict[str, tuple[str, dict[str, object]]] = {
    "EmailVerified": ("welcome", {"email": None, "reason": "registration"}),
    "RegistrationRepeated": ("registration_repeated", {"email": None}),
    "PasswordReset": ("password_changed", {}),
    "PasswordChanged": ("password_changed", {}),
    "EmailChangeCancelled": ("email_change_cancelled", {"email": None}),
    "TwoFactorEnabled": ("two_factor_on", {"by": "user"}),
    "TwoFactorDisabled": ("two_factor_off", {"by": "user"}),
    "BackupCodeUsed": ("backup_code_used", {"remaining": 3}),
    "UserDeleted": ("deleted", {"by": "admin"}),
    "LoginFailed": (
        "second_factor_guessing",
        {"ip": None, "userAgent": None, "reason": "wrong_second_factor", "failures": 7, "wrongCodes": 3},
    ),
}


@pytest.mark.parametrize("type", PLAIN)
async def test_a_notice_goes_to_the_stored_address_alone(post: Post, type: str) -> None:
    user, (template, data) = await post.user(), PLAIN[type]
    typed = {name: "typed@elsewhere.example" if name == "email" else value for name, value in data.items()}
    stored = an_event(user, type, typed)

    [(to, mail)] = await post.send(stored)
    assert to == user.email
    assert mail["Message-ID"] == f"<{stored.event.id}.{template}@example.org>"
    assert link_of(mail) is None
    assert "elsewhere" not in text_of(mail)


def test_every_event_with_mail_is_tested() -> None:
    assert {*LINKED, *PLAIN, "EmailChangeRequested", "EmailChanged", "UserRoleChanged"} == MAILS.keys()


FAILED = {"ip": None, "userAgent": None}


@pytest.mark.parametrize(
    ("type", "data"),
    [
        ("EmailVerified", {"email": None, "reason": "reset"}),
        ("LoginFailed", {**FAILED, "reason": "wrong_password", "failures": 4}),
        ("LoginFailed", {**FAILED, "reason": "wrong_second_factor", "failures": 4, "wrongCodes": 4}),
        ("LoginFailed", {**FAILED, "reason": "wrong_second_factor", "failures": 3}),
        ("UserDeleted", {"by": "system"}),
        ("UserLoggedOut", {"sessionId": str(uuid4())}),
    ],
    ids=["reset-verifies", "wrong-password", "fourth-code", "uncounted-code", "never-verified", "logout"],
)
async def test_what_needs_no_mail_sends_none(post: Post, type: str, data: dict[str, object]) -> None:
    stored = an_event(await post.user(), type, data)

    assert await post.email.handle(stored) == "no_mail"
    assert post.sent() == []


async def test_a_verification_mail_can_also_say_not_me(post: Post) -> None:
    user = await post.user(verified=False)
    link, other = await post.link(user, "verification"), await post.link(user, "not-me")
    stored = linked_event(user, "EmailVerificationRequested", link)
    stored.event.data["notMeTokenId"] = str(other.id)

    [(_, mail)] = await post.send(stored)
    assert await post.opened_by(mail, "verification") == link.id
    assert f"{PUBLIC_URL}/not-me?token=" in text_of(mail)
    assert user.first_name not in text_of(mail)  # nobody has confirmed it


async def test_a_welcome_prints_the_name_of_whoever_confirmed_it(post: Post) -> None:
    for verified in (True, False):
        user = await post.user(verified=verified)
        [(_, mail)] = await post.send(an_event(user, "EmailVerified", {"email": None, "reason": "registration"}))
        assert (user.first_name in text_of(mail)) is verified


async def a_change(post: Post) -> tuple[User, str, StoredEvent]:
    """A user, the address wanted, and the event that asks for it."""
    user, wanted = await post.user(), f"new-{uuid4().hex}@example.org"
    confirm, cancel = await post.link(user, "email-change", wanted), await post.link(user, "cancel-email-change")
    stored = an_event(
        user,
        "EmailChangeRequested",
        {
            "newEmail": "typed@elsewhere.example", "tokenId": confirm.id, "cancelTokenId": cancel.id,
            "expiresAt": confirm.expires_at,
        },
    )  # fmt: skip
    return user, wanted, stored


async def test_a_change_of_address_warns_the_old_and_asks_the_new(post: Post) -> None:
    user, wanted, stored = await a_change(post)

    [(first, warning), (second, confirm)] = await post.send(stored)
    assert (first, second) == (user.email, wanted)
    assert urlsplit(link_of(warning) or "").path == "/cancel-email-change"
    assert urlsplit(link_of(confirm) or "").path == "/confirm-email-change"
    assert str(await post.opened_by(warning, "cancel-email-change")) == stored.event.data["cancelTokenId"]
    assert str(await post.opened_by(confirm, "email-change")) == stored.event.data["tokenId"]
    assert wanted not in text_of(warning)
    assert user.first_name not in text_of(confirm)
    assert warning["Message-ID"] != confirm["Message-ID"]


async def test_an_address_that_is_refused_keeps_no_warning_back_and_sends_none_twice(post: Post) -> None:
    user, wanted, stored = await a_change(post)
    refusing = True

    async def refuse_new(envelope: Envelope) -> str:
        return "550 no such mailbox" if refusing and wanted in envelope.rcpt_tos else "250 OK"

    post.server.on_rcpt = refuse_new
    for _ in range(3):
        with pytest.raises(Permanent, match="550"):
            await post.email.handle(stored)
    assert [to for to, _ in post.sent()] == [user.email]
    refusing = False
    assert await post.email.handle_replayed(stored) == "sent"
    assert [to for to, _ in post.sent()] == [user.email, wanted]


async def test_a_server_that_fails_between_two_mails_is_sent_the_second_alone(post: Post) -> None:
    user, wanted, stored = await a_change(post)
    away = True

    async def fail_new(envelope: Envelope) -> str:
        return "451 later" if away and wanted in envelope.rcpt_tos else "250 OK"

    post.server.on_rcpt = fail_new
    with pytest.raises(MailUnavailable):
        await post.email.handle(stored)
    away = False
    assert await post.email.handle(stored) == "sent"
    assert [to for to, _ in post.sent()] == [user.email, wanted]


async def test_a_change_that_was_cancelled_asks_nobody(post: Post) -> None:
    _, _, stored = await a_change(post)
    async with post.database.connection() as connection:
        await Links(connection).void(
            stored.event.aggregate_id, "email-change", "cancel-email-change", at=NOW
        )  # fmt: skip

    assert await post.email.handle(stored) == "superseded"
    assert post.sent() == []


async def test_a_changed_address_is_told_to_both(post: Post) -> None:
    user = await post.user()
    stored = an_event(user, "EmailChanged", {"email": user.email, "previousEmail": "old@example.org"})

    [(old, _), (new, _)] = await post.send(stored)
    assert (old, new) == ("old@example.org", user.email)


async def test_a_change_that_was_undone_since_is_told_to_the_old_address_alone(post: Post) -> None:
    user = await post.user()
    stored = an_event(user, "EmailChanged", {"email": "thief@example.org", "previousEmail": user.email})

    assert [to for to, _ in await post.send(stored)] == [user.email]


@pytest.mark.parametrize("type", ["UserRoleChanged", "TwoFactorDisabled"])
async def test_what_an_admin_does_is_told_to_the_user_and_to_every_other_admin(
    post: Post, admins: list[User], type: str
) -> None:
    await post.user(role="admin", status="suspended")
    user, actor = await post.user(), admins[0]
    data = {"by": "admin"} if type == "TwoFactorDisabled" else {"from": "user", "to": "moderator", "reason": "a secret"}
    stored = an_event(user, type, data, actor=actor)

    mails = await post.send(stored)
    assert {to for to, _ in mails} == {user.email, *(admin.email for admin in admins)}
    assert len({mail["Message-ID"] for _, mail in mails}) == len(mails) == 3
    for to, mail in mails:
        assert (user.email in text_of(mail)) == (to != user.email)
        assert (actor.email in text_of(mail)) == (to != user.email)
        assert "a secret" not in text_of(mail)

    assert await post.send(stored) == []  # each is remembered


async def test_an_admin_whose_own_role_changes_is_told_once(post: Post, admins: list[User]) -> None:
    stored = an_event(admins[0], "UserRoleChanged", {"from": "user", "to": "admin", "reason": "x"})

    assert sorted(to for to, _ in await post.send(stored)) == sorted(admin.email for admin in admins)


async def test_one_admin_that_cannot_be_reached_keeps_no_other_uninformed(post: Post, admins: list[User]) -> None:
    user, unreachable = await post.user(), admins[0].email

    async def refuse(envelope: Envelope) -> str:
        return "550 gone" if unreachable in envelope.rcpt_tos else "250 OK"

    post.server.on_rcpt = refuse
    with pytest.raises(Permanent):
        await post.email.handle(an_event(user, "TwoFactorDisabled", {"by": "admin"}))
    assert {to for to, _ in post.sent()} == {user.email, admins[1].email}


async def test_a_deleted_user_is_told_of_that_alone_and_an_erased_one_of_nothing(post: Post) -> None:
    user = await post.user(status="deleted")
    changed, deleted = an_event(user, "PasswordChanged"), an_event(user, "UserDeleted", {"by": "user"})

    assert await post.email.handle(changed) == "user_gone"
    [(to, mail)] = await post.send(deleted)
    assert to == user.email
    assert "31 March 2026" in text_of(mail)  # thirty days on

    async with post.database.connection() as connection:
        await connection.execute("UPDATE users SET erased_at = $2 WHERE id = $1", user.id, NOW)
    assert await post.email.handle(deleted) == "user_gone"
    assert await post.email.handle(an_event(a_user(), "UserDeleted", {"by": "user"})) == "user_gone"


async def test_what_is_older_than_a_week_is_sent_only_to_an_operator_who_asks(post: Post) -> None:
    stored = an_event(await post.user(), "PasswordChanged", age=OLDEST + timedelta(seconds=1))

    assert await post.email.handle(stored) == "too_old"
    assert await post.email.handle_replayed(stored) == "sent"


async def test_mail_is_in_the_language_of_the_profile_else_of_the_event(post: Post) -> None:
    user = await post.user()
    stored = an_event(user, "PasswordChanged", locale="fr")
    async with post.database.connection() as connection:
        [(_, french)] = await post.send(stored)
        await connection.execute("UPDATE user_profiles SET language = 'de' WHERE user_id = $1", user.id)
        [(_, german)] = await post.send(stored)
    assert (french["Content-Language"], german["Content-Language"]) == ("fr", "de")


async def test_at_most_four_mails_are_on_their_way_at_once(post: Post) -> None:
    now, most = 0, 0

    async def slow(_: Envelope) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1
        return "250 OK"

    post.server.on_data = slow
    events = [an_event(await post.user(), "PasswordChanged") for _ in range(12)]
    await asyncio.gather(*(post.email.handle(stored) for stored in events))
    assert (len(post.sent()), most <= 4) == (12, True)

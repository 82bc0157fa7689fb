"""Hands mail to an SMTP server over a few kept connections; no wait is without a bound."""

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from ipaddress import ip_address
from typing import Self
from urllib.parse import unquote
from uuid import UUID

from aiosmtplib import SMTP, SMTPException, SMTPRecipientRefused, SMTPResponseException

from adapters.mailboxes import UNSAFE_IN_HEADER, mail_domain, mail_server, mailbox, sender_of
from adapters.settings import Settings
from adapters.tracing import span

_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
# Servers quote what they refuse: the recipient, a link from the body, a token.
_REVEALING = re.compile(r"\S*[@/]\S*|[\w-]{32,}")

_LINE_BYTES_MAX = 998
_REASON_CHARACTERS_MAX = 200
_GOODBYE_S = 1.0

_SERVICE_CLOSING = 421
_BAD_ADDRESS = 553
_BAD_MESSAGE = 554


class _OneLineIds(EmailPolicy):
    """A `Message-ID` stays on its line: not every server and reader finds one that begins on the next."""

    def fold_binary(self, name: str, value: str) -> bytes:
        if name == "Message-ID":
            return f"{name}: {value}{self.linesep}".encode("ascii")
        return super().fold_binary(name, value)


MESSAGE_POLICY = _OneLineIds(linesep="\r\n")


class MailRefused(Exception):
    """This mail will never be taken, so another try is of no use; the text holds neither address nor link."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


class MailUnavailable(Exception):
    """The mail could not be handed over now; a later try may succeed."""


@dataclass(frozen=True, slots=True)
class OutgoingMail:
    """One mail to one address; its `repr` shows nothing personal and no link."""

    to: str = field(repr=False)
    subject: str = field(repr=False)
    text: str = field(repr=False)
    html: str = field(repr=False)
    message_id: str
    language: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def message_id(event_id: UUID | str, template: str, domain: str) -> str:
    """The same for every delivery of an event's mail, so that a second copy is recognised as one."""
    return f"<{event_id}.{template}@{mail_domain(domain)}>"


def build_message(mail: OutgoingMail, sender: Address) -> EmailMessage:
    """The message as it is sent; raises MailRefused for an address or a header that says more than it should."""
    try:
        local_part, _, domain = mailbox(mail.to).rpartition("@")
    except ValueError as error:
        raise MailRefused(_BAD_ADDRESS, str(error)) from None

    message = EmailMessage(policy=MESSAGE_POLICY)
    try:
        _add_header(message, "From", sender)
        _add_header(message, "To", Address("", local_part, domain))
        _add_header(message, "Subject", mail.subject)
        _add_header(message, "Message-ID", mail.message_id)
        _add_header(message, "Date", datetime.now(UTC))
        _add_header(message, "Auto-Submitted", "auto-generated")
        message.set_content(mail.text, cte=_transfer_encoding(mail.text))
        message.add_alternative(mail.html, subtype="html", cte="quoted-printable")
        _add_header(message, "Content-Language", mail.language)  # only now: setting content drops `Content-…` headers
        for name, value in mail.headers.items():
            _add_header(message, name, value)
    except ValueError:
        raise MailRefused(_BAD_MESSAGE, "the mail cannot be written as a message") from None
    return message


def _add_header(message: EmailMessage, name: str, value: str | Address | datetime) -> None:
    if not _HEADER_NAME.fullmatch(name) or name in message or UNSAFE_IN_HEADER.search(str(value)):
        raise ValueError(name)
    message[name] = value


def _transfer_encoding(text: str) -> str:
    """The text stays readable in the raw message, unless a line is longer than SMTP allows."""
    if max(map(len, text.encode().splitlines()), default=0) > _LINE_BYTES_MAX:
        return "quoted-printable"
    return "7bit" if text.isascii() else "8bit"


class Mailer:
    """Sends over at most `connections_max` connections, kept for the next mail and made anew after a fault."""

    def __init__(
        self,
        url: str,
        *,
        sender: str,
        connect_timeout_s: float = 5.0,
        command_timeout_s: float = 10.0,
        send_timeout_s: float = 30.0,
        idle_s_max: float = 30.0,
        connections_max: int = 4,
        allow_plaintext: bool = False,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._server = mail_server(url)
        self._from = sender_of(sender)
        self._connect_timeout_s = connect_timeout_s
        self._command_timeout_s = command_timeout_s
        self._send_timeout_s = send_timeout_s
        self._idle_s_max = idle_s_max
        self._allow_plaintext = allow_plaintext
        self._tls_context = tls_context
        self._permits = asyncio.Semaphore(connections_max)
        self._kept: list[tuple[float, SMTP]] = []
        self._closed = False
        self.taken_at = float("-inf")
        """When the server last took a mail, by the monotonic clock; never, where a later one has failed."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """To the mail server that the settings name."""
        url = settings.smtp_url.get_secret_value()
        return cls(url, sender=settings.mail_from, allow_plaintext=settings.allow_plaintext)

    @property
    def domain(self) -> str:
        """The sender's domain, which is that of its message ids."""
        return self._from.domain

    async def send(self, mail: OutgoingMail) -> None:
        """Hand over one mail; raises MailRefused for good, MailUnavailable for now."""
        message = build_message(mail, self._from)
        recipient = mailbox(mail.to)  # never read back from the header, which others may parse differently
        with span("client", "send mail"):
            await self._hand_over(message, recipient)

    async def _hand_over(self, message: EmailMessage, recipient: str) -> None:
        async with self._turn():
            client = await self._announced(recipient)
            async with _exchange(client, self._command_timeout_s):
                with _refusals():
                    await client.data(_content(message, client, utf8=not recipient.isascii()))
            self.taken_at = time.monotonic()
            self._keep(client)

    async def probe(self) -> None:
        """Find out whether the server answers; raises MailUnavailable."""
        async with self._turn():
            self._keep(await self._answering() or await self._connected())

    async def close(self) -> None:
        """Say goodbye on the idle connections; those in use are closed when their mail is done."""
        self._closed = True
        kept, self._kept = self._kept, []
        await asyncio.gather(*(_say_goodbye(client) for _, client in kept))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A place among the connections, within one bound for the waiting and the work."""
        if self._closed:
            raise MailUnavailable("the mailer is closed")
        try:
            async with asyncio.timeout(self._send_timeout_s), self._permits:
                yield
        except (SMTPException, OSError, UnicodeError) as error:  # the last: a host that no name can be looked up for
            self.taken_at = float("-inf")
            raise MailUnavailable(_reason(error)) from None

    async def _announced(self, recipient: str) -> SMTP:
        """A connection on which the server awaits this recipient's mail; a stale one gives way to a fresh one, once."""
        kept = self._take_kept()
        if kept is not None:
            try:
                await self._announce(kept, recipient)
            except (SMTPException, OSError) as error:
                # Only an answer about the recipient is about this mail; all else may be the connection's age.
                if isinstance(error, SMTPRecipientRefused) and error.code != _SERVICE_CLOSING:
                    raise
            else:
                return kept
        fresh = await self._connected()
        await self._announce(fresh, recipient)
        return fresh

    async def _announce(self, client: SMTP, recipient: str) -> None:
        """MAIL and RCPT, up to where the content may follow."""
        options = ["BODY=8BITMIME"] if client.supports_extension("8bitmime") else []
        encoding = "ascii"
        async with _exchange(client, self._command_timeout_s):
            if not recipient.isascii():
                if not client.supports_extension("smtputf8"):
                    raise MailRefused(_BAD_ADDRESS, "the server takes no addresses outside ASCII")
                options.append("SMTPUTF8")
                encoding = "utf-8"
            await client.mail(self._from.addr_spec, options=options, encoding=encoding)
            with _refusals():
                await client.rcpt(recipient, encoding=encoding)

    async def _answering(self) -> SMTP | None:
        """A kept connection that has just proved to be alive."""
        kept = self._take_kept()
        if kept is None:
            return None
        try:
            async with _exchange(kept, self._command_timeout_s):
                await kept.noop()
        except (SMTPException, OSError):
            return None
        return kept

    async def _connected(self) -> SMTP:
        """A new connection, encrypted and logged in as the server's address asks for."""
        client = SMTP(
            hostname=self._server.hostname,
            port=self._server.port or (465 if self._server.scheme == "smtps" else 587),
            username=unquote(self._server.username) if self._server.username else None,
            password=unquote(self._server.password) if self._server.password else None,
            local_hostname=self._from.domain,  # else aiosmtplib asks the DNS for our name, without a bound
            timeout=None,
            use_tls=self._server.scheme == "smtps",
            start_tls=self._start_tls(),
            tls_context=self._tls_context,
        )
        async with _exchange(client, self._connect_timeout_s):
            await client.connect()
            if client.is_ehlo_or_helo_needed:  # STARTTLS makes it forget what the server can do
                await client.ehlo()
        return client

    def _start_tls(self) -> bool | None:
        """True demands the upgrade, None takes it where it is offered."""
        if self._server.scheme == "smtps":
            return False
        return None if self._allow_plaintext or _is_loopback(self._server.hostname or "") else True

    def _take_kept(self) -> SMTP | None:
        """The connection used last, if it is still good; older ones that are not are dropped on the way."""
        oldest = asyncio.get_running_loop().time() - self._idle_s_max
        while self._kept:
            kept_at, client = self._kept.pop()
            if client.is_connected and kept_at >= oldest:
                return client
            client.close()
        return None

    def _keep(self, client: SMTP) -> None:
        if self._closed:
            client.close()
        else:
            self._kept.append((asyncio.get_running_loop().time(), client))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _content(message: EmailMessage, client: SMTP, *, utf8: bool) -> bytes:
    """The message as this server takes it: 8-bit text where it says so, UTF-8 headers where the address needs them."""
    cte_type = "8bit" if client.supports_extension("8bitmime") else "7bit"
    return message.as_bytes(policy=MESSAGE_POLICY.clone(cte_type=cte_type, utf8=utf8))


@asynccontextmanager
async def _exchange(client: SMTP, timeout_s: float) -> AsyncIterator[None]:
    """A bounded talk with the server; a connection that failed or was cancelled in the middle is never used again."""
    # aiosmtplib's own time-outs are off: they use `wait_for`, which may swallow a cancellation before Python 3.12.
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except BaseException:
        client.close()
        raise


async def _say_goodbye(client: SMTP) -> None:
    with suppress(SMTPException, OSError):
        async with _exchange(client, _GOODBYE_S):
            await client.quit()
    client.close()


@contextmanager
def _refusals() -> Iterator[None]:
    """A 5xx answer about the recipient or the content is final."""
    try:
        yield
    except SMTPResponseException as error:
        if error.code < 500:
            raise
        raise MailRefused(error.code, _harmless(error.message)) from None


def _reason(error: SMTPException | OSError | UnicodeError) -> str:
    """Why a mail was not handed over, in words that may be stored and logged."""
    match error:
        case SMTPResponseException():
            return f"{error.code} {_harmless(error.message)}"
        case SMTPException():
            return _harmless(error.message)
        case TimeoutError():
            return "no answer in time"
        case _:
            return type(error).__name__


def _harmless(text: str) -> str:
    """A server's words in one bounded line, without what may be an address, a link or a token."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return _REVEALING.sub("***", line)[:_REASON_CHARACTERS_MAX]

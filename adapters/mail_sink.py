"""An SMTP server that keeps every mail as a file and sends none on, and the functions that read that folder."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import warnings
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit
from weakref import WeakSet

from adapters.embedded_state import LOOPBACK, EmbeddedFailure, make_private
from adapters.private_files import write_private

try:
    from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
except ImportError as error:
    raise EmbeddedFailure("the mail sink is missing: install user-service[dev]") from error

_MAIL_BYTES_MAX = 10 * 1024 * 1024
_LINK = re.compile(r"https?://[^\s<>\"]+")
_NAME_DIGITS = 20


class MailSink:
    """An SMTP server in the running loop; each mail becomes one `.eml`, names in order of arrival."""

    def __init__(self, mail_dir: Path, user: str, password: str, port: int = 0) -> None:
        self._mail_dir = mail_dir
        self._user = user
        self._password = password
        self._port = port
        self._server: asyncio.Server | None = None
        self._sessions: WeakSet[SMTP] = WeakSet()
        self._last = 0

    @property
    def port(self) -> int:
        """The port it listens on, known once entered."""
        return self._port

    @property
    def url(self) -> str:
        """The address with credentials, known once entered."""
        return f"smtp://{self._user}:{self._password}@{LOOPBACK}:{self._port}"

    async def __aenter__(self) -> Self:
        """Listen; mails of earlier runs stay and sort before new ones."""
        make_private(self._mail_dir)
        # It logs that warning too, and a trace for every address it cannot parse.
        logging.getLogger("mail.log").setLevel(logging.CRITICAL)
        self._last = max((_number_of(path) for path in stored_mails(self._mail_dir)), default=0)
        try:
            self._server = await asyncio.get_running_loop().create_server(self._new_session, LOOPBACK, self._port)
        except OSError as error:
            raise EmbeddedFailure(f"the mail sink cannot listen on port {self._port}: {error.strerror}") from error
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the port and what is connected to it."""
        if self._server is not None:
            self._server.close()
            for session in list(self._sessions):
                if session.transport is not None:
                    session.transport.close()
            await self._server.wait_closed()

    def _new_session(self) -> SMTP:
        with warnings.catch_warnings():
            # On each session aiosmtpd warns of a password without TLS; this one goes over loopback.
            warnings.simplefilter("ignore", UserWarning)
            session = SMTP(
                _Deliveries(self),
                hostname="user-service.invalid",  # a fixed name: looking up our own would block the loop
                data_size_limit=_MAIL_BYTES_MAX,
                enable_SMTPUTF8=True,
                auth_required=True,
                auth_require_tls=False,
                authenticator=self._authenticate,
                loop=asyncio.get_running_loop(),
            )
        self._sessions.add(session)
        return session

    def _authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, given: object
    ) -> AuthResult:
        known = (
            isinstance(given, LoginPassword)
            and hmac.compare_digest(given.login, self._user.encode())
            and hmac.compare_digest(given.password, self._password.encode())
        )
        return AuthResult(success=known, handled=False)

    async def keep(self, content: bytes) -> None:
        """Write one mail under the next name, whole before anybody can see it."""
        # Past the last name even where the clock went back.
        self._last = max(time.time_ns(), self._last + 1)
        path = self._mail_dir / f"{self._last:0{_NAME_DIGITS}d}.eml"
        await asyncio.to_thread(write_private, path, content)


class _Deliveries:
    """The hooks that aiosmtpd calls."""

    def __init__(self, sink: MailSink) -> None:
        self._sink = sink

    async def handle_DATA(  # noqa: N802 - aiosmtpd calls it so
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        content = envelope.original_content
        if content is None:
            return "554 no content"
        await self._sink.keep(content)
        return "250 kept"

    async def handle_exception(self, error: Exception) -> str:
        if isinstance(error, OSError):
            return "451 cannot be kept now"
        # Addresses that the parser of the standard library trips over; the session goes on.
        return "501 not understood"


def stored_mails(mail_dir: Path) -> list[Path]:
    """List the mails in order of arrival."""
    return sorted(mail_dir.glob("*.eml")) if mail_dir.is_dir() else []


def read_mail(path: Path) -> EmailMessage:
    """Parse one stored mail."""
    mail = message_from_bytes(path.read_bytes(), policy=policy.default)
    if not isinstance(mail, EmailMessage):
        raise TypeError(f"{path.name} is not parsed as an EmailMessage")
    return mail


def newest_mail(mail_dir: Path) -> EmailMessage | None:
    """Parse the mail that arrived last, if any did."""
    stored = stored_mails(mail_dir)
    return read_mail(stored[-1]) if stored else None


def link_of(mail: EmailMessage) -> str | None:
    """Return the first link with a token in the text part."""
    body = mail.get_body(preferencelist=("plain",))
    if body is None:
        return None
    links = (found.rstrip(".,;:)]") for found in _LINK.findall(str(body.get_content())))
    return next((link for link in links if _token_in(link)), None)


def token_of(mail: EmailMessage) -> str | None:
    """Return the token of that link."""
    link = link_of(mail)
    return None if link is None else _token_in(link)


def _token_in(link: str) -> str | None:
    try:
        values = parse_qs(urlsplit(link).query).get("token")
    except ValueError:
        return None
    return values[0] if values else None


def _number_of(path: Path) -> int:
    return int(path.stem) if path.stem.isascii() and path.stem.isdigit() else 0

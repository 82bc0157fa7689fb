"""An SMTP server for tests, which refuses, hangs and dies as it is told."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP as MESSAGE_POLICY
from pathlib import Path
from typing import cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Hook = Callable[[Envelope], Awaitable[str]]


async def yes(_: Envelope) -> str:
    """Agree."""
    return "250 OK"


async def bye(_: Envelope) -> str:
    """Take leave."""
    return "221 Bye"


@dataclass
class MailServer:
    """An SMTP server in this loop; a test gives it the answers it wants, and looks at what arrived."""

    on_mail: Hook = yes
    on_rcpt: Hook = yes
    on_data: Hook = yes
    on_quit: Hook = bye
    smtputf8: bool = True
    tls: ssl.SSLContext | None = None
    password: str | None = None
    port: int = 0
    received: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    connections: list[SMTP] = field(default_factory=list)
    _listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's names
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.commands.append("MAIL")
        envelope.mail_from, envelope.mail_options = address, options
        return await self.on_mail(envelope)

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        envelope.rcpt_tos.append(address)
        return await self.on_rcpt(envelope)

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        answer = await self.on_data(envelope)
        if answer.startswith("2"):
            assert isinstance(envelope.content, bytes)
            parsed = message_from_bytes(envelope.content, policy=MESSAGE_POLICY)
            self.received.append((envelope.rcpt_tos, parsed))
        return answer

    async def handle_QUIT(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.commands.append("QUIT")
        return await self.on_quit(envelope)

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _: str, data: object) -> AuthResult:
        given = data.password.decode() if isinstance(data, LoginPassword) else ""
        return AuthResult(success=given == self.password, handled=False)

    def _connection(self) -> SMTP:
        connection = SMTP(
            self,
            hostname="mail.example.org",
            enable_SMTPUTF8=self.smtputf8,
            tls_context=self.tls,
            require_starttls=self.tls is not None,
            authenticator=self._authenticate,
            auth_required=self.password is not None,
            auth_require_tls=False,
        )
        self.connections.append(connection)
        return connection

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connection, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for connection in self.connections:
            cut(connection)
        await self._listener.wait_closed()


def answers(*replies: str) -> Hook:
    """One reply for each call, the last for all that follow."""
    left = list(replies)

    async def answer(_: Envelope) -> str:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


async def never(_: Envelope) -> str:
    """Keep the client waiting."""
    await asyncio.Event().wait()
    return "250 too late"


def cut(connection: SMTP) -> None:
    """Drop the line without a word, as a server that dies does."""
    if connection.transport is not None:
        cast(asyncio.Transport, connection.transport).abort()


def certificate_for_localhost(path: Path) -> Path:
    """Write a fresh certificate and its key into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path

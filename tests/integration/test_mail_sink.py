"""The mail sink as an SMTP client and a reader of its folder see it."""

from __future__ import annotations

import asyncio
import base64
import stat
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib
import pytest

from adapters.embedded import EmbeddedFailure
from adapters.mail_sink import MailSink, link_of, newest_mail, read_mail, stored_mails, token_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


def _mail(subject: str, text: str = "hello", to: str = "user@example.test") -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "service@example.test", to, subject
    mail.set_content(text)
    return mail


async def _send(sink: MailSink, mail: EmailMessage, password: str | None = "secret") -> None:
    user = None if password is None else "dev"
    await aiosmtplib.send(
        mail, hostname="127.0.0.1", port=sink.port, username=user, password=password, start_tls=False, timeout=5
    )


async def test_mails_stand_in_order_of_arrival_across_restarts(tmp_path: Path) -> None:
    for first in (0, 3):
        async with MailSink(tmp_path / "mail", "dev", "secret") as sink:
            for number in range(first, first + 3):
                await _send(sink, _mail(str(number)))
    stored = stored_mails(tmp_path / "mail")
    assert [read_mail(path)["Subject"] for path in stored] == ["0", "1", "2", "3", "4", "5"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in stored} == {0o600}
    assert [path for path in (tmp_path / "mail").iterdir() if path.suffix != ".eml"] == []


async def test_a_clock_that_went_back_keeps_the_order(tmp_path: Path) -> None:
    (tmp_path / f"{2**63:020d}.eml").write_bytes(b"Subject: from the future\r\n\r\n")
    async with MailSink(tmp_path, "dev", "secret") as sink:
        await _send(sink, _mail("now"))
    newest = newest_mail(tmp_path)
    assert newest is not None
    assert newest["Subject"] == "now"


@pytest.mark.parametrize("password", ["wrong", None])
async def test_nothing_is_kept_without_the_password(tmp_path: Path, password: str | None) -> None:
    async with MailSink(tmp_path, "dev", "secret") as sink:
        with pytest.raises(aiosmtplib.SMTPResponseException):
            await _send(sink, _mail("refused"), password)
    assert stored_mails(tmp_path) == []


async def test_addresses_of_any_script_are_taken(tmp_path: Path) -> None:
    async with MailSink(tmp_path, "dev", "secret") as sink:
        await _send(sink, _mail("grüße", to="üser@exämple.test"))
    newest = newest_mail(tmp_path)
    assert newest is not None
    assert newest["To"] == "üser@exämple.test"


async def test_hostile_addresses_leave_it_serving(tmp_path: Path) -> None:
    hostile = [b"<@>", b'<"@x>', b"<a@[>", b"<\xff\xfe@x>", b"< >", b"<(@x>", b"<a@b@c>", b"<a@" + b"x" * 5000 + b">"]
    async with MailSink(tmp_path, "dev", "secret") as sink:
        reader, writer = await asyncio.open_connection("127.0.0.1", sink.port)
        await reader.readline()
        credentials = base64.b64encode(b"\0dev\0secret")
        for line in (b"HELO x", b"EHLO x", b"AUTH PLAIN " + credentials, *(b"MAIL FROM:" + part for part in hostile)):
            writer.write(line + b"\r\nRSET\r\n")
            while not (await asyncio.wait_for(reader.readline(), 5)).startswith(b"250 OK"):
                pass
        await _send(sink, _mail("still here"))
        writer.close()
        await writer.wait_closed()
    assert len(stored_mails(tmp_path)) == 1


async def test_the_first_link_with_a_token_is_found() -> None:
    mail = _mail("link", "see http://example.test/ or (https://example.test/verify-email?token=abc-_1).")
    assert link_of(mail) == "https://example.test/verify-email?token=abc-_1"
    assert token_of(mail) == "abc-_1"
    assert token_of(_mail("none", "see http://[broken?token=1 and http://example.test/?a=b")) is None


async def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    async with MailSink(tmp_path / "one", "dev", "secret") as sink:
        with pytest.raises(EmbeddedFailure, match=str(sink.port)):
            await MailSink(tmp_path / "two", "dev", "secret", port=sink.port).__aenter__()

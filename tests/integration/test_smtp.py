"""The mailer against a real SMTP server that refuses, hangs, dies and comes back."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.smtp import Envelope

from adapters.smtp import Mailer, MailRefused, MailUnavailable, OutgoingMail, build_message, message_id
from handlers.measures import mail_answers
from tests.integration.mail_server import MailServer, answers, certificate_for_localhost, cut, never, yes

MAIL = OutgoingMail(
    to="zoe@example.org",
    subject="Bestätigen Sie Ihre Adresse",
    text="Grüße\nhttps://id.example.org/verify-email?token=" + "t" * 43 + "\n.\n",
    html="<p>Grüße</p>" * 200,
    message_id=message_id("01926c2e-7a10-7c3e-9f00-0123456789ab", "verification", "example.org"),
    language="de",
    headers={"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
)


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    mail_server = MailServer()
    await mail_server.start()
    yield mail_server
    await mail_server.stop()


@asynccontextmanager
async def mailer_to(url: str, **options: float | ssl.SSLContext) -> AsyncIterator[Mailer]:
    made = Mailer(url, sender="Project5 <no-reply@example.org>", **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def mailer(server: MailServer) -> AsyncIterator[Mailer]:
    async with mailer_to(server.url) as made:
        yield made


def test_a_message_id_is_never_broken_over_two_lines() -> None:
    mail = replace(
        MAIL, message_id=message_id(f"{'0' * 36}", "two_factor_reset_admins." + "1" * 36, "mail.example.org")
    )

    message = build_message(mail, Address("", "no-reply", "example.org"))
    assert f"\r\nMessage-ID: {mail.message_id}\r\n".encode() in message.as_bytes()


async def test_a_mail_arrives_as_it_was_written(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(MAIL)

    [(recipients, received)] = server.received
    assert recipients == ["zoe@example.org"]
    assert received["To"] == "zoe@example.org"
    assert received["From"] == "Project5 <no-reply@example.org>"
    assert received["Subject"] == MAIL.subject
    assert received["Message-ID"] == MAIL.message_id
    assert received["Auto-Submitted"] == "auto-generated"
    assert received["Content-Language"] == "de"
    assert received["Traceparent"] == MAIL.headers["Traceparent"]
    assert received["Date"].datetime.utcoffset() == timedelta(0)
    assert received.get_content_type() == "multipart/alternative"
    text, html = received.iter_parts()
    assert isinstance(text, EmailMessage)
    assert isinstance(html, EmailMessage)
    assert text.get_content().splitlines() == MAIL.text.splitlines()
    assert html.get_content().rstrip() == MAIL.html


async def test_a_connection_is_kept_for_the_next_mail(server: MailServer, mailer: Mailer) -> None:
    for _ in range(3):
        await mailer.send(MAIL)
    await mailer.probe()

    assert len(server.connections) == 1


async def test_a_second_delivery_carries_the_same_message_id(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(MAIL)
    await mailer.send(MAIL)

    assert {received["Message-ID"] for _, received in server.received} == {MAIL.message_id}


async def test_a_passing_refusal_is_unavailable_and_the_next_try_succeeds(server: MailServer, mailer: Mailer) -> None:
    server.on_rcpt = answers("450 4.2.0 greylisted", "250 OK")

    with pytest.raises(MailUnavailable, match="450"):
        await mailer.send(MAIL)
    await mailer.send(MAIL)

    assert len(server.received) == 1


async def test_a_mail_that_failed_makes_an_earlier_one_no_sign_of_a_server(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(MAIL)
    assert mailer.taken_at > 0
    await server.stop()
    with pytest.raises(MailUnavailable):
        await mailer.send(MAIL)
    assert mailer.taken_at < 0, "whoever watches asks the server itself"
    assert not await mail_answers(mailer)


@pytest.mark.parametrize("step", ["on_rcpt", "on_data"])
async def test_a_final_refusal_says_its_code_and_nothing_personal(
    server: MailServer, mailer: Mailer, step: str
) -> None:
    setattr(server, step, answers(f"550 5.7.1 <zoe@example.org> no: {MAIL.text.splitlines()[1]}", "250 OK"))

    with pytest.raises(MailRefused) as refusal:
        await mailer.send(MAIL)

    assert refusal.value.code == 550
    assert refusal.value.text.startswith("5.7.1")
    assert "zoe" not in str(refusal.value)
    assert "token" not in str(refusal.value)
    await mailer.send(MAIL)  # the refused mail left nothing behind


async def test_a_refused_sender_is_a_matter_of_configuration(server: MailServer, mailer: Mailer) -> None:
    server.on_mail = answers("550 5.7.1 not your domain")

    with pytest.raises(MailUnavailable, match="550"):
        await mailer.send(MAIL)


async def test_a_restarted_server_costs_no_mail(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(MAIL)
    await server.stop()
    await server.start()

    await mailer.send(MAIL)

    assert len(server.received) == 2


@pytest.mark.parametrize("answer", ["abort", "421 4.4.2 idle too long", "451 too many mails in this session"])
async def test_a_kept_connection_that_went_stale_is_replaced_once(
    server: MailServer, mailer: Mailer, answer: str
) -> None:
    await mailer.send(MAIL)

    async def stale(_: Envelope) -> str:
        server.on_mail = yes
        if answer == "abort":
            cut(server.connections[0])
        return answer

    server.on_mail = stale
    await mailer.send(MAIL)

    assert len(server.received) == 2
    assert len(server.connections) == 2


async def test_a_fresh_connection_is_not_tried_twice(server: MailServer, mailer: Mailer) -> None:
    server.on_mail = answers("421 4.3.2 closing")

    with pytest.raises(MailUnavailable, match="421"):
        await mailer.send(MAIL)

    assert server.commands == ["MAIL"]


async def test_a_mail_cut_off_in_its_content_is_not_sent_again_by_itself(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(MAIL)

    async def die(_: Envelope) -> str:
        cut(server.connections[0])
        return "451 too late"

    server.on_data = die
    with pytest.raises(MailUnavailable):
        await mailer.send(MAIL)

    assert server.commands == ["MAIL", "MAIL"]


async def test_a_connection_idle_too_long_is_replaced(server: MailServer) -> None:
    async with mailer_to(server.url, idle_s_max=0.0) as mailer:
        await mailer.send(MAIL)
        await mailer.send(MAIL)

    assert len(server.connections) == 2


@pytest.mark.parametrize("step", ["on_mail", "on_rcpt", "on_data"])
async def test_a_server_that_hangs_is_waited_for_to_a_bound(server: MailServer, step: str) -> None:
    setattr(server, step, never)
    async with mailer_to(server.url, command_timeout_s=0.1) as mailer, asyncio.timeout(5):
        with pytest.raises(MailUnavailable):
            await mailer.send(MAIL)


async def test_a_server_that_never_greets_is_waited_for_to_a_bound() -> None:
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    url = f"smtp://127.0.0.1:{silent.sockets[0].getsockname()[1]}"

    async with mailer_to(url, connect_timeout_s=0.1) as mailer, asyncio.timeout(5):
        with pytest.raises(MailUnavailable, match="no answer in time"):
            await mailer.send(MAIL)
        with pytest.raises(MailUnavailable, match="no answer in time"):
            await mailer.probe()

    for writer in accepted:
        writer.close()
    silent.close()
    await silent.wait_closed()


async def test_waiting_for_a_free_connection_has_a_bound_too(server: MailServer) -> None:
    server.on_data = never
    async with mailer_to(server.url, send_timeout_s=0.3, connections_max=1) as mailer, asyncio.timeout(5):
        results = await asyncio.gather(*(mailer.send(MAIL) for _ in range(3)), return_exceptions=True)

    assert [type(result) for result in results] == [MailUnavailable] * 3


async def test_four_mails_go_at_once_and_no_more_than_four(server: MailServer, mailer: Mailer) -> None:
    at_once = asyncio.Barrier(4)

    async def together(_: Envelope) -> str:
        async with asyncio.timeout(5), at_once:
            return "250 OK"

    server.on_data = together
    await asyncio.gather(*(mailer.send(replace(MAIL, to=f"user{n}@example.org")) for n in range(8)))

    assert {recipients[0] for recipients, _ in server.received} == {f"user{n}@example.org" for n in range(8)}
    assert all(message["To"] == recipients[0] for recipients, message in server.received)
    assert len(server.connections) == 4


async def test_a_cancelled_send_leaves_no_connection_in_the_middle_of_a_mail(
    server: MailServer, mailer: Mailer
) -> None:
    arrived = asyncio.Event()

    async def hang(envelope: Envelope) -> str:
        arrived.set()
        return await never(envelope)

    server.on_data = hang
    task = asyncio.create_task(mailer.send(MAIL))
    await asyncio.wait_for(arrived.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    server.on_data = yes
    await mailer.send(MAIL)

    assert len(server.received) == 1
    assert len(server.connections) == 2


@pytest.mark.parametrize("to", ["a@b.c,evil@x.y", "a@b.c\r\nRCPT TO:<evil@x.y>", "a@b.c> <evil@x.y"])
async def test_two_recipients_in_one_address_reach_nobody(server: MailServer, mailer: Mailer, to: str) -> None:
    with pytest.raises(MailRefused) as refusal:
        await mailer.send(replace(MAIL, to=to))

    assert refusal.value.code == 553
    assert "evil" not in str(refusal.value)
    assert server.connections == []


async def test_a_line_break_in_the_subject_reaches_nobody(server: MailServer, mailer: Mailer) -> None:
    with pytest.raises(MailRefused):
        await mailer.send(replace(MAIL, subject="x\r\nBcc: evil@x.y"))

    assert server.connections == []


async def test_a_domain_outside_ascii_goes_as_its_a_label(server: MailServer, mailer: Mailer) -> None:
    server.smtputf8 = False

    await mailer.send(replace(MAIL, to="zoe@bücher.example"))

    [(recipients, received)] = server.received
    assert recipients == ["zoe@xn--bcher-kva.example"]
    assert received["To"] == "zoe@xn--bcher-kva.example"


async def test_a_local_part_outside_ascii_is_sent_where_the_server_takes_it(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(replace(MAIL, to="zoë@bücher.example"))

    assert server.received[0][0] == ["zoë@xn--bcher-kva.example"]


async def test_a_local_part_outside_ascii_is_refused_where_it_does_not(server: MailServer, mailer: Mailer) -> None:
    server.smtputf8 = False

    with pytest.raises(MailRefused) as refusal:
        await mailer.send(replace(MAIL, to="zoë@example.org"))

    assert refusal.value.code == 553
    assert server.received == []


async def test_a_server_that_is_away_is_unavailable(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(MAIL)
    await server.stop()

    with pytest.raises(MailUnavailable):
        await mailer.send(MAIL)
    with pytest.raises(MailUnavailable):
        await mailer.probe()

    await server.start()
    await mailer.probe()


async def test_a_closed_mailer_sends_nothing(server: MailServer, mailer: Mailer) -> None:
    await mailer.send(MAIL)
    await mailer.close()

    with pytest.raises(MailUnavailable, match="closed"):
        await mailer.send(MAIL)
    assert server.commands == ["MAIL", "QUIT"]


async def test_a_server_that_takes_no_leave_is_left_all_the_same(server: MailServer, mailer: Mailer) -> None:
    at_once = asyncio.Barrier(4)

    async def all_four_together(_: Envelope) -> str:
        async with asyncio.timeout(5), at_once:
            return "250 OK"

    server.on_data, server.on_quit = all_four_together, never
    await asyncio.gather(*(mailer.send(replace(MAIL, to=f"user{n}@example.org")) for n in range(4)))
    began = time.monotonic()
    await mailer.close()
    assert server.commands.count("QUIT") == 4
    assert time.monotonic() - began < 2  # a second for all of them, not for each


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
async def test_a_login_is_made_and_a_wrong_one_does_not_tell_the_password(server: MailServer) -> None:
    server.password = "pass/w@rd"
    login = f"127.0.0.1:{server.port}"

    async with mailer_to(f"smtp://postman:pass%2Fw%40rd@{login}") as mailer:
        await mailer.send(MAIL)
    async with mailer_to(f"smtp://postman:not-the-word@{login}") as mailer:
        with pytest.raises(MailUnavailable, match="535") as failure:
            await mailer.send(MAIL)

    assert len(server.received) == 1
    assert "not-the-word" not in str(failure.value)


async def test_plain_text_is_not_spoken_with_a_server_elsewhere(server: MailServer) -> None:
    elsewhere = f"smtp://0.0.0.0:{server.port}"  # reaches this machine, but is not a loopback address

    async with mailer_to(elsewhere) as mailer:
        with pytest.raises(MailUnavailable, match="STARTTLS"):
            await mailer.send(MAIL)
    assert server.commands == []

    async with mailer_to(elsewhere, allow_plaintext=True) as mailer:
        await mailer.send(MAIL)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return certificate_for_localhost(tmp_path / "localhost.pem")


async def test_starttls_is_used_where_it_is_offered_and_its_certificate_is_checked(
    server: MailServer, certificate: Path
) -> None:
    server.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    url = f"smtp://localhost:{server.port}"

    async with mailer_to(url, tls_context=trusting) as mailer:
        await mailer.send(MAIL)
        await mailer.send(MAIL)
    assert len(server.received) == 2

    async with mailer_to(url) as mailer:
        with pytest.raises(MailUnavailable, match="SSLCertVerificationError"):
            await mailer.send(MAIL)


@pytest.mark.parametrize(
    "url", ["http://mail.example.org", "smtp://", "mail:25", "smtp://u:pa/secret@host:1", "smtp://u:p@host:secret"]
)
def test_a_faulty_address_of_the_server_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="smtp://user:password@host:port") as fault:
        Mailer(url, sender="no-reply@example.org")

    assert "secret" not in str(fault.value)


@pytest.mark.parametrize(
    "sender",
    [
        "a@b.c, d@e.f",
        "zoë@example.org",
        "Evil <e@v.il>, a@b.c",
        "e@v.il, x <a@b.c>",
        "x\r\nBcc: e@v.il <a@b.c>",
        "Project5 <a@b.c",
        "Project5",
        "",
    ],
)
def test_a_faulty_sender_is_refused_at_once(sender: str) -> None:
    with pytest.raises(ValueError, match=r"address"):
        Mailer("smtp://localhost", sender=sender)

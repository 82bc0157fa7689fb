"""Mails say the same in four languages, and nothing that is put into them becomes markup or a header."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes
from email.headerregistry import Address
from email.policy import SMTP as MESSAGE_POLICY
from html.parser import HTMLParser

import pytest
from aiosmtplib.email import parse_address
from hypothesis import assume, given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup

from adapters.build_mail import COMPILED, SOURCE, compile_layout
from adapters.mail_templates import LANGUAGES, RenderedMail, render
from adapters.mailboxes import mailbox
from adapters.smtp import MailRefused, OutgoingMail, build_message, message_id
from handlers.events.mails import MAILS

AT = datetime(2026, 11, 1, 20, 47, tzinfo=UTC)
LINK = "https://id.example.org/verify-email?token=abc"
SENDER = Address("Project5", "no-reply", "example.org")
SIGN_IN: Mapping[str, str | datetime] = {
    "service": "Project5",
    "device": "Firefox on Linux",
    "ip": "203.0.113.7",
    "time": AT,
}
SERVICE: Mapping[str, str | datetime] = {"service": "Project5"}
LINKED: Mapping[str, str | datetime] = {**SERVICE, "link": LINK, "expires_at": AT}
SEEN: Mapping[str, str | datetime] = {**SERVICE, "ip": "203.0.113.7", "time": AT}
ABOUT: Mapping[str, str | datetime] = {
    "service": "Project5",
    "account": "zoe@example.org",
    "actor": "admin@example.org",
    "time": AT,
}
ROLES: Mapping[str, str | datetime] = {"from_role": "user", "to_role": "moderator"}
VALUES: Mapping[str, Mapping[str, str | datetime]] = {
    "verification": LINKED,
    "welcome": {**SERVICE, "first_name": "Zoë"},
    "new_device": SIGN_IN,
    "token_reuse": SIGN_IN,
    "registration_repeated": SERVICE,
    "invitation": LINKED,
    "account_locked": {**LINKED, "until": AT},
    "second_factor_guessing": SEEN,
    "password_reset": LINKED,
    "password_changed": SEEN,
    "email_change_confirm": LINKED,
    "email_change_warning": {**LINKED, **SEEN},
    "email_changed": {**SERVICE, "time": AT},
    "email_changed_old": {**SERVICE, "time": AT},
    "email_change_cancelled": SERVICE,
    "two_factor_on": SEEN,
    "two_factor_off": SEEN,
    "two_factor_reset": {**SERVICE, "time": AT},
    "two_factor_reset_admins": ABOUT,
    "backup_code_used": {**SEEN, "remaining": "7"},
    "deleted": {**SERVICE, "erased_at": AT},
    "role_changed": {**SERVICE, **ROLES, "time": AT},
    "role_changed_admins": {**ABOUT, **ROLES},
}
LABELS = {"device", "ip", "time", "account", "actor", "from_role", "to_role", "remaining"}
MAY_LACK = {"first_name"}
ALL_MAILS = [(template, language) for template in VALUES for language in LANGUAGES]

SPECIAL = "<>\"'&;{}%#\\\r\n\t\u2028\u202e\ud800=:,@ "
nasty = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters()), max_size=40) | st.sampled_from(
    ["</title><script>", '" onclick="x', "{{ service }}", "x\r\nBcc: e@v.il", "=?utf-8?q?=0D=0ABcc:_e=40v.il?="]
)
Tag = tuple[str, tuple[str, ...]]


def tags_of(html: str) -> list[Tag]:
    """Each start tag with the names of its attributes, which no value may change."""
    tags: list[Tag] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, tuple(name for name, _ in attrs)))

    Tags().feed(html)
    return tags


def outgoing(mail: RenderedMail, to: str = "zoe@example.org") -> OutgoingMail:
    return OutgoingMail(to, mail.subject, mail.text, mail.html, "<1.welcome@example.org>", mail.language)


def test_the_committed_layout_is_what_its_source_compiles_to() -> None:
    assert COMPILED.read_text(encoding="utf-8") == compile_layout(SOURCE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("template", "language"), ALL_MAILS)
def test_every_mail_is_whole_in_every_language(template: str, language: str) -> None:
    mail = render(template, language, VALUES[template])

    assert mail.language == language
    assert "Project5" in mail.subject
    assert f'<html lang="{language}"' in mail.html
    assert not re.search(r"\{[{%#]|[}%#]\}", mail.subject + mail.text + mail.html)
    for value in VALUES[template].values():
        if isinstance(value, str):
            assert value in mail.text
            assert value in mail.html


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_letters_that_events_send(language: str) -> None:
    catalogue = tomllib.loads((SOURCE.parent / f"{language}.toml").read_text(encoding="utf-8"))

    assert catalogue["letters"].keys() == VALUES.keys() == {mail.template for of in MAILS.values() for mail in of}
    assert catalogue["labels"].keys() == LABELS


@pytest.mark.parametrize(
    ("template", "left_out"),
    [(template, name) for template, values in VALUES.items() for name in values if name not in MAY_LACK],
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_mail_that_lacks_a_value_is_not_written(template: str, left_out: str, language: str) -> None:
    values = {name: value for name, value in VALUES[template].items() if name != left_out}
    with pytest.raises(UndefinedError):
        render(template, language, values)


@pytest.mark.parametrize(("template", "language"), ALL_MAILS)
def test_nothing_that_is_put_in_becomes_markup(template: str, language: str) -> None:
    odd = {name: value if name == "link" else f"{value}<b>" for name, value in VALUES[template].items()}

    assert "<b>" not in render(template, language, odd).html


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_second_link_stands_behind_the_first_and_says_until_when(language: str) -> None:
    other, end = "https://id.example.org/not-me?token=xyz", AT + timedelta(days=7)
    mail = render("verification", language, {**LINKED, "second_link": other, "second_expires_at": end})
    plain = render("verification", language, LINKED)

    assert mail.text.index(LINK) < mail.text.index(other)
    assert other in mail.text.splitlines()
    assert mail.html.count(f'href="{other}"') == 1
    assert re.search(r"\b8\b", mail.text)  # the eighth of November
    assert not re.search(r"\b8\b", plain.text)
    with pytest.raises(UndefinedError):
        render("verification", language, {**LINKED, "second_link": other})
    with pytest.raises(ValueError, match="http"):
        render("verification", language, {**LINKED, "second_link": "javascript:x", "second_expires_at": end})


@pytest.mark.parametrize(("template", "language"), ALL_MAILS)
def test_a_mail_loads_nothing_from_elsewhere(template: str, language: str) -> None:
    html = render(template, language, VALUES[template]).html

    assert not re.search(r"<(img|link|script|iframe)|@import|url\(", html)
    assert set(re.findall(r'href="([^"]*)"', html)) == ({LINK} if "link" in VALUES[template] else set())


@pytest.mark.parametrize("template", ["new_device", "token_reuse"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_warning_says_what_to_do_with_and_without_a_link(template: str, language: str) -> None:
    linked = render(template, language, {**SIGN_IN, "link": LINK, "expires_at": AT})
    unlinked = render(template, language, SIGN_IN)

    assert linked.html.count(f'href="{LINK}"') == 2  # the button, and the address for whom it does not work
    assert LINK in linked.text.splitlines()
    assert "http" not in unlinked.text
    assert len(unlinked.text.split("\n\n")) > 4


def test_a_link_never_stands_without_its_end() -> None:
    with pytest.raises(UndefinedError):
        render("new_device", "en", {**SIGN_IN, "link": LINK})


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("verification", "en", {"service": "Project5", "expires_at": AT})
    with pytest.raises(UndefinedError):
        render("new_device", "en", {**{name: SIGN_IN[name] for name in ("service", "ip", "time")}})


def test_a_link_must_lead_to_a_page() -> None:
    with pytest.raises(ValueError, match="http"):
        render("verification", "en", {**VALUES["verification"], "link": "javascript:alert(1)"})


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_name_that_nobody_confirmed_is_not_printed(language: str) -> None:
    mail = render("verification", language, {**VALUES["verification"], "first_name": "Mallory"})

    assert "Mallory" not in mail.subject + mail.text + mail.html


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_welcome_does_without_a_name(language: str) -> None:
    heading = render("welcome", language, {"service": "Project5"}).text.splitlines()[0]

    assert "," not in heading


@pytest.mark.parametrize(
    ("spoken", "language"), [("de-AT", "de"), ("FR", "fr"), ("pt", "en"), ("", "en"), ("../en", "en")]
)
def test_an_unknown_language_falls_back_to_english(spoken: str, language: str) -> None:
    assert render("welcome", spoken, VALUES["welcome"]) == render("welcome", language, VALUES["welcome"])


@pytest.mark.parametrize(
    ("language", "written"),
    [
        ("en", "1 November 2026 at 20:47 UTC"),
        ("es", "1 de noviembre de 2026, 20:47 (UTC)"),
        ("fr", "1er novembre 2026 à 20:47 (UTC)"),
        ("de", "1. November 2026 um 20:47 Uhr (UTC)"),
    ],
)
def test_a_time_is_written_as_the_language_does_and_in_utc(language: str, written: str) -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))

    assert written in render("new_device", language, {**SIGN_IN, "time": elsewhere}).text


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        render("new_device", "en", {**SIGN_IN, "time": AT.replace(tzinfo=None)})


def test_text_is_not_escaped_and_html_is() -> None:
    mail = render("new_device", "en", {**SIGN_IN, "device": "A & <B>"})

    assert "A & <B>" in mail.text
    assert "A &amp; &lt;B&gt;" in mail.html


def test_a_string_that_calls_itself_safe_is_escaped_all_the_same() -> None:
    assert "<b>" not in render("welcome", "en", {"service": "Project5", "first_name": Markup("<b>x</b>")}).html


@given(service=nasty, device=nasty, ip=nasty, tail=nasty)
def test_no_value_becomes_markup_or_a_line(service: str, device: str, ip: str, tail: str) -> None:
    plain = {**SIGN_IN, "link": LINK, "expires_at": AT}
    mail = render("new_device", "en", {**plain, "service": service, "device": device, "ip": ip, "link": LINK + tail})
    usual = render("new_device", "en", plain)

    assert tags_of(mail.html) == tags_of(usual.html)
    assert len(mail.subject.splitlines()) == 1
    assert sum(line.startswith("  ") for line in mail.text.splitlines()) == 3


@given(service=nasty)
def test_no_value_becomes_a_header(service: str) -> None:
    mail = render("welcome", "en", {"service": service, "first_name": service})
    usual = build_message(outgoing(render("welcome", "en", VALUES["welcome"])), SENDER)

    try:
        message = build_message(outgoing(mail), SENDER)
    except MailRefused:
        assume("=?" not in service)  # the mail library would decode it, line breaks and all
        raise
    sent = message_from_bytes(message.as_bytes(), policy=MESSAGE_POLICY)

    assert sent.keys() == usual.keys()
    assert sent["To"] == "zoe@example.org"


@given(to=nasty, subject=nasty, extra=nasty)
def test_a_message_says_no_more_than_it_should_or_is_refused(to: str, subject: str, extra: str) -> None:
    mail = replace(
        outgoing(render("welcome", "en", VALUES["welcome"])), subject=subject, headers={"Traceparent": extra}
    )
    try:
        message = build_message(replace(mail, to=f"{to}@example.org"), SENDER)
    except MailRefused:
        return
    head = message_from_bytes(message.as_bytes(policy=MESSAGE_POLICY.clone(utf8=True)), policy=MESSAGE_POLICY)

    assert len(head.keys()) == 10
    assert len(head["To"].addresses) == 1


@given(local_part=st.text(max_size=70), domain=st.text(max_size=70))
def test_an_address_is_one_or_none(local_part: str, domain: str) -> None:
    try:
        accepted = mailbox(f"{local_part}@{domain}")
    except ValueError:
        return
    assert re.fullmatch(r"[^@\s,;<>\"()]+@[a-z0-9.-]+", accepted)
    assert parse_address(accepted) == accepted


@pytest.mark.parametrize(
    "address",
    [
        "a@b.c,evil@x.y",
        "evil@x.y a@b.c",
        "Zoë <a@b.c>",
        "<a@b.c>",
        "a@b.c>, <evil@x.y",
        "a@b.c\r\nRCPT TO:<evil@x.y>",
        '"a@b.c,evil"@x.y',
        "=?utf-8?q?evil=40x.y=2C?=@b.c",
        "a\u00a0b@b.c",
        "a..b@b.c",
        "a@b_c.d",
        "a@[192.0.2.1]",
        "a@",
        "@b.c",
        "a",
        "",
    ],
)
def test_anything_but_one_address_is_refused(address: str) -> None:
    with pytest.raises(MailRefused) as refusal:
        build_message(outgoing(render("welcome", "en", VALUES["welcome"]), to=address), SENDER)

    assert refusal.value.code == 553


@pytest.mark.parametrize("subject", ["a\r\nBcc: evil@x.y", "a\n", "a\x0b", "a\u2028b", "\ud800"])
def test_a_line_break_in_a_subject_is_refused(subject: str) -> None:
    with pytest.raises(MailRefused) as refusal:
        build_message(replace(outgoing(render("welcome", "en", VALUES["welcome"])), subject=subject), SENDER)

    assert refusal.value.code == 554


@pytest.mark.parametrize("name", ["To", "bcc\r\nX", "Subject", "Auto-Submitted", "", "A B"])
def test_an_extra_header_replaces_and_forges_none(name: str) -> None:
    with pytest.raises(MailRefused):
        build_message(replace(outgoing(render("welcome", "en", VALUES["welcome"])), headers={name: "x"}), SENDER)


def test_a_message_id_tells_event_and_template() -> None:
    first = message_id("01926c2e-7a10-7c3e-9f00-0123456789ab", "welcome", "bücher.example")

    assert first == "<01926c2e-7a10-7c3e-9f00-0123456789ab.welcome@xn--bcher-kva.example>"
    assert first != message_id("01926c2e-7a10-7c3e-9f00-0123456789ab", "verification", "bücher.example")


def test_a_mail_does_not_show_its_secrets() -> None:
    mail = outgoing(render("verification", "en", VALUES["verification"]))

    assert "token" not in repr(mail)
    assert "zoe" not in repr(mail)

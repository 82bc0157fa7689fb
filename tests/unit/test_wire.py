"""The scalars of the wire: one mail address, names, secrets; and how objects are spelled."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from contracts.api import OPERATIONS
from contracts.auth import Login, Register
from contracts.wire import DisplayName, Email, ErrorCode, PersonName, Secret, Text, Token, Wire

EMAIL = TypeAdapter[str](Email)
NAME = TypeAdapter[str](PersonName)
SECRET = TypeAdapter(Secret)
TOKEN = TypeAdapter(Token)

HOSTILE_ADDRESSES = [
    "",
    " ",
    "@",
    "a",
    "a@",
    "@b.example",
    "a@b",
    "a@b.example,evil@c.example",
    "a@b.example;evil@c.example",
    "a@b.example evil@c.example",
    "a@b.example\r\nBcc: evil@c.example",
    "a@b.example\nevil@c.example",
    "a\r\n@b.example",
    "a@b.exa\r\nmple",
    "a\x00@b.example",
    "a@b.example\x00",
    '"a b"@b.example',
    '"a"@b.example',
    '"a@evil.example"@b.example',
    "Ada <a@b.example>",
    "<a@b.example>",
    "a@b.example (comment)",
    "a(comment)@b.example",
    "a@@b.example",
    "a@b@c.example",
    "a..b@c.example",
    ".a@c.example",
    "a.@c.example",
    "a@.example",
    "a@b..example",
    "a@b.example.",
    "a@-b.example",
    "a@b-.example",
    "a@b_c.example",
    "a@[192.0.2.1]",
    "a@[IPv6:::1]",
    "a b@c.example",
    "a\t@c.example",
    "a@c.exa mple",
    "a@c.example/../x",
    "a@c.example?x=y",
    "mailto:a@c.example",
    "a\\@c.example",
    "a\u2028@c.example",
    "a@c\u3002example",
    "a\uff20c.example",
    "a\u200b@c.example",
    "a\u202e@c.example",
    "a\ud800@c.example",
    "x" * 65 + "@c.example",
    "é" * 33 + "@c.example",
    "a@" + "b" * 64 + ".example",
    "a@" + ".".join(["b" * 60] * 5) + ".example",
]
GOOD_ADDRESSES = [
    "a@b.example",
    "ada.lovelace+notes@sub.domain.example",
    "o'brien@example.org",
    "a_b-c@xn--bcher-kva.example",
    "grüße@bücher.example",
    "用户@例子.广告",
    "почта@почта.рф",
    "1@2.3",
    "x" * 64 + "@c.example",
]


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
def test_what_is_no_single_address(address: str) -> None:
    with pytest.raises(ValidationError):
        EMAIL.validate_python(address)


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_what_is_one_address(address: str) -> None:
    assert EMAIL.validate_python(address) == address
    assert EMAIL.validate_python(f" {address} ") == address


@given(st.text(alphabet=st.characters(codec=None), max_size=60) | st.emails())
def test_an_address_never_holds_what_a_mail_program_reads_as_more(text: str) -> None:
    for tried in (text, f"{text}@example.org", f"ada@{text}.org", f"ada@example.org{text}"):
        try:
            address = EMAIL.validate_python(tried)
        except ValidationError:
            continue
        assert address.count("@") == 1
        assert not set(address) & set(',;:<>()[]\\"\r\n\t\x00 ')
        assert address.isprintable()
        assert len(address.encode()) <= 254
        assert address == EMAIL.validate_python(address)


def test_an_address_has_one_form() -> None:
    composed = unicodedata.normalize("NFC", "zoë@example.org")
    assert EMAIL.validate_python(unicodedata.normalize("NFD", composed)) == composed


@pytest.mark.parametrize(
    "name",
    [
        "Ada", "Jean-Luc", "O'Brien", "O’Brien", "Nguyễn Văn", "李小龍", "Νίκος", "عمر", "J. R. R.", "Martin, Jr.",
        "Henry 8", "Ada M.Sc.", "Dr.med. Faust", "x" * 50, "\u0915\u094d\u0937",
    ],
)  # fmt: skip
def test_what_is_a_name(name: str) -> None:
    assert NAME.validate_python(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "\t", "x" * 51, "a\nb", "a\x00b", "a\u202eb", "a\u200bb", "\ud800", "<b>", "a/b", "a\\b", "a;b", "a=b",
        "$1", "{name}", "😀", "a@b.example", "https:evil", "www.evil", "evil.com", "evil.com/x", "Win at evil.com now",
        "evil.com, hello", "evil.рф", "%0d%0a",
    ],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValidationError):
        NAME.validate_python(name)


def test_a_display_name_may_be_longer() -> None:
    assert TypeAdapter[str](DisplayName).validate_python("x" * 100)
    with pytest.raises(ValidationError):
        TypeAdapter[str](DisplayName).validate_python("x" * 101)


SIGN_IN = {"email": "ada@example.org", "password": "open sesame, marker"}


def test_secrets_are_never_printed() -> None:
    request = Login.model_validate(SIGN_IN)
    for shown in (
        repr(request),
        str(request),
        repr(request.password),
        request.model_dump_json(),
        f"{request.password}",
    ):
        assert "marker" not in shown
        assert "***" in shown
    assert request.password.get_secret_value() == SIGN_IN["password"]


@pytest.mark.parametrize(
    "password", ["", "marker" * 200, "é" * 513, "marker\x00", "marker\ud800", 12345678, None, ["marker"]]
)
def test_what_is_no_password(password: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Login.model_validate(SIGN_IN | {"password": password})
    assert "marker" not in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize("password", ["x", "x" * 1024, "é" * 512, " ", "\u202e"])
def test_a_password_is_bounded_by_bytes_alone(password: str) -> None:
    assert SECRET.validate_python(password).get_secret_value() == password


@pytest.mark.parametrize("token", ["", "x" * 4097, "tökn", "a\n", "\x7f", 7])
def test_what_is_no_token(token: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TOKEN.validate_python(token)
    assert caught.value.error_count() == 1


def test_text_is_what_can_be_stored() -> None:
    for bad in ("\x00", "a\udfffb"):
        with pytest.raises(ValidationError):
            TypeAdapter[str](Text).validate_python(bad)
    assert TypeAdapter[str](Text).validate_python("\U0001f600\ufffe") == "\U0001f600\ufffe"


def test_objects_are_spelled_in_camel_case() -> None:
    body = {"email": "a@b.example", "password": "x", "firstName": "Ada", "lastName": "King", "acceptTerms": True}
    assert Register.model_validate(body | {"unknown": 1}).first_name == "Ada"
    for operation in OPERATIONS:
        for model in (operation.request, operation.reply):
            for name, field in model.model_fields.items():
                spelled = field.alias or name
                assert spelled.isalnum() and spelled[0].islower(), (model, name)  # noqa: PT018


def test_errors_do_not_repeat_what_was_sent() -> None:
    class Figures(Wire):
        figure: int

    with pytest.raises(ValidationError) as caught:
        Figures.model_validate({"figure": "marker"})
    assert "marker" not in str(caught.value)


def test_every_code_has_a_number_of_http() -> None:
    assert {code.number // 100 for code in ErrorCode} == {4, 5}
    assert len({code.name for code in ErrorCode}) == 25

"""When two mail addresses are one."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from adapters.addresses import email_key
from contracts.wire import Email
from domain.refusals import InvalidInput

EMAIL = TypeAdapter[str](Email)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada@Example.ORG", "ada@example.org"),
        (unicodedata.normalize("NFD", "zoë@example.org"), "zoë@example.org"),
        ("\uff41\uff44\uff41@example.org", "ada@example.org"),
        ("ada@\uff45xample.org", "ada@example.org"),
        ("straße@example.org", "STRASSE@example.org"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@BÜCHER.example", "ada@XN--BCHER-KVA.example"),
        (unicodedata.normalize("NFD", "ada@bücher.example"), "ada@bücher.example"),
        ("ﬁn@example.org", "fin@example.org"),
        ("ΣΑΣ@example.org", "σας@example.org"),
        ("K@example.org", "k@example.org"),
    ],
)
def test_one_address_written_twice(one: str, other: str) -> None:
    assert email_key(one) == email_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0430da@example.org", "ada@example.org"),
        ("ada@ex\u0430mple.org", "ada@example.org"),
        ("m\u0131ke@example.org", "mike@example.org"),
        ("mike@g\u0131thub.example", "mike@github.example"),
        ("a.da@example.org", "ada@example.org"),
        ("ada+notes@example.org", "ada@example.org"),
        ("ada@faß.example", "ada@fass.example"),
        ("ada@example.org", "ada@example.com"),
    ],
)
def test_two_addresses_stay_two(one: str, other: str) -> None:
    assert email_key(one) != email_key(other)


@pytest.mark.parametrize(
    "domain", ["xn--zzzzzzzzz99.example", "\u0300a.example", "a" * 64 + ".example", "é" * 62 + ".example"]
)
def test_a_domain_that_no_name_server_could_know(domain: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        email_key(f"ada@{domain}")
    assert [(fault.field, fault.code) for fault in caught.value.faults] == [("email", "not_an_address")]


LETTERS = st.text(st.characters(categories=["L", "N", "M"]), min_size=1, max_size=8)


@settings(max_examples=200)
@given(LETTERS, LETTERS | st.sampled_from(["example.org", "bücher.example"]))
def test_a_key_is_its_own_key(local: str, domain: str) -> None:
    """For whatever the contract lets in, and in either case."""
    try:
        address = EMAIL.validate_python(f"{local}@{domain}.org")
        key = email_key(address)
    except (ValidationError, InvalidInput):
        return
    assert email_key(key) == key
    assert email_key(unicodedata.normalize("NFD", address)) == key
    assert key.rpartition("@")[2].isascii()

"""What makes a password acceptable."""

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.password import COMPOSITION, NIST, PasswordPolicy, broken_rules, normalised, own_words

WORDS = own_words("paul.atreides@example.org", "Paul", "Atreides")


def faults_of(
    password: str, policy: PasswordPolicy = COMPOSITION, words: tuple[str, ...] = WORDS, *, common: str | None = None
) -> set[str]:
    faults = broken_rules(password, policy, own_words=words, is_common=lambda tried: tried == common)
    codes = {fault.code for fault in faults}
    assert {fault.field for fault in faults} <= {"password"}
    assert len(faults) == len(codes)
    assert not any(password in fault.message for fault in faults if len(password) > 3)
    return codes


@pytest.mark.parametrize(
    ("password", "faults"),
    [
        ("Grüße-2026!", set()),
        ("Ab1!efgh", set()),
        ("Ab1!efg", {"too_short"}),
        ("Ab1!" + "x" * 124, set()),
        ("Ab1!" + "x" * 125, {"too_long"}),
        ("ab1!efgh", {"no_upper_case"}),
        ("AB1!EFGH", {"no_lower_case"}),
        ("Abc!efgh", {"no_digit"}),
        ("Ab12efgh", {"no_special"}),
        ("Ab1 efgh", set()),
        ("", {"too_short", "no_upper_case", "no_lower_case", "no_digit", "no_special"}),
        ("aaaaaaaa", {"no_upper_case", "no_digit", "no_special"}),
    ],
)
def test_the_rules_of_composition(password: str, faults: set[str]) -> None:
    assert faults_of(password) == faults


@pytest.mark.parametrize(
    ("password", "faults"),
    [
        ("correct horse battery", set()),
        ("15 letters here"[:15], set()),
        ("only fourteen."[:14], {"too_short"}),
        ("x" * 129, {"too_long"}),
        ("日本語でも十五文字あればよいのです", set()),
    ],
)
def test_the_nist_profile_asks_for_length_alone(password: str, faults: set[str]) -> None:
    assert faults_of(password, NIST) == faults


def test_all_faults_come_at_once() -> None:
    assert faults_of("paul", common="paul") == {
        "too_short", "no_upper_case", "no_digit", "no_special", "too_common", "holds_own_data",
    }  # fmt: skip


@pytest.mark.parametrize(
    "password",
    [
        "Xy7!paulZq", "Xy7!PAULZq", "Xy7!p4u1Zq", "Xy7!P@ulZq", "Xy7!Atr31d3$", "aTREIDES9!xq", "x9!Paul.Atreides",
        "Paul.Atreides@example.org1", "Xy7!PaU!Zq", "Xy7!luaPZq", "S3d!3rtA-9x", "Xy7!A.t.r.e.i.d.e.s", "Xy7!Pàul-Q",
        "Xy7!\uff50\uff41\uff55\uff4cQ",
    ],
)  # fmt: skip
def test_own_words_are_found_in_disguise(password: str) -> None:
    assert "holds_own_data" in faults_of(password)


@pytest.mark.parametrize("name", ["Ann", "Li", "", "Bo"])
def test_short_words_do_not_count(name: str) -> None:
    assert faults_of("Xy7!annliboQ", words=own_words("ann@example.org", name)) == set()


@pytest.mark.parametrize(("name", "password"), [("Ann", "Ann-Xy7!qw"), ("Eva", "7Xq!eva99"), ("Ada", "Xy7!w_ADA")])
def test_names_of_three_letters_count_where_they_stand_alone(name: str, password: str) -> None:
    assert faults_of(password, words=own_words("x@example.org", name)) == {"holds_own_data"}


@pytest.mark.parametrize("password", ["Xy7!muaddibQ", "Xy7!Usul-Zq", "Xy7!Jean9q", "xY7!Picard"])
def test_the_parts_of_names_and_address_count(password: str) -> None:
    words = own_words("muaddib+usul@example.org", "Jean-Luc", "de Picard")
    assert faults_of(password, words=words) == {"holds_own_data"}


@pytest.mark.parametrize("password", ["Xy7!Project5q", "Xy7!pr0j3ct5Q", "Arrakeen-1x"])
def test_the_services_own_names_are_not_taken(password: str) -> None:
    policy = replace(COMPOSITION, context_words=("project5", "arrakeen"))
    assert faults_of(password, policy, words=()) == {"holds_context_word"}


def test_own_words_are_found_however_their_accents_are_written() -> None:
    words = own_words("j@example.org", unicodedata.normalize("NFC", "Zoë-Renée"))
    assert faults_of(unicodedata.normalize("NFD", "Xy7!zoë-renéeQ"), words=words) == {"holds_own_data"}


def test_length_is_counted_in_the_form_that_is_hashed() -> None:
    assert faults_of(unicodedata.normalize("NFD", "Äö1!éü")) == {"too_short"}


@given(st.text(max_size=40))
def test_two_ways_to_type_one_password_are_one(password: str) -> None:
    assert normalised(unicodedata.normalize("NFD", password)) == normalised(password)
    assert normalised(normalised(password)) == normalised(password)


@pytest.mark.parametrize("password", ["Pass", " pass ", "\uff50ass", "ﬁ", "PASS\u00a0"])
def test_nothing_but_composition_is_changed(password: str) -> None:
    assert normalised(password) == password

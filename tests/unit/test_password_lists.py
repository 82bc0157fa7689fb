"""What attackers try first: estimates, an operator's own list, and hashes that come from elsewhere."""

import base64
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest
from argon2 import PasswordHasher
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.breached_passwords import BadList, BreachedPasswords
from adapters.foreign_hashes import is_importable, matches
from adapters.password_rules import PasswordRules, is_common, strength_of
from tests.builders import settings_of

PASSWORD = "Grüße-aus-Köln-2026!"


@pytest.mark.parametrize(
    "password",
    [
        "password", "Password1!", "P@ssw0rd123!", "Qwerty123!", "Summer2024!", "Monkey123!", "Dragon123!", "Admin123!",
        "Welcome1!", "Letmein1!", "Iloveyou1!", "Abcd1234!", "!!Secret123", "Company2026!", "Test1234!",
    ],
)  # fmt: skip
def test_what_people_choose_to_please_a_rule_is_common(password: str) -> None:
    assert is_common(password)


@pytest.mark.parametrize(
    "password", ["Analytical-Engine-1843", "Xk9$mQ2p", "Tr0ub4dor&3", "correct horse battery staple"]
)
def test_what_takes_many_guesses_is_not(password: str) -> None:
    assert not is_common(password)


def test_the_estimate_is_quick_however_long_the_password() -> None:
    began = time.perf_counter()
    is_common("aB3$" * 256)
    assert time.perf_counter() - began < 0.1


def test_strength_knows_the_users_own_words_and_repeats_nothing() -> None:
    strong = strength_of(PASSWORD, ())
    assert (strong.score, strong.suggestions) == (4, [])
    weak = strength_of("Atreides1", ("Atreides",))
    assert weak.score < 2
    assert weak.suggestions
    assert all("treides" not in words and words.endswith(".") for words in weak.suggestions)


def _listed(path: Path, passwords: list[str], *, ending: str = ":12\r\n") -> Path:
    lines = sorted(hashlib.sha1(password.encode()).hexdigest().upper() for password in passwords)
    path.write_bytes("".join(line + ending for line in lines).encode())
    return path


@settings(max_examples=60)
@given(listed=st.sets(st.text(max_size=5), min_size=1, max_size=200), asked=st.text(max_size=5))
@pytest.mark.parametrize("ending", ["\n", ":12\r\n"])
def test_a_list_holds_what_it_holds(
    tmp_path_factory: pytest.TempPathFactory, listed: set[str], asked: str, ending: str
) -> None:
    found = BreachedPasswords(_listed(tmp_path_factory.mktemp("l") / "list", sorted(listed), ending=ending))
    assert all(password in found for password in listed)
    assert (asked in found) is (asked in listed)
    found.close()


def test_a_list_without_a_last_line_end(tmp_path: Path) -> None:
    path = _listed(tmp_path / "list", ["a", "b", "c"])
    path.write_bytes(path.read_bytes().rstrip())
    assert all(password in BreachedPasswords(path) for password in "abc")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"password\n", b"F" * 40 + b"\n" + b"0" * 40 + b"\n", b"A" * 39 + b"\n"]
)
def test_what_is_no_sorted_list_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list"
    path.write_bytes(content)
    with pytest.raises(BadList):
        BreachedPasswords(path)
    with pytest.raises(BadList):
        BreachedPasswords(tmp_path / "absent")


def test_a_listed_password_breaks_a_rule_of_either_profile(tmp_path: Path) -> None:
    path = _listed(tmp_path / "list", [PASSWORD])
    for profile in ("composition", "nist"):
        rules = PasswordRules(
            settings_of("postgresql://127.0.0.1/x", breached_passwords_file=path, password_policy=profile)
        )
        assert [fault.code for fault in rules.broken(PASSWORD, ())] == ["breached"]


def _pbkdf2(iterations: int = 1000, algorithm: str = "sha256") -> str:
    digest = hashlib.pbkdf2_hmac(algorithm, PASSWORD.encode(), b"salt", iterations)
    return f"pbkdf2_{algorithm}${iterations}$salt${base64.b64encode(digest).decode()}"


def _scrypt(n: int = 1024, r: int = 8, p: int = 1) -> str:
    digest = hashlib.scrypt(PASSWORD.encode(), salt=b"salt", n=n, r=r, p=p, dklen=64, maxmem=2**27)
    return f"scrypt${n}$salt${r}${p}${base64.b64encode(digest).decode()}"


def _bcrypt(password: bytes = PASSWORD.encode()[:72], rounds: int = 4) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(rounds)).decode()


CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
KINDS: dict[str, Callable[[], str]] = {
    "argon2id": lambda: CHEAP.hash(PASSWORD),
    "Django's argon2": lambda: "argon2" + CHEAP.hash(PASSWORD),
    "bcrypt 2b": _bcrypt,
    "bcrypt 2y": lambda: _bcrypt().replace("$2b$", "$2y$"),
    "bcrypt 2a": lambda: _bcrypt().replace("$2b$", "$2a$"),
    "Django's bcrypt": lambda: "bcrypt$" + _bcrypt(),
    "Django's bcrypt of SHA-256": lambda: (
        "bcrypt_sha256$" + _bcrypt(hashlib.sha256(PASSWORD.encode()).hexdigest().encode())
    ),
    "PBKDF2": _pbkdf2,
    "PBKDF2 with SHA-1": lambda: _pbkdf2(algorithm="sha1"),
    "scrypt": _scrypt,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hash_from_elsewhere_opens_for_its_password_alone(kind: str) -> None:
    encoded = KINDS[kind]()
    assert is_importable(encoded)
    assert matches(encoded, PASSWORD)
    assert not matches(encoded, PASSWORD + "x")
    assert not matches(encoded, "")


def test_bcrypt_reads_72_bytes_as_it_did_where_the_hash_was_made() -> None:
    long = "x" * 100
    encoded = _bcrypt(long.encode()[:72])
    assert matches(encoded, long)
    assert matches(encoded, "x" * 72)
    assert not matches(encoded, "x" * 71)


@pytest.mark.parametrize(
    "encoded",
    [
        "", "$", "!", "x" * 600, "$argon2id$v=19$m=4294967295,t=3,p=4$c2FsdHNhbHQ$aGFzaA",
        "$argon2id$v=19$m=1048576,t=64,p=4$c2FsdHNhbHQ$aGFzaA", "$2b$31$" + "a" * 53, "$2b$00$" + "a" * 53,
        "pbkdf2_sha256$999999999999$salt$" + base64.b64encode(b"x" * 32).decode(), "pbkdf2_sha256$0$salt$AAAA",
        "pbkdf2_md5$1$salt$AAAA", "pbkdf2_sha256$x$salt$AAAA", "pbkdf2_sha256$1$salt", "scrypt$1048576$salt$64$1$AAAA",
        "scrypt$1000$salt$8$1$" + base64.b64encode(b"x" * 64).decode(),
        "scrypt$16384$salt$8$100000$" + base64.b64encode(b"x" * 64).decode(), "md5$salt$abcdef", "crypt$$abc", "ü" * 30,
        "bcrypt_sha256$", "scrypt$-16$salt$8$1$AAAA",
    ],
)  # fmt: skip
def test_what_is_no_hash_or_costs_too_much_is_never_run(encoded: str) -> None:
    began = time.perf_counter()
    assert not is_importable(encoded)
    assert not matches(encoded, PASSWORD)
    assert time.perf_counter() - began < 0.5

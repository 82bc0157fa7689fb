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

from adapters import common_passwords
from adapters.breached_passwords import BadList, BreachedPasswords
from adapters.common_passwords import is_common
from adapters.environment import BadSettings
from adapters.foreign_hashes import check_of, is_importable
from adapters.password_rules import PasswordRules, strength_of
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


def test_every_password_of_the_shipped_list_is_common_also_with_what_is_put_behind_it() -> None:
    listed = common_passwords._listed()
    assert len(listed) > 19_000
    assert {"123456", "tinkle", "fqrg7cs493", "1g2w3e4r"} < listed
    assert all(is_common(password) for password in listed)
    trimmed = [password.capitalize() + "1!" for password in listed if len(password) >= 5]
    assert all(is_common(password) for password in trimmed)


@pytest.mark.parametrize("password", ["123456@123", "Abc123123!", "1qaz2wsx123!", "!!Fqrg7cs493", "2024Tinkle!"])
def test_a_listed_password_is_common_in_trimmings(password: str) -> None:
    assert is_common(password)


def test_the_list_is_read_within_milliseconds() -> None:
    common_passwords._listed.cache_clear()
    began = time.process_time()
    common_passwords._listed()
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    "password", ["Analytical-Engine-1843", "Xk9$mQ2p", "Tr0ub4dor&3", "correct horse battery staple"]
)
def test_what_takes_many_guesses_is_not(password: str) -> None:
    assert not is_common(password)


@pytest.mark.parametrize(
    "unit", ["aB3$", "4@8({[<369&1!|70$5+%2zl", "1!i|l", "a", "qwertyuiop", "p@$$w0rd", "11.11.2011", "4@ilo0s5$7t+"]
)
def test_the_estimate_is_quick_whatever_the_password(unit: str) -> None:
    """It holds the interpreter's lock: unbounded, 128 characters of the second kind stopped every request for 0.8 s."""
    password = (unit * 1024)[:1024]
    began = time.process_time()
    is_common(password)
    strength_of(password, (password[:100], "Ada"))
    assert time.process_time() - began < 0.3


@given(st.text(st.sampled_from("4@({[<691!|7$5+8302%abegilostx"), max_size=200))
def test_what_the_estimate_reads_is_bounded_and_the_beginning(password: str) -> None:
    seen = common_passwords.looked_at(password)
    assert password.startswith(seen)
    assert min(16, len(password)) <= len(seen) <= 64
    assert len(seen) <= 16 or len(seen) * common_passwords._ways(seen) <= 512


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


def test_a_bad_list_is_told_of_by_the_name_of_its_setting(tmp_path: Path) -> None:
    wanted = settings_of("postgresql://127.0.0.1/x", breached_passwords_file=tmp_path / "absent")
    with pytest.raises(BadSettings, match=r"USER_SERVICE_BREACHED_PASSWORDS_FILE: .*absent cannot be read"):
        PasswordRules(wanted)


def test_a_look_up_in_a_long_list_reads_little_of_it(tmp_path: Path) -> None:
    path = tmp_path / "list"
    lines = [f"{number:040X}:1\n".encode() for number in range(0, 2**160, 2**160 // 200_000)]
    path.write_bytes(b"".join(lines))
    found = BreachedPasswords(path)
    began = time.process_time()
    assert not any(str(number) in found for number in range(1000))
    assert time.process_time() - began < 1
    found.close()


def test_a_listed_password_breaks_a_rule_of_either_profile(tmp_path: Path) -> None:
    path = _listed(tmp_path / "list", [PASSWORD])
    for profile in ("composition", "nist"):
        rules = PasswordRules(
            settings_of("postgresql://127.0.0.1/x", breached_passwords_file=path, password_policy=profile)
        )
        assert [fault.code for fault in rules.broken(PASSWORD, ())] == ["breached"]


def matches(encoded: str, password: str) -> bool:
    check = check_of(encoded)
    return check is not None and check(password.encode())


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


def _argon2(memory_kib: int, passes: int, lanes: int) -> str:
    return f"$argon2id$v=19$m={memory_kib},t={passes},p={lanes}$c29tZXNhbHRzb21lc2FsdA$" + "A" * 43


def _scrypt_of(n: int, r: int, p: int) -> str:
    return f"scrypt${n}$salt${r}${p}$" + base64.b64encode(b"x" * 64).decode()


@pytest.mark.parametrize(
    "encoded",
    [
        "", "$", "!", "x" * 600, "$argon2id$v=19$m=4294967295,t=3,p=4$c2FsdHNhbHQ$aGFzaA",
        "$argon2id$v=19$m=1048576,t=64,p=4$c2FsdHNhbHQ$aGFzaA",
        "$2b$31$" + "a" * 21 + "e" * 32, "$2b$00$" + "a" * 21 + "e" * 32,
        "pbkdf2_sha256$999999999999$salt$" + base64.b64encode(b"x" * 32).decode(), "pbkdf2_sha256$0$salt$AAAA",
        "pbkdf2_md5$1$salt$AAAA", "pbkdf2_sha256$x$salt$AAAA", "pbkdf2_sha256$1$salt", "scrypt$1048576$salt$64$1$AAAA",
        "scrypt$1000$salt$8$1$" + base64.b64encode(b"x" * 64).decode(),
        "scrypt$16384$salt$8$100000$" + base64.b64encode(b"x" * 64).decode(), "md5$salt$abcdef", "crypt$$abc", "ü" * 30,
        "bcrypt_sha256$", "scrypt$-16$salt$8$1$AAAA", "$2b$15$" + "a" * 21 + "e" * 32, "$2b$04$" + "a" * 53,
        *(_argon2(*cost) for cost in [
            (131073, 1, 1), (131072, 9, 1), (65536, 1, 17), (1048576, 1, 100000), (8, 65, 1), (8, 4294967295, 1),
            (7, 1, 1), (64, 1, 9), (0, 0, 0), (4294967295, 1, 1),
        ]),
        _argon2(8, 1, 1).replace("v=19", "v=18"), _argon2(8, 1, 1)[:-30], _argon2(8, 1, 1) + "AA",
        _argon2(8, 1, 1).replace("c29tZXNhbHRzb21lc2FsdA", "!!!!"), _argon2(8, 1, 1).replace("m=8", "m=-8"),
        _scrypt_of(65536, 1, 1), _scrypt_of(2, 1, 1048576), _scrypt_of(2, 524288, 1), _scrypt_of(131072, 8, 3),
        _scrypt_of(262144, 8, 1), _scrypt_of(2, 0, 1), _scrypt_of(1, 8, 1),
        "pbkdf2_sha256$2000001$salt$" + base64.b64encode(b"x" * 32).decode(),
        "pbkdf2_sha256$1_000$salt$" + base64.b64encode(b"x" * 32).decode(),
    ],
)  # fmt: skip
def test_what_is_no_hash_or_costs_too_much_is_never_run(encoded: str) -> None:
    began = time.perf_counter()
    assert not is_importable(encoded)
    assert not matches(encoded, PASSWORD)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    "encoded",
    [
        _argon2(131072, 8, 1), _argon2(16384, 64, 16), _argon2(128, 64, 16), "$2b$14$" + "a" * 21 + "e" * 32,
        _scrypt_of(131072, 8, 2), _scrypt_of(16384, 64, 2), _scrypt_of(32768, 1, 16),
        "pbkdf2_sha256$2000000$salt$" + base64.b64encode(b"x" * 32).decode(),
        "pbkdf2_sha1$2000000$salt$" + base64.b64encode(b"x" * 20).decode(),
    ],
)  # fmt: skip
def test_the_costliest_that_is_run_takes_some_seconds_of_one_core_at_most(encoded: str) -> None:
    assert is_importable(encoded)
    began = time.process_time()
    assert not matches(encoded, PASSWORD)
    assert time.process_time() - began < 5


PIECES = st.sampled_from(
    ["$", "argon2", "argon2id", "v=19", "m=8,t=1,p=1", "2b", "04", "scrypt", "pbkdf2_sha256", "bcrypt_sha256", "16",
     "8", "1", "-1", "1e3", "salt", "c29tZXNhbHQ", "A" * 43, "a" * 53, "=", "\x00", "é", ""]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join), st.text(max_size=80))
def test_whatever_stands_in_the_place_of_a_hash_is_an_answer_and_no_failure(encoded: str, password: str) -> None:
    assert not matches(encoded, password.encode("utf-8", "replace").decode())

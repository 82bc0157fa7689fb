"""What makes a password acceptable: the composition policy, or NIST SP 800-63B-4 section 3.1.1.2 instead."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from domain.refusals import Fault

NO_PASSWORD = "!"  # noqa: S105 - what no hash looks like: nothing matches it

# One sign for each group of look-alikes: 1 and ! stand for l as well as for i, so all four are read as i.
_LEET = str.maketrans("013457@$!l", "oieastasii")


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """Lengths count characters; `composition` asks for upper, lower, digit and special. The last `history` passwords
    are not taken again, and one older than `age_max` opens nothing before it is reset."""

    length_min: int = 8
    length_max: int = 128
    composition: bool = True
    history: int = 5
    age_max: timedelta | None = timedelta(days=90)


COMPOSITION = PasswordPolicy()
NIST = PasswordPolicy(length_min=15, composition=False, history=0, age_max=None)


def normalised(password: str) -> str:
    """The one form that is hashed and compared: NFC, nothing else (RFC 8265, OpaqueString, without its width rule)."""
    return unicodedata.normalize("NFC", password)


def broken_rules(
    password: str,
    policy: PasswordPolicy,
    *,
    own_words: Sequence[str],
    is_common: Callable[[str], bool],
    is_breached: Callable[[str], bool] = lambda _: False,
) -> list[Fault]:
    """Every broken rule at once; what is judged is the form that will be hashed.

    `own_words` are the user's names and email; they are found in disguise too (`p4u1` for `paul`).
    """
    judged = normalised(password)
    broken = [*_broken(judged, policy, own_words)]
    if is_common(judged):
        broken.append(("too_common", "This password is on the lists that attackers try first."))
    if is_breached(judged):
        broken.append(("breached", "This password was found in a breach; never use it again."))
    return [Fault("password", code, message) for code, message in broken]


REUSED = Fault("password", "used_before", "Use a password that you have not had lately.")


def _broken(password: str, policy: PasswordPolicy, own_words: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(password) < policy.length_min:
        yield "too_short", f"Use at least {policy.length_min} characters."
    if len(password) > policy.length_max:
        yield "too_long", f"Use at most {policy.length_max} characters."
    if policy.composition:
        yield from _missing_kinds(password)
    if _holds_own_word(password, own_words):
        yield "holds_own_data", "Do not use your name or email address."


def _missing_kinds(password: str) -> Iterator[tuple[str, str]]:
    if not any(char.isupper() for char in password):
        yield "no_upper_case", "Use an upper-case letter."
    if not any(char.islower() for char in password):
        yield "no_lower_case", "Use a lower-case letter."
    if not any(char.isdigit() for char in password):
        yield "no_digit", "Use a digit."
    if all(char.isalnum() for char in password):
        yield "no_special", "Use a special character."


def _plain(text: str) -> str:
    return text.casefold().translate(_LEET)


def _holds_own_word(password: str, own_words: Sequence[str]) -> bool:
    """Words of three letters and less are found in half of all good passwords, so they do not count."""
    haystacks = {password.casefold(), _plain(password)}
    needles = {form for word in own_words for form in (word.casefold(), _plain(word)) if len(word) >= 4}
    return any(needle in haystack for needle in needles for haystack in haystacks)


def own_words(email: str, *names: str) -> tuple[str, ...]:
    """The words of a user that a password may not hold: names, the address, and what stands before its @."""
    return (email, email.partition("@")[0], *names)

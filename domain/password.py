"""What makes a password acceptable: the composition policy, or NIST SP 800-63B-4 section 3.1.1.2 instead."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from domain.refusals import Fault

NO_PASSWORD = "!"  # noqa: S105 - what no hash looks like: nothing matches it

# One sign for each group of look-alikes: 1 and ! stand for l as well as for i, so all four are read as i.
_LEET = str.maketrans("013457@$!l", "oieastasii")
_FOUND_ANYWHERE, _FOUND_ALONE = 4, 3
"""Letters of a word."""


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """Lengths count characters; `composition` asks for upper, lower, digit and special. The last `history` passwords
    are not taken again, and one older than `age_max` opens nothing before it is reset."""

    length_min: int = 8
    length_max: int = 128
    composition: bool = True
    history: int = 5
    age_max: timedelta | None = timedelta(days=90)
    context_words: tuple[str, ...] = ()
    """The names of the service and of who runs it, which are tried first against it."""


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


REUSED = Fault("newPassword", "used_before", "Use a password that you have not had lately.")


def _broken(password: str, policy: PasswordPolicy, own_words: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(password) < policy.length_min:
        yield "too_short", f"Use at least {policy.length_min} characters."
    if len(password) > policy.length_max:
        yield "too_long", f"Use at most {policy.length_max} characters."
    if policy.composition:
        yield from _missing_kinds(password)
    if _holds(password, own_words):
        yield "holds_own_data", "Do not use your name or email address."
    if _holds(password, policy.context_words):
        yield "holds_context_word", "Do not use the name of this service or of who runs it."


def _missing_kinds(password: str) -> Iterator[tuple[str, str]]:
    if not any(char.isupper() for char in password):
        yield "no_upper_case", "Use an upper-case letter."
    if not any(char.islower() for char in password):
        yield "no_lower_case", "Use a lower-case letter."
    if not any(char.isdigit() for char in password):
        yield "no_digit", "Use a digit."
    if all(char.isalnum() for char in password):
        yield "no_special", "Use a special character."


def _forms(text: str) -> set[str]:
    """A text as it stands, without accents and width, with its signs read as letters, and without what parts it."""
    folded = text.casefold()
    bare = "".join(char for char in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(char))
    plain = bare.translate(_LEET)
    return {folded, bare, plain, "".join(char for char in plain if char.isalnum())}


def _holds(password: str, words: Sequence[str]) -> bool:
    """Words of two letters and less are found in half of all good passwords, so they do not count; those of three count
    where no letter stands beside them; longer ones in any disguise, also backwards."""
    haystacks = _forms(password)
    needles = {form for word in words for form in _forms(word) if len(form) >= _FOUND_ANYWHERE}
    if any(needle in haystack or needle[::-1] in haystack for needle in needles for haystack in haystacks):
        return True
    folded = password.casefold()
    return any(len(word) == _FOUND_ALONE and _stands_alone(word.casefold(), folded) for word in words)


def _stands_alone(word: str, text: str) -> bool:
    return re.search(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", text) is not None


def own_words(email: str, *names: str) -> tuple[str, ...]:
    """What of a user a password may not hold: names, the address, what stands before its @, and the parts of these."""
    whole = (email, email.partition("@")[0], *names)
    parts = (part for text in whole[1:] for part in re.split(r"[\W_]+", text) if part)
    return tuple(dict.fromkeys((*whole, *parts)))

"""What attackers try first: a list of what breaches held, zxcvbn's lists and twists, and either with trimmings."""

import gzip
import re
from collections.abc import Iterator, Sequence
from functools import cache, reduce
from pathlib import Path

from zxcvbn_rs_py import zxcvbn

_LIST = Path(__file__).with_name("common_passwords.txt.gz")
_GUESSES_LOG10_MAX = 6
_WORD_GUESSES_LOG10_MAX = 4
_TRIMMINGS_MAX = 6
_LISTED_CHARS_MIN = 4
_WORD_IN_TRIMMINGS = re.compile(r"([\W\d_]*)([^\W\d_](?:.*[^\W\d_])?)([\W\d_]*)", re.DOTALL)

_LOOKED_AT = (64, 32, 16)
_WORK_MAX = 512
_LOOKALIKES = tuple(map(frozenset, ("4@", "({[<", "69", "1!|", "1|7", "$5", "+7")))
"""Where zxcvbn knows several signs for one letter; it reads the whole password anew for each way to choose of them."""


def is_common(password: str) -> bool:
    """Is it on the list of what breaches held, or within a million guesses of who has word lists and their usual twists
    (zxcvbn), or one such word with a few digits and signs around it?"""
    folded = password.casefold()
    if any(core in _listed() for core in _cores(folded)) or _guesses_log10(password) <= _GUESSES_LOG10_MAX:
        return True
    found = _WORD_IN_TRIMMINGS.fullmatch(password)
    if found is None or len(found[1]) + len(found[3]) > _TRIMMINGS_MAX:
        return False
    return _guesses_log10(found[2]) <= _WORD_GUESSES_LOG10_MAX


@cache
def _listed() -> frozenset[str]:
    """Read once, in some milliseconds; what stands above the first empty line is whose list it is."""
    with gzip.open(_LIST, "rt", encoding="utf-8") as file:
        return frozenset(file.read().partition("\n\n")[2].split("\n")[:-1])


def _cores(folded: str) -> Iterator[str]:
    """A password, and what is left of it when up to so many digits and signs are taken from its two ends."""
    head, tail = _signs(folded), _signs(folded[::-1])
    for before in range(min(head, _TRIMMINGS_MAX) + 1):
        for behind in range(min(tail, _TRIMMINGS_MAX - before) + 1):
            core = folded[before : len(folded) - behind]
            if len(core) >= _LISTED_CHARS_MIN or len(core) == len(folded):
                yield core


def _signs(text: str) -> int:
    """How many characters stand before the first letter."""
    return next((place for place, char in enumerate(text) if char.isalpha()), len(text))


def _guesses_log10(password: str) -> float:
    return float(zxcvbn(looked_at(password)).guesses_log10)


def looked_at(password: str) -> str:
    """As much of a password as the estimate reads within some milliseconds: it holds the interpreter's lock meanwhile,
    and its time grows with the length and with the ways in which signs can be read as letters."""
    beginnings = (password[:chars_max] for chars_max in _LOOKED_AT)
    return next((seen for seen in beginnings if len(seen) * _ways(seen) <= _WORK_MAX), password[: min(_LOOKED_AT)])


def _ways(text: str) -> int:
    there = set(text)
    return reduce(lambda ways, signs: ways * max(1, len(signs & there)), _LOOKALIKES, 1)


def estimate(password: str, own_words: Sequence[str]) -> tuple[int, list[str]]:
    """zxcvbn's score from 0 to 4, and the names of its suggestions; own words count as known to the attacker."""
    found = zxcvbn(looked_at(password), list(own_words))
    feedback = found.feedback
    return int(found.score), [] if feedback is None else [repr(one) for one in feedback.suggestions]

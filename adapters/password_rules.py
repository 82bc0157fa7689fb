"""Which passwords are taken: the policy in force, with the lists of what attackers try first."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from adapters.breached_passwords import BreachedPasswords
from adapters.common_passwords import estimate, is_common
from adapters.settings import Settings
from domain.password import COMPOSITION, NIST, PasswordPolicy, broken_rules, normalised
from domain.refusals import Fault, WeakPassword


@dataclass(frozen=True, slots=True)
class Strength:
    """How good a password is: 0 to 4, and what would make it better."""

    score: int
    suggestions: list[str]


class PasswordRules:
    """The rules for new passwords, one place for all ways in which one is set."""

    def __init__(self, settings: Settings) -> None:
        """Raises `BadList` when the operator's list cannot be searched."""
        self.policy = _policy(settings)
        self._breached = _opened(settings.breached_passwords_file)

    def broken(self, password: str, own_words: Sequence[str]) -> list[Fault]:
        """Every rule that a password breaks; some milliseconds of one core."""
        return broken_rules(
            password, self.policy, own_words=own_words, is_common=is_common, is_breached=self._is_breached
        )

    def require(self, password: str, own_words: Sequence[str]) -> None:
        """Raise `WeakPassword` with every rule that it breaks."""
        faults = self.broken(password, own_words)
        if faults:
            raise WeakPassword(faults)

    def _is_breached(self, password: str) -> bool:
        return self._breached is not None and password in self._breached


def _policy(settings: Settings) -> PasswordPolicy:
    words = settings.password_context_words
    if settings.password_policy == "nist":  # noqa: S105 - a name
        return replace(NIST, context_words=words)
    age_s = settings.password_age_seconds
    age_max = timedelta(seconds=age_s) if age_s else None
    return replace(COMPOSITION, history=settings.password_history, age_max=age_max, context_words=words)


def _opened(path: Path | None) -> BreachedPasswords | None:
    return None if path is None else BreachedPasswords(path)


def strength_of(password: str, own_words: Sequence[str]) -> Strength:
    """What the estimate says, for people to read; the user's own words count as known to the attacker."""
    score, suggestions = estimate(normalised(password), own_words)
    return Strength(score, [_sentence(name) for name in suggestions])


def _sentence(name: str) -> str:
    """`Suggestion.AddAnotherWordOrTwo` as a sentence."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", name.rpartition(".")[2]).capitalize()
    return re.sub(r"\b(doesn|don)t\b", r"\1't", words) + "."

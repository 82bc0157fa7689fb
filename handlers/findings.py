"""What a doctor finds: good or not, and what to do where it is not."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

WAIT_S = 3.0
"""How long one answer is waited for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `advice` says what to do where it is not well."""

    what: str
    good: bool
    says: str
    advice: str = ""


Findings = AsyncIterator[Finding]


def finding_of(what: str, error: Exception, advice: str) -> Finding:
    """A failure that says what is wrong and, after a semicolon, what to do."""
    says, _, ours = str(error).partition("; ")
    return Finding(what, False, says, ours or advice)


def said_of(error: BaseException) -> str:
    """A failure in a word or two."""
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__

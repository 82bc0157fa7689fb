"""Leaves a server alone that does not answer: callers go on without it at once, until one of them finds it back.

A circuit breaker after M. Nygard, Release It!, chapter 5. While it is half open one caller in each pause asks, and the
others are turned away: a server that has just come back is not run down by all who waited.
"""

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "half open", "open"]


class Breaker:
    """Counts failures in a row. Not for threads: callers share one event loop."""

    def __init__(self, *, failures_max: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._ask_after = 0.0
        self._is_open = False

    @property
    def state(self) -> State:
        if not self._is_open:
            return "closed"
        return "open" if self._clock() < self._ask_after else "half open"

    def admits(self) -> bool:
        """May the caller ask? Half open, that is the turn of the one who is told so."""
        if not self._is_open:
            return True
        now = self._clock()
        if now < self._ask_after:
            return False
        self._ask_after = now + self._pause_s
        return True

    def succeeded(self) -> bool:
        """The server has answered; True when it had been left alone."""
        was_open, self._is_open, self._failures = self._is_open, False, 0
        return was_open

    def failed(self) -> bool:
        """The server has not; True when it is left alone from now on."""
        self._failures += 1
        if self._is_open:
            self._ask_after = self._clock() + self._pause_s
            return False
        self._is_open = self._failures >= self._failures_max
        self._ask_after = self._clock() + self._pause_s
        return self._is_open

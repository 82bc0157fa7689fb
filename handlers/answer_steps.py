"""How far apart the moments lie at which replies go out whose time must tell nothing."""

import asyncio
import math
import random

import structlog

from adapters.hash_costs import dearest_ms
from adapters.postgres import Database
from contracts.operations import Even, Operation
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

JITTER = 0.25
"""By how much of a step a reply whose time must tell nothing is late by chance: limits leave nobody enough tries to
average it away."""
READ_S = 10.0
MARGIN = 3.0
"""A check on a busy machine takes longer than where it was measured, and a password in two forms is checked twice."""


class AnswerSteps:
    """A setting; longer for refused sign-ins while users came in whose hashes take longer to check than that."""

    def __init__(self, step_ms: int) -> None:
        self._step_s = step_ms / 1000
        self.dearest_s = 0.0
        """What the dearest check takes that a sign-in may need."""

    def step_s(self, operation: Operation) -> float:
        """The step of an operation's even replies in seconds; 0 where none is held back."""
        if operation.even is not Even.REFUSALS or not self._step_s:
            return self._step_s
        return self._step_s * max(1, math.ceil(MARGIN * self.dearest_s / self._step_s))

    def needed_s(self, operation: Operation) -> float:
        """What a caller's deadline has to leave, or it would tell what the step hides."""
        return self.step_s(operation) * (1 + JITTER)

    async def hold_back(self, operation: Operation, taken_s: float) -> None:
        """Wait for the next step, and a little longer by chance, since mail to somebody known goes out while the next
        request waits."""
        if step_s := self.step_s(operation):
            await asyncio.sleep(step_s - taken_s % step_s + random.uniform(0, self._step_s * JITTER))

    async def keep(self, database: Database) -> None:
        """For ever: know what the dearest check takes."""
        while True:
            try:
                async with database.connection() as connection:
                    self.dearest_s = await dearest_ms(connection) / 1000
            except (Unavailable, Overloaded, Stale) as error:
                log.warning("what hashes cost is not known anew", error=type(error).__name__)
            await asyncio.sleep(READ_S * random.uniform(0.5, 1))

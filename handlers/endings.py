"""How work ends at a stop: for a while by itself, then by force."""

import asyncio
from collections.abc import Iterable

CANCEL_S = 1.0
"""How long what was cancelled may still tidy up: answer its caller, or hand back its message."""


async def let_end(tasks: Iterable[asyncio.Task[None]], *, within_s: float) -> None:
    """Wait for tasks, and cancel those that have not ended in time."""
    late = set(tasks)
    if late:
        _, late = await asyncio.wait(late, timeout=within_s)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=CANCEL_S)

"""Removes the objects of avatars that nobody shows: those that were replaced, and those that nothing came of."""

import asyncio
import random

import structlog

from adapters.avatar_store import AvatarStore
from adapters.avatars import Leftover, claim_leftovers, forget_leftover, shown_avatar
from adapters.postgres import Database
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

PERIOD_S = 60.0
ROWS_MAX = 50
STEPS_MAX = 20


async def remove_leftovers(database: Database, store: AvatarStore) -> None:
    """For ever, a bounded number at a time; several processes may do so at once."""
    while True:
        await asyncio.sleep(PERIOD_S * random.uniform(0.5, 1.5))
        await remove_due(database, store)


async def remove_due(database: Database, store: AvatarStore) -> None:
    """Remove what is due now; what cannot be removed is due again a little later."""
    try:
        for _ in range(STEPS_MAX):
            async with database.connection() as connection:
                leftovers = await claim_leftovers(connection, rows_max=ROWS_MAX)
            for leftover in leftovers:
                await remove_leftover(database, store, leftover)
            if len(leftovers) < ROWS_MAX:
                return
    except (Unavailable, Overloaded, Stale) as error:
        log.warning("avatars that nobody shows are still there", error=type(error).__name__)


async def remove_leftover(database: Database, store: AvatarStore, leftover: Leftover) -> None:
    """Remove one; an upload of the very same picture that is shown keeps its names."""
    await store.remove(leftover.user_id, leftover.avatar_id, leftover.sizes)
    async with database.connection() as connection:
        shown = await shown_avatar(connection, leftover.user_id)
    if shown is not None and set(shown.sizes.values()) & set(leftover.sizes.values()):
        await store.name_again(leftover.user_id, shown)
    async with database.connection() as connection:
        await forget_leftover(connection, leftover.avatar_id)

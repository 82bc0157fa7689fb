"""An idempotency key's work is done once: also when two come at the same time, and after a crash in between."""

import asyncio
import json
import random
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from adapters.idempotency import Claim, IdempotencyKeys, Kept
from adapters.postgres import Connection
from adapters.sessions import device_is_known, token_is_unused
from adapters.tokens import hash_of
from adapters.turns import Turns
from adapters.two_factor import challenge_is_open, factor_of
from contracts.operations import Operation
from contracts.wire import Wire
from domain.refusals import Overloaded, Refusal, Stale, StateConflict, Unavailable
from domain.two_factor import Factor
from handlers.context import Call, Context, Handler
from handlers.envelope import canonical, outcome_json

LEASE = timedelta(seconds=5)
"""How long a claim stands without its reply: so long a retry waits after a crash, and no longer."""
_PAUSE_S_MIN, _PAUSE_S_MAX = 0.02, 0.3


@dataclass(frozen=True, slots=True)
class Work:
    """A request that is ready to be carried out, with the body it came as."""

    operation: Operation
    handler: Handler
    call: Call
    request: Wire
    body: bytes

    @property
    def user_id(self) -> UUID | None:
        return self.call.caller.user_id if self.call.caller else None


class Once:
    """Carries out the work of a key, or finds the reply it had before."""

    def __init__(self, ctx: Context, keys: IdempotencyKeys) -> None:
        self._ctx = ctx
        self._keys = keys
        self._turns = Turns()

    async def do(self, key: str, work: Work) -> Wire | Kept:
        """The reply of this work, or that of its first time.

        Raises the work's refusal, `IdempotencyKeyReused`, or `StateConflict` for secrets that may not be shown again.
        """
        async with self._turns.of((work.operation.subject, work.user_id, key)):
            claim = await self._claim(key, work)
            if isinstance(claim, Claim):
                return await self._carry_out(claim, work)
            if claim.success and claim.holds_secrets:  # a refusal holds none, whatever the operation
                await self._require_showable(claim, work)
            return claim

    async def _require_showable(self, kept: Kept, work: Work) -> None:
        if kept.secrets_expired or not await _is_unused(self._ctx, kept.body, work.user_id):
            raise StateConflict

    async def find(self, key: str, operation: Operation, user_id: UUID, body: bytes) -> Kept | None:
        """The reply that a key has already had, if it has; claims nothing."""
        return await self._keys.find(key, subject=operation.subject, user_id=user_id, canonical_body=canonical(body))

    async def _claim(self, key: str, work: Work) -> Claim | Kept:
        """Wait, without hashing, until the work is ours or done; the request's deadline bounds it."""
        pause_s = _PAUSE_S_MIN
        while True:
            claim = await self._keys.claim(
                key,
                subject=work.operation.subject,
                user_id=work.user_id,
                canonical_body=canonical(work.body),
                lease=LEASE,
                holds_secrets=work.operation.holds_secrets,
            )
            if claim is not None:
                return claim
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, _PAUSE_S_MAX)

    async def _carry_out(self, claim: Claim, work: Work) -> Wire:
        kept = False

        async def keep(connection: Connection, outcome: Wire | Refusal) -> None:
            nonlocal kept
            success, body = outcome_json(outcome)
            await claim.keep(connection, success=success, body=body)
            kept = True

        try:
            return await work.handler(self._ctx, replace(work.call, keep_reply=keep), work.request)
        finally:
            if not kept:
                with suppress(Unavailable, Overloaded, Stale):  # then the lease runs out, and the refusal is still told
                    await self._keys.give_up(claim)


async def _is_unused(ctx: Context, data: str, user_id: UUID | None) -> bool:
    """May what was given out be given again? Tokens, a challenge and a device's token while they are good and unused, a
    second factor's secret while it is pending, backup codes while all are there, an export to whoever is signed in."""
    held = json.loads(data)
    async with ctx.database.connection() as connection:
        if "tokens" in held:
            return await token_is_unused(connection, hash_of(held["tokens"]["refreshToken"]))
        if "challengeToken" in held:
            return await challenge_is_open(connection, hash_of(held["challengeToken"]), at=ctx.now())
        if "deviceToken" in held:
            return await device_is_known(connection, hash_of(held["deviceToken"]))
    return "export" in held or await _is_the_factor(ctx, held, user_id)


async def _is_the_factor(ctx: Context, held: dict[str, Any], user_id: UUID | None) -> bool:
    async with ctx.database.connection() as connection:
        factor = user_id and await factor_of(connection, user_id, device_hash=None, at=ctx.now())
    if not factor:
        return False
    if "secret" in held:
        return not factor.is_on and ctx.secrets.open(factor.user_id, factor.secret_sealed) == held["secret"]
    return "backupCodes" in held and await _are_the_codes(ctx, factor, held["backupCodes"])


async def _are_the_codes(ctx: Context, factor: Factor, shown: list[str]) -> bool:
    codes = factor.codes
    if not factor.is_on or codes is None or len(codes.hashes) != len(shown):
        return False
    hashed = await ctx.hasher.derive(shown[:1], salt=codes.salt, cost=codes.cost)
    return hashed[0] in codes.hashes

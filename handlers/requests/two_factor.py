"""The second factor: turned on by its first code, off again, and its backup codes."""

import secrets
from datetime import datetime

import uuid_utils.compat as uuid_utils

from adapters.audit_log import AuditRow
from adapters.totp import new_backup_codes, new_totp_secret, otpauth_uri, qr_code
from adapters.two_factor import factor_of
from contracts.two_factor import (
    BackupCodesCounted,
    CountBackupCodes,
    DisableTwoFactor,
    EnableTwoFactor,
    NewBackupCodes,
    RegenerateBackupCodes,
    TwoFactorBegun,
    TwoFactorVerified,
    VerifyTwoFactor,
)
from contracts.wire import Empty
from domain.refusals import NotFound, Stale, StateConflict
from domain.two_factor import CodeSet, Factor
from handlers.callers import lock_caller
from handlers.codes import check_code
from handlers.context import Call, Context, Handlers
from handlers.proofs import accept, prove

_SALT_BYTES = 16


async def enable_two_factor(ctx: Context, call: Call, request: EnableTwoFactor) -> TwoFactorBegun:
    """Make a secret, which is pending until a code of it is shown; asking again replaces it."""
    factor = await _factor(ctx, call)
    if factor is not None and factor.is_on:
        raise StateConflict
    proof = await prove(ctx, call, request.password)
    at, secret = ctx.now(), new_totp_secret()
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        await accept(work, user, proof)
        user.require_may_enable_two_factor()
        sealed = ctx.secrets.seal(user.id, secret)
        await work.factors.begin(user.id, uuid_utils.uuid7(), sealed, at=at)
        await work.audit(AuditRow(action="two_factor_begun", success=True, at=at, user_id=user.id))
        uri = otpauth_uri(secret, account=user.email, issuer=ctx.settings.totp_issuer)
        reply = TwoFactorBegun(secret=secret, otpauth_uri=uri, qr_code=qr_code(uri))
        await work.commit(reply)
    return reply


async def verify_two_factor(ctx: Context, call: Call, request: VerifyTwoFactor) -> TwoFactorVerified:
    """Turn the second factor on by the first code, which counts as used; hand out the backup codes."""
    factor = await _factor(ctx, call)
    if factor is None or factor.is_on:
        raise StateConflict
    shown = await check_code(ctx, call, factor, code=request.code)
    at, codes = ctx.now(), new_backup_codes()
    hashed = await _hashed(ctx, codes, at=at)
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        user.enable_two_factor(by="user", at=at)
        if shown.step is None or not await work.factors.enable(user.id, factor.id, step=shown.step, at=at):
            raise Stale  # another secret is pending by now
        await work.factors.put_codes(user.id, hashed)
        await work.factors.note_in_session(call.signed_in.session_id)
        await work.users.save(user)
        reply = TwoFactorVerified(backup_codes=codes)
        await work.commit(reply)
    return reply


async def disable_two_factor(ctx: Context, call: Call, request: DisableTwoFactor) -> Empty:
    """Turn the second factor off, and forget its secret and codes."""
    proof = await prove(ctx, call, request.password, code=request.code, backup_code=request.backup_code)
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        await accept(work, user, proof)
        user.disable_two_factor(by="user", at=ctx.now())
        await work.factors.wipe(user.id)
        await work.users.save(user)
        reply = Empty()
        await work.commit(reply)
    return reply


async def count_backup_codes(ctx: Context, call: Call, _: CountBackupCodes) -> BackupCodesCounted:
    """How many are left, and since when."""
    factor = await _factor(ctx, call)
    if factor is None or not factor.is_on or factor.codes is None:
        raise NotFound
    return BackupCodesCounted(remaining=len(factor.codes.hashes), generated_at=factor.codes.made_at)


async def regenerate_backup_codes(ctx: Context, call: Call, request: RegenerateBackupCodes) -> NewBackupCodes:
    """Hand out new backup codes in the place of the old ones."""
    proof = await prove(ctx, call, request.password, code=request.code)
    at, codes = ctx.now(), new_backup_codes()
    hashed = await _hashed(ctx, codes, at=at)
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        await accept(work, user, proof)
        user.regenerate_backup_codes(at=at)
        await work.factors.put_codes(user.id, hashed)
        await work.users.save(user)
        reply = NewBackupCodes(backup_codes=codes)
        await work.commit(reply)
    return reply


async def _factor(ctx: Context, call: Call) -> Factor | None:
    async with ctx.database.connection() as connection:
        return await factor_of(connection, call.signed_in.user_id, device_hash=call.device_hash, at=ctx.now())


async def _hashed(ctx: Context, codes: list[str], *, at: datetime) -> CodeSet:
    salt, cost = secrets.token_bytes(_SALT_BYTES), ctx.hasher.cost
    return CodeSet(salt, cost, tuple(await ctx.hasher.derive(codes, salt=salt, cost=cost)), at)


HANDLERS: Handlers = {
    EnableTwoFactor: enable_two_factor,
    VerifyTwoFactor: verify_two_factor,
    DisableTwoFactor: disable_two_factor,
    CountBackupCodes: count_backup_codes,
    RegenerateBackupCodes: regenerate_backup_codes,
}

"""A password's life: looked at, forgotten, reset and changed."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.links import Link, Purpose, link_by_token
from adapters.password_history import passwords_before, remember_password
from adapters.password_rules import strength_of
from adapters.postgres import Connection
from adapters.tokens import hash_of
from adapters.unit_of_work import UnitOfWork
from adapters.users import account_of, password_of
from contracts.passwords import (
    ChangePassword,
    CheckPassword,
    ForgotPassword,
    PasswordChecked,
    ResetPassword,
    Violation,
)
from contracts.wire import Empty
from domain.password import NO_PASSWORD, REUSED, own_words
from domain.refusals import BadToken, ExpiredToken, WeakPassword
from domain.user import User
from handlers.callers import lock_caller
from handlers.context import Call, Context, Handlers
from handlers.mail_asks import ask_for_mail
from handlers.proofs import accept, prove
from handlers.tries import clear_tries

_DIE_WITH_THE_PASSWORD: tuple[Purpose, ...] = ("reset", "invitation", "verification", "email-change", "unlock")


async def check_password(ctx: Context, _: Call, request: CheckPassword) -> PasswordChecked:
    """What the rules and an estimate say; the password is neither kept nor told of."""
    password = request.password.get_secret_value()
    words = own_words(request.email or "", request.first_name or "", request.last_name or "")
    broken = await asyncio.to_thread(ctx.passwords.broken, password, words)
    strength = await asyncio.to_thread(strength_of, password, words)
    return PasswordChecked(
        acceptable=not broken,
        score=strength.score,
        violations=[Violation(code=fault.code, message=fault.message) for fault in broken],
        suggestions=strength.suggestions,
    )


async def forgot_password(ctx: Context, call: Call, request: ForgotPassword) -> Empty:
    """Ask for a reset mail."""

    async def ask(work: UnitOfWork, user: User, at: datetime) -> None:
        if user.status != "active":
            return
        expires_at = at + ctx.settings.lifetimes.reset_link
        link = Link(id=uuid_utils.uuid7(), user_id=user.id, purpose="reset", address=user.email, expires_at=expires_at)
        await work.links.open(link, at=at)
        user.request_password_reset(token_id=link.id, expires_at=expires_at, at=at)
        await work.users.save(user)

    return await ask_for_mail(ctx, call, request.email, ask, action="password_reset_asked")


@dataclass(frozen=True, slots=True)
class _Before:
    """What a new password is held against: the user's words, and the hashes of what they had."""

    words: tuple[str, ...]
    current_hash: str
    hashes: list[str]


async def _before(ctx: Context, connection: Connection, user_id: UUID) -> _Before:
    """Raises `BadToken` for a user who is gone or suspended."""
    account, stored = await account_of(connection, user_id), await password_of(connection, user_id)
    if account is None or stored is None or account.user.status != "active":
        raise BadToken
    shown, history = account.user, ctx.passwords.policy.history
    older = await passwords_before(connection, user_id, passwords_max=history - 1) if history > 1 else []
    words = own_words(shown.email, shown.first_name, shown.last_name, account.profile.display_name or "")
    return _Before(words, stored.password_hash, [stored.password_hash, *older] if history else [])


async def _new_hash(ctx: Context, before: _Before, password: str) -> str:
    """The hash of a password that breaks no rule, made outside any transaction; raises `WeakPassword`."""
    broken = await asyncio.to_thread(ctx.passwords.broken, password, before.words)
    faults = [replace(fault, field="newPassword") for fault in broken]
    for had in before.hashes:
        if await ctx.hasher.verify(had, password):
            faults = [*faults, REUSED]
            break
    if faults:
        raise WeakPassword(faults)
    return await ctx.hasher.hash(password)


async def _remember(ctx: Context, work: UnitOfWork, user: User, replaced_hash: str) -> None:
    history = ctx.passwords.policy.history
    if history > 1 and replaced_hash != NO_PASSWORD:
        await remember_password(work.connection, user.id, replaced_hash, at=ctx.now(), passwords_max=history - 1)


async def reset_password(ctx: Context, call: Call, request: ResetPassword) -> Empty:
    """Set a password by a mail's link. A password that breaks a rule leaves the link as it is."""
    at, token_hash = ctx.now(), hash_of(request.token.get_secret_value())
    async with ctx.database.connection() as connection:
        link = await link_by_token(connection, token_hash, "reset", "invitation")
        if link is None or link.used_at is not None:
            raise BadToken
        if not link.is_open(at):
            raise ExpiredToken
        before = await _before(ctx, connection, link.user_id)
    new_hash = await _new_hash(ctx, before, request.new_password.get_secret_value())
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(link.user_id)
        if user is None or user.status != "active" or user.email != link.address:
            raise BadToken
        if not await work.links.use(link.id, at=at):
            raise BadToken
        user.require_password_hash(before.current_hash)
        user.reset_password(new_hash, at=at)
        await _remember(ctx, work, user, before.current_hash)
        await work.end_sessions(user, reason="password_reset", at=at)
        await work.sessions.forget_all_devices(user.id, but=call.device_hash)
        await work.links.void_not_me(user.id, at=at)
        await work.links.void(user.id, *_DIE_WITH_THE_PASSWORD, at=at)
        await work.users.save(user)
        reply = Empty()
        await work.commit(reply)
    await clear_tries(ctx, user.email)
    return reply


async def change_password(ctx: Context, call: Call, request: ChangePassword) -> Empty:
    """Replace the caller's password and end their other sessions."""
    at = ctx.now()
    proof = await prove(ctx, call, request.current_password, code=request.code, backup_code=request.backup_code)
    async with ctx.database.connection() as connection:
        before = await _before(ctx, connection, call.signed_in.user_id)
    new_hash = await _new_hash(ctx, before, request.new_password.get_secret_value())
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        await accept(work, user, proof)
        user.change_password(new_hash, at=at)
        await _remember(ctx, work, user, before.current_hash)
        await work.end_sessions(user, reason="password_changed", at=at, but=call.signed_in.session_id)
        await work.links.void_not_me(user.id, at=at, but=call.signed_in.session_id)
        await work.links.void(user.id, *_DIE_WITH_THE_PASSWORD, at=at)
        await work.users.save(user)
        reply = Empty()
        await work.commit(reply)
    return reply


HANDLERS: Handlers = {
    CheckPassword: check_password,
    ForgotPassword: forgot_password,
    ResetPassword: reset_password,
    ChangePassword: change_password,
}

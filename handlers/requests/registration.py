"""Registration: an account, its verification mail, and the link that it carries."""

import asyncio
from datetime import datetime
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.abandoned import is_abandoned
from adapters.addresses import email_key
from adapters.audit_log import AuditRow
from adapters.links import Link
from adapters.unit_of_work import UnitOfWork
from adapters.users import owner_of, user_view
from contracts.auth import EmailVerified, Register, Registered, ResendVerification, VerifyEmail
from contracts.wire import Empty
from domain.password import own_words
from domain.refusals import BadToken, EmailTaken, Stale
from domain.user import User, UserId
from handlers.context import Call, Context, Handlers
from handlers.mail_asks import ask_for_mail
from handlers.mail_links import find_link, use_link
from handlers.requests.tokens import not_me_link


async def register(ctx: Context, call: Call, request: Register) -> Registered:
    """Open an account and ask for its verification mail.

    A taken address is refused before the costly hash; where registered emails are hidden, it costs the same, is
    answered alike, and its owner is told. An account that nobody verified in time gives way.
    """
    words = own_words(request.email, request.first_name, request.last_name)
    await asyncio.to_thread(ctx.passwords.require, request.password.get_secret_value(), words)
    hidden = ctx.settings.hide_registered_emails
    async with ctx.database.connection() as connection:
        owner = await owner_of(connection, email_key(request.email))
        gives_way = owner is not None and await is_abandoned(connection, owner, at=ctx.now())
    if owner is not None and not hidden and not gives_way:
        async with ctx.unit_of_work(call) as work:
            raise await _taken(ctx, work, request, owner)
    password_hash = await ctx.hasher.hash(request.password.get_secret_value())
    if owner is not None and not gives_way:
        return await _repeat(ctx, call, request, owner)

    user = _new_user(ctx, request, password_hash)
    links = _ask_for_verification(ctx, user, reason="registration", at=user.created_at)
    async with ctx.unit_of_work(call) as work:
        if owner is not None:
            await _give_way(work, owner, at=user.created_at)
        if not await work.users.add(user):
            if hidden:
                return await _say_nothing(ctx, work, request, None)
            raise await _taken(ctx, work, request)
        for link in links:
            await work.links.open(link, at=user.created_at)
        reply = Registered() if hidden else Registered(user=user_view(user))
        await work.commit(reply)
    ctx.metrics.registrations.inc()
    return reply


def _new_user(ctx: Context, request: Register, password_hash: str) -> User:
    return User.register(
        UserId(uuid_utils.uuid7()),
        email=request.email,
        first_name=request.first_name,
        last_name=request.last_name,
        password_hash=password_hash,
        at=ctx.now(),
        origin="registration",
    )


async def _give_way(work: UnitOfWork, owner: UUID, *, at: datetime) -> None:
    """End the account that was abandoned, and free its address at once; raises `Stale` where it is so no more."""
    user = await work.users.lock(owner)
    if user is None or not await is_abandoned(work.connection, owner, at=at):
        raise Stale
    await work.end_pending(user, by="system", at=at)


async def _repeat(ctx: Context, call: Call, request: Register, owner: UUID) -> Registered:
    """Tell the owner of a taken address, and nobody else."""
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(owner)
        if user is None or email_key(user.email) != email_key(request.email):
            raise Stale  # the address is free, or another's, by now
        user.registration_repeated(at=ctx.now())
        await work.users.save(user)
        return await _say_nothing(ctx, work, request, owner)


async def _say_nothing(ctx: Context, work: UnitOfWork, request: Register, owner: UUID | None) -> Registered:
    await _record_refused(ctx, work, request, owner)
    reply = Registered()
    await work.commit(reply)
    return reply


async def _taken(ctx: Context, work: UnitOfWork, request: Register, owner: UUID | None = None) -> EmailTaken:
    """The refusal is stored before it is answered."""
    await _record_refused(ctx, work, request, owner)
    refusal = EmailTaken()
    await work.commit(refusal)
    return refusal


async def _record_refused(ctx: Context, work: UnitOfWork, request: Register, owner: UUID | None) -> None:
    """The address stands under its owner's key, so that it can be erased."""
    await work.audit(
        AuditRow(
            action="registration_refused",
            success=False,
            at=ctx.now(),
            user_id=owner,
            personal={"email": request.email},
        )
    )


def _ask_for_verification(ctx: Context, user: User, *, reason: str, at: datetime) -> tuple[Link, Link]:
    """Record the request; the mail's random tokens are made by the `email` group just before it sends.

    One link verifies the address, the other tells us that its owner opened no account.
    """
    expires_at = at + ctx.settings.lifetimes.verification_link
    link = Link(
        id=uuid_utils.uuid7(), user_id=user.id, purpose="verification", address=user.email, expires_at=expires_at
    )
    not_me = not_me_link(ctx, user, None)
    user.request_verification(token_id=link.id, not_me_token_id=not_me.id, expires_at=expires_at, reason=reason, at=at)
    return link, not_me


async def verify_email(ctx: Context, call: Call, request: VerifyEmail) -> EmailVerified:
    """Use up a verification link; it dies with a change of the address it was sent to."""
    at = ctx.now()
    link = await find_link(ctx, request.token, "verification")
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(link.user_id)
        if user is None or user.email != link.address:
            raise BadToken
        await use_link(work, link, at=at)
        user.verify_email(reason="registration", at=at)
        await work.users.save(user)
        reply = EmailVerified(user=user_view(user))
        await work.commit(reply)
    return reply


async def resend_verification(ctx: Context, call: Call, request: ResendVerification) -> Empty:
    """Ask for another verification mail."""

    async def ask(work: UnitOfWork, user: User, at: datetime) -> None:
        if user.email_verified:
            return
        for link in _ask_for_verification(ctx, user, reason="resend", at=at):
            await work.links.open(link, at=at)
        await work.users.save(user)

    return await ask_for_mail(ctx, call, request.email, ask, action="verification_requested")


HANDLERS: Handlers = {Register: register, VerifyEmail: verify_email, ResendVerification: resend_verification}

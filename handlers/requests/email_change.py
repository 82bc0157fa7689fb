"""Another address for an account: asked for, confirmed from the new mailbox, called off from the old one."""

from datetime import datetime

import uuid_utils.compat as uuid_utils

from adapters.addresses import email_key
from adapters.limits import LimitReached, Window
from adapters.links import Link
from adapters.reserved_emails import reserve_email
from adapters.unit_of_work import UnitOfWork
from adapters.users import user_view
from contracts.account import CancelEmailChange, ChangeEmail, ConfirmEmailChange, EmailChangeConfirmed
from contracts.operations import Limit
from contracts.wire import Empty
from domain.refusals import BadToken, EmailTaken
from domain.user import User
from handlers.callers import lock_caller
from handlers.context import Call, Context, Handlers
from handlers.mail_links import find_link, use_link
from handlers.proofs import accept, prove


async def change_email(ctx: Context, call: Call, request: ChangeEmail) -> Empty:
    """Ask both mailboxes: the new one to confirm, the old one whether it minds.

    A taken address makes the same rows as a free one; that nobody is asked there, `email` alone knows. Past the limits
    nothing comes of it, in silence; the proof is used up all the same.
    """
    key = email_key(request.new_email)
    proof = await prove(ctx, call, request.password, code=request.code, backup_code=request.backup_code)
    may_mail, at = await _may_mail(ctx, call, key), ctx.now()
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        user.require_may_change_email()
        await accept(work, user, proof)
        if may_mail:
            await work.links.void(user.id, "email-change", at=at)
            await _ask_both(ctx, work, user, request.new_email, at=at)
        if user.recorded:
            await work.users.save(user)
        reply = Empty()
        await work.commit(reply)
    return reply


async def _may_mail(ctx: Context, call: Call, key: str) -> bool:
    """Count what is mailed to the new address, whoever asks, and what this caller has mailed."""
    name, rate = Limit.MAIL.value, ctx.settings.limit_mail_address
    windows = (
        Window(f"{name}:email-change", key, rate.tries_max, rate.window_s),
        Window(f"{name}:email-change:caller", str(call.signed_in.user_id), rate.tries_max, rate.window_s),
    )
    try:
        await ctx.limits.reserve(windows)
    except LimitReached:
        return False
    return True


async def _ask_both(ctx: Context, work: UnitOfWork, user: User, new_email: str, *, at: datetime) -> None:
    lifetimes = ctx.settings.lifetimes
    confirm = Link(
        id=uuid_utils.uuid7(), user_id=user.id, purpose="email-change", address=new_email,
        expires_at=at + lifetimes.email_change_link,
    )  # fmt: skip
    cancel = Link(
        id=uuid_utils.uuid7(), user_id=user.id, purpose="cancel-email-change", address=user.email,
        expires_at=at + lifetimes.cancel_link,
    )  # fmt: skip
    user.request_email_change(
        new_email, token_id=confirm.id, cancel_token_id=cancel.id, expires_at=confirm.expires_at, at=at
    )
    await work.links.open(confirm, at=at)
    await work.links.open(cancel, at=at)


async def confirm_email_change(ctx: Context, call: Call, request: ConfirmEmailChange) -> EmailChangeConfirmed:
    """The new address counts from here; links to the old one are void, but for that which undoes the change."""
    at = ctx.now()
    link = await find_link(ctx, request.token, "email-change")
    if link.user_id != call.signed_in.user_id:
        raise BadToken
    try:
        async with ctx.unit_of_work(call) as work:
            user = await lock_caller(ctx, work, call)
            await use_link(work, link, at=at)
            left = user.email
            user.change_email(link.address, at=at)
            await work.users.save(user)
            await work.links.void_all_but(user.id, "cancel-email-change", at=at)
            if email_key(left) != email_key(user.email):
                await reserve_email(work.connection, user.id, left, until=at + ctx.settings.lifetimes.cancel_link)
            reply = EmailChangeConfirmed(user=user_view(user))
            await work.commit(reply)
    except EmailTaken as error:  # it has come to belong to somebody since; that is theirs to know
        raise BadToken from error
    return reply


async def cancel_email_change(ctx: Context, call: Call, request: CancelEmailChange) -> Empty:
    """Call a change off, or undo it: then every session ends, and the password, which somebody else knew, is
    disowned. Of two addresses that an account has left, the older one has the last word."""
    at = ctx.now()
    link = await find_link(ctx, request.token, "cancel-email-change")
    try:
        async with ctx.unit_of_work(call) as work:
            user = await work.users.lock(link.user_id)
            if user is None:
                raise BadToken
            await use_link(work, link, at=at)
            await _call_off(work, user, link, at=at)
            await work.users.save(user)
            reply = Empty()
            await work.commit(reply)
    except EmailTaken as error:
        raise BadToken from error
    return reply


async def _call_off(work: UnitOfWork, user: User, link: Link, *, at: datetime) -> None:
    if user.email == link.address:
        if await work.links.void(user.id, "email-change", at=at):
            user.cancel_email_change(user.email, at=at)
        return
    await work.links.void_later_than(link, at=at)
    await work.links.void_all_but(user.id, "cancel-email-change", at=at)
    user.cancel_email_change(link.address, at=at)
    user.disown_password(reason="email_change_undone", at=at)
    await work.sessions.forget_all_devices(user.id)
    await work.end_sessions(user, reason="email_change_undone", at=at)


HANDLERS: Handlers = {
    ChangeEmail: change_email,
    ConfirmEmailChange: confirm_email_change,
    CancelEmailChange: cancel_email_change,
}

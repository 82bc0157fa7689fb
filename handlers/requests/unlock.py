"""The way back in for an owner who is kept out by somebody else's guesses."""

from adapters.tokens import hash_of, new_secret
from contracts.auth import Unlock, Unlocked
from domain.refusals import BadToken
from handlers.context import Call, Context, Handlers
from handlers.mail_links import find_link, use_link
from handlers.tries import clear_tries


async def unlock(ctx: Context, call: Call, request: Unlock) -> Unlocked:
    """Use the link of the locked-account mail: the lock and all counted failures are gone, and this device is known.

    It proves the mailbox, not the password: no session comes of it.
    """
    at = ctx.now()
    link = await find_link(ctx, request.token, "unlock")
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(link.user_id)
        if user is None or user.status != "active" or user.email != link.address:
            raise BadToken
        await use_link(work, link, at=at)
        user.unlock(reason="link", at=at)
        await work.users.save(user)
        device_token = new_secret()
        await work.sessions.add_device(
            user.id, hash_of(device_token), session_id=None, at=at, lifetime=ctx.settings.lifetimes.device
        )
        reply = Unlocked(device_token=device_token)
        await work.commit(reply)
    await clear_tries(ctx, user.email)
    return reply


HANDLERS: Handlers = {Unlock: unlock}

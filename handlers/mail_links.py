"""The links of our mail: found by the token that came with one, and used up once, under their user's lock."""

from datetime import datetime

from pydantic import SecretStr

from adapters.links import Link, Purpose, link_by_token
from adapters.tokens import hash_of
from adapters.unit_of_work import UnitOfWork
from domain.refusals import BadToken, ExpiredToken
from handlers.context import Context


async def find_link(ctx: Context, token: SecretStr, purpose: Purpose) -> Link:
    """The link that a token opens, used or not; raises `BadToken` for an unknown one."""
    async with ctx.database.connection() as connection:
        link = await link_by_token(connection, hash_of(token.get_secret_value()), purpose)
    if link is None:
        raise BadToken
    return link


async def use_link(work: UnitOfWork, link: Link, *, at: datetime) -> None:
    """Use a link up; raises `ExpiredToken` when its time was over before anybody did, else `BadToken`."""
    if not await work.links.use(link.id, at=at):
        raise BadToken if link.used_at is not None or at < link.expires_at else ExpiredToken

"""Avatars: the bytes are stored before the account names them, and removed after it has ceased to."""

import asyncio
import base64
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from adapters.avatar_store import hashes_of
from adapters.avatar_uploads import NoSuchUpload, Upload
from adapters.avatars import Leftover, note_before_put, note_replaced, note_shown, shown_avatar
from adapters.pictures import BadPicture
from contracts.avatar import AvatarRemoved, AvatarShown, AvatarUploaded, GetAvatar, RemoveAvatar, UploadAvatar
from contracts.users import Avatar as AvatarView
from domain.avatar import CONTENT_TYPE, Avatar
from domain.refusals import Fault, InvalidInput, NotFound, Overloaded, Stale, Unavailable
from handlers.callers import lock_caller
from handlers.context import Call, Context, Handlers
from handlers.leftovers import remove_leftover
from handlers.visibility import visible_account

log = structlog.get_logger()

TIDYING_S = 1.0
"""So long a reply waits for what is shown no longer to be removed; the jobs do it otherwise."""
_WORDS = {
    "not_a_picture": "This is no JPEG, PNG, WebP or GIF picture.",
    "other_type": "The picture is of another type than contentType says.",
    "too_many_pixels": "The picture has more than 16 million pixels.",
    "damaged": "The picture cannot be decoded.",
}


async def upload_avatar(ctx: Context, call: Call, request: UploadAvatar) -> AvatarUploaded:
    """Show a picture. A crash on the way leaves objects that nobody shows, which are noted down before they are put."""
    user_id = call.signed_in.user_id
    async with ctx.pictures.place():
        upload = await _upload(ctx, user_id, request)
        squares = await _squares(ctx, request, upload)
    avatar = Avatar.of(uuid7(), user_id, hashes_of(squares))
    async with ctx.database.connection() as connection:
        await note_before_put(connection, user_id, avatar)
    await ctx.avatars.put(user_id, avatar, squares)

    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        before = user.change_avatar(avatar, at=ctx.now())
        await note_shown(work.connection, avatar)
        if before is not None:
            await note_replaced(work.connection, user_id, before)
        await work.users.save(user)
        reply = AvatarUploaded(avatar=AvatarView.model_validate(avatar, from_attributes=True))
        await work.commit(reply)

    await _tidy(ctx, user_id, before, upload)
    return reply


async def _upload(ctx: Context, user_id: UUID, request: UploadAvatar) -> Upload:
    if request.object_name is None:
        return Upload(request.data or b"", ())
    if request.object_name.partition("/")[0] != str(user_id):
        raise InvalidInput([Fault("objectName", "not_yours", "The name begins with the caller's id.")])
    try:
        return await ctx.avatar_uploads.read(request.object_name)
    except NoSuchUpload as error:
        raise NotFound from error


async def _squares(ctx: Context, request: UploadAvatar, upload: Upload) -> dict[int, bytes]:
    try:
        return await ctx.pictures.squares(upload.content, request.content_type)
    except BadPicture as bad:
        await ctx.avatar_uploads.destroy(upload.seqs)
        where = "data" if request.object_name is None else "objectName"
        field = "contentType" if bad.code == "other_type" else where
        code = bad.code if bad.code in _WORDS else "damaged"
        raise InvalidInput([Fault(field, code, _WORDS[code])]) from bad


async def _tidy(ctx: Context, user_id: UUID, before: Avatar | None, upload: Upload | None) -> None:
    """What is of no more use goes now, if that is quick; else the jobs and the bucket's own end remove it."""
    try:
        async with asyncio.timeout(TIDYING_S):
            if before is not None:
                await remove_leftover(ctx.database, ctx.avatars, Leftover(before.id, user_id, before.sizes))
            if upload is not None:
                await ctx.avatar_uploads.destroy(upload.seqs)
    except (Unavailable, Overloaded, Stale, TimeoutError) as error:
        log.warning("an avatar is not removed yet", error=type(error).__name__)


async def get_avatar(ctx: Context, call: Call, request: GetAvatar) -> AvatarShown:
    """The picture of whoever the caller may see."""
    account = await visible_account(ctx, call, request.user_id)
    content = await _content(ctx, request, account.profile.avatar)
    if content is None:
        # None when the account was read, or replaced and removed since: its row knows.
        async with ctx.database.connection() as connection:
            shown = await shown_avatar(connection, request.user_id)
        content = await _content(ctx, request, shown)
        if content is None and shown is not None:
            log.error("an avatar's object is lost", userId=str(request.user_id), avatarId=str(shown.id))
    if content is None:
        raise NotFound
    return AvatarShown(content_type=CONTENT_TYPE, data=base64.b64encode(content).decode())


async def _content(ctx: Context, request: GetAvatar, avatar: Avatar | AvatarView | None) -> bytes | None:
    if avatar is None:
        return None
    return await ctx.avatars.get(request.user_id, avatar.id, avatar.sizes[str(request.size)])


async def remove_avatar(ctx: Context, call: Call, _: RemoveAvatar) -> AvatarRemoved:
    """Show no picture any more."""
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        before = user.change_avatar(None, at=ctx.now())
        if before is not None:
            await note_replaced(work.connection, user.id, before)
        await work.users.save(user)
        reply = AvatarRemoved()
        await work.commit(reply)
    await _tidy(ctx, user.id, before, None)
    return reply


HANDLERS: Handlers = {UploadAvatar: upload_avatar, GetAvatar: get_avatar, RemoveAvatar: remove_avatar}

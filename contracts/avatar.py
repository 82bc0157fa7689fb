"""Avatars: `users.v1.profile.avatar.*`."""

import base64
import binascii
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from contracts.operations import Caller, Limit, Operation
from contracts.users import Avatar
from contracts.wire import Broken, Empty, Wire

DATA_BYTES_MAX = 512 * 1024
DATA_CHARS_MAX = 4 * -(-DATA_BYTES_MAX // 3)
UPLOADS_BUCKET = "user-avatar-uploads"
AVATARS_BUCKET = "user-avatars"

ContentType = Literal["image/jpeg", "image/png", "image/webp", "image/gif"]


def _from_base64(value: object) -> object:
    if not isinstance(value, str):
        raise Broken("wrong_type", "This value has the wrong type or form.")
    if len(value) > DATA_CHARS_MAX:
        raise Broken("too_long", "Use 512 KiB at most; put larger pictures into the bucket of uploads.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Broken("not_base64", "This is no base64 (RFC 4648, with padding).") from error


def _some_but_not_too_many(value: bytes) -> bytes:
    if not value:
        raise Broken("too_short", "This value is too short.")
    if len(value) > DATA_BYTES_MAX:
        raise Broken("too_long", "Use 512 KiB at most; put larger pictures into the bucket of uploads.")
    return value


Base64 = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    AfterValidator(_some_but_not_too_many),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "minLength": 4, "maxLength": DATA_CHARS_MAX}),
]
_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
ObjectName = Annotated[str, StringConstraints(max_length=73, pattern=f"^{_UUID}/{_UUID}$")]
"""`<caller's id>/<uuid>`."""


class UploadAvatar(Wire):
    """Show a picture: sent along as `data`, or put into bucket `user-avatar-uploads` before as `objectName`."""

    content_type: ContentType
    data: Annotated[Base64 | None, Field(repr=False)] = None
    object_name: ObjectName | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.data is None) == (self.object_name is None):
            raise Broken("one_of_two", "Send either data or objectName.")
        return self


class AvatarUploaded(Wire):
    avatar: Avatar


class GetAvatar(Wire):
    """Read the picture that a user shows."""

    user_id: UUID
    size: Literal[256, 64] = 256


class AvatarShown(Wire):
    content_type: str
    data: Annotated[str, Field(description="base64")]


class RemoveAvatar(Wire):
    """Show no picture any more."""


class AvatarRemoved(Empty):
    pass


OPERATIONS = (
    Operation(
        "users.v1.profile.avatar.upload",
        UploadAvatar,
        AvatarUploaded,
        "POST /users/me/avatar",
        caller=Caller.SIGNED_IN,
        limit=Limit.UPLOAD,
        writes=True,
        emits=("AvatarUpdated",),
        body_bytes_max=1024 * 1024,
    ),
    Operation("users.v1.profile.avatar.get", GetAvatar, AvatarShown, "GET /users/:id/avatar", caller=Caller.SIGNED_IN),
    Operation(
        "users.v1.profile.avatar.remove",
        RemoveAvatar,
        AvatarRemoved,
        "DELETE /users/me/avatar",
        caller=Caller.SIGNED_IN,
        writes=True,
        emits=("AvatarUpdated",),
    ),
)

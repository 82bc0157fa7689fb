"""What an account says of its picture, and what a request of one may hold."""

import base64
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from adapters.avatars import avatar_json, avatar_of
from contracts.avatar import DATA_BYTES_MAX, UploadAvatar
from domain.avatar import Avatar
from domain.events import AvatarUpdated
from tests.builders import NOW, an_old_user

ID, OWNER = UUID(int=1), UUID(int=2)


def an_avatar() -> Avatar:
    return Avatar.of(uuid4(), OWNER, {256: "aa", 64: "bb"})


def test_an_avatar_names_its_objects_by_owner_hash_and_size() -> None:
    avatar = Avatar.of(ID, OWNER, {256: "aa", 64: "bb"})
    assert avatar.sizes == {"256": f"{OWNER}/aa-256", "64": f"{OWNER}/bb-64"}
    assert (avatar.width, avatar.height, avatar.content_type) == (256, 256, "image/webp")
    assert avatar_of(avatar_json(avatar)) == avatar


def test_another_avatar_is_an_event_and_gives_the_one_before_back() -> None:
    user, first, second = an_old_user(), an_avatar(), an_avatar()
    revision = user.revision
    assert user.change_avatar(first, at=NOW) is None
    assert user.change_avatar(second, at=NOW) == first
    assert user.change_avatar(None, at=NOW) == second
    assert user.recorded == [AvatarUpdated(user_id=user.id, avatar=avatar) for avatar in (first, second, None)]
    assert user.revision == revision


def test_to_remove_what_is_not_there_is_no_event() -> None:
    user = an_old_user()
    assert user.change_avatar(None, at=NOW) is None
    assert user.recorded == []


def test_avatars_of_the_same_picture_are_different_ones() -> None:
    avatar = an_avatar()
    assert replace(avatar, id=uuid4()) != avatar


@pytest.mark.parametrize("size", [1, DATA_BYTES_MAX - 1, DATA_BYTES_MAX])
def test_data_is_decoded_to_its_bytes(size: int) -> None:
    said = base64.b64encode(bytes(size)).decode()
    read = UploadAvatar.model_validate_json(f'{{"contentType":"image/png","data":"{said}"}}', strict=True)
    assert read.data == bytes(size)
    assert "data" not in repr(read)


@pytest.mark.parametrize("said", [base64.b64encode(bytes(DATA_BYTES_MAX + 1)).decode(), "", "====", "AAA", "_-8="])
def test_data_that_is_too_much_or_no_base64_is_refused(said: str) -> None:
    with pytest.raises(ValidationError):
        UploadAvatar.model_validate_json(f'{{"contentType":"image/png","data":"{said}"}}', strict=True)

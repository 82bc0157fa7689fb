"""Avatars as a gateway and a user see them."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client as NatsClient
from nats.js.errors import ObjectNotFoundError
from nats.js.object_store import ObjectStore

from tests.gateway import Gateway, Reply, database, gateway, stored_events
from tests.pictures import description, exif, opened, picture
from tests.program import Dev, eventually

UPLOADS, AVATARS = "user-avatar-uploads", "user-avatars"


async def upload(client: Gateway, access: str, content: bytes, kind: str = "image/png", **headers: str) -> Reply:
    sent = base64.b64encode(content).decode()
    return await client.call("profile.avatar.upload", access=access, headers=headers, contentType=kind, data=sent)


async def shown(client: Gateway, access: str, user_id: str, size: int = 256) -> bytes:
    found = (await client.call("profile.avatar.get", access=access, userId=user_id, size=size)).data
    assert found["contentType"] == "image/webp"
    return base64.b64decode(found["data"])


def who(found: dict[str, Any]) -> tuple[str, str]:
    return found["user"]["id"], found["tokens"]["accessToken"]


async def test_an_uploaded_picture_is_shown_to_everybody_in_two_sizes(dev: Dev, client: Gateway) -> None:
    user_id, access = who(await client.signed_in())
    _, other = who(await client.signed_in())
    avatar = (await upload(client, access, picture(form="JPEG", exif=exif()), "image/jpeg")).data["avatar"]
    assert avatar["contentType"] == "image/webp"
    assert (avatar["width"], avatar["height"]) == (256, 256)
    assert set(avatar["sizes"]) == {"256", "64"}
    for size in (256, 64):
        content = await shown(client, other, user_id, size)
        assert opened(content).size == (size, size)
        assert avatar["sizes"][str(size)] == f"{user_id}/{hashlib.sha256(content).hexdigest()}-{size}"
        store = await client.nc.jetstream().object_store(AVATARS)
        assert await bytes_of(store, avatar["sizes"][str(size)]) == content
    for viewer in (access, other):
        assert (await client.call("profile.get", access=viewer, userId=user_id)).data["profile"]["avatar"] == avatar
    assert (await client.call("me.get", access=access)).data["profile"]["avatar"] == avatar
    [event] = await announced(dev, user_id, 1)
    assert event["data"] == {"userId": user_id, "avatar": avatar}


async def test_a_new_picture_takes_the_place_of_the_old_whose_objects_go(dev: Dev, client: Gateway) -> None:
    user_id, access = who(await client.signed_in())
    first = (await upload(client, access, picture((300, 200)))).data["avatar"]
    second = (await upload(client, access, picture((200, 300), "GIF"), "image/gif")).data["avatar"]
    assert first["sizes"] != second["sizes"]
    assert hashlib.sha256(await shown(client, access, user_id)).hexdigest() in second["sizes"]["256"]
    assert await objects(client, user_id) == sorted(second["sizes"].values())
    assert (await client.call("profile.avatar.remove", access=access)).data == {}
    assert await objects(client, user_id) == []
    assert (await client.call("profile.avatar.get", access=access, userId=user_id)).code == "NOT_FOUND"
    assert (await client.call("profile.get", access=access, userId=user_id)).data["profile"]["avatar"] is None
    assert (await client.call("profile.avatar.remove", access=access)).ok  # there is none: no event
    events = await announced(dev, user_id, 3)
    assert [event["data"]["avatar"] and event["data"]["avatar"]["id"] for event in events] == [
        first["id"], second["id"], None,
    ]  # fmt: skip
    async with database(dev.ready) as rows:
        assert not await rows.fetch("SELECT FROM avatar_leftovers WHERE user_id = $1", user_id)


async def test_the_same_picture_again_is_another_avatar_of_the_same_objects(client: Gateway) -> None:
    user_id, access = who(await client.signed_in())
    first = (await upload(client, access, picture())).data["avatar"]
    second = (await upload(client, access, picture())).data["avatar"]
    assert first["id"] != second["id"]
    assert first["sizes"] == second["sizes"]
    assert await objects(client, user_id) == sorted(first["sizes"].values())
    assert await shown(client, access, user_id)


async def test_a_picture_that_was_put_into_the_bucket_is_used_once_and_gone(client: Gateway) -> None:
    user_id, access = who(await client.signed_in())
    content = picture((900, 900), compress_level=0)
    assert 512 * 1024 < len(content) < 5 * 1024 * 1024
    name = f"{user_id}/{uuid4()}"
    bucket = await client.nc.jetstream().object_store(UPLOADS)
    await bucket.put(name, content)
    asked: dict[str, Any] = {"contentType": "image/png", "objectName": name}
    avatar = (await client.call("profile.avatar.upload", access=access, **asked)).data["avatar"]
    assert await objects(client, user_id) == sorted(avatar["sizes"].values())
    with pytest.raises(ObjectNotFoundError):
        await bucket.get_info(name)
    assert (await client.call("profile.avatar.upload", access=access, **asked)).code == "NOT_FOUND"


async def test_a_gateway_puts_a_picture_aside_and_can_read_none(dev: Dev, client: Gateway) -> None:
    user_id, access = who(await client.signed_in())
    name, content = f"{user_id}/{uuid4()}", picture((700, 700), compress_level=0)
    async with public_gateway(dev) as nc:
        await put(nc, name, content)
    reply = await client.call("profile.avatar.upload", access=access, contentType="image/png", objectName=name)
    assert reply.data["avatar"]["width"] == 256


@pytest.mark.parametrize("wrong", ["another's", "no uuid", "nothing there"])
async def test_only_an_upload_of_ones_own_can_be_named(client: Gateway, wrong: str) -> None:
    user_id, access = who(await client.signed_in())
    other_id, _ = who(await client.signed_in())
    name = {"another's": f"{other_id}/{uuid4()}", "no uuid": f"{user_id}/../x", "nothing there": f"{user_id}/{uuid4()}"}
    if wrong == "another's":
        await (await client.nc.jetstream().object_store(UPLOADS)).put(name[wrong], picture())
    asked: dict[str, Any] = {"contentType": "image/png", "objectName": name[wrong]}
    code = (await client.call("profile.avatar.upload", access=access, **asked)).code
    assert code == ("NOT_FOUND" if wrong == "nothing there" else "VALIDATION_ERROR")


async def test_an_upload_is_counted_while_it_is_read(client: Gateway) -> None:
    """Whoever put it may say of its size what they like."""
    user_id, access = who(await client.signed_in())
    for said, code in ((None, "PAYLOAD_TOO_LARGE"), (1000, "NOT_FOUND"), (10**12, "PAYLOAD_TOO_LARGE")):
        name = f"{user_id}/{uuid4()}"
        await put(client.nc, name, bytes(6 * 1024 * 1024), size=said)
        reply = await client.call("profile.avatar.upload", access=access, contentType="image/png", objectName=name)
        assert reply.code == code, said


@pytest.mark.parametrize("nuid", ["*", ">", "a.b", "", "x" * 65])
async def test_an_upload_cannot_lead_to_the_bytes_of_another(client: Gateway, nuid: str) -> None:
    user_id, access = who(await client.signed_in())
    other_id, _ = who(await client.signed_in())
    await (await client.nc.jetstream().object_store(UPLOADS)).put(f"{other_id}/{uuid4()}", picture())
    name = f"{user_id}/{uuid4()}"
    await put(client.nc, name, picture(), nuid=nuid)
    reply = await client.call("profile.avatar.upload", access=access, contentType="image/png", objectName=name)
    assert reply.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"contentType": "image/svg+xml", "data": "AAAA"}, "contentType", "not_allowed"),
        ({"contentType": "image/png"}, "", "one_of_two"),
        ({"contentType": "image/png", "data": "AAAA", "objectName": f"{uuid4()}/{uuid4()}"}, "", "one_of_two"),
        ({"contentType": "image/png", "data": "not base64!"}, "data", "not_base64"),
        ({"contentType": "image/png", "data": 7}, "data", "wrong_type"),
        ({"contentType": "image/png", "data": ""}, "data", "too_short"),
        ({"contentType": "image/png", "data": "A" * (4 * 180_000)}, "data", "too_long"),
        ({"contentType": "image/png", "data": "AAAA"}, "data", "not_a_picture"),
        ({"contentType": "image/png", "data": base64.b64encode(picture(form="GIF")).decode()}, "contentType",
         "other_type"),
        ({"contentType": "image/png", "data": base64.b64encode(picture()[:200]).decode()}, "data", "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_what_is_no_picture_is_refused_with_its_reason(
    client: Gateway, body: dict[str, Any], field: str, code: str
) -> None:
    _, access = who(await client.signed_in())
    reply = await client.call("profile.avatar.upload", access=access, **body)
    assert reply.code == "VALIDATION_ERROR"
    assert [(fault["field"], fault["code"]) for fault in reply.body["error"]["details"]] == [(field, code)]


async def test_a_body_up_to_its_own_bound_is_read_and_a_larger_one_refused(client: Gateway) -> None:
    _, access = who(await client.signed_in())
    content = picture((400, 400), compress_level=0)
    content += bytes(512 * 1024 - len(content))
    assert (await upload(client, access, content)).ok  # whatever follows a picture is no part of it
    headers = {"Authorization": f"Bearer {access}"}
    body = b'{"contentType":"image/png","data":"' + b"A" * (1024 * 1024 - 8 * 1024 - 200) + b'"}'
    reply = await client.send("users.v1.profile.avatar.upload", body, headers=headers)
    assert reply.code == "VALIDATION_ERROR"
    reply = await client.send("users.v1.profile.avatar.get", body, headers=headers)
    assert reply.code == "PAYLOAD_TOO_LARGE"


async def test_an_upload_is_done_once_for_its_key(dev: Dev, client: Gateway) -> None:
    user_id, access = who(await client.signed_in())
    key = {"Idempotency-Key": uuid4().hex}
    replies = await asyncio.gather(*(upload(client, access, picture(), **key) for _ in range(3)))
    assert len({reply.data["avatar"]["id"] for reply in replies}) == 1
    assert (await upload(client, access, picture((50, 50)), **key)).code == "IDEMPOTENCY_KEY_REUSED"
    assert len(await announced(dev, user_id, 1)) == 1


@pytest.mark.parametrize("same", [True, False], ids=["one picture", "many pictures"])
async def test_of_many_uploads_at_once_one_is_shown_and_whole(client: Gateway, same: bool) -> None:
    for _ in range(5):
        user_id, access = who(await client.signed_in())
        contents = [picture((100, 100 if same else 100 + number)) for number in range(6)]
        replies = await asyncio.gather(*(upload(client, access, content) for content in contents))
        assert {reply.code for reply in replies} <= {"OK", "OVERLOADED"}
        avatar = (await client.call("me.get", access=access)).data["profile"]["avatar"]
        assert avatar in [reply.data["avatar"] for reply in replies if reply.ok]
        for size in (256, 64):
            assert hashlib.sha256(await shown(client, access, user_id, size)).hexdigest() in avatar["sizes"][str(size)]
        assert await objects(client, user_id) == sorted(avatar["sizes"].values())
        store = await client.nc.jetstream().object_store(AVATARS)
        for name in avatar["sizes"].values():
            assert await bytes_of(store, name)


async def bytes_of(store: ObjectStore, name: str) -> bytes:
    """An object as any client reads it; the library waits without a bound for what its consumer has missed."""
    for _ in range(3):
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                return (await store.get(name)).data or b""
    raise AssertionError(f"{name} cannot be read")


async def test_uploads_have_a_limit_of_their_own(limited_client: Gateway) -> None:
    _, access = who(await limited_client.signed_in(headers={"Client-Ip": "198.51.100.91"}))
    for left in range(9, -1, -1):
        reply = await upload(limited_client, access, b"no picture")
        assert reply.code == "VALIDATION_ERROR"
        assert reply.headers["RateLimit-Remaining"] == str(left)
    refused = await upload(limited_client, access, picture())
    assert (refused.code, refused.body["error"]["limit"]) == ("RATE_LIMITED", "api:upload")
    assert (await limited_client.call("me.get", access=access)).ok


async def test_nobody_sees_the_picture_of_a_suspended_user(dev: Dev, client: Gateway) -> None:
    user_id, access = who(await client.signed_in())
    _, other = who(await client.signed_in())
    await upload(client, access, picture())
    async with database(dev.ready) as rows:  # nobody has asked yet: no cache holds the account
        await rows.execute("UPDATE users SET status = 'suspended' WHERE id = $1", user_id)
    assert (await client.call("profile.avatar.get", access=other, userId=user_id)).code == "NOT_FOUND"


async def test_a_death_in_the_middle_leaves_nothing_dangling_and_nothing_unknown(tmp_path: Path) -> None:
    """What is shown is whole, and every object that is not shown is noted down for its removal."""
    async with Dev(tmp_path / "data") as own:
        async with gateway(own.ready) as client:
            users = [who(await client.signed_in()) for _ in range(4)]
        for pause_s in (0.1, 0.15, 0.2, 0.3):
            async with gateway(own.ready) as client:
                contents = [picture((100, 100 + number)) for number in range(3)]
                uploads = [
                    asyncio.create_task(upload(client, access, content)) for _, access in users for content in contents
                ]
                await asyncio.sleep(pause_s)  # somewhere among decoding, putting and showing
                await own.kill()
                for task in uploads:
                    task.cancel()
                await asyncio.wait(uploads)
            await own.start()
            async with gateway(own.ready) as client, database(own.ready) as rows:
                for user_id, access in users:
                    avatar = (await client.call("me.get", access=access)).data["profile"]["avatar"]
                    for size in (256, 64) if avatar else ():
                        digest = hashlib.sha256(await shown(client, access, user_id, size)).hexdigest()
                        assert digest in avatar["sizes"][str(size)]
                    noted = await rows.fetch("SELECT avatar_id FROM avatar_leftovers WHERE user_id = $1", user_id)
                    known = {str(row["avatar_id"]) for row in noted} | ({avatar["id"]} if avatar else set())
                    assert await uploads_with_objects(client, user_id) <= known


async def uploads_with_objects(client: Gateway, user_id: str) -> set[str]:
    """The avatars, by id, of which bytes lie in the bucket."""
    pattern = f"$O.{AVATARS}.C.{user_id}.>"
    info = await client.nc.jetstream().stream_info(f"OBJ_{AVATARS}", subjects_filter=pattern)
    return {subject.split(".")[-2] for subject in info.state.subjects or {}}


@asynccontextmanager
async def public_gateway(dev: Dev) -> AsyncIterator[NatsClient]:
    nc = await nats.connect(dev.ready["natsUrls"]["gateway"], inbox_prefix=b"_INBOX.gateway")
    try:
        yield nc
    finally:
        await nc.close()


async def put(nc: NatsClient, name: str, content: bytes, *, size: int | None = None, nuid: str | None = None) -> None:
    """What a client of the object store publishes, by hand: chunks, then the description."""
    chunks = [content[at : at + 128 * 1024] for at in range(0, len(content), 128 * 1024)]
    key = uuid4().hex
    for chunk in chunks:
        await nc.request(f"$O.{UPLOADS}.C.{key}", chunk, timeout=5)
    said = description(name, content, nuid=key if nuid is None else nuid, size=size)
    subject = f"$O.{UPLOADS}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
    await nc.request(subject, said, timeout=5, headers={"Nats-Rollup": "sub"})


async def objects(client: Gateway, user_id: str) -> list[str]:
    """The names under which anything of a user lies in the bucket; each with its bytes, and no bytes without a name."""
    js = client.nc.jetstream()
    bytes_at = (await js.stream_info(f"OBJ_{AVATARS}", subjects_filter=f"$O.{AVATARS}.C.{user_id}.>")).state.subjects
    described = (await js.stream_info(f"OBJ_{AVATARS}", subjects_filter=f"$O.{AVATARS}.M.>")).state.subjects
    names = [base64.urlsafe_b64decode(subject.rpartition(".")[2]).decode() for subject in described or {}]
    ours = sorted(name for name in names if name.startswith(user_id))
    assert sorted(f"{user_id}/{subject.rpartition('.')[2]}" for subject in bytes_at or {}) == ours
    return ours


async def announced(dev: Dev, user_id: str, count: int) -> list[dict[str, Any]]:
    """The events of a user's avatar, once there are so many."""
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        found[:] = await stored_events(dev.ready, f"users.events.v1.AvatarUpdated.{user_id}")
        return len(found) >= count

    await eventually(are_there, within_s=10, what="the events")
    return found

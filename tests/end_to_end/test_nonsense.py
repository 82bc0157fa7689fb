"""What no sensible gateway sends: every request is answered, with words of ours, and the process lives on."""

import asyncio
import json
from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import urlsplit

import nats.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.api import OPERATIONS
from contracts.operations import Operation
from tests.gateway import PASSWORD, Gateway, Reply, new_email
from tests.program import Dev

BY_SUBJECT = {operation.subject: operation for operation in OPERATIONS}
SUBJECTS = sorted(BY_SUBJECT)
REGISTER = "users.v1.auth.register"
GOOD: dict[str, Any] = {"password": PASSWORD, "firstName": "Ada", "lastName": "Lovelace", "acceptTerms": True}
WRONG_TYPES: tuple[object, ...] = (7, -1.5, [], {}, "\x00", "a" * 6000, None, True, [None])
DEEP = b'{"email":' + b"[" * 33 + b"]" * 33 + b"}"
NOT_JSON = (
    b"{", b"\xff\xfe", b"null x", b"\x00", b'{"email":"\xed\xa0\x80"}', b'{"email":"\\ud800"}', b"\xef\xbb\xbf{}",
    "{}".encode("utf-16"),
)  # fmt: skip
NOT_AN_OBJECT = (b"[]", b"[{}]", b"null", b"true", b"7", b'"text"')


def details(reply: Reply) -> dict[str, str]:
    """Field to code of a `VALIDATION_ERROR`."""
    assert reply.code == "VALIDATION_ERROR", reply.body
    return {fault["field"]: fault["code"] for fault in reply.body["error"]["details"]}


async def answered(client: Gateway, subject: str, body: bytes, *, headers: dict[str, str] | None = None) -> Reply:
    """The reply to raw bytes, which is whole and says nothing of the inside."""
    reply = await client.send(subject, body, headers=headers, timeout=10)
    assert reply.code != "INTERNAL_ERROR", (subject, body[:200])
    assert reply.body["meta"]["version"] == "1"
    assert reply.body["meta"]["requestId"] == reply.headers["Request-Id"]
    if not reply.ok:
        assert reply.headers["Nats-Service-Error"] == reply.body["error"]["message"]
        assert reply.headers["Nats-Service-Error-Code"].isdigit()
    return reply


@pytest.mark.parametrize("subject", SUBJECTS)
async def test_every_operation_answers_nonsense(client: Gateway, subject: str) -> None:
    operation = BY_SUBJECT[subject]
    access = {"Authorization": f"Bearer {await client.admin()}"}
    for body in (*NOT_JSON, *NOT_AN_OBJECT, DEEP):
        assert (await answered(client, subject, body, headers=access)).code == "VALIDATION_ERROR", body
    too_large = b'{"x":"' + b"a" * operation.body_bytes_max + b'"}'
    if len(too_large) <= client.nc.max_payload:  # else the client itself does not send it
        assert (await answered(client, subject, too_large, headers=access)).code == "PAYLOAD_TOO_LARGE"
    for value in WRONG_TYPES:
        if (await answered(client, subject, wrong_types(operation, value), headers=access)).ok:
            access["Authorization"] = f"Bearer {await client.admin()}"  # it may have been a logout
    await answered(client, subject, b"", headers=access)
    assert (await client.call("health.check")).ok


def wrong_types(operation: Operation, value: object) -> bytes:
    """Every field of an operation's request holding the same value."""
    fields = operation.request.model_fields
    return json.dumps({field.alias or name: value for name, field in fields.items()}).encode()


async def test_an_empty_body_is_an_empty_object(client: Gateway) -> None:
    assert (await client.send("users.v1.auth.jwks", b"")).data["keys"]
    empty = await client.send(REGISTER, b"")
    assert details(empty) == details(await client.send(REGISTER, b"{}"))
    assert details(empty) == dict.fromkeys(("acceptTerms", "email", "firstName", "lastName", "password"), "required")


async def test_all_faults_come_at_once_and_none_repeats_what_was_sent(client: Gateway) -> None:
    sent: dict[str, Any] = {
        "email": "canary-mail",
        "password": ["canary-word"],
        "firstName": "<canary-name>",
        "acceptTerms": "canary",
    }
    reply = await client.call("auth.register", **sent)
    assert details(reply) == {
        "acceptTerms": "wrong_type", "email": "not_an_address", "firstName": "not_a_name",
        "lastName": "required", "password": "wrong_type",
    }  # fmt: skip
    assert "canary" not in json.dumps(reply.body)
    assert "canary" not in str(reply.headers)


async def test_a_body_of_900_kilobytes_is_too_large(client: Gateway) -> None:
    reply = await answered(client, REGISTER, b'{"email":"' + b"a" * 900_000 + b'"}')
    assert reply.code == "PAYLOAD_TOO_LARGE"
    assert reply.headers["Nats-Service-Error-Code"] == "413"


@pytest.mark.parametrize("depth", [33, 10_000, 30_000])
async def test_deep_nesting_is_refused(client: Gateway, depth: int) -> None:
    for left, right in ((b"[", b"]"), (b'{"a":', b"}")):
        body = b'{"email":' + (left * depth + b"1" + right * depth)[:60_000] + b"}"
        assert (await answered(client, REGISTER, body)).code in {"VALIDATION_ERROR", "PAYLOAD_TOO_LARGE"}


async def test_brackets_inside_of_text_are_no_nesting(client: Gateway) -> None:
    body = json.dumps(GOOD | {"email": new_email(), "note": '[{"' * 40}).encode()
    assert (await answered(client, REGISTER, body)).ok


@pytest.mark.parametrize("field", ["email", "password", "firstName", "lastName"])
@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "a\udfffb", "", " ", "\u202e", "a" * 5000])
async def test_text_that_cannot_be_kept_is_refused(client: Gateway, field: str, text: str) -> None:
    reply = await client.call("auth.register", **(GOOD | {"email": new_email(), field: text}))
    if field == "password" and text in {" ", "\u202e"}:
        assert reply.code == "PASSWORD_POLICY_VIOLATION"
    else:
        assert reply.code == "VALIDATION_ERROR"


@pytest.mark.parametrize(
    "address",
    [
        "a@b.c,evil@x.y", "a@b.c;evil@x.y", "a@b.c evil@x.y", "Ada <a@b.c>", "a@b.c\r\nBcc: evil@x.y",
        "<a@b.c>", '"a b"@b.c', "a@b", "@b.c", "a@", "a@@b.c", "a@b..c", "a@-b.c", "a@[127.0.0.1]", "a..b@b.c",
        "a@b.c(comment)", "a" * 65 + "@b.c", "a@" + "b." * 130 + "c", "a@xn--.c", "a@b\uff0cevil.c", "evil@x.y\x00@b.c",
        "a@b.c%0abcc:evil@x.y", "a@\u200db.c",
    ],
)  # fmt: skip
@pytest.mark.parametrize("operation", ["auth.register", "auth.login", "auth.resend-verification"])
async def test_what_is_not_exactly_one_address_is_refused(client: Gateway, operation: str, address: str) -> None:
    reply = await client.call(operation, **(GOOD | {"email": address}))
    assert set(details(reply)) == {"email"}


async def test_unknown_fields_are_ignored(client: Gateway) -> None:
    sent = GOOD | {
        "email": new_email(),
        "role": "admin",
        "emailVerified": True,
        "id": "7",
        "__proto__": {},
        "x": [1e999],
    }
    user = (await client.call("auth.register", **sent)).data["user"]
    assert (user["role"], user["emailVerified"]) == ("user", False)
    assert user["id"] != "7"


async def test_numbers_of_any_length_beside_a_key_are_answered(client: Gateway) -> None:
    """A number too long for Python to read must not break the comparing of bodies."""
    body = json.dumps(GOOD | {"email": new_email()}).encode()[:-1] + b',"x":' + b"9" * 5000 + b"}"
    key = {"Idempotency-Key": f"a-long-number-{new_email()}"}
    first = await answered(client, REGISTER, body, headers=key)
    again = await answered(client, REGISTER, body, headers=key)
    assert first.body.get("data") == again.body.get("data")
    assert first.code in {"OK", "VALIDATION_ERROR"}


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Client-Ip": "not an address"}, "Client-Ip"),
        ({"Client-Ip": "1.2.3.4, 5.6.7.8"}, "Client-Ip"),
        ({"Client-Ip": "1.2.3.4/24"}, "Client-Ip"),
        ({"client-ip": "999.1.1.1"}, "Client-Ip"),
        ({"Timeout-Ms": "soon"}, "Timeout-Ms"),
        ({"Timeout-Ms": "-1"}, "Timeout-Ms"),
        ({"Timeout-Ms": "1e3"}, "Timeout-Ms"),
        ({"Timeout-Ms": "٣"}, "Timeout-Ms"),
        ({"Timeout-Ms": "9" * 400}, "Timeout-Ms"),
        ({"Deadline": "tomorrow"}, "Deadline"),
        ({"Deadline": "2026-01-01T00:00:00"}, "Deadline"),
        ({"Deadline": "0001-01-01T00:00:00+14:00"}, "Deadline"),
        ({"Deadline": "9999-12-31T23:59:59-14:00"}, "Deadline"),
        ({"Idempotency-Key": "short"}, "Idempotency-Key"),
        ({"Idempotency-Key": "a" * 129}, "Idempotency-Key"),
        ({"Idempotency-Key": "with spaces in between"}, "Idempotency-Key"),
        ({"Idempotency-Key": "ünvisible-to-ascii-eyes"}, "Idempotency-Key"),
    ],
)
async def test_a_header_that_cannot_be_read_is_named(client: Gateway, headers: dict[str, str], field: str) -> None:
    reply = await client.call("auth.register", headers=headers, **(GOOD | {"email": new_email()}))
    assert field in details(reply)


async def test_all_headers_that_are_wrong_are_named_at_once(client: Gateway) -> None:
    headers = {"Client-Ip": "x", "Timeout-Ms": "y", "Deadline": "z"}
    assert set(details(await client.call("auth.jwks", headers=headers))) == set(headers)


@pytest.mark.parametrize("request_id", ["a" * 129, "with spaces", "tab\tinside", "ümlaut", "nul\x00"])
async def test_a_request_id_that_cannot_be_kept_is_replaced(client: Gateway, request_id: str) -> None:
    reply = await answered(client, "users.v1.auth.jwks", b"", headers={"Request-Id": request_id})
    assert request_id not in str(reply.body)
    assert reply.headers["Request-Id"] != request_id


@pytest.mark.parametrize("request_id", ["a" * 128, "!~visible~!"])
async def test_a_good_request_id_comes_back(client: Gateway, request_id: str) -> None:
    good = await client.call("auth.jwks", headers={"Request-Id": request_id})
    bad = await client.call("auth.login", headers={"request-id": request_id})
    for reply in (good, bad):
        assert (reply.headers["Request-Id"], reply.body["meta"]["requestId"]) == (request_id, request_id)


async def test_headers_full_of_rubbish_are_bounded(client: Gateway) -> None:
    rubbish = "\x01\x7f\u202eü" * 2000
    headers = dict.fromkeys(("User-Agent", "Device-Id", "Device-Token", "Accept-Language", "traceparent", "X"), rubbish)
    email = await client.verified()
    assert (await client.call("auth.login", headers=headers, email=email, password=PASSWORD)).ok
    bad = await client.call("me.get", headers=headers | {"Authorization": rubbish})
    assert bad.code in {"AUTHENTICATION_REQUIRED", "INVALID_TOKEN"}
    assert (await client.call("me.get", access="ü.\x01.z")).code == "INVALID_TOKEN"


async def test_null_clears_what_may_be_empty_and_is_refused_for_the_rest(client: Gateway) -> None:
    access = (await client.signed_in())["tokens"]["accessToken"]
    filled: dict[str, Any] = {"displayName": "Ada", "bio": "b", "website": "https://a.example", "location": "London"}
    empty: dict[str, Any] = dict.fromkeys(filled)
    assert (await client.call("profile.update", access=access, **filled)).ok
    cleared = (await client.call("profile.update", access=access, **empty)).data["profile"]
    assert [cleared[name] for name in filled] == [None] * 4
    required = ("firstName", "lastName", "timezone", "language", "theme", "notifications", "socialLinks")
    nulls: dict[str, Any] = dict.fromkeys(required)
    refused = await client.call("profile.update", access=access, **nulls)
    assert details(refused) == dict.fromkeys(required, "not_null")
    assert details(await client.call("me.update", access=access, firstName=None)) == {"firstName": "not_null"}
    untouched = (await client.call("profile.update", access=access, expectedRevision=None)).data["profile"]
    assert untouched["revision"] == cleared["revision"]


@pytest.mark.parametrize(
    "place",
    [
        ["x", "y"], ["0001-01-01T00:00:00+14:00", "0" * 32], ["9999-12-31T23:59:59-14:00", "0" * 32],
        ["2026-01-01", "0" * 32], ["2026-01-01T00:00:00Z", "9" * 30], ["\x00", "0" * 32],
        ["\ud800", "0" * 32], [], {}, [1, 2], "text", None,
    ],
)  # fmt: skip
@pytest.mark.parametrize("sort", ["createdAt", "email", "lastLoginAt"])
async def test_a_made_up_cursor_never_breaks_a_list(client: Gateway, place: object, sort: str) -> None:
    cursor = urlsafe_b64encode(json.dumps(place).encode()).decode()
    access = await client.admin()
    users = await client.call("admin.users.list", access=access, cursor=cursor, sort=sort)
    assert users.code in {"OK", "VALIDATION_ERROR"}
    logs = await client.call("admin.audit-logs.list", access=access, cursor=cursor)
    assert logs.code in {"OK", "VALIDATION_ERROR"}


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00"])
async def test_times_at_the_edges_never_break_a_list(client: Gateway, time: str) -> None:
    for field in ("from", "to"):
        query: dict[str, Any] = {field: time}
        reply = await client.call("admin.audit-logs.list", access=await client.admin(), **query)
        assert reply.code in {"OK", "VALIDATION_ERROR"}


async def test_a_message_above_the_servers_limit_never_reaches_the_service(dev: Dev, client: Gateway) -> None:
    assert client.nc.max_payload == 1024 * 1024
    with pytest.raises(nats.errors.MaxPayloadError):
        await client.send(REGISTER, b"a" * (client.nc.max_payload + 1))
    url = urlsplit(dev.ready["natsUrl"])
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    connect = {"user": url.username, "pass": url.password, "verbose": False, "headers": True}
    writer.write(f"CONNECT {json.dumps(connect)}\r\nPUB {REGISTER} _INBOX.x 2000000\r\n".encode() + b"a" * 2_000_000)
    seen = b""
    async with asyncio.timeout(10):
        while b"Maximum Payload" not in seen and (got := await reader.read(65536)):  # it hangs up on who insists
            seen += got
    assert b"Maximum Payload" in seen
    writer.close()
    assert (await client.call("auth.jwks")).ok


async def test_headers_that_are_no_headers_are_answered_or_refused_by_the_server(dev: Dev, client: Gateway) -> None:
    url = urlsplit(dev.ready["natsUrl"])
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    connect = {"user": url.username, "pass": url.password, "verbose": False, "headers": True}
    writer.write(f"CONNECT {json.dumps(connect)}\r\nSUB _INBOX.raw.* 1\r\n".encode())
    blocks = (
        b"NATS/1.0\r\nNo-Colon\r\n\r\n", b"NATS/1.0\r\n: x\r\n\r\n", b"NATS/1.0\r\nA: \xff\xfe\r\n\r\n",
        b"nonsense", b"NATS/1.0\r\nRequest-Id: a\r\nRequest-Id: b\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"\r\n\r\n",
    )  # fmt: skip
    for number, block in enumerate(blocks):
        size = len(block)
        writer.write(f"HPUB users.v1.auth.jwks _INBOX.raw.{number} {size} {size}\r\n".encode() + block + b"\r\n")
    seen = b""
    async with asyncio.timeout(10):
        while not all(b"_INBOX.raw.%d " % number in seen for number in range(len(blocks))):
            seen += await reader.read(65536)
    writer.close()
    assert (await client.call("auth.jwks")).ok


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A subject and a body that often holds the fields it is asked for."""
    subject = draw(st.sampled_from(SUBJECTS))
    model = BY_SUBJECT[subject].request.model_fields
    fields = [field.alias or name for name, field in model.items()] or ["x"]
    likely = st.sampled_from(["Ada", "a@b.example", True, 1, "https://a.example", "en", None])
    # A good password goes where passwords go alone: in a profile it would be found when the run is over.
    of_field = {name: st.just(PASSWORD) | JSON if "assword" in name else likely | JSON for name in fields}
    body = draw(JSON | st.fixed_dictionaries({}, optional=of_field))
    return subject, json.dumps(body).encode()


@settings(
    max_examples=80, deadline=None, database=None, derandomize=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(request=requests(), keyed=st.booleans())
async def test_arbitrary_json_never_finds_an_inside(client: Gateway, request: tuple[str, bytes], keyed: bool) -> None:
    subject, body = request
    headers = {"Authorization": f"Bearer {await client.admin()}"}
    if keyed:
        headers["Idempotency-Key"] = f"arbitrary-{new_email()}"
    await answered(client, subject, body, headers=headers)

"""What a request carries: headers parsed and bounded, bodies read, and nothing of it repeated."""

import asyncio
import json
import time
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.api import BY_SUBJECT, OPERATIONS
from contracts.operations import Operation
from contracts.wire import Empty, Meta
from domain.refusals import DeadlineExceeded, InvalidInput, PayloadTooLarge
from handlers.context import Call
from handlers.envelope import (
    DEPTH_MAX,
    canonical,
    error_of,
    header,
    idempotency_key_of,
    read_body,
    read_call,
    request_id_of,
    success,
)
from tests.builders import NOW

LOGIN = BY_SUBJECT["users.v1.auth.login"]
MARKER = "mArKeR8371"


def _call(headers: dict[str, str], reply: str = "_INBOX.gateway.abc.def") -> Call:
    async def read() -> Call:
        return read_call(headers, subject="users.v1.test", reply=reply, ms_max=30_000, now=NOW)

    return asyncio.run(read())


def _left_s(headers: dict[str, str]) -> float:
    async def read() -> float:
        began = asyncio.get_running_loop().time()
        call = read_call(headers, subject="users.v1.test", reply="_INBOX.x", ms_max=600_000, now=NOW)
        return call.deadline - began

    return asyncio.run(read())


def _faults(headers: dict[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as caught:
        _call(headers)
    return [(fault.field, fault.code) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("said", "ip", "source"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
        (" 192.0.2.7 ", "192.0.2.7", "192.0.2.7"),
        ("2001:DB8:0:0:1:2:3:4", "2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8::ffff", "2001:db8::ffff", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64"),
        ("::1", "::1", "::/64"),
    ],
)
def test_a_client_address_and_what_limits_count_by(said: str, ip: str, source: str) -> None:
    call = _call({"Client-Ip": said})
    assert (call.client_ip, call.source) == (ip, source)


@pytest.mark.parametrize(
    "said", ["192.0.2.256", "192.0.2", "1", "192.0.2.7, 10.0.0.1", "localhost", "::g", "192.0.2.7/24", MARKER]
)
def test_what_is_no_client_address(said: str) -> None:
    assert _faults({"Client-Ip": said}) == [("Client-Ip", "not_an_address")]


def test_without_an_address_the_bus_client_counts() -> None:
    one, other = _call({}, "_INBOX.gateway.abc.def"), _call({}, "_INBOX.gateway.made.up.anew")
    assert one.client_ip is None
    assert one.source == other.source == "bus:_INBOX.gateway"
    assert len(_call({}, "x" * 1000).source) <= 84


@pytest.mark.parametrize(
    ("headers", "left_s"),
    [
        ({}, 600),
        ({"Timeout-Ms": "1500"}, 1.5),
        ({"Timeout-Ms": "999999999"}, 600),
        ({"Deadline": (NOW + timedelta(seconds=2)).isoformat()}, 2),
        ({"Deadline": "2026-03-01T12:00:02Z"}, 2),
        ({"Deadline": "2026-03-01T13:00:02+01:00"}, 2),
        ({"Deadline": "2026-03-01T12:00:02Z", "Timeout-Ms": "1000"}, 1),
        ({"Deadline": "2026-03-01T12:00:02Z", "Timeout-Ms": "9000"}, 2),
        ({"Deadline": "2026-03-01T12:09:00Z"}, 300),
        ({"Deadline": "9999-12-31T23:59:59Z"}, 300),
    ],
)
def test_the_earliest_end_counts(headers: dict[str, str], left_s: float) -> None:
    assert _left_s(headers) == pytest.approx(left_s, abs=0.05)


@pytest.mark.parametrize(
    "headers",
    [
        {"Timeout-Ms": "0"},
        {"Deadline": NOW.isoformat()},
        {"Deadline": "2026-03-01T11:59:59Z", "Timeout-Ms": "5000"},
        {"Deadline": "0001-01-01T00:00:00Z"},
    ],
)
def test_what_is_past_is_not_begun(headers: dict[str, str]) -> None:
    with pytest.raises(DeadlineExceeded):
        _call(headers)


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Timeout-Ms": "-1"}, "Timeout-Ms"),
        ({"Timeout-Ms": "1.5"}, "Timeout-Ms"),
        ({"Timeout-Ms": "1e3"}, "Timeout-Ms"),
        ({"Timeout-Ms": "١٢"}, "Timeout-Ms"),
        ({"Timeout-Ms": "1" * 10}, "Timeout-Ms"),
        ({"Timeout-Ms": "5\n"}, "Timeout-Ms"),
        ({"Deadline": "soon"}, "Deadline"),
        ({"Deadline": "2026-03-01T12:00:02"}, "Deadline"),
        ({"Deadline": "2026-13-01T12:00:02Z"}, "Deadline"),
        ({"Deadline": "0001-01-01T00:00:00+23:00"}, "Deadline"),
        ({"Deadline": "1772366402"}, "Deadline"),
        ({"Deadline": "2026-03-01"}, "Deadline"),
    ],
)
def test_an_end_that_cannot_be_read_is_said(headers: dict[str, str], field: str) -> None:
    assert [named for named, _ in _faults(headers)] == [field]


def test_all_headers_at_fault_are_named_at_once() -> None:
    faults = _faults({"Client-Ip": "x", "Timeout-Ms": "x", "Deadline": "x"})
    assert [field for field, _ in faults] == ["Client-Ip", "Timeout-Ms", "Deadline"]


@pytest.mark.parametrize(
    ("accepted", "locale"),
    [
        ("", "en"), ("de", "de"), ("de-AT", "de"), ("FR-fr", "fr"), ("ja", "en"), ("ja, es;q=0.5", "es"),
        ("en;q=0.1, de;q=0.9", "de"), ("de;q=0", "en"), ("es;q=x", "en"), ("*", "en"), ("fr ; q=0.7 , es;q=0.8", "es"),
        ("x" * 300 + ",de", "en"), (",,,;;q=", "en"),
    ],
)  # fmt: skip
def test_the_language_of_mail(accepted: str, locale: str) -> None:
    assert _call({"Accept-Language": accepted}).locale == locale


TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), None),
        (TRACE + "-x", None),
        (f"{TRACE}\n", None),
        ("00-a-b-01", None),
        ("", None),
    ],
)
def test_a_trace_is_carried_or_dropped(said: str, kept: str | None) -> None:
    assert _call({"traceparent": said}).traceparent == kept


@pytest.mark.parametrize("said", ["a", "x" * 128, "!~", "0f8fad5b-d9cb-469f"])
def test_a_usable_request_id_is_kept(said: str) -> None:
    assert request_id_of({"Request-Id": said}) == said
    assert request_id_of({"request-id": said}) == said


@pytest.mark.parametrize("said", ["", " ", "x" * 129, "a b", "a\n", "a\r\nX: y", "é", "\x7f"])
def test_another_request_id_is_replaced(said: str) -> None:
    made = request_id_of({"Request-Id": said})
    assert made != said
    assert len(made) == 36
    assert request_id_of({}) != request_id_of({})


@given(st.text(alphabet=st.characters(codec=None), max_size=700))
def test_what_is_shown_of_a_client_can_be_stored(said: str) -> None:
    call = _call({"User-Agent": said, "Device-Id": said, "Device-Token": said})
    for value, chars_max in ((call.user_agent, 512), (call.device_id, 128), (call.device_token, 128)):
        if value is not None:
            assert value.isprintable()
            assert 0 < len(value) <= chars_max
            value.encode()
    assert call.device


@pytest.mark.parametrize("key", ["x" * 15, "x" * 129, "with a space in it", "ключключключключ", "x" * 16 + "\n"])
def test_a_key_that_is_malformed(key: str) -> None:
    with pytest.raises(InvalidInput):
        idempotency_key_of({"Idempotency-Key": key})


def test_a_key_and_none() -> None:
    assert idempotency_key_of({"idempotency-KEY": "x" * 16}) == "x" * 16
    assert idempotency_key_of({}) is None
    assert header({"a": ""}, "A") is None


def _codes(operation: Operation, body: bytes) -> list[str]:
    """The codes of what is wrong with a body."""
    try:
        read_body(operation, body)
    except InvalidInput as refusal:
        return [fault.code for fault in refusal.faults]
    return []


def _nested(depth: int) -> st.SearchStrategy[object]:
    leaf = st.sampled_from([None, 1, "[{[{", '"\\"[', "\\", "]}"])
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=depth,
    )


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(part) for part in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(part) for part in value), default=0)
    return 0


@given(_nested(20), st.integers(0, 45), st.booleans())
def test_depth_is_that_of_the_json(value: object, around: int, as_object: bool) -> None:
    for _ in range(around):
        value = {"[": value, '"': "{{"} if as_object else [value, "]"]
    body = {"email": "ada@example.org", "password": "x", "z": value}
    assert _codes(LOGIN, json.dumps(body).encode()) == (["too_deep"] if _depth(body) > DEPTH_MAX else [])


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"nul", b"\xff", b"\xef\xbb\xbf{}", b"{}{}", b" ", b"{'a':1}", b'{"a":"\\ud800"}', b"[" * 60_000,
        b'{"a":' * 10_000, b'"' + b"[" * 1000, b"\\" * 1000 + b"[" * 100,
    ],
)  # fmt: skip
def test_what_is_no_body(body: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_body(LOGIN, body)
    assert {fault.code for fault in caught.value.faults} <= {"not_json", "too_deep"}


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_body(LOGIN, body)
    assert [fault.code for fault in caught.value.faults] == ["not_an_object"]


def test_no_body_is_an_empty_object() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_body(LOGIN, b"")
    faults = [(fault.field, fault.code) for fault in caught.value.faults]
    assert faults == [("email", "required"), ("password", "required")]


def test_a_body_is_bounded() -> None:
    body = b'{"email":"ada@example.org","password":"x","z":"' + b"x" * LOGIN.body_bytes_max + b'"}'
    with pytest.raises(PayloadTooLarge):
        read_body(LOGIN, body)


HOSTILE_VALUES = st.recursive(
    st.sampled_from(
        [MARKER, f"{MARKER}@", f"<{MARKER}>", f"{MARKER}\x00", MARKER * 200, f"https://{MARKER}", 8371, None]
    ),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["email", "a", MARKER]), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: str(operation.name))
def test_details_never_hold_what_was_sent(operation: Operation) -> None:
    names = [field.alias or name for name, field in operation.request.model_fields.items()]

    @settings(max_examples=25)
    @given(st.dictionaries(st.sampled_from([*names, MARKER]), HOSTILE_VALUES, max_size=len(names) + 1))
    def check(body: dict[str, object]) -> None:
        told = ""
        try:
            read_body(operation, json.dumps(body).encode())
        except InvalidInput as refusal:
            told = error_of(refusal).model_dump_json(by_alias=True)
        assert MARKER.lower() not in told.lower()
        assert "8371" not in told

    check()


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.lists(st.floats(allow_nan=False))))
def test_spaces_and_order_make_no_other_body(body: dict[str, object]) -> None:
    turned = json.dumps(dict(reversed(body.items())), indent=3).encode()
    assert canonical(json.dumps(body).encode()) == canonical(turned)
    assert json.loads(canonical(turned)) == body


def test_a_reply_has_its_data_and_meta() -> None:
    body = json.loads(success(Empty(), Meta(timestamp=datetime(2026, 1, 1, tzinfo=NOW.tzinfo), request_id="r")))
    assert body == {
        "success": True,
        "data": {},
        "meta": {"timestamp": "2026-01-01T00:00:00.000000Z", "requestId": "r", "version": "1"},
    }


@pytest.mark.parametrize("filling", [b'\\"', b'"', b"\\", b'" "', b"a"])
def test_a_body_that_is_all_quotes_is_judged_in_one_pass(filling: bytes) -> None:
    """An end user's body must not hold up the event loop: with a pattern this took seconds at 28 KB."""
    body = b"[" * 33 + b'"' + filling * (60_000 // len(filling))
    operation = BY_SUBJECT["users.v1.auth.register"]
    began = time.perf_counter()
    with pytest.raises(InvalidInput):
        read_body(operation, body)
    assert time.perf_counter() - began < 0.5

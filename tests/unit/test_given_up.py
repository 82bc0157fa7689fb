"""What is read of an advisory, which anybody who may ask JetStream can make up."""

import json

import pytest

from handlers.given_up import _read

GOOD = {"stream": "USER_EVENTS", "consumer": "email", "stream_seq": 7, "deliveries": 12}


def test_an_advisory_about_a_durable_of_ours_is_read() -> None:
    found = _read(json.dumps(GOOD).encode())
    assert found is not None
    assert (found.durable.group, found.sequence, found.deliveries) == ("email", 7, 12)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"[" * 100_000,
        json.dumps(GOOD | {"consumer": "billing"}).encode(),
        json.dumps(GOOD | {"stream": "USER_REPLAYS"}).encode(),
        json.dumps(GOOD | {"stream_seq": -5}).encode(),
        json.dumps(GOOD | {"deliveries": 2**40}).encode(),
        json.dumps(GOOD).replace("7", "1e999").encode(),
        json.dumps(GOOD).replace("12", "NaN").encode(),
        json.dumps({"consumer": "email"}).encode(),
    ],
)  # fmt: skip
def test_what_is_made_up_is_not(body: bytes) -> None:
    assert _read(body) is None

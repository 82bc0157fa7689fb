"""How many mails of a kind an address gets."""

from uuid import uuid4

import pytest

from adapters.limits import Limits
from adapters.mail_caps import MailCaps
from adapters.personal_data import PersonalData
from adapters.redis import Redis
from tests.builders import settings_of


@pytest.fixture
def caps(redis: Redis, personal: PersonalData) -> MailCaps:
    settings = settings_of("postgresql://127.0.0.1/none", limit_mail_kind="3/3600", limit_mail_kind_daily="5/86400")
    return MailCaps(Limits(redis, enabled=True), personal, settings)


async def _allowed(caps: MailCaps, address: str, template: str, mails: int) -> int:
    return sum([await caps.allow(address, template, name=uuid4().hex) for _ in range(mails)])


async def test_so_many_of_a_kind_go_to_an_address(caps: MailCaps) -> None:
    address = f"{uuid4().hex}@example.org"
    assert await _allowed(caps, address, "verification", 6) == 3
    assert await _allowed(caps, address.upper(), "verification", 2) == 0
    assert await _allowed(caps, address, "password_changed", 6) == 3
    assert await _allowed(caps, f"{uuid4().hex}@example.org", "verification", 6) == 3


async def test_a_mail_that_is_tried_again_counts_once(caps: MailCaps) -> None:
    address, name = f"{uuid4().hex}@example.org", uuid4().hex
    assert all([await caps.allow(address, "verification", name=name) for _ in range(9)])
    assert await _allowed(caps, address, "verification", 6) == 2
    assert await caps.allow(address, "verification", name=name)


async def test_a_day_has_a_bound_of_its_own(redis: Redis, personal: PersonalData) -> None:
    settings = settings_of("postgresql://127.0.0.1/none", limit_mail_kind="9/3600", limit_mail_kind_daily="5/86400")
    caps = MailCaps(Limits(redis, enabled=True), personal, settings)
    assert await _allowed(caps, f"{uuid4().hex}@example.org", "welcome", 9) == 5


async def test_the_address_stands_nowhere_in_redis(caps: MailCaps, redis: Redis) -> None:
    address = f"{uuid4().hex}@example.org"
    await _allowed(caps, address, "verification", 1)
    assert redis._client is not None
    keys = [key async for key in redis._client.scan_iter(match="rate_limit:mail:*")]
    assert keys
    assert not [key for key in keys if address.encode() in key]

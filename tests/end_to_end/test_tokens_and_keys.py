"""Tokens at the door of the running program: hostile ones at every way in, and keys that change while it serves."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from nats.errors import Error as NatsError

from adapters.keys import read_keys
from tests.gateway import PASSWORD, Gateway, gateway
from tests.hostile_tokens import HOSTILE, Forge
from tests.program import Dev, command, eventually


@pytest_asyncio.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A `dev` of its own, since its keys are changed."""
    base: Path = tmp_path_factory.mktemp("keys")
    async with Dev(base / "data") as running:
        yield running


def _kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


BODY_BYTES_MAX = 64 * 1024


def is_text(token: str) -> bool:
    """Halves of a pair of surrogates are none, and no request holds them."""
    try:
        return bool(token.encode()) or not token
    except UnicodeEncodeError:
        return False


async def test_no_hostile_token_is_taken_at_any_way_in(dev: Dev, client: Gateway) -> None:
    forge = Forge(read_keys(dev.data_dir / "keys.json"))
    for name, make in HOSTILE.items():
        token = make(forge)
        verdict = await client.call("auth.verify-token", token=token)
        if is_text(token) and len(token) < BODY_BYTES_MAX // 2:
            assert verdict.body.get("data") == {"active": False}, (name, verdict.body)
        else:
            assert not verdict.ok, name
        assert not (await client.call("auth.refresh", refreshToken=token)).ok, name
        try:
            reply = await client.call("me.get", access=token)
        except (NatsError, UnicodeEncodeError, ValueError):
            continue  # no header can carry it
        assert reply.code in {"INVALID_TOKEN", "AUTHENTICATION_REQUIRED"}, name


async def test_keys_change_while_sessions_go_on(house: Dev) -> None:
    async def keys(*words: str) -> str:
        code, out, err = await command("keys", *words, "--file", str(house.data_dir / "keys.json"))
        assert code == 0, err
        return out

    async with gateway(house.ready) as client:
        session: dict[str, Any] = await client.signed_in()
        old = session["tokens"]["accessToken"]
        other = await client.verified()  # who signs in often ends their oldest sessions
        await keys("rotate", "personal", "--lead", "0")
        await keys("rotate", "refresh", "--lead", "0")
        coming = (await keys("rotate", "access", "--lead", "6")).split()[0]
        rows = json.loads(await keys("list", "--json"))
        assert {row["purpose"] for row in rows if row["kid"] == coming} == {"access"}

        async def published() -> bool:
            return coming in {key["kid"] for key in (await client.call("auth.jwks")).data["keys"]}

        await eventually(published, within_s=10, what="the key in the JWKS")

        async def signs() -> bool:
            reply = await client.call("auth.login", email=other, password=PASSWORD)
            signed_by: str = _kid(reply.data["tokens"]["accessToken"])
            return signed_by == coming

        await eventually(signs, within_s=20, what="the new key to sign")
        assert (await client.call("me.get", access=old)).ok
        refreshed = await client.call("auth.refresh", refreshToken=session["tokens"]["refreshToken"])
        assert _kid(refreshed.data["tokens"]["accessToken"]) == coming

        await keys("retire", "access", _kid(old), "--force")

        async def refused() -> bool:
            return (await client.call("me.get", access=old)).code == "INVALID_TOKEN"

        await eventually(refused, within_s=10, what="the retired key's token to be refused")
        assert (await client.call("me.get", access=refreshed.data["tokens"]["accessToken"])).ok


async def test_with_hs256_nothing_is_published_and_gateways_ask(tmp_path: Path) -> None:
    async with Dev(tmp_path / "data", USER_SERVICE_ACCESS_ALGORITHM="HS256") as dev, gateway(dev.ready) as client:
        token = (await client.signed_in())["tokens"]["accessToken"]
        assert jwt.get_unverified_header(token)["alg"] == "HS256"
        assert (await client.call("auth.jwks")).data == {"keys": []}
        assert (await client.call("auth.verify-token", token=token)).data["active"]
        assert (await client.call("me.get", access=token)).ok
        forge = Forge(read_keys(dev.data_dir / "keys.json"))
        assert (await client.call("me.get", access=forge.sign())).code == "INVALID_TOKEN"

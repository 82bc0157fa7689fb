"""Access and refresh tokens: of hostile ones none is taken, of good ones none for longer than it lives."""

import base64
from datetime import datetime, timedelta
from pathlib import Path

import jwt
import pytest

from adapters.keys import CannotOpen, Keys, public_bytes
from adapters.successors import open_successor, seal_successor, seal_unseen
from adapters.tokens import TokenMint, hash_of, new_secret
from domain.refusals import BadToken, ExpiredToken
from tests.builders import fresh_keys
from tests.hostile_tokens import HOSTILE, LIFETIME, SESSION, USER, Forge, now


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(fresh_keys(tmp_path_factory.mktemp("keys")))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_token_is_refused(forge: Forge, name: str) -> None:
    token = HOSTILE[name](forge)
    for _ in range(2):  # and is not remembered as good
        with pytest.raises(BadToken):
            forge.mint.read_access(token, at=now())


def test_what_the_forge_makes_is_good_but_for_the_one_thing(forge: Forge) -> None:
    claims = forge.mint.read_access(forge.sign(), at=now())
    assert (claims.user_id, claims.session_id) == (USER, SESSION)


def _minted(mint: TokenMint, at: datetime) -> str:
    return mint.access(
        user_id=USER, email="ada@example.org", role="moderator", session_id=SESSION, auth_time=at, amr=("pwd",), at=at,
        lifetime=LIFETIME,
    )  # fmt: skip


def test_a_good_token_says_whose_it_is(forge: Forge) -> None:
    at = now()
    claims = forge.mint.read_access(_minted(forge.mint, at), at=at)
    assert (claims.user_id, claims.session_id, claims.auth_time) == (USER, SESSION, at)
    assert claims.expires_at == at + LIFETIME
    assert claims.raw["permissions"] == ["audit:read", "users:read", "users:write"]
    assert claims.raw["email"] == "ada@example.org"
    assert jwt.get_unverified_header(_minted(forge.mint, at)) == {"typ": "at+jwt", "alg": "EdDSA", "kid": forge.kid}


def test_a_remembered_token_still_expires(forge: Forge) -> None:
    at = now()
    token = _minted(forge.mint, at)
    forge.mint.read_access(token, at=at + LIFETIME - timedelta(seconds=1))
    with pytest.raises(ExpiredToken):
        forge.mint.read_access(token, at=at + LIFETIME)


def test_an_expired_token_is_told_from_a_bad_one(forge: Forge) -> None:
    with pytest.raises(ExpiredToken):
        forge.mint.read_access(_minted(forge.mint, now() - timedelta(hours=1)), at=now())


def test_what_verifies_is_in_the_key_set(forge: Forge) -> None:
    (key,) = forge.mint.jwks
    assert set(key) == {"kty", "crv", "use", "alg", "kid", "x"}
    assert base64.urlsafe_b64decode(key["x"] + "=") == public_bytes(forge.private)
    claims = jwt.decode(_minted(forge.mint, now()), jwt.PyJWK(dict(key)), ["EdDSA"], audience="project5-api")
    assert claims["sub"] == str(USER)


def test_a_token_of_an_older_key_is_still_read(tmp_path: Path) -> None:
    older, newer = fresh_keys(tmp_path), fresh_keys(tmp_path)
    token = _minted(TokenMint(older), now())
    old, new = older.ring("access"), newer.ring("access")
    both = Keys(dict(newer.rings) | {"access": type(new)(new.current, {**old.keys, **new.keys})})
    assert TokenMint(both).read_access(token, at=now()).user_id == USER
    with pytest.raises(BadToken):
        TokenMint(newer).read_access(token, at=now())


def test_a_refresh_token_is_read_by_its_own_rules(forge: Forge) -> None:
    token = forge.refresh()
    claims = forge.mint.read_refresh(token)
    assert (claims.user_id, claims.session_id, claims.hash) == (USER, SESSION, hash_of(token))
    assert forge.refresh() != token


@pytest.mark.parametrize("name", ["empty", "alg none", "oversize", "HS256 with nothing", "other letters"])
def test_no_other_token_refreshes(forge: Forge, name: str) -> None:
    with pytest.raises(BadToken):
        forge.mint.read_refresh(HOSTILE[name](forge))
    with pytest.raises(BadToken):
        forge.mint.read_refresh(_minted(forge.mint, now()))


def test_a_refresh_token_past_its_time(forge: Forge) -> None:
    at = now() - timedelta(hours=1)
    token = forge.mint.refresh(user_id=USER, session_id=SESSION, at=at, lifetime=LIFETIME)
    with pytest.raises(ExpiredToken):
        forge.mint.read_refresh(token)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_mint_of_hs256_takes_no_hostile_token_either(forge: Forge, name: str) -> None:
    with pytest.raises(BadToken):
        TokenMint(forge.keys, "HS256").read_access(HOSTILE[name](forge), at=now())


def test_hs256_takes_its_own_alone_and_publishes_nothing(forge: Forge) -> None:
    secret = TokenMint(forge.keys, "HS256")
    token = _minted(secret, now())
    assert secret.read_access(token, at=now()).user_id == USER
    assert secret.jwks == []
    with pytest.raises(BadToken):
        forge.mint.read_access(token, at=now())
    for stolen in (forge.sign(), forge.hs256(public_bytes(forge.private)), forge.hs256(forge.keys.ring("access").key)):
        with pytest.raises(BadToken):
            secret.read_access(stolen, at=now())


def test_secrets_have_256_bits() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {len(base64.urlsafe_b64decode(secret + "=")) for secret in made} == {32}


def test_a_successor_opens_for_its_predecessor_or_by_a_key_of_the_server(forge: Forge, tmp_path: Path) -> None:
    token, successor = forge.sign(), "the next one"
    shown, unseen = seal_successor(token, successor), seal_unseen(forge.mint, successor)
    assert successor not in shown + unseen
    assert open_successor(forge.mint, token, shown) == open_successor(forge.mint, "another", unseen) == successor
    with pytest.raises(CannotOpen):
        open_successor(forge.mint, "another", shown)
    with pytest.raises(BadToken):
        open_successor(TokenMint(fresh_keys(tmp_path)), token, unseen)

"""Secrets that sing: sent through every operation in every way, they are found nowhere but as hashes."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest_asyncio
from redis.asyncio import Redis

from adapters.mail_sink import token_of
from contracts.api import OPERATIONS
from contracts.operations import Operation
from tests.authenticator import enrolled
from tests.canary import Search, overhear
from tests.gateway import PASSWORD, Gateway, database, gateway, new_email, stored_events
from tests.program import Dev, eventually

SECRET_FIELDS = frozenset({"password", "token", "refreshToken", "challengeToken", "code", "backupCode"})
ORDINARY = {"email": "canary@cage.example", "firstName": "Ada", "lastName": "Lovelace", "acceptTerms": True}


def new_canary(kind: str) -> str:
    """A password by every rule of the policy, and nothing like any other text."""
    return f"Canary-{kind}-{uuid4().hex}-Xq7!"


class Song:
    """What was sung: every secret that was sent or handed out, and every reply with who asked for it."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}
        self.replies: list[str] = []

    def forms(self) -> Iterable[tuple[str, str]]:
        """Each secret by its name: as it is, escaped, in hex and in base 64."""
        for name, secret in self.secrets.items():
            yield name, secret
            yield f"{name} in hex", secret.encode().hex()
            yield f"{name} in base 64", base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]

    def found_in(self, text: str) -> list[str]:
        return [name for name, form in self.forms() if form in text]


def bodies(operation: Operation, song: Song) -> list[bytes]:
    """The secrets right, one field missing, of the wrong type, too short, in the wrong field, and in no JSON at all."""
    names = [field.alias or name for name, field in operation.request.model_fields.items()]
    sung = {name: song.secrets["token" if "oken" in name else "password"] for name in names if name in SECRET_FIELDS}
    right: dict[str, object] = {name: ORDINARY[name] for name in names if name in ORDINARY} | sung
    everywhere = dict.fromkeys(names, song.secrets["password"])
    variants: list[object] = [
        right,
        *({name: value for name, value in right.items() if name != left_out} for left_out in right),
        right | {name: [value] for name, value in sung.items()},
        right | {name: {value: value} for name, value in sung.items()},
        right | {name: value[:3] for name, value in sung.items()},
        right | {name: value * 20 for name, value in sung.items()},
        {name: value for name, value in everywhere.items() if name not in {"firstName", "lastName", "displayName"}},
        list(sung.values()),
    ]
    garbled = json.dumps(right).encode()[:-1] + song.secrets["password"].encode()
    return [*(json.dumps(variant).encode() for variant in variants), garbled]


async def sing_through(client: Gateway, operation: Operation, song: Song) -> None:
    """Every body, with secrets in every header that takes one, from nobody and from somebody."""
    for number, body in enumerate(bodies(operation, song)):
        headers = {
            "Authorization": f"Bearer {song.secrets['header token']}",
            "Device-Token": song.secrets["device token"],
            "Idempotency-Key": f"{song.secrets['key']}-{number}"[:128],
        }
        for sent in (headers, {name: text for name, text in headers.items() if name != "Authorization"}):
            reply = await client.send(operation.subject, body, headers=sent)
            assert reply.code != "INTERNAL_ERROR", body
            song.replies.append(f"{operation.subject} {reply.body} {reply.headers}")


async def live(client: Gateway, song: Song) -> None:
    """A life that goes well: what is handed out on its way is secret too."""
    password, email = song.secrets["password"], new_email()
    account: dict[str, Any] = ORDINARY | {"email": email, "password": password}
    song.replies.append(str((await client.call("auth.register", **account)).data))
    song.secrets["link token"] = str(token_of(await client.mail_to(email, "verify-email")))
    song.replies.append(str((await client.call("auth.verify-email", token=song.secrets["link token"])).data))
    await client.call("auth.login", email=email, password=song.secrets["wrong password"])
    headers = {"User-Agent": "curl/8", "Idempotency-Key": song.secrets["key"]}
    tokens: Mapping[str, Any] = {}
    for use in ("first", "second"):
        login = await client.call("auth.login", headers=headers | {"Idempotency-Key": f"{song.secrets['key']}-{use}"},
                                  email=email, password=password)  # fmt: skip
        tokens = login.data["tokens"]
        note(song, f"{use} login", tokens)
    successor = (await client.call("auth.refresh", headers=headers, refreshToken=tokens["refreshToken"])).data["tokens"]
    note(song, "successor", successor)
    access = successor["accessToken"]
    song.replies.append(str((await client.call("me.get", access=access)).data))
    song.replies.append(str((await client.call("auth.verify-token", token=access)).data))
    later = (await client.call("auth.refresh", headers=headers, refreshToken=successor["refreshToken"])).data["tokens"]
    note(song, "later", later)
    stolen = await client.call("auth.refresh", headers=headers, refreshToken=tokens["refreshToken"])
    assert stolen.code == "INVALID_TOKEN"
    song.replies.append(str(stolen.body))


async def live_with_a_second_factor(client: Gateway, song: Song) -> None:
    """Codes of six digits stand in every log by chance; what they are made of does not."""
    app = await enrolled(client)
    song.secrets |= {"secret": app.secret, **{f"backup code {n}": code for n, code in enumerate(app.backup_codes)}}
    for shown in ({"code": app.wrong_code()}, {"backupCode": app.backup_codes[0]}):
        song.secrets[f"challenge {len(song.secrets)}"] = challenge = await app.challenge()
        reply = await client.send(
            "users.v1.auth.two-factor", json.dumps({"challengeToken": challenge, **shown}).encode()
        )
        if reply.ok:
            note(song, "second step", reply.data["tokens"])
    counted = await client.call("two-factor.backup-codes", access=app.access)
    song.replies.append(str(counted.data))
    fresh = await client.call(
        "two-factor.backup-codes.regenerate", access=app.access, password=PASSWORD, code=await app.fresh_code()
    )
    song.secrets |= {f"new backup code {n}": code for n, code in enumerate(fresh.data["backupCodes"])}


def note(song: Song, name: str, tokens: Mapping[str, Any]) -> None:
    """Of a signed token the signature alone is the secret: the rest is claims."""
    for kind in ("accessToken", "refreshToken"):
        song.secrets[f"{name} {kind}"] = str(tokens[kind]).rpartition(".")[2]
    if tokens["deviceToken"]:
        song.secrets[f"{name} deviceToken"] = str(tokens["deviceToken"])


@pytest_asyncio.fixture(scope="module")
async def song(limited: Dev) -> AsyncIterator[Song]:
    """Sung once; the tests look in different places. Limits are on, so that Valkey holds what it may hold."""
    found = Song()
    kinds = ("password", "wrong password", "token", "header token", "device token", "key")
    found.secrets = {kind: new_canary(kind.replace(" ", "")) for kind in kinds}
    async with gateway(limited.ready) as client:
        for operation in OPERATIONS:
            await sing_through(client, operation, found)
        await live(client, found)
        await live_with_a_second_factor(client, found)
    await announced(limited)
    yield found


async def announced(dev: Dev) -> None:
    """Wait until every event is on the stream and handled by every group."""
    async with database(dev.ready) as rows:

        async def nothing_waits() -> bool:
            return bool(await rows.fetchval(_NOTHING_WAITS))

        await eventually(nothing_waits, within_s=20, what="all groups to have had every event")


_NOTHING_WAITS = """
SELECT NOT EXISTS (SELECT 1 FROM outbox) AND NOT EXISTS (
    SELECT 1 FROM events e CROSS JOIN (VALUES ('email'), ('audit'), ('cache')) AS g (name)
    WHERE NOT EXISTS (SELECT 1 FROM inbox i WHERE i.event_id = e.id AND i.group_name = g.name))"""


async def test_no_reply_repeats_a_secret(song: Song) -> None:
    assert len(song.replies) > 100
    assert [(song.found_in(reply), reply[:300]) for reply in song.replies if song.found_in(reply)] == []


async def test_the_log_is_silent(limited: Dev, song: Song) -> None:
    assert "auth.login" in limited.log
    assert song.found_in(limited.log) == []


async def test_no_event_and_no_dead_letter_carries_a_secret(limited: Dev, limited_client: Gateway, song: Song) -> None:
    events = await stored_events(limited.ready)
    assert {event["type"] for event in events} >= {"UserRegistered", "UserLogin", "LoginFailed", "RefreshTokenReused"}
    assert song.found_in(json.dumps(events)) == []
    js = limited_client.nc.jetstream()
    state = (await js.stream_info("USER_DEAD_LETTERS")).state
    for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
        letter = await js.get_msg("USER_DEAD_LETTERS", seq=sequence)
        assert song.found_in(f"{letter.headers} {(letter.data or b'').decode()}") == []


async def test_discovery_and_figures_show_no_secret(limited: Dev, limited_client: Gateway, song: Song) -> None:
    for subject in ("$SRV.STATS.user-service", "$SRV.INFO.user-service", "$SRV.PING.user-service"):
        assert song.found_in((await limited_client.nc.request(subject, b"", timeout=5)).data.decode()) == []
    for path in ("/metrics", "/health"):
        assert song.found_in(await page(limited, path)) == []


async def page(dev: Dev, path: str) -> str:
    def read() -> str:
        with urlopen(f"{dev.ready['httpUrl']}{path}", timeout=5) as found:
            return str(found.read().decode())

    return await asyncio.to_thread(read)


async def test_valkey_holds_no_secret(limited: Dev, song: Song) -> None:
    connection = Redis.from_url(limited.ready["redisUrl"], decode_responses=True)
    try:
        keys = [key async for key in connection.scan_iter(count=1000)]
        kinds = {key: await connection.type(key) for key in keys}
        held = [str(await connection.get(key)) for key in keys if kinds[key] == "string"]
        held += [str(await connection.zrange(key, 0, -1)) for key in keys if kinds[key] == "zset"]
    finally:
        await connection.aclose()
    assert set(kinds.values()) <= {"string", "zset"}
    assert any(key.startswith("rate_limit:") for key in keys)
    assert song.found_in("\n".join([*keys, *held])) == []


async def test_postgresql_holds_hashes_alone(limited: Dev, song: Song) -> None:
    async with database(limited.ready) as rows:
        tables = await rows.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        names = sorted(row["tablename"] for row in tables)
        assert {"users", "refresh_tokens", "link_tokens", "idempotency_keys", "audit_logs", "events"} <= set(names)
        for name in names:
            dump = "\n".join(row[0] for row in await rows.fetch(f'SELECT t::text FROM "{name}" t'))
            assert (name, song.found_in(dump)) == (name, [])
        hashes = {row[0].split("$")[1] for row in await rows.fetch("SELECT password_hash FROM users")}
    assert hashes == {"argon2id"}


async def test_the_data_directory_holds_a_link_in_its_mail_and_nothing_else(limited: Dev, song: Song) -> None:
    def search() -> set[tuple[str, str]]:
        files = [path for path in limited.data_dir.rglob("*") if path.suffix in {".log", ".eml", ".json", ".conf"}]
        return {(path.suffix, name) for path in files for name in song.found_in(path.read_text(errors="replace"))}

    assert await asyncio.to_thread(search) == {(".eml", "link token")}


def test_the_search_after_a_run_finds_what_is_told_anywhere(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(
        '{"seal": {"keys": {"k": "' + base64.urlsafe_b64encode(bytes(32)).decode() + '"}}}'
    )
    told = "Told-To-Nobody-But-A-File-17"
    overhear(json.dumps({"password": told}).encode(), {"success": True, "data": {}})
    search = Search(tmp_path)
    assert search.found_in_files() == set()
    for number, form in enumerate((told.encode(), told.encode().hex().encode(), b"\0" + bytes(32))):
        (tmp_path / f"{number}.blk").write_bytes(b"before" + form + b"behind")
    found = {(Path(place).name, name) for place, name in search.found_in_files()}
    assert found == {("0.blk", "told as password"), ("1.blk", "told as password"), ("2.blk", "key of seal")}

"""What an operator types: signed in once, letters and timelines are looked at as whoever signed in."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.gateway import Gateway, database, new_email
from tests.program import Dev, command


async def test_an_operator_signs_in_looks_and_signs_out(dev: Dev, client: Gateway, tmp_path: Path) -> None:
    at, home = ("--ready-file", str(dev.ready_file)), {"XDG_CONFIG_HOME": str(tmp_path)}
    await client.register(email := new_email())
    await client.mail_to(email, "verify-email")
    assert (await command("timeline", email, *at, env=home))[0] == 1, "nobody is signed in yet"
    code, out, err = await command("login", *at, env=home)
    assert (code, out) == (0, f"signed in as {dev.ready['admin']['email']} (admin)\n"), err
    kept = tmp_path / "user-service" / "sessions.json"
    assert kept.stat().st_mode & 0o777 == 0o600

    code, out, err = await command("timeline", email, *at, env=home)
    assert code == 0, err
    assert "v1 UserRegistered" in out
    assert "sent" in out
    mail = await client.mail_to(email, "verify-email")
    assert (await command("timeline", str(mail["Message-ID"]), *at, env=home))[1] == out
    _, out, err = await command("timeline", "no-such-request", *at, env=home)
    assert (out, err) == ("", "nothing is kept of no-such-request\n")
    for words in (("groups",), ("list",), ("jobs", "list"), ("replay", "--type", "Nothing", "--dry-run")):
        code, out, err = await command("dead-letters", *words, *at, "--json", env=home)
        assert (words, code) == (words, 0), err
        assert json.loads(out)
    code, _, err = await command("dead-letters", "discard", "--why", "a test", *at, env=home)
    assert (code, "VALIDATION_ERROR" in err) == (1, True), err
    code, _, err = await command("dead-letters", "show", "0192f0c1-8d2e-7b5a-9c3d-1e2f3a4b5c6d", *at, env=home)
    assert (code, "NOT_FOUND" in err) == (1, True), err

    code, _, err = await command("dead-letters", "list", "--group", "emial", *at, env=home)
    assert (code, "'email', 'audit' or 'cache'" in err) == (1, True), "a mistyped group is no empty list"
    code, _, err = await command("dead-letters", "list", "--reason", "foo", *at, env=home)
    assert (code, "attempts_exhausted" in err) == (1, True), err
    code, _, err = await command("dead-letters", "list", "--type", "UserRegisterd", *at, env=home)
    assert (code, "there is no event UserRegisterd" in err) == (0, True), err
    code, out, err = await command("dead-letters", "replay", "--type", "Nothing", *at, env=home)
    assert (code, out, "nothing to replay" in err) == (0, "", True), err

    async with a_letter(dev, email) as letter_id:
        code, out, err = await command("dead-letters", "show", letter_id, *at, env=home)
        assert code == 0, err
        assert "550 no such mailbox" in out
        facts, _, after = out.partition("\n\n")
        assert "died of     " in facts
        assert "v1 UserRegistered" in after, "what else happened to the user stands below the bytes"

    sessions = json.loads(kept.read_text())
    (server,) = sessions
    kept.write_text(json.dumps({server: sessions[server] | {"accessToken": "a.b.c"}}))
    assert (await command("dead-letters", "list", *at, env=home))[0] == 0, "an access token that is over is renewed"
    began = time.monotonic()
    listener = home | {"NATS_URL": dev.ready["natsUrls"]["listener"]}
    code, _, err = await command("login", dev.ready["admin"]["email"], env=listener | {"USER_SERVICE_PASSWORD": "x"})
    assert (code, "does not let this user ask" in err) == (1, True), err
    assert time.monotonic() - began < 15, "who may not ask does not wait for an answer"
    assert (await command("logout", *at, env=home))[0] == 0
    assert (await command("dead-letters", "list", *at, env=home))[0] == 1


@asynccontextmanager
async def a_letter(dev: Dev, email: str) -> AsyncIterator[str]:
    """A letter of a user's first event, gone again afterwards: others count them."""
    async with database(dev.ready) as rows:
        letter_id = await rows.fetchval(_LETTER, email)
        try:
            yield str(letter_id)
        finally:
            await rows.execute("DELETE FROM dead_letters WHERE id = $1", letter_id)


_LETTER = """
INSERT INTO dead_letters (id, group_name, event_id, n, user_id, event_type, reason, error, message, subject, body,
    headers, attempts, deliveries, stream_sequence, announced_at)
SELECT gen_random_uuid(), 'cache', e.id, 1, e.aggregate_id, e.type, 'attempts_exhausted', 'MailRefused',
    '550 no such mailbox', 'x', 'x', '{}', '[]', 1, 1, now()
FROM events e JOIN users u ON u.id = e.aggregate_id WHERE u.email = $1 AND e.version = 1 RETURNING id"""

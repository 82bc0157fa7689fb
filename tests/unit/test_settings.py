"""Settings: all faults at once, each by the name of its variable; nothing secret in what is said or shown."""

import os

import pytest

from adapters.settings import Argon2Cost, BadSettings, Rate, Settings, read_settings, unknown_variables, variable_of

GOOD = {
    "NATS_URL": "nats://worker:marker@127.0.0.1:4222",
    "DATABASE_URL": "postgresql://user_service:marker@localhost:5432/user_service",
    "REDIS_URL": "redis://:marker@[::1]:6379/0",
    "SMTP_URL": "smtp://user:marker@mail.example:587",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def _read(monkeypatch: pytest.MonkeyPatch, **env: str | None) -> Settings:
    for name, value in (GOOD | env).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    return read_settings()


def _faults(monkeypatch: pytest.MonkeyPatch, **env: str | None) -> list[str]:
    with pytest.raises(BadSettings) as caught:
        _read(monkeypatch, **env)
    assert "marker" not in str(caught.value)
    return str(caught.value).splitlines()


def test_the_defaults_are_what_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _read(monkeypatch)
    assert settings.public_url == "http://localhost:8080"
    assert settings.http_port == 9090
    assert settings.rate_limits == "on"
    assert settings.argon2 == Argon2Cost(memory_kib=19456, passes=2, lanes=1)
    assert settings.require_verified_email
    assert not settings.allow_plaintext
    assert settings.delivery_attempts == len(settings.delivery_pauses) + 1


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = _faults(monkeypatch, NATS_URL=None, DATABASE_URL=None, REDIS_URL=None, SMTP_URL=None)
    assert sorted(fault.partition(":")[0] for fault in faults) == ["DATABASE_URL", "NATS_URL", "REDIS_URL", "SMTP_URL"]


def test_all_that_is_wrong_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = _faults(
        monkeypatch,
        NATS_URL=None,
        HTTP_PORT="eighty",
        USER_SERVICE_ARGON2="strong",
        USER_SERVICE_LIMIT_LOGIN="5 per hour",
        USER_SERVICE_DELIVERY_PAUSES="1 soon",
        USER_SERVICE_RATE_LIMITS="maybe",
        USER_SERVICE_POOL_MAX="1",
    )
    assert sorted({fault.partition(":")[0] for fault in faults}) == [
        "HTTP_PORT", "NATS_URL", "USER_SERVICE_ARGON2", "USER_SERVICE_DELIVERY_PAUSES", "USER_SERVICE_LIMIT_LOGIN",
        "USER_SERVICE_POOL_MAX", "USER_SERVICE_RATE_LIMITS",
    ]  # fmt: skip


PLAIN = {
    "NATS_URL": [
        "nats://w:marker@nats.example:4222",
        "nats://w:marker@127.0.0.1:4222,nats://w:marker@nats.example:4222",
        "nats://w:marker@127.0.0.1:4222,nats.example:4222",
        "tls://w:marker@nats.example:4222,nats://w:marker@nats2.example:4222",
        "nats.example",
    ],
    "DATABASE_URL": [
        "postgresql://u:marker@db.example/x",
        "postgresql://u:marker@localhost:5432,db.example:5432/x",
        "postgresql://u:marker@db.example/x?sslmode=require",
        "postgresql://u:marker@db.example/x?sslmode=prefer",
        "postgresql://u:marker@db.example/x?nosslmode=verify-full",
        "postgresql://u:marker@localhost.evil.example/x",
        "postgresql://localhost:marker@db.example/x",
        "postgresql:///x?host=db.example",
    ],
    "REDIS_URL": ["redis://:marker@redis.example:6379", "redis://127.0.0.1:marker@redis.example"],
}
SAFE = {
    "NATS_URL": ["tls://w:marker@nats.example:4222", "nats://w:marker@127.0.0.1:4222,nats://w:marker@[::1]:4223"],
    "DATABASE_URL": [
        "postgresql://u:marker@db.example/x?sslmode=verify-full",
        "postgresql://u:marker@a.example,b.example/x?application_name=a&sslmode=verify-ca",
        "postgresql://u:mar,ker@localhost/x",
    ],
    "REDIS_URL": ["rediss://:marker@redis.example:6379", "none"],
}


@pytest.mark.parametrize(("name", "url"), [(name, url) for name, urls in PLAIN.items() for url in urls])
def test_a_server_without_tls_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    (fault,) = _faults(monkeypatch, **{name: url})
    assert fault.startswith(f"{name} has no verified TLS")
    assert _read(monkeypatch, **{name: url}, USER_SERVICE_ALLOW_PLAINTEXT="true")


@pytest.mark.parametrize(("name", "url"), [(name, url) for name, urls in SAFE.items() for url in urls])
def test_a_server_with_tls_or_on_loopback_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    assert _read(monkeypatch, **{name: url})


@pytest.mark.parametrize(
    "url",
    ["http://accounts.example", "accounts.example", "http://localhost.evil.example", "http://127.0.0.1@evil.example"],
)
def test_links_lead_to_https(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    (fault,) = _faults(monkeypatch, PUBLIC_URL=url)
    assert fault.startswith("PUBLIC_URL")


@pytest.mark.parametrize(
    "url", ["https://accounts.example", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:1"]
)
def test_where_links_may_lead(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert _read(monkeypatch, PUBLIC_URL=url).public_url == url


@pytest.mark.parametrize("said", ["5/900", " 5 / 900 "])
def test_a_rate(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    assert _read(monkeypatch, USER_SERVICE_LIMIT_LOGIN=said).limit_login == Rate(tries_max=5, window_s=900)


@pytest.mark.parametrize("said", ["", "5", "0/900", "5/0", "-5/900", "5/900/1", "5.5/900", "a/b"])
def test_what_is_no_rate(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    faults = _faults(monkeypatch, USER_SERVICE_LIMIT_LOGIN=said)
    assert {fault.partition(":")[0] for fault in faults} == {"USER_SERVICE_LIMIT_LOGIN"}


@pytest.mark.parametrize(
    ("said", "pauses"), [("1 5 15", (1, 5, 15)), ("0.2,0.4", (0.2, 0.4)), ("1, 2 ,3", (1, 2, 3)), ("", ())]
)
def test_pauses(monkeypatch: pytest.MonkeyPatch, said: str, pauses: tuple[float, ...]) -> None:
    assert _read(monkeypatch, USER_SERVICE_DELIVERY_PAUSES=said).delivery_pauses == pauses


@pytest.mark.parametrize("said", ["-1", "1 nan", "inf", "1;2", "one"])
def test_what_is_no_pause(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    faults = _faults(monkeypatch, USER_SERVICE_DELIVERY_PAUSES=said)
    assert {fault.partition(":")[0] for fault in faults} == {"USER_SERVICE_DELIVERY_PAUSES"}


@pytest.mark.parametrize("said", ["m=19456", "m=1,t=1,p=1", "m=19456,t=0,p=1", "m=2097152,t=1,p=1", "m=1e4,t=1,p=1"])
def test_what_is_no_cost(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    faults = _faults(monkeypatch, USER_SERVICE_ARGON2=said)
    assert {fault.partition(":")[0] for fault in faults} == {"USER_SERVICE_ARGON2"}


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _read(monkeypatch, DATABASE_OWNER_URL="postgresql://owner:marker@localhost/x")
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "marker" not in shown


def test_every_setting_has_a_variable_and_says_what_it_is() -> None:
    names = {variable_of(name) for name in Settings.model_fields}
    assert len(names) == len(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_a_variable_that_is_no_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("USER_SERVICE_"):
            monkeypatch.delenv(name)
    assert unknown_variables() == []
    for name in ("USER_SERVICE_LOGLEVEL", "USER_SERVICE_LOG_LEVEL", "USER_SERVICE_DEV_NATS_SERVER", "OTHER_THING"):
        monkeypatch.setenv(name, "x")
    assert unknown_variables() == ["USER_SERVICE_LOGLEVEL"]

"""Settings: all faults at once, each by the name of its variable; nothing secret in what is said or shown."""

import os

import pytest

from adapters.environment import BadSettings, read_settings, read_what_is_good, unknown_variables, variable_of
from adapters.settings import Argon2Cost, Rate, Settings

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


# One value for each setting that it cannot have. Any path may name a key file: `doctor` and `run` look into it.
WRONG = {
    "allow_plaintext": "perhaps",
    "nats_url": "http://w:marker@127.0.0.1:4222",
    "database_url": "mysql://u:marker@localhost/x",
    "database_owner_url": "postgresql://u:marker@localhost:port/x",
    "redis_url": "redis://:marker@127.0.0.1:0",
    "smtp_url": "http://u:marker@mail.example",
    "public_url": "https://accounts.example?marker=",
    "http_port": "65536",
    "http_host": "",
    "traces_url": "collector:4318",
    "console_port": "-1",
    "console_host": "",
    "console_url": "https://console.example/marker",
    "console_nats_url": "http://o:marker@127.0.0.1:4222",
    "environment": "one\ntwo",
    "log_level": "loud",
    "log_format": "xml",
    "service_name": "Example\r\nBcc: marker@example.com",
    "mail_from": "marker@a.example, b@b.example",
    "rate_limits": "maybe",
    "limit_login": "0/900",
    "limit_login_source": "5/0",
    "limit_login_account": "fifty/900",
    "answer_ms_step": "2001",
    "limit_register": "5",
    "limit_general": "5/99999999999",
    "limit_mail_address": "-1/1",
    "limit_mail_source": "many",
    "limit_mail_kind": "3/0",
    "limit_mail_kind_daily": "-10/86400",
    "limit_bus_client": "",
    "access_algorithm": "none",
    "jwks_max_age_seconds": "0",
    "password_age_seconds": "-1",
    "password_history": "25",
    "password_context_words": "ab project5",
    "limit_code": "five",
    "limit_upload": "10/0",
    "limit_export": "ten",
    "hide_registered_emails": "perhaps",
    "admin_second_factor": "sometimes",
    "erase_after_seconds": "-1",
    "email_reuse_after_seconds": "soon",
    "argon2": "m=1,t=1,p=1",
    "hash_threads": "-1",
    "hash_queue": "0",
    "password_policy": "none",
    "totp_window": "3",
    "totp_issuer": "",
    "wrong_codes_mailed": "0",
    "wrong_codes_slowed": "ten",
    "wrong_codes_known_only": "-1",
    "require_verified_email": "2",
    "requests_max": "0",
    "request_ms_max": "99",
    "pool_max": "1",
    "pool_min": "0",
    "pool_wait_ms": "soon",
    "statement_ms_max": "1.5",
    "delivery_pauses": "1 soon",
    "in_order": "email sms",
    "duplicate_window_seconds": "0",
    "relay_fence": "maybe",
    "stream_bytes_max": "9" * 30,
    "letters_bytes_max": "1000",
    "avatar_bytes_max": "1",
    "upload_bytes_max": "large",
    "session_cap": "0",
    "idle_seconds": "9" * 20,
}


def test_every_setting_that_is_wrong_is_named_at_once_with_what_would_be_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert WRONG.keys() == Settings.model_fields.keys() - {"keys_file", "breached_passwords_file"}
    lines = _faults(monkeypatch, **{variable_of(name): value for name, value in WRONG.items()})
    assert {line.partition(": ")[0] for line in lines} == {variable_of(name) for name in WRONG}
    assert all("must" in line or "should" in line for line in lines), lines


@pytest.mark.parametrize("name", WRONG)
def test_what_is_good_is_read_beside_what_is_wrong(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable, value in (GOOD | {variable_of(name): WRONG[name]}).items():
        monkeypatch.setenv(variable, value)
    settings, faults = read_what_is_good()
    assert set(faults) - {"smtp_url"} <= {name}
    assert faults[name]
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"] or name == "database_url"


def test_plain_text_is_judged_for_each_server_although_another_setting_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = _faults(
        monkeypatch,
        USER_SERVICE_ALLOW_PLAINTEXT="perhaps",
        NATS_URL="nats://w:marker@nats.example",
        REDIS_URL="redis://:marker@redis.example",
    )
    assert {line.partition(":")[0] for line in lines} == {"USER_SERVICE_ALLOW_PLAINTEXT", "NATS_URL", "REDIS_URL"}


def test_a_pool_keeps_no_more_connections_than_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = _faults(monkeypatch, USER_SERVICE_POOL_MIN="30")
    assert fault == "USER_SERVICE_POOL_MIN: must be at most USER_SERVICE_POOL_MAX, which is 20"
    monkeypatch.delenv("USER_SERVICE_POOL_MIN")
    assert _read(monkeypatch, USER_SERVICE_POOL_MAX="3").pool_max == 3


def test_a_part_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = _faults(monkeypatch, USER_SERVICE_ARGON2="m=19456,t=0,p=99", USER_SERVICE_DELIVERY_PAUSES="1 2 soon")
    assert [fault.partition(" should")[0] for fault in faults] == [
        "USER_SERVICE_ARGON2: passes", "USER_SERVICE_ARGON2: lanes", "USER_SERVICE_DELIVERY_PAUSES: 3. part",
    ]  # fmt: skip


def test_what_is_missing_is_named_with_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = _faults(monkeypatch, NATS_URL=None, REDIS_URL=None)
    assert faults == [
        "NATS_URL: not set; NATS, with the worker's credentials, for example tls://worker:password@host:4222",
        "REDIS_URL: not set; Valkey or Redis; `none` runs without, for example rediss://:password@host:6379/0",
    ]


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("NATS_URL", ""),
        ("NATS_URL", "nats://w:marker@127.0.0.1:port"),
        ("NATS_URL", "nats://w:marker@[::1:4222"),
        ("NATS_URL", "nats://w:marker@127.0.0.1:4222,http://w:marker@127.0.0.1"),
        ("DATABASE_URL", "user_service"),
        ("DATABASE_URL", "postgresql://u:marker@localhost:99999/x"),
        ("REDIS_URL", "127.0.0.1:6379"),
        ("REDIS_URL", "redis:///0"),
        ("SMTP_URL", "smtp://user:marker@:25"),
        ("SMTP_URL", "smtp://user:marker@localhost:port"),
        ("SMTP_URL", "smtp://user:marker@mail..example:25"),
    ],
)
def test_what_is_no_address_is_told_by_one_that_is(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    (fault,) = _faults(monkeypatch, **{name: url})
    assert fault.startswith(f"{name}: must read ")


@pytest.mark.parametrize(
    "url", ["", "https://", "https://accounts.example#x", "https://a b.example", "https://[::1", "https://h:port"]
)
def test_links_need_a_whole_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    (fault,) = _faults(monkeypatch, PUBLIC_URL=url)
    assert fault.startswith("PUBLIC_URL: must read https://")


def test_an_empty_address_of_the_owner_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _read(monkeypatch, DATABASE_OWNER_URL="").database_owner_url is None


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
        "postgresql://u:marker@db.example/x?sslmode=verify-full&sslmode=disable",
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


def test_a_password_that_tears_its_address_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slash or hash in it must be escaped; the first part would count as a port, and be shown."""
    for password in ("12/marker", "12#marker", "12?marker"):
        url = f"postgresql://u:{password}@db.example/x?sslmode=verify-full"
        (fault,) = _faults(monkeypatch, DATABASE_URL=url)
        assert fault.startswith("DATABASE_URL: must read")
        assert "marker" not in fault


@pytest.mark.parametrize(("name", "url"), [(name, url) for name, urls in PLAIN.items() for url in urls])
def test_a_server_without_tls_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    (fault,) = _faults(monkeypatch, **{name: url})
    assert fault.startswith(f"{name}: has no verified TLS")
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


def test_a_collector_without_the_extra_is_a_fault_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.settings.find_spec", lambda _: None)
    assert _read(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT="").traces_url is None
    lines = _faults(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:4318", HTTP_PORT="0x1")
    assert len(lines) == 2
    assert any("pip install 'user-service[otel]'" in line for line in lines)

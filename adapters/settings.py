"""Every setting of the program: its name, its default, its bounds."""

import re
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from adapters.mailboxes import mail_server, sender_of
from adapters.server_urls import LOOPBACK, is_safe, is_well_formed
from domain.session import Lifetimes
from domain.two_factor import WrongCodes

ARGON2_KIB_MAX = 128 * 1024
"""Two threads of the smallest container that we recommend hold it."""
ARGON2_PASSES_MAX = 64
ARGON2_LANES_MAX = 16
ARGON2_WORK_MAX = 1024 * 1024
"""KiB times passes: about a second of one core."""


class Argon2Cost(BaseModel):
    """argon2id's cost: KiB of memory, passes, lanes."""

    memory_kib: int = Field(ge=8, le=ARGON2_KIB_MAX)
    passes: int = Field(ge=1, le=ARGON2_PASSES_MAX)
    lanes: int = Field(ge=1, le=ARGON2_LANES_MAX)

    @model_validator(mode="after")
    def _enough_for_its_lanes(self) -> Self:
        if self.memory_kib < 8 * self.lanes:
            raise ValueError("m must be at least 8 KiB for each lane")
        if self.memory_kib * self.passes > ARGON2_WORK_MAX:
            raise ValueError(f"m times t must be at most {ARGON2_WORK_MAX}")
        return self


class Rate(BaseModel):
    """So many tries in any window of so many seconds."""

    tries_max: int = Field(ge=1, le=1_000_000_000)
    window_s: int = Field(ge=1, le=30 * 86_400)


RateSetting = Annotated[Rate, NoDecode]
ContextWord = Annotated[str, Field(min_length=3, max_length=50)]
Pause = Annotated[float, Field(ge=0, le=7 * 86_400)]


def _one_line(value: str) -> str:
    if not 1 <= len(value) <= 100 or not value.isprintable() or value.isspace():
        raise ValueError("must be one line of 1 to 100 printable characters")
    return value


Line = Annotated[str, AfterValidator(_one_line)]


def _named(name: str) -> AliasChoices:
    return AliasChoices(name)


class Settings(BaseSettings):
    """Names are final: others rely on them. One without `USER_SERVICE_` is shared with other programs."""

    model_config = SettingsConfigDict(
        env_prefix="USER_SERVICE_", extra="ignore", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    # First, since the addresses that follow are judged by it.
    allow_plaintext: bool = Field(default=False, description="allow servers without TLS elsewhere than on loopback")
    nats_url: SecretStr = Field(
        validation_alias=_named("NATS_URL"),
        description="NATS, with the worker's credentials",
        examples=["tls://worker:password@host:4222"],
    )
    database_url: SecretStr = Field(
        validation_alias=_named("DATABASE_URL"),
        description="PostgreSQL, as the application's role",
        examples=["postgresql://user_service:password@host:5432/user_service?sslmode=verify-full"],
    )
    database_owner_url: SecretStr | None = Field(
        default=None,
        validation_alias=_named("DATABASE_OWNER_URL"),
        description="PostgreSQL, as the role that owns the schema; only `migrate` and `doctor` use it",
        examples=["postgresql://user_service_owner:password@host:5432/user_service?sslmode=verify-full"],
    )
    redis_url: SecretStr = Field(
        validation_alias=_named("REDIS_URL"),
        description="Valkey or Redis; `none` runs without",
        examples=["rediss://:password@host:6379/0"],
    )
    smtp_url: SecretStr = Field(
        validation_alias=_named("SMTP_URL"),
        description="where mail goes",
        examples=["smtps://user:password@host:465"],
    )
    public_url: str = Field(
        default="http://localhost:8080", validation_alias=_named("PUBLIC_URL"), description="where mail links lead"
    )
    http_port: int = Field(
        default=9090, ge=0, le=65535, validation_alias=_named("HTTP_PORT"),
        description="health and metrics; 0 is a free one",
    )  # fmt: skip
    http_host: Line = Field(default="127.0.0.1", description="address that health and metrics listen on")
    traces_url: SecretStr | None = Field(
        default=None,
        validation_alias=_named("OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="where traces go, by OTLP over HTTP; needs the extra `otel`",
        examples=["http://localhost:4318"],
    )
    console_port: int = Field(default=9091, ge=0, le=65535, description="the console; 0 is a free one")
    console_host: Line = Field(default="127.0.0.1", description="address that the console listens on")
    console_url: str | None = Field(
        default=None,
        description="where browsers reach the console, if not on loopback: it answers to no other host",
        examples=["https://users-console.example.com"],
    )
    console_nats_url: SecretStr | None = Field(
        default=None,
        description="NATS, with an operator's credentials; the console asks for everything as an operator",
        examples=["tls://operator:password@host:4222"],
    )
    environment: Line = Field(default="production", description="named in health replies and logs")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="`auto`: readable on a terminal, JSON lines elsewhere"
    )
    keys_file: Path | None = Field(
        default=None, description="JSON file of key rings, made by `keys init`; `run` needs it"
    )
    service_name: Line = Field(default="user-service", description="product name that mails speak of")
    mail_from: str = Field(default="user-service <no-reply@localhost>", description="sender of all mail")

    rate_limits: Literal["on", "off"] = Field(default="on", description="`off` for load tests")
    limit_login: RateSetting = Field(
        default=Rate(tries_max=5, window_s=900),
        description="failed sign-ins of an account from a source, `tries/seconds`",
    )
    limit_login_source: RateSetting = Field(
        default=Rate(tries_max=50, window_s=900), description="failed sign-ins from a source, over all accounts"
    )
    limit_login_account: RateSetting = Field(
        default=Rate(tries_max=50, window_s=900),
        description="failed sign-ins of an account over all sources; beyond them only known devices may try",
    )
    limit_register: RateSetting = Field(
        default=Rate(tries_max=3, window_s=3600), description="registrations by address"
    )
    limit_general: RateSetting = Field(default=Rate(tries_max=1000, window_s=900), description="the rest, by caller")
    limit_mail_address: RateSetting = Field(
        default=Rate(tries_max=3, window_s=3600), description="mails asked for, by mail address"
    )
    limit_mail_source: RateSetting = Field(
        default=Rate(tries_max=20, window_s=3600), description="mails asked for, by source"
    )
    limit_mail_kind: RateSetting = Field(
        default=Rate(tries_max=3, window_s=3600),
        description="mails of one kind to one address; what goes beyond is not sent",
    )
    limit_mail_kind_daily: RateSetting = Field(
        default=Rate(tries_max=10, window_s=86_400), description="the same, over a day"
    )
    limit_code: RateSetting = Field(
        default=Rate(tries_max=5, window_s=900), description="second-factor codes, by account"
    )
    limit_upload: RateSetting = Field(default=Rate(tries_max=10, window_s=3600), description="avatars, by caller")
    limit_export: RateSetting = Field(default=Rate(tries_max=10, window_s=3600), description="data exports, by caller")
    limit_bus_client: RateSetting = Field(
        default=Rate(tries_max=10_000, window_s=900), description="all that is limited by address and names none"
    )
    argon2: Annotated[Argon2Cost, NoDecode] = Field(
        default=Argon2Cost(memory_kib=19456, passes=2, lanes=1), description="argon2id cost, `m=…,t=…,p=…`"
    )
    hash_threads: int = Field(default=0, ge=0, le=64, description="hashing threads; 0 is one for each core")
    hash_queue: int = Field(default=64, ge=1, le=10_000, description="hashes that may wait before requests are shed")
    access_algorithm: Literal["EdDSA", "HS256"] = Field(
        default="EdDSA",
        description="signature of access tokens; with `HS256` the JWKS is empty, and gateways ask verify-token",
    )
    jwks_max_age_seconds: int = Field(
        default=300,
        ge=1,
        le=86_400,
        description="how long a gateway may keep the JWKS; a new key waits so long to sign",
    )
    password_policy: Literal["composition", "nist"] = Field(
        default="composition", description="rules for new passwords"
    )
    totp_window: int = Field(
        default=1, ge=0, le=2, description="steps of 30 seconds each side in which a second-factor code is good"
    )
    totp_issuer: Line = Field(default="Project5", description="who an authenticator app says its code is for")
    wrong_codes_mailed: int = Field(
        default=3, ge=1, le=1000, description="wrong second-factor codes in a row of an account: its owner is told"
    )
    wrong_codes_slowed: int = Field(
        default=10, ge=1, le=1000, description="the same: unknown devices wait an hour between tries"
    )
    wrong_codes_known_only: int = Field(default=50, ge=1, le=1000, description="the same: known devices only")
    password_age_seconds: int = Field(
        default=90 * 86_400, ge=0, le=10 * 366 * 86_400,
        description="a password older than this must be reset; 0 is never, as with `nist`",
    )  # fmt: skip
    password_history: int = Field(default=5, ge=0, le=24, description="passwords that are not taken again; `nist`: 0")
    password_context_words: Annotated[tuple[ContextWord, ...], NoDecode] = Field(
        default=("project5",),
        max_length=50,
        description="names of the service and of who runs it, which no new password may hold",
    )
    breached_passwords_file: Path | None = Field(
        default=None, description="sorted SHA-1 hashes in hex, a line each, of passwords that are refused"
    )
    require_verified_email: bool = Field(default=True, description="sign-in needs a verified address")
    hide_registered_emails: bool = Field(
        default=False, description="`register` answers alike for a free and a taken address"
    )
    admin_second_factor: bool = Field(
        default=True, description="admin operations need a session with a second factor; `dev` turns it off"
    )

    answer_ms_step: int = Field(
        default=100,
        ge=0,
        le=2000,
        description="refused sign-ins, and whatever must not tell a known address from an unknown one, are answered at "
        "multiples of this time: choose more than their work takes",
    )
    requests_max: int = Field(default=512, ge=1, le=100_000, description="requests in work at once; more are shed")
    request_ms_max: int = Field(default=30_000, ge=100, le=300_000, description="longest time a request may take")
    pool_max: int = Field(default=20, ge=2, le=500, description="PostgreSQL connections at most")
    pool_min: int = Field(default=5, ge=1, le=200, description="PostgreSQL connections kept")
    pool_wait_ms: int = Field(default=2000, ge=10, le=30_000, description="longest wait for a connection")
    statement_ms_max: int = Field(default=5000, ge=10, le=60_000, description="longest statement")

    delivery_pauses: Annotated[tuple[Pause, ...], NoDecode] = Field(
        default=(1, 5, 15, 60, 300, 900, 3600), description="seconds between a delivery's attempts; one more attempt"
    )
    in_order: Annotated[tuple[Literal["email", "audit", "cache"], ...], NoDecode] = Field(
        default=(), description="event groups that take nothing of a user past what they could not deal with"
    )
    duplicate_window_seconds: int = Field(default=120, ge=1, le=86_400, description="JetStream's duplicate window")
    relay_fence: bool = Field(default=True, description="publish with an expected last sequence for each user")
    stream_bytes_max: int = Field(
        default=10 * 1024**3, ge=1024**2, le=1024**5, description="bytes of USER_EVENTS at most"
    )
    letters_bytes_max: int = Field(
        default=1024**3, ge=1024**2, le=1024**5,
        description="bytes of USER_DEAD_LETTERS at most; what goes beyond waits in its table to be announced",
    )  # fmt: skip
    avatar_bytes_max: int = Field(
        default=2 * 1024**3, ge=1024**2, le=1024**5, description="bytes of all avatars at most; one takes some 10 KiB"
    )
    upload_bytes_max: int = Field(
        default=256 * 1024**2, ge=8 * 1024**2, le=1024**4, description="bytes of uploaded pictures at most, in an hour"
    )
    session_cap: int = Field(default=10, ge=1, le=1000, description="sessions of a user; the oldest ends")
    idle_seconds: int = Field(
        default=14 * 86_400, ge=60, le=366 * 86_400, description="a session unused for so long is over"
    )
    erase_after_seconds: int = Field(
        default=30 * 86_400, ge=0, le=366 * 86_400, description="from the deletion of an account to the end of its data"
    )
    email_reuse_after_seconds: int = Field(
        default=30 * 86_400,
        ge=0,
        le=366 * 86_400,
        description="from the deletion of an account until its address is free",
    )

    @field_validator("argon2", mode="before")
    @classmethod
    def _read_cost(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"m=(\d+),t=(\d+),p=(\d+)", value.replace(" ", ""))
        if not found:
            raise ValueError("must look like m=19456,t=2,p=1")
        return {"memory_kib": found[1], "passes": found[2], "lanes": found[3]}

    @field_validator("delivery_pauses", "in_order", "password_context_words", mode="before")
    @classmethod
    def _read_list(cls, value: object) -> object:
        return tuple(part for part in re.split(r"[\s,]+", value) if part) if isinstance(value, str) else value

    @field_validator(
        "limit_login", "limit_login_source", "limit_login_account", "limit_register", "limit_general",
        "limit_mail_address", "limit_mail_source", "limit_mail_kind", "limit_mail_kind_daily", "limit_code",
        "limit_upload", "limit_export", "limit_bus_client", mode="before",
    )  # fmt: skip
    @classmethod
    def _read_rate(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", value.replace(" ", ""))
        if not found:
            raise ValueError("must look like 5/900 (tries/seconds)")
        return {"tries_max": found[1], "window_s": found[2]}

    @field_validator("nats_url", "console_nats_url", "database_url", "database_owner_url", "redis_url")
    @classmethod
    def _a_safe_server(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        """Mail is not asked here: an `smtp:` server elsewhere than on loopback must offer STARTTLS, or gets none."""
        url = value.get_secret_value() if value else ""
        schemes = _SCHEMES[str(info.field_name)]
        if (info.field_name in {"database_owner_url", "console_nats_url"} and not url) or (
            info.field_name == "redis_url" and url == "none"
        ):
            return value if url else None
        if not is_well_formed(url, schemes, hostless="postgresql" in schemes):
            raise ValueError(f"must read {cls.model_fields[str(info.field_name)].examples[0]}")  # type: ignore[index]
        if not info.data.get("allow_plaintext", True) and not is_safe(url):
            how = "sslmode=verify-full" if "postgresql" in schemes else "a tls:// or rediss:// address"
            raise ValueError(f"has no verified TLS: use {how}, or set USER_SERVICE_ALLOW_PLAINTEXT=true")
        return value

    @field_validator("smtp_url")
    @classmethod
    def _a_mail_server(cls, value: SecretStr) -> SecretStr:
        mail_server(value.get_secret_value())
        return value

    @field_validator("traces_url")
    @classmethod
    def _a_collector(cls, value: SecretStr | None) -> SecretStr | None:
        url = value.get_secret_value() if value else ""
        if not url:
            return None
        if not is_well_formed(url, frozenset({"http", "https"})):
            raise ValueError("must read http://host:4318 or https://host, without the path of a signal")
        if find_spec("opentelemetry") is None:
            raise ValueError("must be left out, or the extra `otel` installed: pip install 'user-service[otel]'")
        return value

    @field_validator("mail_from")
    @classmethod
    def _one_sender(cls, value: str) -> str:
        try:
            sender_of(value)
        except ValueError as error:
            raise ValueError(f'must read "Name <name@example.com>": {error}') from None
        return value

    @field_validator("public_url")
    @classmethod
    def _a_page_for_links(cls, value: str) -> str:
        if not is_well_formed(value, frozenset({"http", "https", ""})) or re.search(r"[\s?#]", value):
            raise ValueError("must read https://host, with a path if need be, and nothing behind it")
        url = urlsplit(value)
        if url.scheme != "https" and (url.scheme != "http" or url.hostname not in LOOPBACK):
            raise ValueError("must be https except on loopback")
        return value

    @field_validator("console_url")
    @classmethod
    def _an_origin(cls, value: str | None) -> str | None:
        """Cookies and the policy of its pages belong to a host, so it has one to itself."""
        if not value:
            return None
        url = urlsplit(value)
        if not is_well_formed(value, frozenset({"http", "https"})) or re.search(r"[\s?#@]", value) or url.path:
            raise ValueError("must read https://host or https://host:port, and nothing behind it")
        if url.scheme != "https" and url.hostname not in LOOPBACK:
            raise ValueError("must be https except on loopback")
        return value

    @field_validator("pool_min")
    @classmethod
    def _no_more_than_at_most(cls, value: int, info: ValidationInfo) -> int:
        """The default gives way to a smaller pool by itself; a figure that somebody set does not."""
        most = info.data.get("pool_max", value)
        if value > most and value != cls.model_fields["pool_min"].default:
            raise ValueError(f"must be at most USER_SERVICE_POOL_MAX, which is {most}")
        return value

    @property
    def redis(self) -> str | None:
        url = self.redis_url.get_secret_value()
        return None if url == "none" else url

    @property
    def delivery_attempts(self) -> int:
        return len(self.delivery_pauses) + 1

    @property
    def wrong_codes(self) -> WrongCodes:
        return WrongCodes(self.wrong_codes_mailed, self.wrong_codes_slowed, self.wrong_codes_known_only)

    @property
    def lifetimes(self) -> Lifetimes:
        return Lifetimes(idle=timedelta(seconds=self.idle_seconds))


_SCHEMES = {
    "nats_url": frozenset({"nats", "tls", ""}),
    "console_nats_url": frozenset({"nats", "tls", ""}),
    "database_url": frozenset({"postgresql", "postgres"}),
    "database_owner_url": frozenset({"postgresql", "postgres"}),
    "redis_url": frozenset({"redis", "rediss"}),
}

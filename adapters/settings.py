"""Every setting of the program, read from the environment; all faults are reported at once."""

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from domain.session import Lifetimes

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class BadSettings(Exception):
    """The environment does not make sense; the message lists every fault, a line each."""


class Argon2Cost(BaseModel):
    """argon2id's cost: KiB of memory, passes, lanes."""

    memory_kib: int = Field(ge=8, le=1024 * 1024)
    passes: int = Field(ge=1, le=64)
    lanes: int = Field(ge=1, le=16)

    @model_validator(mode="after")
    def _enough_for_its_lanes(self) -> Self:
        if self.memory_kib < 8 * self.lanes:
            raise ValueError("m must be at least 8 KiB for each lane")
        return self


class Rate(BaseModel):
    """So many tries in any window of so many seconds."""

    tries_max: int = Field(ge=1)
    window_s: int = Field(ge=1)


RateSetting = Annotated[Rate, NoDecode]
Pause = Annotated[float, Field(ge=0, le=7 * 86_400)]


def _named(name: str) -> AliasChoices:
    return AliasChoices(name)


class Settings(BaseSettings):
    """Names are final: others rely on them. One without `USER_SERVICE_` is shared with other programs."""

    model_config = SettingsConfigDict(
        env_prefix="USER_SERVICE_", extra="ignore", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    nats_url: SecretStr = Field(validation_alias=_named("NATS_URL"), description="NATS, with the worker's credentials")
    database_url: SecretStr = Field(
        validation_alias=_named("DATABASE_URL"), description="PostgreSQL, as the application's role"
    )
    database_owner_url: SecretStr | None = Field(
        default=None,
        validation_alias=_named("DATABASE_OWNER_URL"),
        description="PostgreSQL, as the role that owns the schema; only `migrate` and `doctor` use it",
    )
    redis_url: SecretStr = Field(
        validation_alias=_named("REDIS_URL"), description="Valkey or Redis; `none` runs without"
    )
    smtp_url: SecretStr = Field(validation_alias=_named("SMTP_URL"), description="where mail goes")
    public_url: str = Field(
        default="http://localhost:8080", validation_alias=_named("PUBLIC_URL"), description="where mail links lead"
    )
    http_port: int = Field(
        default=9090, ge=0, le=65535, validation_alias=_named("HTTP_PORT"), description="health and metrics"
    )
    http_host: str = Field(default="127.0.0.1", description="address that health and metrics listen on")
    environment: str = Field(default="production", description="named in health replies and logs")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="`auto`: readable on a terminal, JSON lines elsewhere"
    )
    keys_file: Path | None = Field(
        default=None, description="JSON file of key rings, made by `keys init`; `run` needs it"
    )
    service_name: str = Field(default="user-service", description="product name that mails speak of")
    mail_from: str = Field(default="user-service <no-reply@localhost>", description="sender of all mail")
    allow_plaintext: bool = Field(default=False, description="allow servers without TLS elsewhere than on loopback")

    rate_limits: Literal["on", "off"] = Field(default="on", description="`off` for load tests")
    limit_login: RateSetting = Field(
        default=Rate(tries_max=5, window_s=900),
        description="failed sign-ins of an account from a source, `tries/seconds`",
    )
    limit_login_source: RateSetting = Field(
        default=Rate(tries_max=50, window_s=900), description="failed sign-ins from a source, over all accounts"
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
    limit_bus_client: RateSetting = Field(
        default=Rate(tries_max=10_000, window_s=900), description="all that is limited by address and names none"
    )
    argon2: Annotated[Argon2Cost, NoDecode] = Field(
        default=Argon2Cost(memory_kib=19456, passes=2, lanes=1), description="argon2id cost, `m=…,t=…,p=…`"
    )
    hash_threads: int = Field(default=0, ge=0, le=64, description="hashing threads; 0 is one for each core")
    hash_queue: int = Field(default=64, ge=1, le=10_000, description="hashes that may wait before requests are shed")
    password_policy: Literal["composition", "nist"] = Field(
        default="composition", description="rules for new passwords"
    )
    require_verified_email: bool = Field(default=True, description="sign-in needs a verified address")

    requests_max: int = Field(default=512, ge=1, le=100_000, description="requests in work at once; more are shed")
    request_ms_max: int = Field(default=30_000, ge=100, le=300_000, description="longest time a request may take")
    pool_min: int = Field(default=5, ge=1, le=200, description="PostgreSQL connections kept")
    pool_max: int = Field(default=20, ge=2, le=500, description="PostgreSQL connections at most")
    pool_wait_ms: int = Field(default=2000, ge=10, le=30_000, description="longest wait for a connection")
    statement_ms_max: int = Field(default=5000, ge=10, le=60_000, description="longest statement")

    delivery_pauses: Annotated[tuple[Pause, ...], NoDecode] = Field(
        default=(1, 5, 15, 60, 300, 900, 3600), description="seconds between a delivery's attempts; one more attempt"
    )
    duplicate_window_seconds: int = Field(default=120, ge=1, le=86_400, description="JetStream's duplicate window")
    relay_fence: bool = Field(default=True, description="publish with an expected last sequence for each user")
    stream_bytes_max: int = Field(default=10 * 1024**3, ge=1024**2, description="size of USER_EVENTS")
    session_cap: int = Field(default=10, ge=1, le=1000, description="sessions of a user; the oldest ends")
    idle_seconds: int = Field(default=14 * 86_400, ge=60, description="a session unused for so long is over")

    @field_validator("argon2", mode="before")
    @classmethod
    def _read_cost(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"m=(\d+),t=(\d+),p=(\d+)", value.replace(" ", ""))
        if not found:
            raise ValueError("must look like m=19456,t=2,p=1")
        return {"memory_kib": found[1], "passes": found[2], "lanes": found[3]}

    @field_validator("delivery_pauses", mode="before")
    @classmethod
    def _read_pauses(cls, value: object) -> object:
        return tuple(part for part in re.split(r"[\s,]+", value) if part) if isinstance(value, str) else value

    @field_validator(
        "limit_login", "limit_login_source", "limit_register", "limit_general", "limit_mail_address",
        "limit_mail_source", "limit_bus_client", mode="before",
    )  # fmt: skip
    @classmethod
    def _read_rate(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", value.replace(" ", ""))
        if not found:
            raise ValueError("must look like 5/900 (tries/seconds)")
        return {"tries_max": found[1], "window_s": found[2]}

    @model_validator(mode="after")
    def _safe_transport(self) -> Self:
        names = ("nats_url", "database_url", *(("redis_url",) if self.redis else ()))
        faults = [fault for name in names if (fault := self._plaintext_fault(name))]
        public = urlsplit(self.public_url)
        if public.scheme != "https" and public.hostname not in LOOPBACK:
            faults.append("PUBLIC_URL must be https except on loopback")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _plaintext_fault(self, name: str) -> str | None:
        """Mail is not asked here: an `smtp:` server elsewhere than on loopback must offer STARTTLS, or gets none."""
        if self.allow_plaintext or all(map(_is_safe, re.split(r",(?=\w+://)", getattr(self, name).get_secret_value()))):
            return None
        how = "sslmode=verify-full" if name == "database_url" else "a tls:// or rediss:// address"
        return f"{name.upper()} has no verified TLS: use {how}, or set USER_SERVICE_ALLOW_PLAINTEXT=true"

    @property
    def redis(self) -> str | None:
        url = self.redis_url.get_secret_value()
        return None if url == "none" else url

    @property
    def delivery_attempts(self) -> int:
        return len(self.delivery_pauses) + 1

    @property
    def lifetimes(self) -> Lifetimes:
        return Lifetimes(idle=timedelta(seconds=self.idle_seconds))


def _is_safe(address: str) -> bool:
    """Is every server of a URL asked for TLS, or on loopback? One URL may name several (`host,host`)."""
    url = urlsplit(address)
    if url.scheme in {"tls", "rediss", "wss"} or re.search(r"(^|&)sslmode=verify-(ca|full)(&|$)", url.query):
        return True
    hosts = url.netloc.rpartition("@")[2].split(",")
    return all(urlsplit(f"//{host}").hostname in LOOPBACK for host in hosts)


def read_settings(**overrides: object) -> Settings:
    """Settings from the environment; raises `BadSettings` with every fault by its variable's name."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise BadSettings("\n".join(_fault_line(item["loc"], item["msg"]) for item in error.errors())) from None


def unknown_variables() -> list[str]:
    """Variables with our prefix that are none of our settings: a typing error, or one of a later release."""
    known = {variable_of(name) for name in Settings.model_fields} | _OTHERS
    ours = (
        name for name in os.environ if name.startswith("USER_SERVICE_") and not name.startswith("USER_SERVICE_DEV_")
    )
    return sorted(set(ours) - known)


_OTHERS = {"USER_SERVICE_TOKEN", "USER_SERVICE_ADMIN_PASSWORD", "USER_SERVICE_SUPERVISED"}


def _fault_line(location: tuple[int | str, ...], message: str) -> str:
    name = variable_of(str(location[0])) if location else ""
    return f"{name}: {message}" if name else message.removeprefix("Value error, ")


def variable_of(name: str) -> str:
    """The environment variable of a setting (pydantic names it by alias already where it has one)."""
    field = Settings.model_fields.get(name)
    if field is not None and isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return name if name.isupper() else f"USER_SERVICE_{name.upper()}"

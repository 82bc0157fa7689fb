"""Logs and metrics: JSON lines or readable ones, and the figures that dashboards and alerts know by name."""

import logging
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from structlog.typing import EventDict, WrappedLogger

SERVICE = "user-service"


def release() -> str:
    """The version of the installed package."""
    try:
        return version(SERVICE)
    except PackageNotFoundError:
        return "0.0.0"


_SECRET_WORDS = ("password", "token", "secret", "authorization", "dsn")


def _hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A net under the types that print as `***`: a field with such a name never prints its value."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "***"
    return event


def _timestamp(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def set_up_logs(level: str, environment: str, form: str = "auto", stream: TextIO = sys.stderr) -> None:
    """Configure all logging of the process, the libraries' too. Tracebacks are printed without local variables."""
    readable = form == "text" or (form == "auto" and stream.isatty())
    shared = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, _timestamp, _hide_secrets]

    def add_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.update(service=SERVICE, version=release(), environment=environment)
        return event

    final: list[structlog.typing.Processor]
    if readable:
        final = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        final = [
            structlog.processors.format_exc_info,
            add_service,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in (
        "nats",
        "uvicorn",
        "uvicorn.error",
        "uvicorn.access",
        "aiosmtplib",
        "asyncio",
        "mail.log",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


_FINE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Every figure the program exports; one registry a process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        labels = ["method", "route"]
        self.requests = Counter("http_requests_total", "Requests answered", [*labels, "status_code"], registry=registry)
        self.request_seconds = Histogram(
            "http_request_duration_seconds", "Time from arrival to reply", labels, buckets=_FINE, registry=registry
        )
        self.in_work = Gauge("requests_in_work", "Requests being handled", registry=registry)
        self.shed = Counter("requests_shed_total", "Requests refused as OVERLOADED at the door", registry=registry)
        self.connections = Gauge("database_connections_active", "PostgreSQL connections in use", registry=registry)
        self.authentications = Counter(
            "authentication_attempts_total", "Sign-in attempts", ["result", "method"], registry=registry
        )
        self.lockouts = Counter(
            "account_lockouts_total", "Accounts locked for devices that are not known", registry=registry
        )
        self.mails_capped = Counter(
            "mails_capped_total", "Mails not sent: the address has had enough of the kind", ["template"],
            registry=registry,
        )  # fmt: skip
        self.password_hashes = Counter("password_hashes_total", "New password hashes made", registry=registry)
        self.registrations = Counter("user_registrations_total", "Accounts opened", registry=registry)
        self.without_client_ip = Counter(
            "requests_without_client_ip_total", "Requests whose gateway named no end user's address", registry=registry
        )
        self.relay_waiting = Gauge("relay_outbox_events", "Events not yet announced", registry=registry)
        self.relay_lag = Gauge("relay_lag_seconds", "Age of the oldest event not yet announced", registry=registry)
        self.relay_published = Counter("relay_published_total", "Events announced", registry=registry)
        self.relay_foreign = Counter(
            "relay_foreign_messages_total",
            "Messages on a user's subject that are none of our events",
            registry=registry,
        )
        self.relay_set_aside = Gauge(
            "relay_users_set_aside",
            "Users whose next event is too large for the bus or cannot be read",
            registry=registry,
        )
        self.stream_losses = Counter(
            "stream_losses_total", "Times a stream was found to have lost messages", ["stream", "what"],
            registry=registry,
        )  # fmt: skip
        self.stream_put_back = Counter(
            "stream_put_back_total", "Messages put back from the tables", ["stream"], registry=registry
        )
        self.stream_refilling = Gauge(
            "stream_refilling", "1 while what a stream has lost is being put back", ["stream"], registry=registry
        )
        self.deliveries = Counter(
            "event_deliveries_total", "Deliveries by what became of them", ["group", "outcome"], registry=registry
        )
        self.delivery_seconds = Histogram(
            "event_delivery_seconds", "Time of handling a delivery", ["group"], buckets=_FINE, registry=registry
        )
        self.consumer_pending = Gauge(
            "event_consumer_pending", "Events a group has not been handed yet", ["group"], registry=registry
        )
        self.consumer_unacked = Gauge(
            "event_consumer_unacked", "Deliveries a group has not acknowledged", ["group"], registry=registry
        )
        self.dead_letters = Counter("dead_letters_total", "Letters written", ["group", "reason"], registry=registry)
        self.cache_hits = Gauge("cache_hits", "Reads answered by a cache since the start", ["level"], registry=registry)
        self.cache_misses = Gauge("cache_misses", "Reads a cache could not answer", ["level"], registry=registry)
        self.redis_away = Gauge("redis_away", "1 while Redis is being left alone", registry=registry)
        self.bus_gaps = Counter(
            "nats_gaps_total", "Times the link was cut or the client library dropped messages", registry=registry
        )

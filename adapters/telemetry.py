"""Logs and metrics: JSON lines or readable ones, and the figures that dashboards and alerts know by name."""

import logging
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
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
        "urllib3",
        "asyncio",
        "mail.log",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


_FINE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ONE: Final = "livemostrecent"
_SUM: Final = "livesum"
_LEAST: Final = "livemin"
_MOST: Final = "livemax"
"""How the gauges of several workers become one: the latest where they all read the same, what they have together, or
what the worst off of them says."""


_OfAll = Literal["livemostrecent", "livesum", "livemin", "livemax"]


class Metrics:
    """Every figure the program exports; one registry a process. Labels hold names of ours, never what a caller sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_requests()
        self._add_accounts()
        self._add_relay()
        self._add_groups()
        self._add_letters()
        self._add_audit()
        self._add_means()
        self._add_caches()
        self._add_upkeep()

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str, of_all: _OfAll) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry, multiprocess_mode=of_all)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, registry=self.registry, buckets=_FINE)

    def _add_requests(self) -> None:
        route = ("method", "route")
        self.requests = self._counter("http_requests_total", "Requests answered", *route, "status_code")
        self.request_seconds = self._histogram("http_request_duration_seconds", "Time from arrival to reply", *route)
        self.in_work = self._gauge("requests_in_work", "Requests being handled", of_all=_SUM)
        self.in_work_max = self._gauge("requests_in_work_max", "Requests handled at once, at most", of_all=_SUM)
        self.shed = self._counter("requests_shed_total", "Requests answered OVERLOADED")
        self.without_client_ip = self._counter(
            "requests_without_client_ip_total", "Requests whose gateway named no end user's address"
        )
        self.hash_queue = self._gauge("password_hash_queue_depth", "Hashes in work or waiting", of_all=_SUM)
        self.hash_queue_max = self._gauge("password_hash_queue_max", "The same, at most", of_all=_SUM)
        self.password_hashes = self._counter("password_hashes_total", "New password hashes made")

    def _add_accounts(self) -> None:
        self.authentications = self._counter(
            "authentication_attempts_total", "Sign-in attempts", "result", "method"
        )  # fmt: skip
        self.lockouts = self._counter("account_lockouts_total", "Accounts locked for devices that are not known")
        self.registrations = self._counter("user_registrations_total", "Accounts opened")
        self.mails_capped = self._counter(
            "mails_capped_total", "Mails not sent: the address has had enough of the kind", "template"
        )

    def _add_relay(self) -> None:
        self.relay_waiting = self._gauge("relay_outbox_events", "Events not yet announced", of_all=_ONE)
        self.relay_lag = self._gauge("relay_lag_seconds", "Age of the oldest event not yet announced", of_all=_ONE)
        self.relay_published = self._counter("relay_published_total", "Events announced")
        self.relay_foreign = self._counter(
            "relay_foreign_messages_total", "Messages on a user's subject that are none of our events"
        )
        self.relay_set_aside = self._gauge(
            "relay_users_set_aside", "Users whose next event is too large for the bus or cannot be read", of_all=_MOST
        )
        self.bus_gaps = self._counter(
            "nats_gaps_total", "Times the link was cut or the client library dropped messages"
        )

    def _add_groups(self) -> None:
        self.deliveries = self._counter(
            "event_deliveries_total", "Deliveries by what became of them", "group", "outcome"
        )
        self.redeliveries = self._counter("event_redeliveries_total", "Deliveries that were not the first", "group")
        self.given_up = self._counter("event_deliveries_given_up_total", "Deliveries the server gave up", "group")
        self.delivery_seconds = self._histogram("event_delivery_seconds", "Time of handling a delivery", "group")
        self.consumer_pending = self._gauge(
            "event_consumer_pending", "Events a group has not been handed yet", "group", of_all=_ONE
        )
        self.consumer_unacked = self._gauge(
            "event_consumer_unacked", "Deliveries a group has not acknowledged", "group", of_all=_ONE
        )
        self.consumer_pulls = self._gauge(
            "event_consumer_pulls", "Pulls that are open: 0 where no process runs the group", "group", of_all=_ONE
        )

    def _add_letters(self) -> None:
        self.dead_letters = self._counter("dead_letters_total", "Letters written", "group", "reason")
        self.letters_open = self._gauge(
            "dead_letters_open", "Letters that wait for an operator", "group", "reason", of_all=_ONE
        )
        self.letters_held = self._gauge(
            "dead_letters_held", "Letters that wait behind an earlier one of their user", "group", of_all=_ONE
        )
        self.letters_unannounced = self._gauge(
            "dead_letters_unannounced", "Letters that their stream has not taken yet", of_all=_ONE
        )
        self.replays_running = self._gauge("replay_jobs_running", "Replays that have letters left", of_all=_ONE)
        self.replay_idle = self._gauge(
            "replay_idle_seconds", "How long the running replay that is worst off has moved nothing", of_all=_ONE
        )

    def _add_audit(self) -> None:
        self.audit_seals = self._counter("audit_seals_total", "Seals put on the audit log")
        self.audit_unsealed_seconds = self._gauge(
            "audit_unsealed_seconds", "Age of the oldest audit row that stands under no published seal yet", of_all=_ONE
        )
        self.audit_cuts = self._counter("audit_cuts_total", "Times more seals were published than the audit log has")

    def _add_means(self) -> None:
        self.up = self._gauge(
            "dependency_up", "1 where it answered the last time it was asked", "dependency", of_all=_LEAST
        )
        self.breakers = self._gauge(
            "user_service_breaker_state", "0 closed, 1 half open, 2 open: the server is left alone", "dependency",
            of_all=_MOST,
        )  # fmt: skip
        self.connections = self._gauge("database_connections_active", "PostgreSQL connections in use", of_all=_SUM)
        self.connections_max = self._gauge("database_connections_max", "PostgreSQL connections at most", of_all=_SUM)
        self.stream_losses = self._counter(
            "stream_losses_total", "Times a stream was found to have lost messages", "stream", "what"
        )
        self.stream_put_back = self._counter("stream_put_back_total", "Messages put back from the tables", "stream")
        self.stream_refilling = self._gauge(
            "stream_refilling", "1 while what a stream has lost is being put back", "stream", of_all=_MOST
        )
        self.stream_messages = self._gauge("stream_messages", "Messages that a stream holds", "stream", of_all=_ONE)
        self.stream_bytes = self._gauge("stream_bytes", "Bytes that a stream holds", "stream", of_all=_ONE)
        self.stream_bytes_max = self._gauge(
            "stream_bytes_max", "Bytes at which a stream takes no more", "stream", of_all=_ONE
        )

    def _add_caches(self) -> None:
        self.cache_hits = self._gauge("cache_hits", "Reads answered by a cache since the start", "level", of_all=_SUM)
        self.cache_misses = self._gauge("cache_misses", "Reads a cache could not answer", "level", of_all=_SUM)
        self.redis_away = self._gauge("redis_away", "1 while Redis is being left alone", of_all=_MOST)

    def _add_upkeep(self) -> None:
        self.erasure_overdue = self._gauge(
            "erasure_overdue_seconds", "How long the oldest account due to be erased has not been", of_all=_ONE
        )
        self.key_file_unusable = self._gauge(
            "key_file_unusable", "1 while the key file cannot be read, and older keys are used", of_all=_MOST
        )
        self.keys_in_force = self._gauge(
            "key_in_force", "1 for the key that signs and seals", "purpose", "kid", of_all=_SUM
        )
        self.key_takes_over = self._gauge(
            "key_takes_over_seconds", "How long until the next key of a purpose takes over", "purpose", of_all=_ONE
        )


class WorkerMetrics:
    """What a supervisor exports beside the figures of its workers together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        self.ended = Counter(
            "worker_ends_total", "Workers that ended by themselves and were started again", registry=registry
        )

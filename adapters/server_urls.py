"""Addresses of servers as settings write them: well formed, asked for TLS or on loopback, and shown without secrets."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, parse_qs, urlsplit

from domain.refusals import Unavailable

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_TLS_SCHEMES = frozenset({"tls", "rediss", "smtps"})
_POSTGRES_SCHEMES = frozenset({"postgres", "postgresql"})
_VERIFYING_MODES = frozenset({"verify-ca", "verify-full"})
_NEXT_URL = re.compile(r",(?=\w+://)")


def parts_of(url: str) -> SplitResult:
    """The parts of an address; one without a scheme is a host. A `ValueError` does not repeat it: it holds secrets."""
    try:
        return urlsplit(url if "://" in url else f"//{url}")
    except ValueError:
        raise ValueError("no address of a server") from None


def hosts_of(url: str) -> list[tuple[str, int | None]]:
    """Every host of an address with its port; one address may name several (`host,host`)."""
    found = []
    for host in parts_of(url).netloc.rpartition("@")[2].split(","):
        try:
            parts = urlsplit(f"//{host}")
            found.append((parts.hostname or "", parts.port))
        except ValueError:
            raise ValueError("no host and port") from None
    return found


def is_well_formed(url: str, schemes: frozenset[str], *, hostless: bool = False) -> bool:
    """Is each address of a list one of these schemes, with hosts and ports that can be?"""
    try:
        return all(
            parts_of(one).scheme in schemes
            and "@" not in parts_of(one)._replace(scheme="", netloc="").geturl()  # else it stands in a torn password
            and all((host or hostless) and port != 0 and not re.search(r"\s", host) for host, port in hosts_of(one))
            for one in _NEXT_URL.split(url)
        )
    except ValueError:
        return False


def is_safe(url: str) -> bool:
    """Is every server asked for verified TLS, or on loopback?"""
    return all(_is_safe(one) for one in _NEXT_URL.split(url))


def _is_safe(url: str) -> bool:
    parts = parts_of(url)
    modes = parse_qs(parts.query).get("sslmode", []) if parts.scheme in _POSTGRES_SCHEMES else []
    if parts.scheme in _TLS_SCHEMES or (modes and set(modes) <= _VERIFYING_MODES):
        return True
    return all(host in LOOPBACK for host, _ in hosts_of(url))


def nats_servers(url: str) -> list[str]:
    """One address for each server: nats-py takes a list, and no credentials of a neighbour."""
    found = []
    for one in _NEXT_URL.split(url):
        parts = parts_of(one)
        credentials, at, hosts = parts.netloc.rpartition("@")
        found += [f"{parts.scheme or 'nats'}://{credentials}{at}{host}" for host in hosts.split(",")]
    return found


def where(url: str) -> str:
    """An address without its credentials, as it may be shown."""
    return ",".join(_where(one) for one in _NEXT_URL.split(url))


@contextmanager
def asked(server: str, url: str) -> Iterator[None]:
    """What is `Unavailable` inside the block says in a note which server did not answer."""
    try:
        yield
    except Unavailable as error:
        error.add_note(f"{server} at {where(url)}")
        raise


def _where(url: str) -> str:
    scheme = parts_of(url).scheme
    hosts = ",".join(map(_host_and_port, hosts_of(url)))
    return f"{scheme}://{hosts}" if scheme else hosts


def _host_and_port(found: tuple[str, int | None]) -> str:
    host, port = found
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"

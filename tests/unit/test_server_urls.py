"""Addresses of servers: shown without secrets, and one for each server where one names several."""

import pytest

from adapters.server_urls import nats_servers, where


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:marker@localhost:5432/x?sslmode=require", "postgresql://localhost:5432"),
        ("postgresql://u:marker@a.example:5432,b.example/x", "postgresql://a.example:5432,b.example"),
        ("nats://w:marker@[::1]:4222,tls://w:marker@b.example", "nats://[::1]:4222,tls://b.example"),
        ("nats.example:4222", "nats.example:4222"),
        ("redis://:mar,ker@127.0.0.1:6379/0", "redis://127.0.0.1:6379"),
    ],
)
def test_an_address_is_shown_without_credentials(url: str, shown: str) -> None:
    assert where(url) == shown


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("nats://w:s@a:4222", ["nats://w:s@a:4222"]),
        ("tls://w:s@a:1,tls://x:t@b:2", ["tls://w:s@a:1", "tls://x:t@b:2"]),
        ("nats://w:s,t@a:1,b", ["nats://w:s,t@a:1", "nats://w:s,t@b"]),
        ("a,b:2", ["nats://a", "nats://b:2"]),
        ("nats://w:s@[::1]:1,[::2]:2", ["nats://w:s@[::1]:1", "nats://w:s@[::2]:2"]),
    ],
)
def test_a_list_of_servers_is_taken_apart_with_its_credentials(url: str, servers: list[str]) -> None:
    assert nats_servers(url) == servers

"""How the service says that it is well: over the bus, over HTTP, and in the figures that dashboards know by name."""

import asyncio
import json
from typing import Any
from urllib.request import urlopen

import pytest

from adapters.streams import TAKING_GROUPS, durables
from tests.gateway import Gateway
from tests.program import Dev, eventually

CHECKS = {"database", "nats", "redis", "memory", "disk"}
METRICS = {
    "http_requests_total", "http_request_duration_seconds", "database_connections_active",
    "authentication_attempts_total", "user_registrations_total", "requests_in_work", "requests_shed_total",
    "relay_lag_seconds", "relay_outbox_events", "event_consumer_pending", "event_deliveries_total",
    "dead_letters_total", "cache_hits", "cache_misses", "redis_away", "password_hashes_total",
    "requests_in_work_max", "password_hash_queue_depth", "database_connections_max", "dependency_up",
    "event_consumer_unacked", "event_consumer_pulls", "event_redeliveries_total", "event_deliveries_given_up_total",
    "dead_letters_unannounced", "replay_jobs_running", "replay_idle_seconds", "stream_bytes", "stream_bytes_max",
    "erasure_overdue_seconds", "key_in_force", "key_file_unusable", "process_start_time_seconds",
}  # fmt: skip


async def page(dev: Dev, path: str) -> tuple[int, str]:
    def read() -> tuple[int, str]:
        with urlopen(f"{dev.ready['httpUrl']}{path}", timeout=5) as found:
            return found.status, found.read().decode()

    return await asyncio.to_thread(read)


def assert_well(health: dict[str, Any]) -> None:
    assert health["status"] in {"healthy", "degraded"}, health
    checks = {check["name"]: check for check in health["checks"]}
    assert set(checks) >= CHECKS
    assert [checks[name]["status"] for name in ("database", "nats", "redis")] == ["healthy"] * 3
    assert all(0 <= check["responseTimeMs"] < 1000 and check["message"] for check in checks.values())
    assert (health["environment"], health["uptime"] > 0, health["version"].count(".")) == ("development", True, 2)


@pytest.mark.parametrize("operation", ["health.check", "health.ready"])
async def test_the_bus_tells_how_everything_is(client: Gateway, operation: str) -> None:
    assert_well((await client.call(operation)).data)


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
async def test_http_tells_the_same(dev: Dev, path: str) -> None:
    status, text = await page(dev, path)
    assert status == 200
    assert_well(json.loads(text))


async def test_the_figures_have_the_names_that_dashboards_know(dev: Dev, client: Gateway) -> None:
    found = await client.signed_in()
    assert (await client.call("me.get", access=found["tokens"]["accessToken"])).ok
    status, text = await page(dev, "/metrics")
    assert status == 200
    names = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert names >= METRICS
    assert 'http_requests_total{method="NATS",route="users.v1.me.get",status_code="200"}' in text
    assert 'http_request_duration_seconds_bucket{le="0.001",method="NATS",route="users.v1.me.get"}' in text
    assert 'authentication_attempts_total{method="password",result="success"}' in text
    for group in ("email", "audit", "cache"):
        assert f'event_deliveries_total{{group="{group}"' in text, group


async def figures(dev: Dev) -> dict[str, float]:
    _, text = await page(dev, "/metrics")
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in lines}


async def test_the_figures_say_how_everything_is(dev: Dev) -> None:
    async def all_are_read() -> bool:
        found = await figures(dev)
        are_read = 'event_consumer_pulls{group="given-up"}' in found and 'dependency_up{dependency="smtp"}' in found
        return are_read and found["replay_jobs_running"] == 0  # those that other tests have begun come to their end

    await eventually(all_are_read, within_s=30, what="the first round of figures")
    found = await figures(dev)
    for name in ("database", "nats", "redis", "smtp"):
        assert found[f'dependency_up{{dependency="{name}"}}'] == 1, name
    for name in ("database", "redis"):
        assert found[f'user_service_breaker_state{{dependency="{name}"}}'] == 0, name
    assert found["requests_in_work_max"] == 512
    assert found["database_connections_max"] == 20
    assert found["password_hash_queue_max"] > 64
    assert found["key_file_unusable"] == found["replay_jobs_running"] == 0
    for purpose in ("access", "personal", "seal"):
        assert [value for name, value in found.items() if f'purpose="{purpose}"' in name and "kid=" in name] == [1]
    for stream in ("USER_EVENTS", "USER_DEAD_LETTERS"):
        assert 0 <= found[f'stream_bytes{{stream="{stream}"}}'] < found[f'stream_bytes_max{{stream="{stream}"}}']
    assert {name for name in found if name.startswith("event_consumer_pulls")} == {
        f'event_consumer_pulls{{group="{durable.name}"}}' for durable in durables(TAKING_GROUPS)
    }


async def test_no_label_of_a_figure_comes_from_a_caller(dev: Dev, client: Gateway) -> None:
    marker = "label-from-a-caller"
    headers = {"Request-Id": marker, "User-Agent": marker, "Device-Id": marker}
    await client.call("auth.login", headers=headers, email=f"{marker}@example.com", password=marker)
    _, text = await page(dev, "/metrics")
    assert marker not in text

"""What a page of many workers says once some of them have ended."""

import os
import re
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from adapters.worker_figures import fold_in

_WORKER = """
import os
from adapters.telemetry import Metrics
metrics = Metrics()
metrics.shed.inc(2)
metrics.requests.labels("NATS", "users.v1.me.get", "200").inc()
metrics.request_seconds.labels("NATS", "users.v1.me.get").observe(0.004)
metrics.in_work.set(1)
print(os.getpid())
"""


def worked(directory: Path) -> int:
    """A worker that has counted something and ended; its process id."""
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    done = subprocess.run([sys.executable, "-c", _WORKER], env=env, check=True, capture_output=True, text=True)
    return int(done.stdout)


def page(directory: Path) -> list[str]:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    return sorted(line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#"))


def test_what_ended_workers_have_counted_stays_and_their_files_do_not(tmp_path: Path) -> None:
    workers = [worked(tmp_path) for _ in range(3)]
    before = page(tmp_path)
    assert "requests_shed_total 6.0" in before
    assert "requests_in_work 3.0" in before
    for pid in workers:
        fold_in(tmp_path, pid)
    assert {file.name for file in tmp_path.iterdir()} == {"counter_ended.db", "histogram_ended.db"}
    after = page(tmp_path)
    assert set(after) < set(before)
    gone = {re.split(r"[ {]", line)[0] for line in set(before) - set(after)}
    assert "requests_in_work" in gone
    assert not [name for name in gone if name.endswith(("_total", "_bucket", "_sum", "_count"))]


def test_a_file_that_a_dying_worker_left_half_made_costs_its_own_figures_alone(tmp_path: Path) -> None:
    fold_in(tmp_path, worked(tmp_path))
    (tmp_path / "counter_7.db").touch()
    fold_in(tmp_path, 7)
    assert "requests_shed_total 2.0" in page(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"counter_ended.db", "histogram_ended.db"}

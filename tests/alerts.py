"""Which alerts fire on figures that a process really told: Prometheus' own tool evaluates our rules on them."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
PROMTOOL = shutil.which("promtool", path=f"{os.environ['PATH']}{os.pathsep}{ROOT / '.venv' / 'bin'}")
NO_PROMTOOL = "no promtool: the alert rules are NOT evaluated; `.ci/promtool` fetches it"
MINUTES = 15
"""How long each look at the figures is taken to have lasted."""
PAGED_MIN = 5
"""So long after the figures have changed an alert is asked for."""


async def require_firing(looks: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, int]]) -> None:
    """Of the named alerts, as many fire in each look as are expected; what others do is no matter."""
    series = [
        {"series": scraped(name), "values": " ".join(f"{_value(look, name)}x{MINUTES - 1}" for look in looks)}
        for name in sorted(set().union(*looks))
        if "_created" not in name
    ]
    series.append({"series": 'up{job="user-service",instance="a:9090"}', "values": f"1x{MINUTES * len(looks)}"})
    named = "|".join(sorted(set().union(*expected)))
    asked = [
        {
            "expr": f'count by (alertname) (ALERTS{{alertstate="firing",alertname=~"{named}"}})',
            "eval_time": f"{MINUTES * number + PAGED_MIN}m",
            "exp_samples": [
                {"labels": f'{{alertname="{alert}"}}', "value": count} for alert, count in wanted.items() if count
            ],
        }
        for number, wanted in enumerate(expected)
    ]
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}],
    }
    await asyncio.to_thread(_run, yaml.safe_dump(test))


def scraped(series: str) -> str:
    """A series as Prometheus keeps it."""
    name, brace, labels = series.partition("{")
    return f'{name}{{job="user-service",instance="a:9090"{"," + labels if brace else "}"}'


def _value(look: Mapping[str, float], name: str) -> str:
    return f"{look[name]:f}" if name in look else "_"


def _run(test: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(test)
        file.flush()
        done = subprocess.run(
            [str(PROMTOOL), "test", "rules", file.name], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr

"""Alert rules, their tests, the runbook and the dashboard speak of figures that are exported, and of each other."""

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from typer.core import TyperGroup

from adapters.streams import TAKING_GROUPS, durables, stream_configs
from adapters.telemetry import Metrics, WorkerMetrics
from handlers.cli import app
from handlers.delivery import REASONS
from tests.alerts import NO_PROMTOOL, PROMTOOL, ROOT, RULES
from tests.builders import settings_of

TESTS = RULES.with_name("rules.test.yaml")
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
SCENARIOS: list[dict[str, Any]] = yaml.safe_load(TESTS.read_text())["tests"]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "user-service.json").read_text(encoding="utf-8"))
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "offset", "bool", "le"}
_SETTINGS = settings_of("postgresql://nobody@127.0.0.1/nothing")
VALUES = {
    "dependency": {"database", "nats", "redis", "smtp", "memory", "disk"},
    "group": {durable.name for durable in durables(TAKING_GROUPS)} | set(TAKING_GROUPS),
    "stream": {str(config.name) for config in stream_configs(_SETTINGS)},
    "reason": set(REASONS),
    "method": {"NATS"},
}
"""What labels with few values may be."""


def exported() -> dict[str, set[str]]:
    """Every series that the program exports, by name, with its labels."""
    registry = CollectorRegistry()
    found: dict[str, set[str]] = {"up": set()}
    for holder in (Metrics(), WorkerMetrics(registry)):
        for metric in vars(holder).values():
            if isinstance(metric, MetricWrapperBase):
                labels = set(metric._labelnames)
                for suffix in _SUFFIXES[str(metric._type)]:
                    found[f"{metric._name}{suffix}"] = labels | ({"le"} if suffix == "_bucket" else set())
    for family in registry.collect():  # the process' own
        found |= {f"{family.name}{_SUFFIXES[family.type][0]}": set()}
    return found


EXPORTED = exported()


def faults_of(expression: str) -> Iterator[str]:
    """Names and labels in a PromQL expression that no figure has."""
    used: set[str] = set()
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", expression):
        labels = EXPORTED.get(name, set()) | SCRAPED
        used |= labels
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label not in labels:
                yield f"{name} has no label {label}"
            if "~" not in operator and value not in VALUES.get(label, {value}):
                yield f"{label} is never {value}"
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression)
    for grouped in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", bare):
        for label in filter(None, re.split(r"[\s,]+", grouped)):
            if label not in used:
                yield f"nothing has a label {label}"
    bare = re.sub(r"\b(?:by|without|on)\s*\([^)]*\)", " ", bare)
    for name in re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare):
        if name not in EXPORTED and name not in _WORDS:
            yield f"{name} is not exported"


@pytest.mark.parametrize(
    ("expression", "faults"),
    [
        ('sum by (group) (rate(event_redeliveries_total{job="x"}[5m])) > 1', []),
        ('event_redeliveries{job="x"}', ["event_redeliveries is not exported"]),
        ('sum by (grup) (relay_lag_seconds{job="x"})', ["nothing has a label grup"]),
        ('stream_bytes{strem="USER_EVENTS"}', ["stream_bytes has no label strem"]),
        ('dependency_up{dependency="postgres"}', ["dependency is never postgres"]),
        ('rate(http_request_duration_seconds_bucket{le="2.0"}[5m]) or relay_lag > 1', ["relay_lag is not exported"]),
    ],
)
def test_a_wrong_name_is_found(expression: str, faults: list[str]) -> None:
    assert list(faults_of(expression)) == faults


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_reads_exported_figures_of_our_job_alone(alert: str) -> None:
    expression = ALERTS[alert]["expr"]
    assert list(faults_of(expression)) == []
    assert all('job="user-service"' in matchers for matchers in re.findall(r"\{([^}]*)\}", expression))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_is_wrong_how_urgent_it_is_and_what_to_read(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario["name"]))
def test_a_rules_test_gives_figures_as_they_are_exported(scenario: dict[str, Any]) -> None:
    for given in scenario["input_series"]:
        assert list(faults_of(given["series"])) == []


def test_every_alert_is_tested_to_fire_and_not_to_fire() -> None:
    fires: set[str] = set()
    keeps_still: set[str] = set()
    for scenario in SCENARIOS:
        alert = scenario["name"].partition(",")[0]
        for evaluated in scenario["promql_expr_test"]:
            expected = str(evaluated["exp_samples"])
            (fires if f'alertname="{alert}"' in expected else keeps_still).add(alert)
    assert fires == keeps_still == set(ALERTS)


@pytest.mark.skipif(PROMTOOL is None, reason=NO_PROMTOOL)
def test_the_rules_do_what_their_tests_say() -> None:
    for words in (("check", "rules", RULES.name), ("test", "rules", TESTS.name)):
        done = subprocess.run(
            [str(PROMTOOL), *words], cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert list(SECTIONS) == list(ALERTS)


@pytest.mark.parametrize("alert", SECTIONS)
def test_a_section_says_what_it_means_where_to_look_what_to_do_and_what_not(alert: str) -> None:
    said = re.findall(r"^\*\*(.+?):\*\* (.*)$", SECTIONS[alert], re.MULTILINE)
    assert [name for name, _ in said] == ["Means", "First look", "Do", "Do not"]
    assert re.fullmatch(r"`user-service [^`]+`", dict(said)["First look"])
    for target in re.findall(r"\]\(#([^)]+)\)", SECTIONS[alert]):
        assert target in {name.lower() for name in ALERTS}


@pytest.mark.parametrize("line", sorted(set(re.findall(r"(?:`| {4})(user-service [^`\n]+)", RUNBOOK))))
def test_the_commands_of_the_runbook_are_there(line: str) -> None:
    command = typer.main.get_command(app)
    words = line.split()[1:]
    while isinstance(command, TyperGroup):
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def targets_of_the_dashboard() -> list[dict[str, str]]:
    return [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


@pytest.mark.parametrize("target", targets_of_the_dashboard(), ids=lambda target: str(target["expr"])[:60])
def test_the_dashboard_shows_exported_figures(target: dict[str, str]) -> None:
    assert list(faults_of(target["expr"])) == []
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        assert re.search(rf"\b{label}\b", target["expr"]) or label == "instance"


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells

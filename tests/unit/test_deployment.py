"""What ships beside the code: compose, image, server configuration, lock, import rules. No Docker is needed."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
DEPENDENCIES: list[str] = [*PYPROJECT["project"]["dependencies"], *EXTRAS["dev"], *EXTRAS["otel"]]

each_service = pytest.mark.parametrize("name", SERVICES)


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word} +(.*)$", DOCKERFILE, re.MULTILINE)


def is_one_shot(service: dict[str, Any]) -> bool:
    return service.get("restart") == "no"


@each_service
def test_a_service_is_watched_or_runs_once(name: str) -> None:
    service = SERVICES[name]
    if is_one_shot(service):
        waited_for = [other for other in SERVICES.values() if name in other.get("depends_on", {})]
        assert waited_for
        for other in waited_for:
            assert other["depends_on"][name]["condition"] == "service_completed_successfully"
    elif "build" in service:
        assert len(instructions("HEALTHCHECK")) == 1
        assert "healthcheck" not in service
    else:
        assert {"test", "interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()


@each_service
def test_ports_are_published_on_loopback_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    assert SERVICES[name].get("network_mode", "none") == "none"


@each_service
def test_no_password_is_written_down_or_has_a_default(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        for secret in re.findall(r"://[^/@:]*:([^@]*)@", str(value)):
            assert re.fullmatch(r"\$\{\w+:\?run make compose-env\}", secret), variable
        if re.search("PASSWORD|AUTH|SECRET", variable):
            assert re.fullmatch(r"\$\{\w+:\?run make compose-env\}", value), variable


@each_service
def test_what_a_service_mounts_and_waits_for_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert is_one_shot(SERVICES[other]) or condition == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_our_containers_hold_no_more_power_than_they_need(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["cap_drop"] == ["ALL"]


def test_the_service_never_holds_the_owners_password() -> None:
    assert "OWNER" not in str(SERVICES["service"]["environment"])


def test_compose_env_makes_every_secret_once(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    script = shutil.copy(ROOT / "deploy/compose_env.sh", tmp_path / "deploy")
    env = tmp_path / ".env"

    subprocess.run(["sh", script], check=True, capture_output=True)
    first = env.read_text(encoding="utf-8")
    subprocess.run(["sh", script], check=True, capture_output=True)

    assert env.read_text(encoding="utf-8") == first
    assert env.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".env")] == [".env"]
    values = dict(line.split("=") for line in first.splitlines() if not line.startswith("#"))
    assert values.keys() == set(re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
    assert len(set(values.values())) == len(values)
    assert all(re.fullmatch("s[0-9a-f]{48}", value) for value in values.values())


def test_nats_server_takes_its_configuration_and_the_roles_passwords() -> None:
    server = shutil.which("nats-server", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
    assert server
    variables: list[str] = [name for name in SERVICES["nats"]["environment"] if name.startswith("NATS_")]

    checked = subprocess.run(
        [server, "--config", ROOT / "deploy/nats-server.conf", "-t"],
        env=dict.fromkeys(variables, "s1e5"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stderr
    roles = (ROOT / "adapters/bus_roles.conf").read_text(encoding="utf-8")
    assert set(re.findall(r"password: \$(\w+)", roles)) == set(variables)


def test_an_acknowledged_message_is_on_disk() -> None:
    configuration = (ROOT / "deploy/nats-server.conf").read_text(encoding="utf-8")
    assert re.search(r"^ *sync_interval: always$", configuration, re.MULTILINE)


def test_the_image_is_not_run_by_root_and_passes_signals_on() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", final, re.MULTILINE)
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["docker-entrypoint.sh"]']
    assert 'exec user-service "$@"' in (ROOT / "deploy/docker-entrypoint.sh").read_text(encoding="utf-8")
    assert "gcc" not in final
    assert "apt-get" not in final


def test_all_that_the_image_copies_exists_and_reaches_the_builder() -> None:
    allowed = [line[1:].strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    sources = [path for copy in instructions("COPY") if not copy.startswith("--from") for path in copy.split()[:-1]]

    assert sources
    for path in sources:
        assert (ROOT / path).exists(), path
        assert path.strip("/") in allowed, path
    assert os.access(ROOT / "deploy/docker-entrypoint.sh", os.X_OK)


def test_the_image_holds_every_room() -> None:
    rooms = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {f"{room}/ {room}/" for room in rooms} <= {" ".join(copy.split()) for copy in instructions("COPY")}


@pytest.mark.parametrize(
    ("flags", "starts"), [("avx avx2 bmi1 bmi2 f16c fma abm movbe", True), ("avx abm sse4_2", False)]
)
def test_the_image_says_which_processor_it_needs(tmp_path: Path, flags: str, starts: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} lm\nbugs\t\t:\nflags\t\t: none\n")
    for name, prints in {"uname": "x86_64", "user-service": "started"}.items():
        (tmp_path / name).write_text(f'#!/bin/sh\necho {prints} "$@"\n')
        (tmp_path / name).chmod(0o755)
    script = (ROOT / "deploy/docker-entrypoint.sh").read_text(encoding="utf-8")
    (tmp_path / "entry").write_text(script.replace("/proc/cpuinfo", f"{tmp_path}/cpuinfo").replace("-m)", ")"))

    done = subprocess.run(
        ["sh", tmp_path / "entry", "run", "requests"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "ARGON2_MARCH": "x86-64-v3"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == (0 if starts else 1)
    assert done.stdout == ("started run requests\n" if starts else "")
    assert starts or "has no avx2" in done.stderr


@pytest.mark.parametrize("name", ["uv", "build", "run", "dev"])
def test_the_lock_pins_every_package_by_hash_and_names_no_host(name: str) -> None:
    lock = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    pins = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]

    assert pins
    assert all(re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", pin) for pin in pins)
    assert "://" not in lock


def test_the_lock_names_all_that_pyproject_asks_for() -> None:
    lock = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements/dev.txt").read_text(encoding="utf-8"), re.MULTILINE))
    asked = DEPENDENCIES.copy()
    asked += PYPROJECT["dependency-groups"]["test"]
    assert {distribution_name(requirement) for requirement in asked} <= lock


def test_the_import_rules_name_every_dependency() -> None:
    names = {distribution_name(requirement) for requirement in DEPENDENCIES}
    modules = {
        module
        for module, distributions in packages_distributions().items()
        if not module.startswith(("_", ".")) and {name.lower().replace("_", "-") for name in distributions} & names
    }
    rules = {contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}

    assert modules - {"pydantic"} <= set(rules["contracts-pydantic"]["forbidden_modules"])
    assert modules <= set(rules["domain-stdlib"]["forbidden_modules"])
    embedded = {f"adapters.{path.stem}" for path in (ROOT / "adapters").glob("embedded*.py")}
    assert embedded | {"adapters.mail_sink"} <= set(rules["embedded"]["protected_modules"])


def distribution_name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0].lower().replace("_", "-")

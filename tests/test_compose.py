"""docker-compose.yml: each service is healthy, bounded, without rights or literal secrets, and runs a command that the CLI knows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from streams.cli import main
from streams.settings import Settings

COMPOSE = yaml.safe_load((Path(__file__).resolve().parent.parent / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WRITABLE_ROOT = {"kafka": "the image renders its configuration and logs below /opt/kafka"}
FROM_ENVIRONMENT = re.compile(r"\$\{\w+:\?[^}]+\}")


def problems(name: str, service: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one service, in words."""
    one_shot = service.get("restart") == "no"
    if not one_shot and "test" not in service.get("healthcheck", {}):
        yield "no health check"
    if not one_shot and service.get("restart") != "unless-stopped":
        yield "does not come back after a crash"
    if "mem_limit" not in service:
        yield "no memory limit"
    if str(service.get("user", "root")).partition(":")[0] in {"root", "0"}:
        yield "runs as root"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
        yield "keeps rights that it does not need"
    if service.get("read_only") is not True and name not in WRITABLE_ROOT:
        yield "root file system is writable"
    if not all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])):
        yield "a port is open to the network"
    if any(secrets(service)):
        yield "a secret stands in the file"


def secrets(service: dict[str, Any]) -> Iterator[str]:
    """Secrets that are not taken from the environment."""
    for name, value in service.get("environment", {}).items():
        if re.search(r"PASSWORD|SECRET|TOKEN|CREDENTIAL", name) and not FROM_ENVIRONMENT.fullmatch(str(value)):
            yield name
    for user, password in re.findall(r"://([^/\s:@]*):((?:\$\{[^}]*\}|[^@\s])*)@", str(service)):
        if not FROM_ENVIRONMENT.fullmatch(password):
            yield user


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_healthy_bounded_and_without_rights(name: str) -> None:
    assert list(problems(name, SERVICES[name])) == []


def test_each_rule_can_be_broken() -> None:
    careless = {"ports": ["6379:6379"], "environment": {"REDIS_PASSWORD": "letmein"}, "user": "0:0"}
    assert len(list(problems("careless", careless))) == 8
    assert list(secrets({"command": "worker --redis redis://me:letmein@redis:6379"})) == ["me"]


def test_redis_keeps_what_it_acknowledged_and_evicts_nothing() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "user default off" in command


def test_two_workers_wait_for_topics_and_redis() -> None:
    workers = [service for name, service in SERVICES.items() if name.startswith("worker")]
    assert len(workers) == 2
    for worker in workers:
        assert worker["depends_on"]["topics"]["condition"] == "service_completed_successfully"
        assert worker["depends_on"]["redis"]["condition"] == "service_healthy"


def refusals(root: click.Command, line: str) -> list[str]:
    """Why the command line would refuse this line: a command or an option that it does not know, or one that it misses."""
    words = shlex.split(FROM_ENVIRONMENT.sub("x", line))[1:]
    command = root
    while isinstance(command, click.Group):
        name = words.pop(0) if words else ""
        found = command.get_command(click.Context(command), name)
        if found is None:
            return [f"no command {name!r}"]
        command = found
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    missing = [parameter.opts[0] for parameter in command.params if parameter.required and not given & set(parameter.opts)]
    return [f"no option {option}" for option in sorted(given - known)] + [f"{option} is missing" for option in missing]


LINES = {name: service["command"] for name, service in SERVICES.items() if str(service.get("command", "")).startswith("premonitor ")}


@pytest.mark.parametrize("name", LINES)
def test_the_command_line_knows_each_command(name: str) -> None:
    assert refusals(main, LINES[name]) == []


def test_each_variable_is_a_setting_and_workers_have_names_of_their_own() -> None:
    environments = [service.get("environment", {}) for service in SERVICES.values()]
    ours = {name for environment in environments for name in environment if name.startswith("PREMONITOR_")}
    assert ours <= {f"PREMONITOR_{field.upper()}" for field in Settings.model_fields}
    names = [environment["PREMONITOR_WORKER_NAME"] for environment in environments if "PREMONITOR_WORKER_NAME" in environment]
    assert sorted(set(names)) == names == ["worker-1", "worker-2"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("premonitor topics --kafka k:1", []),
        ("premonitor topics --kafak=k:1", ["no option --kafak", "--kafka is missing"]),
        ("premonitor topic", ["no command 'topic'"]),
        ("premonitor", ["no command ''"]),
    ],
)
def test_a_wrong_line_is_refused(line: str, expected: list[str]) -> None:
    topics = click.Command("topics", params=[click.Option(["--kafka"], required=True)])
    assert refusals(click.Group(commands=[topics]), line) == expected

"""The tracking server's compose file is valid, pinned, unprivileged, and starts with no secret of ours."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

INFRA = Path(__file__).parents[3] / "infra"
TEXT = (INFRA / "docker-compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]


def test_it_follows_the_compose_specification() -> None:
    """Parsed by a strict implementation of the specification; every volume that is used is declared."""
    compose = PyCompose.from_yaml(TEXT)
    compose.validate()
    assert sorted(compose.service_names()) == ["mlflow", "postgres", "s3"]


def test_a_misspelt_key_would_be_found() -> None:
    """The parser is strict: a test of the test."""
    with pytest.raises(ValueError, match="healthchek"):
        PyCompose.from_yaml(TEXT.replace("healthcheck:", "healthchek:", 1))


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_is_root_or_can_become_it(name: str) -> None:
    """A numeric user above 0, no capability, no new privilege, and a health check."""
    service = SERVICES[name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    """A version with its minor, never latest; the image we build is pinned by its own base."""
    assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)?$", SERVICES[name]["image"])


def test_our_image_has_a_pinned_base_the_pinned_mlflow_and_an_ordinary_user() -> None:
    """Server and client have the same version."""
    text = (INFRA / "mlflow.Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["python:3.11.14-slim-bookworm"]
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "1000:1000"
    version = SERVICES["mlflow"]["image"].rpartition(":")[2]
    constraints = (INFRA.parent / "cluster" / "constraints.txt").read_text().splitlines()
    assert f"mlflow=={version}" in constraints


def test_every_secret_comes_from_the_environment_and_is_required() -> None:
    """Each secret is ${NAME:?…}: compose refuses to start without it; the example file names it, empty."""
    example = dict(
        line.split("=", 1)
        for line in (INFRA / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    used = set(re.findall(r"\$\{(\w+)", TEXT))
    assert used == set(re.findall(r"\$\{(\w+):\?", TEXT)) == set(example)
    assert {name for name, value in example.items() if value} == {"MLFLOW_ALLOWED_HOSTS"}
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|BACKEND_STORE_URI", name):
                assert "${" in value, name


def test_the_filled_in_file_is_ignored_by_git() -> None:
    """Nobody commits .env by accident."""
    assert ".env" in (INFRA / ".gitignore").read_text().splitlines()


def test_the_server_answers_only_to_allowed_hosts_and_ports_are_local() -> None:
    """Allowed hosts are required, no port is open to the network, no secret is in a command line."""
    command = SERVICES["mlflow"]["command"]
    assert [argument for argument in command if argument.startswith("--allowed-hosts=") and "*" not in argument]
    assert not re.search("PASSWORD|SECRET", " ".join(str(service.get("command")) for service in SERVICES.values()))
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_postgres_and_s3_are_ready_before_the_server_starts() -> None:
    """It waits for their health, not for their processes."""
    assert SERVICES["mlflow"]["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "s3": {"condition": "service_healthy"},
    }

"""The compose file for one machine: what it names is there, and Lighten takes its settings."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lighten_service import settings

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# What of the Compose Specification is in use: a slip of the pen is none of them.
KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "deploy",
    "entrypoint",
    "environment",
    "healthcheck",
    "image",
    "init",
    "ports",
    "read_only",
    "restart",
    "security_opt",
    "shm_size",
    "stop_grace_period",
    "tmpfs",
    "volumes",
}
HEALTH_KEYS = {"test", "interval", "start_period", "start_interval"}


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_whole(name: str) -> None:
    service = SERVICES[name]
    assert service.keys() <= KEYS
    # An image is pinned to a version.
    assert re.fullmatch(r"\S+:(v?\d[\d.]*|\$\{LIGHTEN_VERSION:-\d[\d.]*\})", service["image"])
    assert service["healthcheck"].keys() <= HEALTH_KEYS
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    for other, condition in service.get("depends_on", {}).items():
        assert "healthcheck" in SERVICES[other]
        assert condition == {"condition": "service_healthy"}


def test_no_port_is_published_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_volumes_are_there() -> None:
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source, target, *mode = volume.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (DEPLOY / source).is_file()
                assert mode == ["ro"]
            else:
                used.add(source)
    assert used == COMPOSE["volumes"].keys()


def test_secrets_stand_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    example = (DEPLOY / "compose.env.example").read_text()
    assert set(re.findall(r"^([A-Z0-9_]+)=", example, re.M)) == wanted
    # Without a value compose refuses to start; none is built in.
    assert not re.search(r"(SECRET|PASSWORD)[A-Z_]*: [^$\s]", TEXT)


def test_lighten_takes_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = SERVICES["lighten"]["environment"]
    assert all(name.startswith("LIGHTEN_") for name in environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", value))
    monkeypatch.setenv("LIGHTEN_DATA_DIR", str(tmp_path))
    read = settings.load()
    assert read.local_workers
    assert read.root_uri.startswith("s3://")
    assert read.s3 is not None
    assert read.s3.access_key == "S3_ACCESS_KEY"
    # Every one is a setting: a name that is none would be ignored.
    for name in environment:
        owner: Any = read
        for part in name.removeprefix("LIGHTEN_").lower().split("__"):
            assert part in type(owner).model_fields, name
            owner = getattr(owner, part)


def test_target_exists_and_signed_urls_reach_callers() -> None:
    lighten, storage = SERVICES["lighten"], SERVICES["s3"]
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    assert f" AS {lighten['build']['target']}\n" in dockerfile
    public = lighten["environment"]["LIGHTEN_S3__PUBLIC_ENDPOINT"].removeprefix("http://")
    assert any(port.startswith(f"{public}:") for port in storage["ports"])
    assert {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]} in lighten["deploy"][
        "resources"
    ]["reservations"]["devices"]


def test_prometheus_scrapes_lighten_and_grafana_asks_prometheus() -> None:
    config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    port = settings.Settings.model_fields["metrics_port"].default
    assert job["static_configs"] == [{"targets": [f"lighten:{port}"]}]
    mounts = [volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]]
    assert all(f"/etc/prometheus/{name}" in mounts for name in config["rule_files"])
    source = yaml.safe_load((DEPLOY / "compose" / "grafana-datasource.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"

"""Prometheus' own tool on the alerts and on what the dashboard asks."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.cluster.build import is_built, program

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.skipif(not is_built("promtool"), reason="built by `make test-kubernetes`"),
]

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = DEPLOY / "helm" / "lighten" / "files"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_alert_fires_when_it_shall_and_only_then() -> None:
    done = promtool("test", "rules", DEPLOY / "monitoring" / "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "rules", FILES / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    # What Grafana puts in by itself.
    filled = [expression.replace("$__rate_interval", "2m") for expression in asked]
    rules = [{"record": f"panel:{number}", "expr": e} for number, e in enumerate(filled)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr

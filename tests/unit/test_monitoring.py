"""What an operator watches: alerts and dashboard speak of metrics that are there, and each alert
has its section in the runbook. `promtool` itself checks the rules in tests/kubernetes.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lighten import v1 as pb
from lighten_service.jobs.ports import LaunchEnd
from tests.support.metrics_sample import sample

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "helm" / "lighten" / "files"
RUNBOOK = ROOT / "docs" / "operations.md"

ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
GRAPHS = [panel for panel in PANELS if panel["type"] != "row"]
QUERIES = [
    (target["expr"], target["legendFormat"]) for panel in GRAPHS for target in panel["targets"]
]

# Prometheus' own, and what it sets on everything that it scrapes.
SCRAPED = {"job", "instance"}
OWN = {"up": SCRAPED}
# Values of labels that rules compare with, where all values are known.
VALUES = {
    ("lighten_worker_losses_total", "reason"): {end.value for end in LaunchEnd},
    ("lighten_jobs", "state"): {
        name.removeprefix("JOB_STATE_").lower()
        for name in pb.JobState.keys()  # noqa: SIM118
    },
    ("lighten_jobs_failed_total", "kind"): {
        name.removeprefix("ERROR_KIND_").lower()
        for name in pb.ErrorKind.keys()  # noqa: SIM118
    },
}
# Files in which the reasons of kind SYSTEM and RESOURCE stand that operators have to do with.
REASONS_IN = (
    "jobs/launch_errors.py",
    "jobs/due.py",
    "jobs/manifest.py",
    "executors/kubernetes",
    "executors/local",
)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of every series that a server has, by its name."""
    found: dict[str, set[str]] = defaultdict(set, OWN)
    with sample(tmp_path_factory.mktemp("data")) as metrics:
        text = generate_latest(metrics.registry).decode()
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            found[each.name] |= SCRAPED | set(each.labels)
    return found


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each series that an expression reads, with what it asks of labels."""
    for name, asked in re.findall(r"\b((?:lighten|process)_\w+|up)\b(?:{([^}]*)})?", expression):
        yield name, dict(re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', asked))


def kept_labels(expression: str, labels: dict[str, set[str]]) -> set[str]:
    """Return the labels that the result of an expression has."""
    listed = re.findall(r"\bby \(([^)]*)\)", expression)
    if listed:
        return set.union(*({name.strip() for name in names.split(",")} for names in listed))
    return set.union(*(labels[name] for name, _ in selectors(expression)))


@pytest.mark.parametrize("expression", [rule["expr"] for rule in ALERTS] + [q for q, _ in QUERIES])
def test_expressions_read_metrics_that_are_there(
    expression: str, labels: dict[str, set[str]]
) -> None:
    read = list(selectors(expression))
    assert read
    for name, asked in read:
        assert name in labels
        assert set(asked) <= labels[name]
        for label, value in asked.items():
            known = VALUES.get((name, label))
            assert known is None or set(value.split("|")) <= known
    every = set.union(*(labels[name] for name, _ in read))
    for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert {name.strip() for name in names.split(",") if name} <= every


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_where_it_is_explained(
    rule: dict[str, Any], labels: dict[str, set[str]]
) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    text = RUNBOOK.read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL))
    assert notes["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
    section = sections[rule["alert"]]
    assert f"({rule['labels']['severity']})" in " ".join(section.split())
    assert "\nLook at: " in section
    assert "\nDo: " in section
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(notes.values())))
    assert used <= kept_labels(rule["expr"], labels)


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    sections = set(re.findall(r"^### (Lighten\w+)", RUNBOOK.read_text(), re.MULTILINE))
    assert sections == {rule["alert"] for rule in ALERTS}


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((ROOT / "deploy" / "monitoring" / "rules_test.yaml").read_text())
    fired = {
        test["name"]
        for test in tests["tests"]
        for check in test["promql_expr_test"]
        if check["exp_samples"] and f'alertname="{test["name"]}"' in check["expr"]
    }
    silent = {
        test["name"]
        for test in tests["tests"]
        for check in test["promql_expr_test"]
        if not check["exp_samples"]
    }
    assert fired == silent == {rule["alert"] for rule in ALERTS}


def test_links_of_the_runbook_lead_somewhere() -> None:
    text = RUNBOOK.read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors


def test_every_reason_of_the_installation_is_explained() -> None:
    service = ROOT / "service" / "lighten_service"
    reasons: set[str] = set()
    for name in REASONS_IN:
        path = service / name
        for file in [path] if path.suffix else path.glob("*.py"):
            reasons |= set(re.findall(r'\(\s*"([A-Z]+(?:_[A-Z]+)+)",', file.read_text()))
    table = RUNBOOK.read_text().partition("## Errors of jobs")[2].partition("\n## ")[0]
    assert len(reasons) > 20
    assert reasons - set(re.findall(r"`([A-Z_]+)`", table)) == set()


# --- the dashboard ------------------------------------------------------------------------------


def test_grafana_can_read_the_dashboard() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    assert DASHBOARD["id"] is None
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in GRAPHS:
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] >= other["x"] + other["w"] or other["x"] >= one["x"] + one["w"]
        above = one["y"] >= other["y"] + other["h"] or other["y"] >= one["y"] + one["h"]
        assert beside or above


def test_the_data_source_and_the_server_can_be_chosen() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    for panel in GRAPHS:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources)
    for expression, _ in QUERIES:
        used = set(re.findall(r"\$(?!__)(\w+)", expression))
        assert used == {"job", "instance"} <= set(variables)


def test_legends_name_labels_that_are_left(labels: dict[str, set[str]]) -> None:
    for expression, legend in QUERIES:
        assert set(re.findall(r"{{(\w+)}}", legend)) <= kept_labels(expression, labels)

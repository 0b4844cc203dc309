"""What the documents promise is there."""

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel

from lighten.spec import load_spec
from lighten_service.jobs.support import TECHNIQUES
from lighten_service.settings import Settings, load
from lighten_service.telemetry.metrics import Metrics
from tools.technique_tables import DOCUMENT, render

ROOT = Path(__file__).parents[2]


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if nested:
            yield from setting_names(nested[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_settings_are_the_documented_ones() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([a-z0-9_.]+)`", row)}
    assert documented == set(setting_names(Settings))


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    names = set(re.findall(r"^# TYPE (\S+) ", generate_latest(registry).decode(), re.MULTILINE))
    text = (ROOT / "docs" / "operations.md").read_text()
    missing = {n for n in names if n.startswith("lighten_") and not n.endswith("_created")} - set(
        re.findall(r"`(lighten_[a-z_]+)`", text)
    )
    assert not missing


def blocks(language: str) -> list[str]:
    """The code blocks of one language in the README."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_specs_in_the_readme_can_be_read() -> None:
    with_steps, with_goal = map(load_spec, blocks("yaml"))
    steps = [step.WhichOneof("technique") for step in with_steps.plan.steps.steps]
    assert steps == ["fold_batch_norms", "cross_layer_equalization", "calibrate"]
    assert with_goal.plan.goal.max_drop == 0.01


def test_the_configuration_in_the_readme_can_be_loaded(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "lighten.toml").write_text(text)
    settings = load(tmp_path / "lighten.toml")
    assert settings.storage_root == "s3://models/lighten"


def test_the_python_in_the_readme_compiles() -> None:
    for number, text in enumerate(blocks("python")):
        compile(text, f"README.md, Python block {number}", "exec")


def test_every_technique_is_documented_with_its_parameters() -> None:
    text = DOCUMENT.read_text()
    assert render(text) == text, "run `make techniques`"
    for technique in TECHNIQUES.values():
        assert f"## {technique.name}\n" in text
        assert f"<!-- table: {technique.message.name} -->" in text


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"

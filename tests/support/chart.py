"""The Helm chart, rendered and installed by the real ``helm``."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.support.cluster.build import program

Json = dict[str, Any]

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "lighten"
VALUES = sorted((CHART / "ci").iterdir())
RELEASE = "lighten"
# The API that objects are checked against.
KUBERNETES = "1.36"
_SECONDS = 120.0


class HelmError(RuntimeError):
    """helm said no; the message is what it wrote."""


def helm(*arguments: str | Path, values: Json | None = None) -> str:
    """Run helm and return its output. Raises HelmError.

    Args:
        arguments: of the command.
        values: for ``--values``.
    """
    command = [str(program("helm")), *map(str, arguments)]
    if values is not None:
        command.append("--values=-")
    done = subprocess.run(
        command,
        input=yaml.safe_dump(values) if values is not None else "",
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return done.stdout


def render(
    *files: Path, values: Json | None = None, namespace: str = "lighten", release: str = RELEASE
) -> list[Json]:
    """Return the objects of a release. Raises HelmError."""
    options = [f"--values={path}" for path in files]
    text = helm(
        "template",
        release,
        CHART,
        f"--namespace={namespace}",
        f"--kube-version={KUBERNETES}",
        *options,
        values=values,
    )
    return [document for document in yaml.safe_load_all(text) if document]


def find(objects: Iterable[Json], kind: str, suffix: str = "") -> Json:
    """Return the one object of a kind (whose name ends so)."""
    (found,) = (
        each
        for each in objects
        if each["kind"] == kind and (not suffix or each["metadata"]["name"].endswith(suffix))
    )
    return found

"""Every recipe of docs/recipes runs end to end: real server, real models, few samples."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import lighten
from lighten import v1 as pb
from lighten.cli.inputs import read_in_place, read_spec
from tests.support.lighten_server import LightenServer
from tools.recipe import RECIPES, inputs, names
from tools.recipe_inputs import CACHE, prepare

SAMPLES = 8
# For a search that ends within the time of a test; the recipe's own are for a better model.
TRIALS, SECONDS = 3, 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightenServer]:
    """A server that reads the recipes' inputs where they lie."""
    settings = {"LIGHTEN_FILE_ROOTS": str(CACHE)}
    with LightenServer(tmp_path_factory.mktemp("recipes"), settings) as running:
        yield running


def run(client: lighten.Client, name: str) -> pb.Job:
    prepare(inputs(name), print)
    spec, found = read_spec(RECIPES / name / "job.yaml")
    read_in_place(found)
    _shrink(spec)
    return client.wait(client.submit(spec).name)


def _shrink(spec: pb.JobSpec) -> None:
    for data in (spec.calibration, spec.evaluation):
        data.max_samples = SAMPLES
    spec.skip_naive = True
    if spec.plan.HasField("goal"):
        spec.plan.goal.max_trials = TRIALS
        spec.plan.goal.time_budget.FromSeconds(SECONDS)
    for step in spec.plan.steps.steps:
        technique = step.WhichOneof("technique") or ""
        parameters = getattr(step, technique)
        if "max_samples" in parameters.DESCRIPTOR.fields_by_name:
            parameters.max_samples = SAMPLES


@pytest.mark.parametrize("name", names())
def test_the_recipe_runs(client: lighten.Client, name: str, tmp_path: Path) -> None:
    job = run(client, name)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    result = job.result
    assert all(check.passed for check in result.checks)
    wanted = [step.WhichOneof("technique") for step in job.spec.plan.steps.steps]
    done = [report.step.WhichOneof("technique") for report in result.steps if not report.skipped]
    assert set(wanted) <= set(done)
    metrics = {value.metric: value for value in result.optimized.metrics}
    assert metrics[pb.METRIC_SQNR].samples == SAMPLES
    files = {path.name for path in client.download(job.name, tmp_path)}
    assert "model.encodings" in files
    assert ("model.qdq.onnx" in files) == job.resolved_spec.outputs.qdq_onnx

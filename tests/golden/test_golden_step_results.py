"""Step results that earlier versions wrote, of each engine, and the models that come of them.

A new format adds a folder ``step_result_ENGINE_F`` and leaves those before it. To write them:
``python -m tests.golden.test_golden_step_results``
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from lighten import v1 as pb
from lighten_service.worker.checkpoints.decisions import (
    FORMAT_VERSION,
    Decisions,
    Origin,
    Progress,
)
from lighten_service.worker.model import WorkingModel
from tests.support.depthwise_net import pictures
from tests.support.technique_kit import CHANNEL, ENGINES, Bench, InMemory, open_engine

FOLDER = Path(__file__).parent
ENGINE_TYPES = {"torch": pb.ENGINE_TORCH, "onnx": pb.ENGINE_ONNX}
STEPS = [
    pb.Step(id="fold", fold_batch_norms=pb.FoldBatchNorms()),
    pb.Step(id="calibrate", calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)),
    pb.Step(id="correct", bias_correction=pb.BiasCorrection(max_samples=8)),
]
# Between machines, in shares of the largest output; a step of the output's grid is 0.004 of it.
TOLERANCE = 0.01


def network() -> nn.Module:
    """Weights are those of the step result."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(196, 5),
    ).eval()


def origin(engine: str) -> Origin:
    job, versions, inputs = "projects/default/jobs/a", {"torch": "2.9"}, {"s3://m": "ab"}
    return Origin(job, ENGINE_TYPES[engine], versions, inputs)


def predicted(model: WorkingModel) -> np.ndarray:
    (output,) = model.predict(pictures(1, seed=7)[0]).values()
    return output


@pytest.mark.parametrize(
    "folder", sorted(FOLDER.glob("step_result_*_*")), ids=lambda folder: folder.name
)
def test_a_step_result_of_an_earlier_version_is_read(folder: Path, tmp_path: Path) -> None:
    decisions = Decisions.from_text((folder / "decisions.json").read_bytes())
    engine = folder.name.split("_")[2]
    assert decisions.origin == origin(engine)
    assert [report.step for report in decisions.progress.steps] == STEPS
    assert decisions.progress.steps[0].findings["folded_batch_norms"] == 1
    assert decisions.progress.analyses["correct"]["layers"]
    assert [warning.step_id for warning in decisions.progress.warnings] == ["correct"]

    model = open_engine(engine, network(), tmp_path)
    model.load_state(folder, decisions.model)
    expected = np.load(folder / "expected.npy")
    np.testing.assert_allclose(predicted(model), expected, atol=TOLERANCE * abs(expected).max())
    weights = [found for found in model.encodings() if found.tensor.endswith(".weight")]
    assert [len(found.scales) for found in weights] == [4, 5]


def test_there_are_step_results_of_the_newest_version() -> None:
    for engine in ENGINES:
        assert (FOLDER / f"step_result_{engine}_{FORMAT_VERSION}").is_dir()


def write(engine: str, folder: Path, scratch: Path) -> None:
    data = InMemory(pictures(1)), InMemory(pictures(1, seed=1))
    bench = Bench(open_engine(engine, network(), scratch), *data, scratch, CHANNEL)
    progress = Progress(warnings=bench.warnings)
    for step in STEPS:
        context = bench.context()
        context.stage.step_id = step.id
        found = bench.run_in(context, **{step.WhichOneof("technique"): _parameters(step)})
        progress.steps.append(pb.StepReport(step=step, findings=found.values, seconds=0.1))
        if found.data:
            progress.analyses[step.id] = found.data
    folder.mkdir()
    facts = bench.model.save_state(folder)
    (folder / "decisions.json").write_text(Decisions(origin(engine), progress, facts).to_text())
    np.save(folder / "expected.npy", predicted(bench.model))


def _parameters(step: pb.Step) -> object:
    return getattr(step, step.WhichOneof("technique") or "")


if __name__ == "__main__":
    for engine in sys.argv[1:] or ENGINES:
        with tempfile.TemporaryDirectory() as scratch:
            write(engine, FOLDER / f"step_result_{engine}_{FORMAT_VERSION}", Path(scratch))

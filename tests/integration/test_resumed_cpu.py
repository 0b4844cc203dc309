"""An attempt that goes on after another's step, which ran on a CPU of its own."""

from pathlib import Path

import pytest

from lighten import v1 as pb
from lighten_service.worker.checkpoints.decisions import Decisions, Origin, Progress
from lighten_service.worker.checkpoints.step_results import StepResult
from lighten_service.worker.cpu import this_cpu
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.pipeline import Pipeline
from lighten_service.worker.session import Assignment
from lighten_service.worker.stages import Stages
from tests.support.depthwise_net import DepthwiseNet
from tests.support.technique_kit import Silent, open_engine

STEPS = [
    pb.Step(id="fold", fold_batch_norms=pb.FoldBatchNorms()),
    pb.Step(id="calibrate", calibrate=pb.Calibrate()),
]
ORIGIN = Origin("projects/default/jobs/a", pb.ENGINE_ONNX, {}, {})


@pytest.fixture
def model(tmp_path: Path) -> WorkingModel:
    return open_engine("onnx", DepthwiseNet(), tmp_path)


def resumed(model: WorkingModel, scratch: Path, cpus: list[pb.AttemptCpu]) -> Pipeline:
    """Return attempt 3, gone on from attempt 2; ``cpus``: what its step result tells."""
    folder = scratch / "resume"
    folder.mkdir()
    progress = Progress([pb.StepReport(step=STEPS[0])], cpus=cpus)
    written = Decisions(ORIGIN, progress, model.save_state(folder)).to_text()
    reached = StepResult(2, "fold", folder, Decisions.from_text(written.encode()))

    spec = pb.JobSpec(
        model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX),
        plan=pb.Plan(steps=pb.Steps(steps=STEPS)),
    )
    kinds = [pb.Stage.KIND_PREPARE, pb.Stage.KIND_STEP, pb.Stage.KIND_STEP]
    pipeline = Pipeline(
        Assignment(ORIGIN.job, 3, spec, (), "file:///nowhere/"),
        None,  # type: ignore[arg-type]  # nothing is sent or fetched
        Stages(Silent(), pb.QuantizationConfig(), scratch, 0, kinds),
        scratch,
    )
    pipeline._go_on(reached, model, None)  # type: ignore[arg-type]
    assert [report.step.id for report in pipeline.steps] == ["fold"]
    return pipeline


def reasons(pipeline: Pipeline) -> list[str]:
    return [warning.reason for warning in pipeline.stages.warnings]


def test_attempts_on_one_kind_of_cpu_are_listed(model: WorkingModel, tmp_path: Path) -> None:
    earlier = [this_cpu(1), this_cpu(2)]
    pipeline = resumed(model, tmp_path, earlier)
    assert pipeline.cpus == [*earlier, this_cpu(3)]
    assert reasons(pipeline) == []


def test_a_step_on_another_kind_of_cpu_is_warned_of(model: WorkingModel, tmp_path: Path) -> None:
    other = pb.AttemptCpu(attempt=2, model="AMD EPYC 7763", instruction_sets=["avx2"])
    pipeline = resumed(model, tmp_path, [other])
    assert pipeline.cpus == [other, this_cpu(3)]
    assert reasons(pipeline) == ["RESUMED_ON_ANOTHER_CPU"]


def test_instruction_sets_make_another_kind_of_cpu(model: WorkingModel, tmp_path: Path) -> None:
    other = this_cpu(2)
    del other.instruction_sets[-1]
    assert reasons(resumed(model, tmp_path, [other])) == ["RESUMED_ON_ANOTHER_CPU"]


def test_a_step_result_that_tells_no_cpu_is_gone_on_from(
    model: WorkingModel, tmp_path: Path
) -> None:
    pipeline = resumed(model, tmp_path, [])
    assert pipeline.cpus == [this_cpu(3)]
    assert reasons(pipeline) == []

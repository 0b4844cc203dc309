"""What the result says of the device and provider of every stage, and when it warns."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from lighten import v1 as pb
from lighten_service.worker.engines.onnx_providers import CUDA
from lighten_service.worker.runtime import CPU, GraphSession
from lighten_service.worker.stages import RAN_ON_CPU, Stages

PLANNED = [pb.Stage.KIND_FETCH, pb.Stage.KIND_STEP, pb.Stage.KIND_STEP, pb.Stage.KIND_PUBLISH]


class Quiet:
    def __init__(self) -> None:
        self.events: list[pb.JobEvent] = []

    def send(self, event: pb.JobEvent) -> None:
        self.events.append(event)

    def check(self) -> None:
        pass


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(Quiet(), pb.QuantizationConfig(), tmp_path, 0, PLANNED)


def relu(*providers: str) -> GraphSession:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return GraphSession(model, providers=providers)


def run(session: GraphSession) -> None:
    session.predict({"x": np.zeros((1, 4), np.float32)})


def test_every_stage_names_its_device_and_the_provider_that_ran(stages: Stages) -> None:
    with stages.enter(pb.Stage.KIND_FETCH, "Fetch"):
        session = relu(CPU)
    stages.device = "cuda:0 NVIDIA A10"
    with stages.enter(pb.Stage.KIND_STEP, "One", step_id="one"):
        run(session)
        run(session)
    with stages.enter(pb.Stage.KIND_STEP, "Two", step_id="two"):
        pass
    with stages.enter(pb.Stage.KIND_PUBLISH, "Publish"):
        reports = stages.reports()

    assert [report.stage.kind for report in reports] == PLANNED
    assert [report.stage.step_id for report in reports] == ["", "one", "two", ""]
    # Opened is not run.
    assert [report.provider for report in reports] == ["", CPU, "", ""]
    assert [report.device for report in reports] == ["cpu"] + ["cuda:0 NVIDIA A10"] * 3
    assert all(report.seconds > 0 for report in reports)
    assert stages.warnings == []


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_fall_back_to_the_cpu_is_told_once(stages: Stages) -> None:
    session = relu(CUDA, CPU)
    for step_id in ("one", "two"):
        with stages.enter(pb.Stage.KIND_STEP, step_id, step_id=step_id):
            run(session)

    (warning,) = stages.warnings
    assert (warning.reason, warning.step_id) == (RAN_ON_CPU, "one")
    assert CUDA in warning.message
    assert {report.provider for report in stages.reports()} == {CPU}
    told = [event for event in stages.reporter.events if event.HasField("warning")]  # type: ignore[attr-defined]
    assert len(told) == 1


def test_a_cpu_that_was_asked_for_is_no_fall_back(stages: Stages) -> None:
    stages.device = "cuda:0 NVIDIA A10"
    with stages.enter(pb.Stage.KIND_STEP, "Verify"):
        run(relu(CPU))
    assert stages.warnings == []

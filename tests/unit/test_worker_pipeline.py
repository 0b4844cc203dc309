"""Parts of the pipeline that need no server."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument, ResourceExhausted
from lighten_service.worker.context import StepContext
from lighten_service.worker.errors import to_job_error
from lighten_service.worker.fetch import fetch_inputs
from lighten_service.worker.graphs.coverage import tensors_without_grid
from lighten_service.worker.runtime import GraphSession


class Quiet:
    def __init__(self) -> None:
        self.events: list[pb.JobEvent] = []

    def send(self, event: pb.JobEvent) -> None:
        self.events.append(event)

    def check(self) -> None:
        pass


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return StepContext(
        stage=pb.Stage(kind=pb.Stage.KIND_STEP, step_id="x"),
        reporter=Quiet(),
        quantization=pb.QuantizationConfig(),
        calibration=None,
        evaluation=None,
        scratch=tmp_path,
        device="cpu",
        seed=0,
    )


def graph(nodes: list[onnx.NodeProto], kind: int, initializers: list[onnx.TensorProto]):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", kind, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def floats(name: str, *shape: int) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, shape, np.ones(shape).ravel())


def test_samples_that_onnx_runtime_refuses_are_the_callers_fault() -> None:
    model = graph(
        [helper.make_node("Gather", ["w", "x"], ["y"])], TensorProto.INT64, [floats("w", 3, 2)]
    )
    session = GraphSession(model)
    with pytest.raises(Exception, match="indices") as caught:
        session.predict({"x": np.full((1, 4), 99, np.int64)})
    error = to_job_error(caught.value, None)

    assert (error.reason, error.kind) == ("RUNTIME_REFUSED_INPUT", pb.ERROR_KIND_USER)
    assert not error.retryable
    assert not error.reference


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.FLOAT])
def test_a_cast_needs_no_grid_of_its_own(kind: int) -> None:
    model = graph(
        [
            helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["c", "w"], ["y"]),
        ],
        kind,
        [floats("w", 4, 2)],
    )
    names = {"w"} if kind == TensorProto.INT32 else {"w", "x"}
    assert tensors_without_grid(model, names) == ()
    assert tensors_without_grid(model, names - {"w"}) == ("w",)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", ""])
def test_a_name_that_leaves_its_folder_is_not_fetched(context: StepContext, path: str) -> None:
    inputs = [
        pb.ResolvedInput(field="model.artifact", uri="s3://b/m/", files=[pb.InputFile(path=path)])
    ]
    with pytest.raises(InvalidArgument) as caught:
        fetch_inputs(context, inputs, None, context.scratch, scratch_bytes=1 << 20)  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.field) == ("INVALID_PATH", "model.artifact")


def test_inputs_beyond_the_scratch_space_are_not_fetched(context: StepContext) -> None:
    inputs = [
        pb.ResolvedInput(
            field="model.artifact", uri="s3://b/m", files=[pb.InputFile(path="m", bytes=9)]
        )
    ]
    with pytest.raises(ResourceExhausted) as caught:
        fetch_inputs(context, inputs, None, context.scratch, scratch_bytes=8)  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.field) == (
        "SCRATCH_TOO_SMALL",
        "resources.scratch_bytes",
    )


def test_parts_of_a_stage_share_its_progress(context: StepContext) -> None:
    for part in (context.part(0.0, 0.25), context.part(0.25, 1.0)):
        for done in (0, 5, 10):
            part.progress(done, 10, "samples")
    fractions = [event.progress.fraction for event in context.reporter.events]  # type: ignore[attr-defined]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)

"""The gate runs the same integer arithmetic on every CPU."""

from pathlib import Path

import onnx
import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import Internal
from lighten_service.worker import verify as gate
from lighten_service.worker.columns import Column, measure
from lighten_service.worker.integers import exact
from lighten_service.worker.integers.proof import is_proven, prove
from lighten_service.worker.integers.twin import unsigned_twin
from lighten_service.worker.produce import write_outputs
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import Bench, InMemory, open_engine

OUTPUTS = pb.Outputs(encodings=[pb.ENCODINGS_VERSION_2_0_0], float_onnx=True, qdq_onnx=True)
PUBLISHED = "published_sqnr_to_fp32_db/output"


class Gate:
    """A job at its end: files, and the columns that they are compared with."""

    def __init__(self, scratch: Path, range_: pb.WeightRange.ValueType) -> None:
        model = open_engine("onnx", DepthwiseNet(), scratch)
        data = InMemory(pictures(2)), InMemory(pictures(1, seed=1))
        self.bench = Bench(model, *data, scratch, pb.QuantizationConfig(weight_range=range_))
        self.fp32 = self._column("fp32", None)
        self.bench.run(fold_batch_norms=pb.FoldBatchNorms())
        self.bench.run(calibrate=pb.Calibrate())
        self.simulated = self._column("optimized", self.fp32)
        context = self.bench.context()
        _, self.exported = write_outputs(context, model, OUTPUTS, scratch / "artifacts")
        assert self.exported.qdq is not None
        self.proof = prove(self.exported.qdq)

    def _column(self, name: str, fp32: Column | None) -> Column:
        model, samples = self.bench.model, self.bench.evaluation
        reference = None if fp32 is None else fp32.recorded
        return measure(
            self.bench.context(),
            name,
            model.predict,
            model.statistics(),
            samples,
            reference=reference,
        )

    def optimized(self) -> pb.Check:
        """Return the check of ONNX Runtime as users run it."""
        checks = gate.verify(
            self.bench.context(),
            self.exported,
            proof=self.proof,
            samples=self.bench.evaluation,
            fp32=self.fp32,
            simulated=self.simulated,
        )
        return next(check for check in checks if check.name == "onnxruntime_optimized")


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> list[onnx.ModelProto]:
    """Pretend that this CPU saturates, and keep the twins that are made."""
    made = []

    def twin(model: onnx.ModelProto) -> onnx.ModelProto:
        made.append(unsigned_twin(model))
        return made[-1]

    monkeypatch.setattr(gate, "saturates", lambda: True)
    monkeypatch.setattr(exact, "unsigned_twin", twin)
    return made


def test_a_file_that_is_not_proven_is_checked_as_its_twin(
    tmp_path: Path, twins: list[onnx.ModelProto]
) -> None:
    job = Gate(tmp_path, pb.WEIGHT_RANGE_FULL)
    assert not is_proven(job.proof)
    check = job.optimized()
    assert check.passed
    assert len(twins) == 1
    # What the file itself gives here stands beside; the kernels of this CPU may be exact.
    assert check.values[PUBLISHED] <= check.values["sqnr_to_fp32_db/output"] + 1e-9
    assert "the file itself has" in check.detail
    assert job.bench.reasons() == ["SATURATED_ON_THIS_CPU"]


def test_a_proven_file_is_checked_itself(tmp_path: Path, twins: list[onnx.ModelProto]) -> None:
    job = Gate(tmp_path, pb.WEIGHT_RANGE_EVERY_CPU)
    assert is_proven(job.proof)
    check = job.optimized()
    assert not twins
    assert PUBLISHED not in check.values
    assert not job.bench.warnings


def test_so_is_any_file_where_kernels_are_exact(
    tmp_path: Path, twins: list[onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "saturates", lambda: False)
    job = Gate(tmp_path, pb.WEIGHT_RANGE_FULL)
    monkeypatch.setattr(gate, "TOLERANCE_DB", 1000.0)  # they need not be on this CPU
    assert PUBLISHED not in job.optimized().values
    assert not twins


def test_a_twin_that_is_not_what_was_simulated_fails_the_job(
    tmp_path: Path, twins: list[onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Gate(tmp_path, pb.WEIGHT_RANGE_FULL)

    def halved(model: onnx.ModelProto) -> onnx.ModelProto:
        twin = unsigned_twin(model)
        for tensor in twin.graph.initializer:
            if tensor.data_type == onnx.TensorProto.UINT8 and len(tensor.dims) > 1:
                codes = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(codes // 2, tensor.name))
        return twin

    monkeypatch.setattr(exact, "unsigned_twin", halved)
    with pytest.raises(Internal) as caught:
        job.optimized()
    assert caught.value.reason == "VERIFICATION_FAILED"
    assert list(caught.value.metadata) == ["onnxruntime_optimized"]

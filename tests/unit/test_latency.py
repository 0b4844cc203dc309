"""Latency of real ONNX files in ONNX Runtime."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.worker.latency import measure_latency

FEEDS = {"x": np.ones((1, 64), np.float32)}


def chain(path: Path, layers: int, width: int = 64) -> Path:
    """Write a model of ``layers`` matrix products."""
    weight = numpy_helper.from_array(np.full((width, width), 0.01, np.float32), "w")
    names = ["x", *(f"h{n}" for n in range(layers - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [source, "w"], [target]) for source, target in pairwise(names)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_two_models_are_measured_in_one_go(tmp_path):
    models = {"short": chain(tmp_path / "a.onnx", 1), "long": chain(tmp_path / "b.onnx", 400)}
    found = measure_latency(models, FEEDS, threads=1, budget_seconds=20, runs=30)
    assert list(found) == ["short", "long"]
    for latency in found.values():
        assert latency.runs == 30
        assert 0 < latency.median_seconds <= latency.p90_seconds
        assert (latency.batch_size, latency.threads) == (1, 1)
        assert latency.provider == "CPUExecutionProvider"
        assert latency.runtime == f"onnxruntime {onnxruntime.__version__}"
    assert found["long"].median_seconds > 5 * found["short"].median_seconds


def test_models_take_turns(tmp_path, monkeypatch):
    order: list[str] = []
    real = onnxruntime.InferenceSession

    class Recorded(real):  # type: ignore[misc, valid-type]
        def __init__(self, path, *args, **options):
            super().__init__(path, *args, **options)
            self.name = Path(path).stem

        def run(self, *args):
            order.append(self.name)
            return super().run(*args)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    models = {name: chain(tmp_path / f"{name}.onnx", 1) for name in ("a", "b", "c")}
    measure_latency(models, FEEDS, threads=1, runs=5)
    assert "".join(order) == "abc" * (3 + 5)


def test_slow_models_get_fewer_rounds_but_never_fewer_than_five(tmp_path):
    models = {"slow": chain(tmp_path / "a.onnx", 200)}
    found = measure_latency(models, FEEDS, threads=1, budget_seconds=0, runs=10_000)
    assert found["slow"].runs == 5


def test_the_measurement_can_be_stopped(tmp_path):
    class Stop(BaseException):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Stop

    with pytest.raises(Stop):
        measure_latency({"a": chain(tmp_path / "a.onnx", 1)}, FEEDS, threads=1, check=check)
    assert calls == 6


def test_a_file_that_does_not_load_is_refused_with_its_name(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"garbage")
    for path in (tmp_path / "a.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(FailedPrecondition, match="the optimized model") as caught:
            measure_latency({"optimized": path}, FEEDS, threads=1)
        assert caught.value.reason == "RUNTIME_REFUSED_MODEL"


@pytest.mark.parametrize("feeds", [{}, {"x": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 64))}])
def test_feeds_that_do_not_fit_are_refused(tmp_path, feeds):
    with pytest.raises(FailedPrecondition) as caught:
        measure_latency({"a": chain(tmp_path / "a.onnx", 1)}, feeds, threads=1)
    assert caught.value.reason == "RUNTIME_REFUSED_MODEL"

"""The two sides of the benchmark of sensitivity analysis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aimet_onnx
import numpy as np
import torch
from aimet_torch.quant_analyzer import QuantAnalyzer
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.techniques.analyze_sensitivity import AnalyzeSensitivity
from lighten_service.techniques.calibrate import Calibrate
from lighten_service.worker.algorithms.sensitivity import group_sqnr_db
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.datasets import open_dataset
from lighten_service.worker.engines.onnx_engine import open_onnx_model
from lighten_service.worker.engines.torch_engine import open_torch_model
from lighten_service.worker.metrics import OutputSums
from lighten_service.worker.model import Batch, WorkingModel
from lighten_service.worker.samples import Head
from tests.support.small_models import architecture_spec
from tests.support.technique_kit import Silent
from tools.demo import CACHE
from tools.demo_data import DemoData, prepare

Values = NDArray[np.float32]
_SEED = 0
_BATCH = 8
# Names of the quantizers of each of AIMET's layers.
Groups = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Sides:
    """Each returns the SQNR of AIMET's layers, in dB; ``technique`` runs all that Lighten does."""

    aimet: Callable[[], Sequence[float]]
    lighten: Callable[[], Sequence[float]]
    technique: Callable[[], Sequence[float]]


def open_sides(engine: str, side: int, batches: int, scratch: Path) -> Sides:
    """Calibrate MobileNetV2 on photos, and return what measures its layers."""
    data = prepare(CACHE, print)
    model = _open(engine, data, side, scratch)
    model.fold_batch_norms()
    samples = Head(_photos(data, model, side, scratch), _BATCH * batches)
    context = StepContext(
        stage=pb.Stage(kind=pb.Stage.KIND_STEP, step_id="sensitivity"),
        reporter=Silent(),
        quantization=pb.QuantizationConfig(),
        calibration=samples,
        evaluation=None,
        scratch=scratch,
        device="cpu",
        seed=_SEED,
    )
    Calibrate().run(context, model, pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX))
    quantized = model.quantized_model()
    inputs = [batch.inputs for batch in samples.batches()]
    hand = (_TorchByHand if engine == "torch" else _OnnxByHand)(quantized, inputs, scratch)

    def lighten() -> Sequence[float]:
        return group_sqnr_db(context, quantized, [*hand.groups.values()], samples.count)

    def technique() -> Sequence[float]:
        parameters = pb.AnalyzeSensitivity(max_samples=samples.count)
        return [*AnalyzeSensitivity().run(context, model, parameters).values.values()]

    return Sides(hand.run, lighten, technique)


def _open(engine: str, data: DemoData, side: int, scratch: Path) -> WorkingModel:
    spec = architecture_spec("mobilenet_v2", side)
    spec.model.format = pb.MODEL_FORMAT_STATE_DICT
    model = open_torch_model(spec, data.weights, scratch=scratch, device="cpu", seed=_SEED)
    if engine == "torch":
        return model
    file = scratch / "float.onnx"
    model.export_float(file)
    return open_onnx_model(pb.JobSpec(), file, scratch=scratch, device="cpu", seed=_SEED)


def _photos(data: DemoData, model: WorkingModel, side: int, scratch: Path) -> Samples:
    dataset = pb.Dataset(
        format=pb.DATASET_FORMAT_IMAGE_TAR,
        batch_size=_BATCH,
        preprocessing=pb.Preprocessing(
            resize=pb.Resize(shorter_side=side),
            center_crop=pb.CenterCrop(height=side, width=side),
            scale=1 / 255,
            mean=[0.485, 0.456, 0.406],
            std=[0.229, 0.224, 0.225],
        ),
    )
    return open_dataset(
        dataset,
        data.calibration,
        inputs=model.inputs,
        class_names=(),
        scratch=scratch,
        field="calibration",
        on_warning=lambda *_: None,
    )


class _TorchByHand:
    """aimet-torch's QuantAnalyzer."""

    def __init__(self, quantized: Any, batches: Sequence[Batch], scratch: Path) -> None:
        self._sim = quantized.simulation
        self._inputs = [torch.from_numpy(batch["input"]) for batch in batches]
        with quantized.only(()):
            self._expected = [self._predict(each) for each in self._inputs]
        self._scratch = scratch
        self.groups: Groups = {}
        for quantizer in quantized.quantizers():
            module = quantizer.name.rpartition(".")[0].rpartition(".")[0]
            self.groups.setdefault(module, []).append(quantizer.name)

    def run(self) -> Sequence[float]:
        analyzer = QuantAnalyzer.__new__(QuantAnalyzer)  # its constructor folds and copies
        analyzer._dummy_input = self._inputs[0][:1]
        analyzer._eval_callback = lambda _: self._measure()
        found = analyzer.perform_per_layer_analysis_by_enabling_quant_wrappers(
            self._sim, str(self._scratch / "aimet")
        )
        return [found[name] for name in self.groups]

    def _measure(self) -> float:
        sums = OutputSums()
        for inputs, expected in zip(self._inputs, self._expected, strict=True):
            sums.add(expected, self._predict(inputs))
        return sums.result("output").sqnr_db

    @torch.no_grad()
    def _predict(self, inputs: torch.Tensor) -> Values:
        found: Values = self._sim.model(inputs).numpy()
        return found


class _OnnxByHand:
    """aimet-onnx's analyze_per_layer_sensitivity."""

    def __init__(self, quantized: Any, batches: Sequence[Batch], scratch: Path) -> None:
        simulation = quantized._simulation
        self._sim = simulation._sim
        self._batches = batches
        with quantized.only(()):
            self._expected = [self._predict(self._sim.session, each) for each in self._batches]
        names = {id(quantizer): name for name, quantizer in simulation.distinct().items()}
        self.groups: Groups = {}
        for op in self._sim.connected_graph.ordered_ops:
            inputs, outputs, parameters = self._sim.get_op_quantizers(op)
            found = [each for each in (*inputs, *outputs, *parameters.values()) if each.enabled]
            if found:
                self.groups[op.name_op] = [names[id(each)] for each in found]

    def run(self) -> Sequence[float]:
        found = aimet_onnx.analyze_per_layer_sensitivity(self._sim, self._measure)
        return [found[name] for name in self.groups]

    def _measure(self, session: Any) -> float:
        sums = OutputSums()
        for batch, expected in zip(self._batches, self._expected, strict=True):
            sums.add(expected, self._predict(session, batch))
        return sums.result("output").sqnr_db

    @staticmethod
    def _predict(session: Any, batch: Batch) -> Values:
        found: Values = session.run(None, dict(batch))[0]
        return found

"""The two sides of the pipeline's benchmark: calibration by Lighten, and by AIMET's own calls."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aimet_onnx
import aimet_torch
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.techniques.calibrate import Calibrate
from lighten_service.worker import quantsim
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.engines.onnx_engine import OnnxModel, open_onnx_model
from lighten_service.worker.engines.torch_engine import TorchModel
from lighten_service.worker.engines.torch_export import Signature
from lighten_service.worker.engines.torch_prepare import example_inputs, prepare
from lighten_service.worker.formats.architecture import load_architecture_model
from lighten_service.worker.model import Batch, WorkingModel
from lighten_service.worker.reporter import EventReporter
from lighten_service.worker.runtime import CPU, thread_count
from tests.support.small_models import architecture_spec, save_weights

Output = NDArray[np.float32]

_SEED = 0
_OPSET = 21
# A configuration whose quantizers Lighten leaves as they are, with a scale for each channel.
_QUANTIZATION = pb.QuantizationConfig(
    hardware_config="htp_v73", weight_granularity=pb.GRANULARITY_PER_CHANNEL
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """``run`` is what is timed; ``predict`` runs the calibrated simulation on the first batch."""

    run: Callable[[], object]
    predict: Callable[[], Output]


@dataclass(frozen=True)
class Batches(Samples):
    """Calibration samples in memory."""

    inputs: Sequence[Batch]

    @property
    def count(self) -> int:
        return sum(len(next(iter(batch.values()))) for batch in self.inputs)

    @property
    def labelled(self) -> bool:
        return False

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        for batch in self.inputs:
            yield LabelledBatch(batch)


@dataclass
class Outbox:
    """What the reporter tells, without a server."""

    backlog: int = 0
    events: list[pb.JobEvent] = field(default_factory=list)

    def send(self, event: pb.JobEvent) -> None:
        self.events.append(event)

    def check(self) -> None:
        """Never stop."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What both sides share; ``scratch`` is a folder of this setting alone."""

    architecture: str
    side: int
    scheme: pb.RangeScheme.ValueType
    batches: Sequence[Batch]
    scratch: Path

    @property
    def samples(self) -> Batches:
        return Batches(self.batches)

    def config(self, engine: pb.Engine.ValueType) -> str:
        return str(quantsim.config_file(_QUANTIZATION, self.scratch, engine))


def torch_sides(setting: Setting) -> tuple[Callable[[], Calibration], Callable[[], Calibration]]:
    """Return what prepares a calibration by hand, and by the pipeline, with aimet-torch."""
    module, wrap = float_module(setting)
    example = example_inputs((_input(setting.side),), seed=_SEED)
    config = setting.config(pb.ENGINE_TORCH)

    def by_hand() -> Calibration:
        model = copy.deepcopy(module)

        def forward(simulated: torch.nn.Module) -> None:
            for batch in setting.batches:
                simulated(torch.from_numpy(batch["input"]))

        def run() -> None:
            sim = aimet_torch.QuantizationSimModel(
                model,
                example,
                quant_scheme=quantsim.scheme_name(setting.scheme),
                default_output_bw=8,
                default_param_bw=8,
                in_place=True,
                config_file=config,
            )
            sim.compute_encodings(forward)

        @torch.no_grad()
        def predict() -> Output:
            return model(torch.from_numpy(setting.batches[0]["input"])).numpy()

        return Calibration(run, predict)

    return by_hand, lambda: _by_pipeline(setting, wrap(copy.deepcopy(module)))


def onnx_sides(setting: Setting) -> tuple[Callable[[], Calibration], Callable[[], Calibration]]:
    """Return what prepares a calibration by hand, and by the pipeline, with aimet-onnx."""
    exported, file = setting.scratch / "exported.onnx", setting.scratch / "float.onnx"
    module, wrap = float_module(setting)
    wrap(module).export_float(exported)
    spec = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX))
    opened = open_onnx_model(spec, exported, scratch=setting.scratch, device="cpu", seed=_SEED)
    opened.export_float(file)
    config = setting.config(pb.ENGINE_ONNX)

    def by_hand() -> Calibration:
        model = onnx.load(file)
        sims: list[aimet_onnx.QuantizationSimModel] = []

        def run() -> None:
            sim = aimet_onnx.QuantizationSimModel(
                model,
                param_type="int8",
                activation_type="int8",
                quant_scheme=quantsim.scheme_name(setting.scheme),
                config_file=config,
                providers=[CPU],
                session_options_kwargs={"intra_op_num_threads": thread_count()},
            )
            sim.compute_encodings(setting.batches)
            sims.append(sim)

        return Calibration(run, lambda: sims[0].session.run(None, setting.batches[0])[0])

    def by_pipeline() -> Calibration:
        model = OnnxModel(
            onnx.load(file), opened.inputs, scratch=setting.scratch, device="cpu", seed=_SEED
        )
        return _by_pipeline(setting, model)

    return by_hand, by_pipeline


def _by_pipeline(setting: Setting, model: WorkingModel) -> Calibration:
    context = StepContext(
        stage=pb.Stage(kind=pb.Stage.KIND_STEP, step_id="calibrate"),
        reporter=EventReporter(Outbox()),  # type: ignore[arg-type]
        quantization=_QUANTIZATION,
        calibration=setting.samples,
        evaluation=None,
        scratch=setting.scratch,
        device="cpu",
        seed=_SEED,
    )
    parameters = pb.Calibrate(scheme=setting.scheme)
    return Calibration(
        run=lambda: Calibrate().run(context, model, parameters),
        predict=lambda: model.predict(setting.batches[0])[model.output_names[0]],
    )


def float_module(
    setting: Setting,
) -> tuple[torch.nn.Module, Callable[[torch.nn.Module], TorchModel]]:
    """Return a prepared module with folded batch norms, and what makes a working model of it."""
    specs = (_input(setting.side),)

    def wrap(module: torch.nn.Module) -> TorchModel:
        signature = Signature(("input",), ("output",), _OPSET)
        return TorchModel(
            module, specs, signature, scratch=setting.scratch, device="cpu", seed=_SEED
        )

    spec = architecture_spec(setting.architecture, setting.side)
    weights = save_weights(setting.architecture, setting.scratch / "model.safetensors")
    loaded = load_architecture_model(spec.model, weights, seed=_SEED)
    module = prepare(loaded, example_inputs(specs, seed=_SEED))
    wrap(module).fold_batch_norms()  # in place
    return module, wrap


def _input(side: int) -> pb.InputSpec:
    return pb.InputSpec(name="input", shape=[3, side, side])

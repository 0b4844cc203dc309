"""The two sides of the benchmark of weight roundings: techniques of Lighten, and AIMET's own calls.

Each side goes from the float model to a calibrated 4-bit one: AIMET with `apply_adaround` or
`apply_seq_mse` and the calls that its documents ask for around them, Lighten with its calibration
and the technique. Both draw from one seed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aimet_onnx
import aimet_torch
import onnx
import torch
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.common.defs import QuantScheme
from aimet_torch.seq_mse import apply_seq_mse

from lighten import v1 as pb
from lighten_service.techniques import run_step
from lighten_service.worker import quantsim
from lighten_service.worker.context import StepContext
from lighten_service.worker.engines.onnx_engine import OnnxModel, open_onnx_model
from lighten_service.worker.engines.torch_prepare import example_inputs
from lighten_service.worker.model import Batch, WorkingModel
from lighten_service.worker.reporter import EventReporter
from lighten_service.worker.runtime import CPU, thread_count
from tests.benchmarks.calibrations import Outbox, Output, Setting, float_module

_SEED = 0
_QUANTIZATION = pb.QuantizationConfig(
    weights=pb.DATA_TYPE_INT4,
    activations=pb.DATA_TYPE_INT8,
    hardware_config="htp_v73",
    weight_granularity=pb.GRANULARITY_PER_CHANNEL,
)
_WEIGHT_BITS, _ACTIVATION_BITS = 4, 8


Predict = Callable[[Batch], Output]


@dataclass(frozen=True, slots=True)
class Side:
    """``run`` is what is timed; ``predict`` runs the simulation that it leaves behind."""

    run: Callable[[], object]
    predict: Predict


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides do: AdaRound with so many iterations, or sequential MSE without any."""

    setting: Setting
    iterations: int = 0

    @property
    def step(self) -> pb.Step:
        samples = self.setting.samples.count
        if not self.iterations:
            return pb.Step(sequential_mse=pb.SequentialMse(candidates=20, max_samples=samples))
        return pb.Step(
            ada_round=pb.AdaRound(
                iterations=self.iterations,
                max_samples=samples,
                regularization=0.01,
                warm_start=0.2,
                beta_start=20,
                beta_end=2,
            )
        )

    def config(self, engine: pb.Engine.ValueType) -> str:
        return str(quantsim.config_file(_QUANTIZATION, self.setting.scratch, engine))


def torch_sides(work: Work) -> tuple[Predict, Side, Side, Side]:
    """Return float inference, nearest rounding and the technique by Lighten, and by AIMET."""
    module, wrap = float_module(work.setting)
    nearest = _by_pipeline(work, wrap(copy.deepcopy(module)), rounded=False)
    pipeline = _by_pipeline(work, wrap(copy.deepcopy(module)), rounded=True)
    return _torch_predict(module), nearest, pipeline, _torch_by_hand(work, copy.deepcopy(module))


def _torch_by_hand(work: Work, module: torch.nn.Module) -> Side:
    spec = pb.InputSpec(name="input", shape=[3, work.setting.side, work.setting.side])
    example = example_inputs((spec,), seed=_SEED)
    config = work.config(pb.ENGINE_TORCH)
    data = [torch.from_numpy(batch["input"]) for batch in work.setting.batches]
    sims: list[aimet_torch.QuantizationSimModel] = []

    def simulate(model: torch.nn.Module) -> aimet_torch.QuantizationSimModel:
        return aimet_torch.QuantizationSimModel(
            model,
            example,
            quant_scheme="tf",
            default_output_bw=_ACTIVATION_BITS,
            default_param_bw=_WEIGHT_BITS,
            config_file=config,
        )

    def ada_round() -> aimet_torch.QuantizationSimModel:
        parameters = AdaroundParameters(data, len(data), default_num_iterations=work.iterations)
        rounded = Adaround.apply_adaround(
            module,
            example,
            parameters,
            path=str(work.setting.scratch),
            filename_prefix="adaround",
            default_param_bw=_WEIGHT_BITS,
            default_quant_scheme=QuantScheme.post_training_tf,
            default_config_file=config,
        )
        sim = simulate(rounded)
        sim.set_and_freeze_param_encodings(str(work.setting.scratch / "adaround.encodings"))
        return sim

    def sequential_mse() -> aimet_torch.QuantizationSimModel:
        sim = simulate(module)
        apply_seq_mse(sim, data, num_candidates=20)
        return sim

    def run() -> None:
        torch.manual_seed(_SEED)
        sim = ada_round() if work.iterations else sequential_mse()
        sim.compute_encodings(lambda model: [model(batch) for batch in data])
        sims.append(sim)

    return Side(run, lambda batch: _torch_predict(sims[0].model)(batch))


def _torch_predict(module: torch.nn.Module) -> Predict:
    @torch.no_grad()
    def predict(batch: Batch) -> Output:
        return module(torch.from_numpy(batch["input"])).numpy()

    return predict


def onnx_sides(work: Work) -> tuple[Predict, Side, Side, Side]:
    """As `torch_sides`."""
    scratch = work.setting.scratch
    exported, file = scratch / "exported.onnx", scratch / "float.onnx"
    module, wrap = float_module(work.setting)
    wrap(module).export_float(exported)
    spec = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX))
    opened = open_onnx_model(spec, exported, scratch=scratch, device="cpu", seed=_SEED)
    opened.export_float(file)

    def model() -> OnnxModel:
        return OnnxModel(onnx.load(file), opened.inputs, scratch=scratch, device="cpu", seed=_SEED)

    nearest = _by_pipeline(work, model(), rounded=False)
    pipeline = _by_pipeline(work, model(), rounded=True)
    return _torch_predict(module), nearest, pipeline, _onnx_by_hand(work, file)


def _onnx_by_hand(work: Work, file: Path) -> Side:
    sims: list[aimet_onnx.QuantizationSimModel] = []

    def run() -> None:
        torch.manual_seed(_SEED)
        sim = aimet_onnx.QuantizationSimModel(
            onnx.load(file),
            param_type="int4",
            activation_type="int8",
            quant_scheme="tf",
            config_file=work.config(pb.ENGINE_ONNX),
            providers=[CPU],
            session_options_kwargs={"intra_op_num_threads": thread_count()},
        )
        if work.iterations:
            aimet_onnx.apply_adaround(sim, work.setting.batches, num_iterations=work.iterations)
        else:
            aimet_onnx.apply_seq_mse(sim, work.setting.batches, num_candidates=20)
        sim.compute_encodings(work.setting.batches)
        sims.append(sim)

    return Side(run, lambda batch: sims[0].session.run(None, dict(batch))[0])


def _by_pipeline(work: Work, model: WorkingModel, *, rounded: bool) -> Side:
    context = StepContext(
        stage=pb.Stage(kind=pb.Stage.KIND_STEP, step_id="step"),
        reporter=EventReporter(Outbox()),  # type: ignore[arg-type]
        quantization=_QUANTIZATION,
        calibration=work.setting.samples,
        evaluation=None,
        scratch=work.setting.scratch,
        device="cpu",
        seed=_SEED,
    )

    def run() -> None:
        calibrate = pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)
        run_step(context, model, pb.Step(calibrate=calibrate))
        if rounded:
            run_step(context, model, work.step)

    return Side(run, lambda batch: model.predict(batch)[model.output_names[0]])

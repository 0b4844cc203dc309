"""The working model of an ONNX upload, on aimet-onnx."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Self, TypeVar

import onnx
import onnxruntime
import torch
from aimet_onnx.common.utils import AimetLogger
from google.protobuf.message import DecodeError

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, LightenError
from lighten_service.worker.checkpoints.moments import moment_tensors, moments_of
from lighten_service.worker.checkpoints.reading import (
    Facts,
    InvalidStepResult,
    plain,
    same,
    take,
    take_message,
)
from lighten_service.worker.checkpoints.tensors import load_tensors, save_tensors
from lighten_service.worker.engines import onnx_layers, onnx_rescale, onnx_state
from lighten_service.worker.engines.onnx_normalise import normalise
from lighten_service.worker.engines.onnx_providers import device_name, providers_for
from lighten_service.worker.engines.onnx_quantized import OnnxQuantized
from lighten_service.worker.engines.onnx_sample import deviation, open_session, sample, settle_batch
from lighten_service.worker.engines.onnx_simulation import Simulation
from lighten_service.worker.formats.onnx_inputs import fix_inputs
from lighten_service.worker.formats.onnx_safety import load_onnx_model
from lighten_service.worker.graphs.save import load_exact, save_exact, save_single_file
from lighten_service.worker.graphs.statistics import graph_statistics
from lighten_service.worker.kernels import use_exact_float32
from lighten_service.worker.model import Batch, Encoding, ModelStatistics, Outputs, WorkingModel
from lighten_service.worker.providers import note_run
from lighten_service.worker.rescale import ChannelScales
from lighten_service.worker.runtime import GraphSession, session_options, short_reason

# Largest share of the output's magnitude by which an exact rewrite may move it: rounding alone.
_TOLERANCE = 1e-3
# What AIMET raises about graphs and types that it cannot simulate.
_AIMET_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    ValueError,
    KeyError,
    NotImplementedError,
    AssertionError,
)
_EXPORT_ERRORS: Final[tuple[type[Exception], ...]] = (LightenError, *_AIMET_ERRORS)

# Of a step result.
_MODEL_FILE: Final = "model.onnx"
_STATE_FILE: Final = "state.safetensors"

T = TypeVar("T")


def open_onnx_model(
    spec: pb.JobSpec, path: Path, *, scratch: Path, device: str, seed: int
) -> "OnnxModel":
    """Load an upload and bring it into the form that AIMET reads well.

    Args:
        spec: its ``model.inputs`` are used.
        path: the ``.onnx`` file, or the folder that holds it with its external data.
        scratch: folder for temporary files.
        device: ``cpu`` or ``cuda:N``; falls back to the CPU where ONNX Runtime has no CUDA.
        seed: chooses the sample on which the rewritten graph is compared with the file.

    Raises:
        InvalidArgument: what `load_onnx_model` and `fix_inputs` raise; UNSUPPORTED_BATCH;
            INVALID_MODEL where the model does not run.
        FailedPrecondition: REWRITE_CHANGED_MODEL.
    """
    # They would write to standard output.
    AimetLogger.set_level_for_all_areas(logging.WARNING)
    # Algorithms compute layers with torch.
    use_exact_float32()
    original = load_onnx_model(path)
    inputs = fix_inputs(original, spec.model.inputs)
    providers = providers_for(device)
    reference = settle_batch(original, inputs, scratch=scratch, providers=providers, seed=seed)
    model = OnnxModel(normalise(original), inputs, scratch=scratch, device=device, seed=seed)
    model.require_same(reference, "preparing the graph")
    return model


class OnnxModel(WorkingModel):
    """A float ONNX graph, and its quantization simulation once it is calibrated."""

    engine = pb.ENGINE_ONNX

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: tuple[pb.InputSpec, ...],
        *,
        scratch: Path,
        device: str,
        seed: int,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._parent = scratch
        self._scratch = Path(tempfile.mkdtemp(prefix="onnx-", dir=scratch))
        self._requested_device = device
        self._providers = providers_for(device)
        self._seed = seed
        self._moments: onnx_layers.LayerMoments = {}
        # Pairs of layers that were equalized, in AIMET's terms.
        self._equalized: list[onnx_layers.EqualizedPairs] = []
        self._session: GraphSession | None = None
        self._simulation: Simulation | None = None
        self._opened: OnnxQuantized | None = None
        # Of the simulation; None: not read since it changed.
        self._encodings: tuple[Encoding, ...] | None = None

    @property
    def inputs(self) -> tuple[pb.InputSpec, ...]:
        return self._inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(output.name for output in self._model.graph.output)

    @property
    def device(self) -> str:
        return device_name(self._float_session().provider, self._requested_device)

    @property
    def quantized(self) -> bool:
        return self._simulation is not None

    def copy(self) -> Self:
        self._require_float()
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        other = type(self)(
            model,
            self._inputs,
            scratch=self._parent,
            device=self._requested_device,
            seed=self._seed,
        )
        other._moments = dict(self._moments)
        other._equalized = list(self._equalized)
        return other

    def predict(self, batch: Batch) -> Outputs:
        if self._simulation is not None:
            return self._simulation.predict(batch)
        return self._float_session().predict(batch)

    def statistics(self) -> ModelStatistics:
        return graph_statistics(self._model, self.encodings() if self.quantized else ())

    def fold_batch_norms(self) -> int:
        before = self._probe()
        count, moments = self._rewrite(onnx_layers.fold_batch_norms)
        self.require_same(before, "folding batch norms")
        self._moments |= moments
        return count

    def replace_relu6(self) -> int:
        return self._rewrite(onnx_layers.replace_relu6)

    def equalize(self) -> int:
        self.fold_batch_norms()
        self._equalized = self._rewrite(lambda model: onnx_layers.scale(model, self._moments))
        return len(onnx_layers.scaled_layers(self._equalized))

    def absorb_high_biases(self) -> int:
        return self._rewrite(
            lambda model: onnx_layers.absorb_high_biases(model, self._equalized, self._moments)
        )

    def rescale(self, scales: Mapping[str, ChannelScales]) -> None:
        self._moments = self._rewrite(
            lambda model: onnx_rescale.rescale(model, scales, self._moments)
        )

    def calibrate(
        self,
        quantization: pb.QuantizationConfig,
        parameters: pb.Calibrate,
        batches: Callable[[], Iterable[Batch]],
        *,
        on_batch: Callable[[int], None],
    ) -> Mapping[str, float]:
        self._require_float()
        simulation = self._simulate(quantization, parameters)
        counts = simulation.calibrate(batches(), on_batch)
        self._simulation = simulation
        self.quantized_model().bound_weights()
        return counts

    def quantized_model(self) -> OnnxQuantized:
        simulation = self._calibrated()
        if self._opened is None:
            self._opened = OnnxQuantized(
                self._model,
                simulation,
                self._moments,
                device=self.device.split()[0],
                open_float=self._open_piece,
                on_change=self._forget_encodings,
            )
        return self._opened

    def graph(self) -> onnx.ModelProto:
        return self._model

    def export_float(self, path: Path) -> None:
        save_single_file(self._model, path)

    def export_encodings(self, path: Path, version: pb.EncodingsVersion.ValueType) -> None:
        self._calibrated().export_encodings(path, version)

    def export_qdq(self, path: Path) -> None:
        """See `WorkingModel.export_qdq`.

        Raises:
            FailedPrecondition: QDQ_NOT_RUNNABLE where ONNX Runtime does not load the graph.
        """
        simulation = self._calibrated()
        try:
            save_single_file(simulation.to_qdq(), path)
            for optimize in (False, True):
                GraphSession(path, optimize=optimize)
        except _EXPORT_ERRORS as error:
            path.unlink(missing_ok=True)
            raise FailedPrecondition(
                "QDQ_NOT_RUNNABLE",
                "ONNX Runtime cannot run the model with these widths; use INT8, or leave out the "
                f"QDQ output: {short_reason(error.__cause__ or error)}",
                field="plan.quantization",
            ) from error

    def encodings(self) -> tuple[Encoding, ...]:
        if self._encodings is None:
            self._encodings = self._calibrated().encodings()
        return self._encodings

    def save_state(self, folder: Path) -> Facts:
        save_exact(self._model, folder / _MODEL_FILE)
        tensors, facts = dict(moment_tensors(self._moments)), {}
        if self._simulation is not None:
            states = self._simulation.states()
            originals = self._opened.originals if self._opened is not None else {}
            tensors |= onnx_state.quantizer_tensors(states)
            tensors |= onnx_state.original_tensors(originals)
            facts["simulation"] = {
                "quantization": plain(self._simulation.quantization),
                "calibrate": plain(self._simulation.parameters),
                "quantizers": onnx_state.quantizer_facts(states),
            }
        save_tensors(tensors, folder / _STATE_FILE)
        return facts

    def load_state(self, folder: Path, facts: Facts) -> None:
        self._require_float()
        tensors = load_tensors(folder / _STATE_FILE)
        try:
            model = load_exact(folder / _MODEL_FILE)
        except (DecodeError, OSError) as error:
            raise InvalidStepResult(f"{_MODEL_FILE}: {error}") from error
        same(_signature(model), _signature(self._model), "the list of inputs and outputs")
        self._model, self._session = model, None
        self._moments = moments_of(tensors)
        if "simulation" in facts:
            self._load_simulation(take(facts, "simulation", dict), tensors)

    def _load_simulation(self, facts: Facts, tensors: Mapping[str, torch.Tensor]) -> None:
        simulation = self._simulate(
            take_message(facts, "quantization", pb.QuantizationConfig()),
            take_message(facts, "calibrate", pb.Calibrate()),
        )
        states = onnx_state.quantizer_states(take(facts, "quantizers", dict), tensors)
        same(sorted(states), sorted(simulation.distinct()), "the list of quantizers")
        simulation.load_states(states)
        same(simulation.states(), states, "the state of the quantizers")
        self._simulation = simulation
        if originals := onnx_state.originals_of(tensors):
            self.quantized_model().resume(originals)

    def close(self) -> None:
        self._session = None
        self._opened = None
        self._simulation = None
        shutil.rmtree(self._scratch, ignore_errors=True)

    def require_same(self, before: Outputs, what: str) -> None:
        """Check that the float model still computes what it did.

        Raises:
            FailedPrecondition: REWRITE_CHANGED_MODEL.
        """
        moved = deviation(before, self._probe())
        if moved > _TOLERANCE:
            raise FailedPrecondition(
                "REWRITE_CHANGED_MODEL",
                f"{what} moved an output by {moved:.2g} of its magnitude",
                field="model.artifact",
            )

    def _simulate(
        self, quantization: pb.QuantizationConfig, parameters: pb.Calibrate
    ) -> Simulation:
        """Return a simulation of the float graph, without ranges."""
        simulated = onnx.ModelProto()
        simulated.CopyFrom(self._model)
        folder = self._scratch / "simulation"
        folder.mkdir(exist_ok=True)
        try:
            return Simulation(
                simulated, quantization, parameters, scratch=folder, providers=self._providers
            )
        except LightenError:
            raise
        except _AIMET_ERRORS as error:
            raise FailedPrecondition(
                "QUANTIZATION_REFUSED",
                f"AIMET cannot simulate this model: {short_reason(error)}",
                field="model.artifact",
            ) from error

    def _probe(self) -> Outputs:
        return self._float_session().predict(sample(self._model, self._inputs, self._seed))

    def _rewrite(self, change: Callable[[onnx.ModelProto], T]) -> T:
        self._require_float()
        self._session = None
        return change(self._model)

    def _float_session(self) -> GraphSession:
        if self._session is None:
            self._session = open_session(self._model, self._scratch, self._providers)
        return self._session

    def _open_piece(self, piece: onnx.ModelProto) -> onnxruntime.InferenceSession:
        session = onnxruntime.InferenceSession(
            piece.SerializeToString(), session_options(), providers=list(self._providers)
        )
        note_run(session, self._providers)
        return session

    def _forget_encodings(self) -> None:
        self._encodings = None

    def _require_float(self) -> None:
        if self._simulation is not None:
            raise FailedPrecondition(
                "ALREADY_QUANTIZED", "this step needs the float model; put it before calibrate"
            )

    def _calibrated(self) -> Simulation:
        if self._simulation is None:
            raise FailedPrecondition(
                "NOT_QUANTIZED", "there is no quantized model before calibrate"
            )
        return self._simulation


def _signature(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in (*model.graph.input, *model.graph.output)]

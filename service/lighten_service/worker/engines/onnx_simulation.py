"""The quantization simulation of an ONNX model with aimet-onnx: insert, calibrate, export."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import aimet_onnx
import numpy as np
import onnx
import onnxruntime
from aimet_onnx import QuantizationSimModel
from aimet_onnx.common import libpymo
from aimet_onnx.qc_quantize_op import QcQuantizeOp
from aimet_onnx.utils import register_aimet_custom_ops
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.worker import quantsim
from lighten_service.worker.engines.blocks import is_blockwise
from lighten_service.worker.engines.onnx_blocks import set_blocks, weighted_layers
from lighten_service.worker.engines.onnx_grids import QuantizerState
from lighten_service.worker.engines.onnx_mean_ranges import MeanRanges
from lighten_service.worker.engines.onnx_places import (
    Decisions,
    Owner,
    Places,
    decide,
    decide_unsigned,
)
from lighten_service.worker.engines.onnx_types import aimet_type, is_half, is_integer, set_type
from lighten_service.worker.graphs.clean import clean_qdq
from lighten_service.worker.graphs.qdq import read_encodings
from lighten_service.worker.integers.twin import unsigned_twin
from lighten_service.worker.model import Batch, Encoding, Outputs
from lighten_service.worker.providers import note_run
from lighten_service.worker.runtime import run_portions, session_options, thread_count

Values = NDArray[np.generic]

_VERSIONS = {
    pb.ENCODINGS_VERSION_0_6_1: "0.6.1",
    pb.ENCODINGS_VERSION_1_0_0: "1.0.0",
    pb.ENCODINGS_VERSION_2_0_0: "2.0.0",
}
_NAMES_SHOWN = 5
_LARGEST_SCALE = 1e30


class Simulation:
    """AIMET's simulation of one model. It lives as long as its session is used."""

    def __init__(
        self,
        model: onnx.ModelProto,
        quantization: pb.QuantizationConfig,
        parameters: pb.Calibrate,
        *,
        scratch: Path,
        providers: Sequence[object],
    ) -> None:
        """Insert quantizers into ``model``, which belongs to the simulation from here on.

        Raises:
            InvalidArgument: SELECTOR_MATCHES_NOTHING.
        """
        self._names = tuple(output.name for output in model.graph.output)
        self._scratch = scratch
        self._providers = list(providers)
        self.quantization, self.parameters = quantization, parameters
        self._scheme = quantsim.scheme_name(parameters.scheme)
        self._percentile = quantsim.percentile_value(parameters)
        # None: ranges are AIMET's.
        self._reach = quantsim.mean_reach(parameters)
        self._insert(model)

    def _insert(self, model: onnx.ModelProto) -> None:
        quantization, scratch = self.quantization, self._scratch
        places, layers = Places(model.graph), weighted_layers(model.graph)
        self._sim = QuantizationSimModel(
            model,
            param_type=aimet_type(quantization.weights),
            activation_type=aimet_type(quantization.activations),
            quant_scheme=self._scheme,
            config_file=str(quantsim.config_file(quantization, scratch, pb.ENGINE_ONNX)),
            providers=self._providers,
            path=str(scratch),
            session_options_kwargs={
                "intra_op_num_threads": thread_count(),
                "log_severity_level": 4,
            },
        )
        self._stale = False
        self._leave_float(places.settings())
        if quantsim.fuses(quantization):
            self._fuse(places.inner_outputs())
        enabled = dict.fromkeys(self._enabled())
        self.owners: Mapping[str, Owner] = {n: places.owner(n, enabled) for n in enabled}
        overrides = quantization.overrides
        decisions = decide(overrides, places.operators, self.owners, self.weights)
        self._apply(decisions)
        unsigned = decide_unsigned(overrides, places.operators, self.owners)
        # Weights that the QDQ graph stores as UINT8.
        self.unsigned: frozenset[str] = unsigned & self.weights
        if is_blockwise(quantization):
            own = self.weights & set(decisions)
            set_blocks(self._sim, layers, quantization, own)
        self._set_percentile()

    def bounds(self, name: str) -> bool:
        """Say whether a weight's integers must suit every CPU: those of symmetric 8-bit grids."""
        quantizer = self.quantizers[name]
        return (
            self.quantization.weight_range == pb.WEIGHT_RANGE_EVERY_CPU
            and name not in self.unsigned
            and is_integer(quantizer)
            and quantizer.bitwidth == 8
            and bool(quantizer.use_symmetric_encodings)
        )

    def rebuild(self, model: onnx.ModelProto) -> None:
        """Start again from a float graph with more tensors. Types and ranges stay."""
        states = self.states()
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        # Its session has the file open that the new one writes.
        del self._sim
        self._insert(copy)
        self.load_states(states)

    def distinct(self) -> dict[str, QcQuantizeOp]:
        """Return the quantizers of operators, those that AIMET tied to one another once."""
        first: dict[int, str] = {}
        for name in self.owners:
            first.setdefault(id(self.quantizers[name]), name)
        return {name: self.quantizers[name] for name in first.values()}

    def states(self) -> Mapping[str, QuantizerState]:
        """Return types, ranges and switches of all quantizers of operators."""
        return {name: QuantizerState.of(q) for name, q in self.distinct().items()}

    def load_states(self, states: Mapping[str, QuantizerState]) -> None:
        for name, state in states.items():
            state.load(self.quantizers[name])

    @property
    def graph(self) -> onnx.ModelProto:
        """The graph with AIMET's quantizers as nodes of the type ``QcQuantizeOp``."""
        model: onnx.ModelProto = self._sim.model.model
        return model

    @property
    def weights(self) -> frozenset[str]:
        """Names of the quantizers of weights, which are those of the weights."""
        return frozenset(self._sim.param_names)

    @property
    def quantizers(self) -> Mapping[str, QcQuantizeOp]:
        """AIMET's quantizers by the tensor that they quantize. Some stand for several tensors."""
        quantizers: Mapping[str, QcQuantizeOp] = self._sim.qc_quantize_op_dict
        return quantizers

    def changed(self) -> None:
        """Take note that the graph has changed: weights are part of the session."""
        self._stale = True

    def open_piece(self, piece: onnx.ModelProto) -> onnxruntime.InferenceSession:
        """Open a part of `graph`. The simulation must outlive the session."""
        options = register_aimet_custom_ops(session_options())
        session = onnxruntime.InferenceSession(
            piece.SerializeToString(), options, providers=self._providers
        )
        note_run(session, self._providers)
        return session

    def calibrate(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None]
    ) -> Mapping[str, float]:
        """Choose every range from ``batches``, one at a time in memory.

        Raises:
            FailedPrecondition: NO_QUANTIZERS, EMPTY_CALIBRATION_DATA, UNCALIBRATED_QUANTIZERS,
                NON_FINITE_RANGES.
        """
        weights, enabled = self.weights, self._enabled()
        if not any(n in weights for n in enabled) or not any(n not in weights for n in enabled):
            raise FailedPrecondition(
                "NO_QUANTIZERS",
                "the model has no weight or no activation that this configuration quantizes",
                field="plan.quantization",
            )
        with aimet_onnx.compute_encodings(self._sim):
            self._observe(batches, on_batch, enabled)
        self._require_finite(enabled)
        count = sum(name in weights for name in enabled)
        return {
            "weight_quantizers": float(count),
            "activation_quantizers": float(len(enabled) - count),
        }

    def calibrate_activations(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None]
    ) -> None:
        """Choose the ranges of activations anew; weights keep theirs.

        Raises:
            FailedPrecondition: as `calibrate`. The ranges are undefined then, as after a stop.
        """
        names = [name for name in self._enabled() if name not in self.weights]
        # Changes of their types forget it.
        self._set_percentile()
        for name in names:
            self.quantizers[name].reset_encoding_stats()
            self.quantizers[name].op_mode = libpymo.TensorQuantizerOpMode.updateStats
        try:
            self._observe(batches, on_batch, names)
            for name in names:
                self.quantizers[name].compute_encodings()
        finally:
            for name in names:
                self.quantizers[name].op_mode = libpymo.TensorQuantizerOpMode.quantizeDequantize
        self._require_finite(names)

    def calibrate_weight(self, name: str, weight: Values) -> None:
        """Choose the range of a weight anew."""
        self._set_percentile()
        quantizer = self.quantizers[name]
        quantizer.reset_encoding_stats()
        quantizer.update_encoding_stats(weight)
        quantizer.compute_encodings()

    def predict(self, batch: Batch) -> Outputs:
        """Run a batch through the simulated model."""
        session = self._session()
        note_run(session, self._providers)
        return run_portions(session, batch, self._names)

    def export_encodings(self, path: Path, version: pb.EncodingsVersion.ValueType) -> None:
        """Write AIMET's encodings file."""
        with warnings.catch_warnings():
            # 0.6.1 is on its way out in AIMET, and still what some tools read.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._sim.export(
                str(self._scratch),
                "export",
                export_model=False,
                encoding_version=_VERSIONS[version],
            )
        shutil.move(self._scratch / "export.encodings", path)

    def encodings(self) -> tuple[Encoding, ...]:
        """Return every grid, as it stands in the encodings file of version 2.0.0."""
        file = self._scratch / "grids.json"
        self.export_encodings(file, pb.ENCODINGS_VERSION_2_0_0)
        return read_encodings(json.loads(file.read_text()), frozenset(self._sim.param_names))

    def to_qdq(self) -> onnx.ModelProto:
        """Return a clean QDQ graph with integer weights and 32-bit biases."""
        model: onnx.ModelProto = self._sim.to_onnx_qdq(
            prequantize_constants=True, export_int32_bias=True
        )
        clean_qdq(model)
        return unsigned_twin(model, self.unsigned) if self.unsigned else model

    def _session(self) -> onnxruntime.InferenceSession:
        if self._stale:
            # AIMET's public way to build its session anew.
            self._sim.set_quantizers({})
            self._stale = False
        return self._sim.session

    def _enabled(self) -> list[str]:
        return [name for name, quantizer in self.quantizers.items() if quantizer.enabled]

    def _leave_float(self, names: Iterable[str]) -> None:
        found = [name for name in names if name in self.quantizers]
        self._untie(found)
        for name in found:
            self.quantizers[name].enabled = False

    def _fuse(self, inner: Mapping[str, str]) -> None:
        """Remove the quantizer between a layer and the activation after it.

        AIMET merges some such pairs and not others, such as depthwise convolutions; each is one
        integer kernel, and the needless grid cost 1.7 dB on MobileNetV2.
        """
        enabled = set(self._enabled())
        self._leave_float(name for name, following in inner.items() if following in enabled)

    def _apply(self, decisions: Decisions) -> None:
        enabled = [name for name in self._enabled() if name in decisions]
        for data_type in sorted({decisions[name] for name in enabled}, key=lambda d: d or 0):
            names = [name for name in enabled if decisions[name] == data_type]
            if data_type is None:
                self._leave_float(names)
                continue
            self._untie(names)
            for name in names:
                set_type(self.quantizers[name], aimet_type(data_type))

    def _untie(self, names: Iterable[str]) -> None:
        """Part tensors from others to whose quantizers AIMET tied them, not from each other."""
        groups: dict[int, list[str]] = {}
        for name in names:
            groups.setdefault(id(self.quantizers[name]), []).append(name)
        own: dict[str, QcQuantizeOp] = {}
        for group in groups.values():
            quantizer = self.quantizers[group[0]]
            if sum(other is quantizer for other in self.quantizers.values()) > len(group):
                own |= dict.fromkeys(group, quantizer._copy())
        if own:
            self._sim.set_quantizers(own)

    def _set_percentile(self) -> None:
        if self._percentile is None:
            return
        for quantizer in self.quantizers.values():
            # aimet-onnx has no public setter; its default is 100.
            quantizer._tensor_quantizer.setPercentileValue(self._percentile)

    def _observe(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None], names: Sequence[str]
    ) -> None:
        done = 0
        means = None
        if self._reach is not None:
            activations = [self.quantizers[n] for n in names if n not in self.weights]
            means = MeanRanges(activations, self._reach)
        for done, batch in enumerate(batches, 1):
            for part in means.single(batch) if means else (batch,):
                self.predict(part)
            on_batch(done)
        if means:
            means.finish()
        self._require_observed(done, names)

    def _require_observed(self, batches: int, names: Iterable[str]) -> None:
        """Check that AIMET has something to choose each range by: it raises where it has not."""
        if not batches:
            raise FailedPrecondition(
                "EMPTY_CALIBRATION_DATA", "there is no calibration sample", field="calibration.data"
            )
        missing = [n for n in names if not _observed(self.quantizers[n])]
        if missing:
            raise FailedPrecondition(
                "UNCALIBRATED_QUANTIZERS",
                f"no value reached these quantizers during calibration: {_first(missing)}",
                field="calibration.data",
            )

    def _require_finite(self, names: Iterable[str]) -> None:
        infinite = [n for n in names if not _finite(self.quantizers[n])]
        if infinite:
            raise FailedPrecondition(
                "NON_FINITE_RANGES",
                f"NaN or infinity reached these quantizers during calibration: {_first(infinite)}; "
                "check the scale, mean and std of the preprocessing",
                field="calibration.preprocessing",
            )


def _observed(quantizer: QcQuantizeOp) -> bool:
    # Half precision has no range to choose.
    return is_half(quantizer) or bool(quantizer._tensor_quantizer.hasValidStats())


def _finite(quantizer: QcQuantizeOp) -> bool:
    if not is_integer(quantizer):
        return True
    # AIMET turns an infinite range into a finite scale of about 1e36.
    encodings = (quantizer.get_encodings() if quantizer.is_initialized() else None) or []
    return bool(encodings) and all(0 < entry.delta < _LARGEST_SCALE for entry in encodings)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more

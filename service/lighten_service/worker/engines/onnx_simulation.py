"""The quantization simulation of an ONNX model with aimet-onnx: insert, calibrate, export."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import aimet_onnx
import onnx
from aimet_onnx import QuantizationSimModel
from aimet_onnx.qc_quantize_op import QcQuantizeOp

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.worker import quantsim
from lighten_service.worker.graphs.clean import clean_qdq
from lighten_service.worker.graphs.qdq import read_encodings
from lighten_service.worker.graphs.walk import attribute, constants, consumers
from lighten_service.worker.model import Batch, Encoding, Outputs
from lighten_service.worker.runtime import run_portions, thread_count

_VERSIONS = {
    pb.ENCODINGS_VERSION_0_6_1: "0.6.1",
    pb.ENCODINGS_VERSION_1_0_0: "1.0.0",
    pb.ENCODINGS_VERSION_2_0_0: "2.0.0",
}
_ACTIVATIONS = frozenset({"Clip", "Relu"})
# Constant inputs that set how an operator works, and are no operands: never quantized.
_SETTINGS = {"Clip": (1, 2), "Pad": (2,), "Pow": (1,)}
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
        """Insert quantizers into ``model``, which belongs to the simulation from here on."""
        self._names = tuple(output.name for output in model.graph.output)
        self._scratch = scratch
        settings = _setting_constants(model.graph)
        inner = _inner_depthwise_outputs(model.graph) if not quantization.hardware_config else {}
        self._sim = QuantizationSimModel(
            model,
            param_type=f"int{quantsim.weight_bits(quantization)}",
            activation_type=f"int{quantsim.activation_bits(quantization)}",
            quant_scheme=quantsim.scheme_name(parameters.scheme),
            config_file=str(quantsim.config_file(quantization, scratch, pb.ENGINE_ONNX)),
            providers=list(providers),
            path=str(scratch),
            session_options_kwargs={
                "intra_op_num_threads": thread_count(),
                "log_severity_level": 4,
            },
        )
        self._switch_off(settings)
        self._switch_off_inner(inner)
        self._set_percentile(quantsim.percentile_value(parameters))

    def calibrate(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None]
    ) -> Mapping[str, float]:
        """Choose every range from ``batches``, one at a time in memory.

        Raises:
            FailedPrecondition: NO_QUANTIZERS, EMPTY_CALIBRATION_DATA, UNCALIBRATED_QUANTIZERS,
                NON_FINITE_RANGES.
        """
        weights = set(self._sim.param_names)
        enabled = [n for n, q in self._sim.qc_quantize_op_dict.items() if q.enabled]
        if not any(n in weights for n in enabled) or not any(n not in weights for n in enabled):
            raise FailedPrecondition(
                "NO_QUANTIZERS",
                "the model has no weight or no activation that this configuration quantizes",
                field="plan.quantization",
            )
        done = 0
        with aimet_onnx.compute_encodings(self._sim):
            for done, batch in enumerate(batches, 1):
                run_portions(self._sim.session, batch, self._names)
                on_batch(done)
            self._require_observed(done, enabled)
        self._require_finite(enabled)
        count = sum(name in weights for name in enabled)
        return {
            "weight_quantizers": float(count),
            "activation_quantizers": float(len(enabled) - count),
        }

    def predict(self, batch: Batch) -> Outputs:
        """Run a batch through the simulated model."""
        return run_portions(self._sim.session, batch, self._names)

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
        return model

    def _switch_off(self, names: Iterable[str]) -> None:
        for name in names:
            quantizer = self._sim.qc_quantize_op_dict.get(name)
            if quantizer is not None:
                quantizer.enabled = False

    def _switch_off_inner(self, inner: Mapping[str, str]) -> None:
        """Remove the quantizer between a depthwise Conv and the activation after it.

        AIMET merges the two for other convolutions; the pair is one integer kernel here too, and
        the needless grid cost 1.7 dB on MobileNetV2.
        """
        quantizers = self._sim.qc_quantize_op_dict
        for name, following in inner.items():
            quantizer = quantizers.get(name)
            after = quantizers.get(following)
            if quantizer is not None and after is not None and after.enabled:
                if quantizer is after:
                    # Tied: the activation needs a quantizer of its own.
                    self._sim.set_quantizers({name: quantizer._copy()})
                quantizers[name].enabled = False

    def _set_percentile(self, percentile: float | None) -> None:
        if percentile is None:
            return
        for quantizer in self._sim.qc_quantize_op_dict.values():
            # aimet-onnx has no public setter; its default is 100.
            quantizer._tensor_quantizer.setPercentileValue(percentile)

    def _require_observed(self, batches: int, names: Iterable[str]) -> None:
        """Check that AIMET has something to choose each range by: it raises where it has not."""
        if not batches:
            raise FailedPrecondition(
                "EMPTY_CALIBRATION_DATA", "there is no calibration sample", field="calibration.data"
            )
        quantizers = self._sim.qc_quantize_op_dict
        missing = [n for n in names if not quantizers[n]._tensor_quantizer.hasValidStats()]
        if missing:
            raise FailedPrecondition(
                "UNCALIBRATED_QUANTIZERS",
                f"no value reached these quantizers during calibration: {_first(missing)}",
                field="calibration.data",
            )

    def _require_finite(self, names: Iterable[str]) -> None:
        infinite = [n for n in names if not _finite(self._sim.qc_quantize_op_dict[n])]
        if infinite:
            raise FailedPrecondition(
                "NON_FINITE_RANGES",
                f"NaN or infinity reached these quantizers during calibration: {_first(infinite)}; "
                "check the scale, mean and std of the preprocessing",
                field="calibration.preprocessing",
            )


def _finite(quantizer: QcQuantizeOp) -> bool:
    # AIMET turns an infinite range into a finite scale of about 1e36.
    encodings = (quantizer.get_encodings() if quantizer.is_initialized() else None) or []
    return bool(encodings) and all(0 < entry.delta < _LARGEST_SCALE for entry in encodings)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _setting_constants(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Return the constants that are settings of operators and nothing else."""
    known = constants(graph)
    readers = consumers(graph)
    return tuple(
        name
        for name in known
        if readers[name]
        and all(
            position in _SETTINGS.get(node.op_type, ())
            for node in readers[name]
            for position, used in enumerate(node.input)
            if used == name
        )
    )


def _inner_depthwise_outputs(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the output of each depthwise Conv that only a Relu or Clip reads, with its output."""
    readers = consumers(graph)
    known = constants(graph)
    outputs = {value.name for value in graph.output}
    found = {}
    for node in graph.node:
        if node.op_type != "Conv" or node.output[0] in outputs or node.input[1] not in known:
            continue
        # Weights of a depthwise convolution: (channels, 1, ...), one group a channel.
        shape = known[node.input[1]].dims
        groups = attribute(node, "group", 1)
        after = readers[node.output[0]]
        depthwise = groups == shape[0] and shape[1] == 1 and shape[0] > 1
        if depthwise and len(after) == 1 and after[0].op_type in _ACTIVATIONS:
            found[node.output[0]] = after[0].output[0]
    return found

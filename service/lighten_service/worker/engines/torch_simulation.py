"""Quantization simulation with aimet-torch: inserting quantizers and choosing their ranges."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MethodType
from typing import Any, Final

import torch
from aimet_torch.nn import QuantizationMixin
from aimet_torch.quantization.affine import AffineQuantizerBase
from aimet_torch.quantization.base import QuantizerBase
from aimet_torch.quantsim import QuantizationSimModel

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.worker import quantsim
from lighten_service.worker.engines.blocks import is_blockwise
from lighten_service.worker.engines.torch_bias_range import make_room_for_biases
from lighten_service.worker.engines.torch_blocks import set_blocks
from lighten_service.worker.engines.torch_mean_ranges import average_activations, begin_batch
from lighten_service.worker.engines.torch_operators import TRANSPOSED, Operator
from lighten_service.worker.engines.torch_overrides import apply_overrides, of_their_own
from lighten_service.worker.engines.torch_places import fuse_activations
from lighten_service.worker.engines.torch_prepare import Inputs
from lighten_service.worker.engines.torch_range_search import single_search
from lighten_service.worker.engines.torch_reach import drop_unreached, reached_quantizers
from lighten_service.worker.engines.torch_types import set_half_activations

# What AIMET raises on graphs that it cannot follow and modules that it has no quantized form of.
_BUILD_ERRORS: Final = (AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError)
_LARGEST_SCALE: Final = 1e30
_LISTED: Final = 10


def simulate(
    module: torch.nn.Module,
    operators: Sequence[Operator],
    inputs: Inputs,
    quantization: pb.QuantizationConfig,
    parameters: pb.Calibrate,
    scratch: Path,
) -> QuantizationSimModel:
    """Turn a float module, in place, into a simulation whose ranges are still to be chosen.

    Raises:
        FailedPrecondition: UNSUPPORTED_MODEL.
        InvalidArgument: SELECTOR_MATCHES_NOTHING, UNKNOWN_HARDWARE_CONFIG or
            BLOCKWISE_NOT_APPLICABLE.
    """
    config = quantsim.config_file(quantization, scratch, pb.ENGINE_TORCH)
    try:
        sim = QuantizationSimModel(
            module,
            inputs,
            quant_scheme=quantsim.scheme_name(parameters.scheme),
            default_output_bw=quantsim.activation_bits(quantization),
            default_param_bw=quantsim.weight_bits(quantization),
            in_place=True,
            config_file=str(config),
        )
    except _BUILD_ERRORS as error:
        raise FailedPrecondition(
            "UNSUPPORTED_MODEL",
            # AIMET adds pages of advice for programmers.
            f"aimet-torch cannot quantize this model: {str(error).partition(chr(10))[0]}",
            field="model.architecture",
        ) from error
    percentile = quantsim.percentile_value(parameters)
    if percentile is not None:
        sim.set_percentile_value(percentile)
    reach = quantsim.mean_reach(parameters)
    if reach is not None:
        average_activations(sim, reach)
    _accept_grouped_transposed(sim)
    if quantsim.fuses(quantization):
        fuse_activations(sim.model, operators)
    if not quantsim.integer_activations(quantization):
        set_half_activations(sim)
    apply_overrides(sim.model, operators, quantization.overrides)
    if is_blockwise(quantization):
        set_blocks(sim, operators, quantization, of_their_own(operators, quantization.overrides))
    return sim


def _accept_grouped_transposed(sim: QuantizationSimModel) -> None:
    """Keep AIMET's check for overflowing biases off layers that it fails on.

    It expects a scale for each bias, and the groups of a transposed convolution share theirs.
    """
    for module in sim.qmodules():
        if isinstance(module, TRANSPOSED) and module.groups > 1:
            checked: Any = module
            checked.compute_encodings = MethodType(QuantizationMixin.compute_encodings, module)


def calibrate(
    sim: QuantizationSimModel,
    batches: Callable[[], Iterable[Inputs]],
    on_batch: Callable[[int], None],
) -> None:
    """Choose all ranges that are not frozen in one pass over the batches.

    Args:
        sim: from `simulate`.
        batches: begins a pass over the calibration data.
        on_batch: called with the number of batches done, and with 0 at each weight whose range
            takes long to choose; may raise to stop.

    Raises:
        FailedPrecondition: EMPTY_CALIBRATION_DATA, NO_QUANTIZERS, UNCALIBRATED_QUANTIZERS or
            NON_FINITE_RANGES.
    """
    done = 0
    reached = set[QuantizerBase]()

    def observe(model: torch.nn.Module) -> None:
        nonlocal done, reached
        for inputs in batches():
            begin_batch(sim)
            # Every batch takes the same way through the model.
            with reached_quantizers(sim) if not done else nullcontext(reached) as reached:
                model(*inputs)
            done += 1
            on_batch(done)

    with single_search(sim, lambda: on_batch(done)):
        sim.compute_encodings(observe)
    if not done:
        raise FailedPrecondition(
            "EMPTY_CALIBRATION_DATA", "there is no calibration sample", field="calibration.data"
        )
    drop_unreached(sim, reached)
    _check_counts(sim)
    _check_ranges(sim)
    make_room_for_biases(sim)


def count_quantizers(sim: QuantizationSimModel) -> Mapping[str, float]:
    """Return how many quantizers there are on weights and on activations."""
    weights = activations = 0
    for module in sim.qmodules():
        weights += sum(q is not None for q in module.param_quantizers.values())
        activations += sum(
            q is not None for q in (*module.input_quantizers, *module.output_quantizers)
        )
    return {"weight_quantizers": weights, "activation_quantizers": activations}


def _check_counts(sim: QuantizationSimModel) -> None:
    counts = count_quantizers(sim)
    missing = [name.replace("_", " ") for name, count in counts.items() if not count]
    if missing:
        raise FailedPrecondition(
            "NO_QUANTIZERS",
            f"AIMET found no place for {' and '.join(missing)} in this model, so nothing would be "
            "quantized; try another hardware_config, or submit the model as ONNX",
            field="plan.quantization",
        )


def _check_ranges(sim: QuantizationSimModel) -> None:
    quantizers = list(sim.named_quantizers())
    uncalibrated = [name for name, quantizer in quantizers if not quantizer.is_initialized()]
    if uncalibrated:
        raise FailedPrecondition(
            "UNCALIBRATED_QUANTIZERS",
            f"no value reached these quantizers during calibration: {_first(uncalibrated)}",
            field="calibration.data",
        )
    infinite = [name for name, quantizer in quantizers if not _finite(quantizer)]
    if infinite:
        raise FailedPrecondition(
            "NON_FINITE_RANGES",
            f"NaN or infinity reached these quantizers during calibration: {_first(infinite)}; "
            "check the scale, mean and std of the preprocessing",
            field="calibration.preprocessing",
        )


def _finite(quantizer: QuantizerBase) -> bool:
    # AIMET turns an infinite range into a finite scale of about 1e36.
    if not isinstance(quantizer, AffineQuantizerBase):
        return True
    return bool((quantizer.get_scale() < _LARGEST_SCALE).all())


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

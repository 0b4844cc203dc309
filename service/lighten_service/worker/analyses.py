"""What steps find in detail: the JSON of ``<step id>.json``, which the report draws.

Ranges are ``[low, high]``, in the units of the tensor. SQNR is in dB, between -200 and 200.
"""

from collections.abc import Iterable
from typing import NotRequired, TypedDict

Range = list[float]


def rounded(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges with five digits: they are for plots, and all digits would fill megabytes."""
    return [[float(f"{value:.5g}") for value in row] for row in ranges]


class WholeModel(TypedDict):
    """SQNR of the model's worst output with a part of its quantizers switched on.

    Those of weights and of activations say which of the two is at fault.
    """

    all_db: float
    weights_db: float
    activations_db: float


class AnalyzedLayer(TypedDict):
    """One layer; another operator whose output is quantized; or an input of the model.

    ``layer`` and ``op`` as in `quantized.Quantizer`.
    """

    layer: str
    op: str
    # SQNR of the model's worst output when the quantizers of this layer alone are switched on.
    alone_db: float
    # SQNR of the layer's output before its activation, in the model with all quantizers on: its
    # input is quantized too. Absent where there is no weight with an integer grid.
    output_db: NotRequired[float]
    # Absent where the weight is not quantized.
    weight_bits: NotRequired[int]
    # Of the weight, one for each output channel; empty where there is no weight.
    channel_ranges: list[Range]


class ActivationRange(TypedDict):
    """The grid of one quantized activation. ``tensor`` as in the encodings."""

    tensor: str
    bits: int
    range: Range


class Sensitivity(TypedDict):
    """What ``analyze_sensitivity`` writes. Layers are in execution order.

    SQNR is against the same model with all quantizers off, on calibration samples; ``output_db``
    against the model as it was when it was calibrated.
    """

    format_version: int
    # Samples of the figures, and at most so many of ``output_db``.
    samples: int
    output_samples: int
    model: WholeModel
    layers: list[AnalyzedLayer]
    activations: list[ActivationRange]


class EqualizedLayer(TypedDict):
    """Ranges of one layer's weight for each output channel, before and after equalization."""

    layer: str
    before: list[Range]
    after: list[Range]


class Equalization(TypedDict):
    """What ``cross_layer_equalization`` writes."""

    format_version: int
    layers: list[EqualizedLayer]


class EqualizedActivation(TypedDict):
    """Ranges of each channel that ``readers`` read, before and after equalization.

    ``tensors`` share their scales; ``writers`` and ``readers`` are layers.
    """

    tensors: list[str]
    writers: list[str]
    readers: list[str]
    before: list[Range]
    after: list[Range]


class ActivationEqualization(TypedDict):
    """What ``activation_equalization`` writes; ``left``: the reason by the layer that writes."""

    format_version: int
    activations: list[EqualizedActivation]
    left: dict[str, str]


class BiasCorrectionLayer(TypedDict):
    """One layer: what its bias was changed by, or why it was left."""

    layer: str
    # Root of the mean square over channels, in the units of the layer's output.
    shift_rms: NotRequired[float]
    left: NotRequired[str]


class BiasCorrection(TypedDict):
    """What ``bias_correction`` writes. Layers are in execution order."""

    format_version: int
    layers: list[BiasCorrectionLayer]


class ReestimatedLayer(TypedDict):
    """One layer with a folded batch norm: what became of its channels, or why it was left.

    A channel's ratio is the batch norm's standard deviation over the measured one.
    """

    layer: str
    # Of all channels; 1 for those whose mean alone was restored.
    ratio_range: NotRequired[Range]
    left_channels: NotRequired[int]
    left: NotRequired[str]


class Reestimation(TypedDict):
    """What ``reestimate_batch_norms`` writes. Layers are in execution order."""

    format_version: int
    layers: list[ReestimatedLayer]


class AllottedLayer(TypedDict):
    """One operator, or input of the model, with the widths of its quantizers at the end."""

    layer: str
    op: str
    # SQNR of the model's worst output when only this layer is quantized, with its width before.
    alone_db: float
    widened: bool
    # Absent where it has no quantizer of the kind.
    weight_bits: NotRequired[int]
    activation_bits: NotRequired[int]


class MixedPrecision(TypedDict):
    """What ``mixed_precision`` writes. Layers stand in the order of sensitivity, worst first."""

    format_version: int
    # Calibration samples that sensitivities were measured on.
    samples: int
    layers: list[AllottedLayer]


class RoundedLayer(TypedDict):
    """One layer. Errors are shares of the energy of the layer's output in FP32, behind its
    activation, on all samples."""

    layer: str
    nearest_error: float
    learnt_error: float
    # Whether the learnt rounding was no better, and nearest rounding stays.
    kept_nearest: bool
    estimated_seconds: float
    seconds: float


class Rounding(TypedDict):
    """What ``ada_round`` writes. Layers are in execution order; ``left``: the reason by layer."""

    format_version: int
    layers: list[RoundedLayer]
    left: dict[str, str]


class ScaledLayer(TypedDict):
    """One layer. Errors are squared, summed over its output (before any activation)."""

    layer: str
    error_before: float
    error_after: float
    # The range of each channel (or of the tensor), over the one before.
    range_shares: list[float]


class Scaling(TypedDict):
    """What ``sequential_mse`` writes. Layers are in execution order; ``left``: the reason by
    layer."""

    format_version: int
    layers: list[ScaledLayer]
    left: dict[str, str]

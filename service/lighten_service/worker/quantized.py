"""A quantized model from inside: its layers, quantizers and grids, the same for both engines.

What algorithms on quantized models are written against, once: rounding of weights, bias
correction, mixed precision, sensitivity analysis. Tensors are float32, on the device of the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lighten_service.worker.integers.bounds import bounded
from lighten_service.worker.integers.pairs import Order
from lighten_service.worker.kernels import Kernel
from lighten_service.worker.model import Batch

# A point where work can be cancelled: raises to stop.
Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product with a constant weight.

    ``name`` is what selectors match and reports show: the module's path (aimet-torch) or the node's
    name (aimet-onnx). ``weight`` and ``output`` are tensors of `WorkingModel.graph` where it names
    them so, else empty (aimet-torch exports some linear layers with a transposed copy).
    """

    name: str
    # ONNX operator: Conv, ConvTranspose, Gemm or MatMul.
    op: str
    kernel: Kernel
    weight: str
    output: str
    weight_shape: tuple[int, ...]
    # Bounds of the ReLU or Clip that alone reads the output, else None.
    activation: tuple[float, float] | None = None

    @property
    def input_channels(self) -> int:
        first, second = self.weight_shape[:2]
        return first if self.kernel.transposed else second * self.kernel.groups

    @property
    def output_channels(self) -> int:
        first, second = self.weight_shape[:2]
        return second * self.kernel.groups if self.kernel.transposed else first


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One place of quantization. ``name`` is unique in the model; ``layer`` is the operator that
    it belongs to (named as layers are; the input's name for quantizers of model inputs)."""

    name: str
    layer: str
    # ONNX operator of ``layer``; empty for model inputs.
    op: str
    is_weight: bool
    bits: int
    is_float: bool = False


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """An integer grid of a weight: ``q = clip(round(w / scale) - offset, low, high)``, and
    ``w = (q + offset) * scale``. ``scale`` and ``offset`` broadcast over the weight.

    ``orders``: of the kernels whose bound of pairs the integers must obey; empty for none.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    low: int
    high: int
    symmetric: bool
    orders: tuple[Order, ...] = ()

    @property
    def per_channel(self) -> bool:
        return self.scale.numel() > 1

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the nearest values on the grid."""
        scaled = weight / self.scale
        integers = torch.clamp(torch.round(scaled) - self.offset, self.low, self.high)
        integers = bounded(integers, scaled, self.orders)
        return (integers + self.offset) * self.scale


@dataclass(frozen=True, slots=True)
class Visit:
    """One layer during a walk.

    ``float_inputs``, ``float_weight`` and ``float_bias`` are those of the float model as it was
    when it was calibrated; ``inputs`` what the quantized model as it is now gives the layer, the
    quantizers before it applied. One tensor a batch.
    """

    layer: Layer
    float_inputs: Sequence[torch.Tensor]
    float_weight: torch.Tensor
    float_bias: torch.Tensor | None
    inputs: Sequence[torch.Tensor]

    def float_output(self, batch: int) -> torch.Tensor:
        """Return the layer's output in the float model, before any activation."""
        return self.layer.kernel.apply(self.float_inputs[batch], self.float_weight, self.float_bias)


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of each output channel of a layer, as its batch norm saw them.

    Kept up to date by equalization; shape (channels,).
    """

    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True, slots=True)
class Probe:
    """Outputs of one batch with one group of quantizers alone switched on, and with none.

    ``group`` is its position among the groups asked for. Outputs are in graph order.
    """

    group: int
    outputs: Sequence[NDArray[np.float32]]
    float_outputs: Sequence[NDArray[np.float32]]


class QuantizedModel(ABC):
    """The simulation of a `WorkingModel`, opened for algorithms. Changes are in place, and
    `WorkingModel.predict`, ``encodings`` and the exports follow them at once."""

    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """Layers in execution order."""

    @abstractmethod
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Every quantizer that is switched on, in execution order."""

    @abstractmethod
    def weight(self, layer: Layer) -> torch.Tensor:
        """Return the layer's weight, not rounded, in the layout of `Kernel`."""

    @abstractmethod
    def set_weight(self, layer: Layer, weight: torch.Tensor) -> None: ...

    @abstractmethod
    def bias(self, layer: Layer) -> torch.Tensor | None:
        """Return the layer's bias, shape (channels,), or None."""

    @abstractmethod
    def set_bias(self, layer: Layer, bias: torch.Tensor) -> None:
        """Set the bias; a layer without one gets it."""

    @abstractmethod
    def weight_grid(self, layer: Layer) -> WeightGrid | None:
        """Return the grid of the layer's weight; None where it has no integer grid of one scale,
        or one a channel (left in float, floating-point types, blockwise)."""

    @abstractmethod
    def set_weight_scale(self, layer: Layer, scale: torch.Tensor) -> None:
        """Replace the scale of the layer's weight grid, in the shape of `WeightGrid.scale`. The
        offset of an asymmetric grid stays. A later `calibrate_activations` keeps it."""

    @abstractmethod
    def full_range(self) -> AbstractContextManager[None]:
        """Give weights that are bound for every CPU the full range of their type, chosen by the
        scheme of the calibration, until the context ends. For a model whose weights and scales no
        later step has chosen."""

    @abstractmethod
    def moments(self) -> Mapping[str, Moments]:
        """Return what batch norms saw, by the name of the layer that each was folded into."""

    @abstractmethod
    def only(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Switch every quantizer off but those named, until the context ends."""

    @abstractmethod
    def probe(
        self, batches: Iterable[Batch], groups: Sequence[Collection[str]], *, check: Check
    ) -> Generator[Probe, None, None]:
        """Run the model with each group of quantizers alone switched on, batch after batch.

        What lies before a group is computed once for all groups, and all but the group's own
        operators in float without AIMET: a probe costs less than the part of the model behind it.
        The model must not change meanwhile.

        Args:
            batches: read once.
            groups: names of quantizers, at least one a group.
            check: called before each probe; raises to stop.
        """

    @abstractmethod
    def calibrate_activations(
        self, batches: Callable[[], Iterable[Batch]], *, on_batch: Callable[[int], None]
    ) -> None:
        """Choose the ranges of all activations anew, with the scheme of the calibration.

        Raises:
            FailedPrecondition: as `WorkingModel.calibrate`.
        """

    @abstractmethod
    def set_types(self, names: Collection[str], bits: int) -> None:
        """Give integer quantizers another width. Weights get min-max or the calibration's scheme's
        ranges at once; activations need `calibrate_activations` before the model is used."""

    @abstractmethod
    def snapshot(self) -> object:
        """Return weights, biases, widths and grids as they are, for `restore`, which may be called
        any number of times."""

    @abstractmethod
    def restore(self, snapshot: object) -> None: ...

    @abstractmethod
    def walk(
        self, batches: Iterable[Batch], *, quantize_activations: bool, check: Check
    ) -> Iterator[Visit]:
        """Go through the layers in execution order, the float and the quantized model in step.

        Each operator runs once for each batch, in both models, so a walk costs two passes over
        the data. What the caller changes in the visited layer before it takes the next one is what
        the layers after it see. Layers that no data reach are left out. Holds the live tensors of
        all batches in memory.

        Args:
            batches: read once.
            quantize_activations: False leaves activations in float, so that only weights differ.
            check: called between operators; raises to stop.
        """

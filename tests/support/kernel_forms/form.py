"""What a form is: a graph of one layer, and the integers that it must return."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tests.support.kernel_forms.layer_graph import LayerGraph
from tests.support.kernel_forms.scales import DATA_SCALE, OUTPUT_SCALE, WEIGHT_SCALES

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Grid:
    """How a form's tensors are quantized.

    Args:
        zero_point: of the data as unsigned codes; signed ones lie 128 lower.
        output_zero: zero point of the output.
    """

    per_channel: bool = False
    signed_data: bool = False
    unsigned_weight: bool = False
    quantized_output: bool = True
    zero_point: int = 200
    output_zero: int = 128


@dataclass(frozen=True)
class Form(ABC):
    """One layer. Callers give its data as unsigned codes and its weight as signed integers,
    however the graph stores them.

    Args:
        slope: what negative numbers are multiplied by before they are quantized; 0 is a Relu, 1 no
            activation, others are a LeakyRelu.
    """

    name: str
    grid: Grid = field(default=Grid(), kw_only=True)
    slope: int = field(default=1, kw_only=True)
    biased: bool = field(default=False, kw_only=True)

    # Axis of the output along which scales of the weight differ.
    channel_axis: ClassVar[int]

    @property
    @abstractmethod
    def data_shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def channels(self) -> int:
        """How many scales the weight has where the grid is per channel."""

    @property
    @abstractmethod
    def rows_shape(self) -> tuple[int, int]:
        """Shape of the weight as a kernel reads it: rows of K integers, neighbours in pairs."""

    @property
    @abstractmethod
    def pairs(self) -> bool:
        """Whether kernels of x86 without VNNI add up pairs of signed weights in 16 bits."""

    @abstractmethod
    def stored(self, rows: Integers) -> Integers:
        """Return such rows in the shape in which the graph stores the weight."""

    @abstractmethod
    def sums(self, data: Integers, weight: Integers) -> Integers:
        """Return the exact sums of products; both of int64, ``data`` less their zero point."""

    @abstractmethod
    def build(self, graph: LayerGraph, weight: Integers) -> None:
        """Add inputs, layer and output to a graph."""

    def data(self, graph: LayerGraph) -> str:
        """Add the data to a graph, quantized, and return their name."""
        return graph.data("x", self.data_shape, self.grid.zero_point)

    @property
    def bias(self) -> NDArray[np.int32] | None:
        """What is added to the sums, one integer for each channel."""
        if not self.biased:
            return None
        # Large enough that a Relu hides no pair at its bound, small enough that nothing else does.
        lowest = 8192 if self.slope == 0 else 0
        return lowest + np.arange(self.channels, dtype=np.int32) % 4 * 300

    @property
    def weight_scale(self) -> NDArray[np.float32]:
        """One value, or one for each channel."""
        scales = np.array(WEIGHT_SCALES, np.float32)
        return np.resize(scales, self.channels) if self.grid.per_channel else np.asarray(scales[0])

    def feeds(self, codes: Integers, weight: Integers) -> dict[str, NDArray[np.float32]]:
        """Return the graph's inputs, by name, that mean these codes; ``weight``: the layer's."""
        return {f"{self.name}.x": as_numbers(codes, self.grid.zero_point)}

    def expected(self, codes: Integers, weight: Integers) -> NDArray[Any]:
        """Return the output: codes where it is quantized, numbers of single precision if not."""
        data = codes.astype(np.int64) - self.grid.zero_point
        sums = self.sums(data, weight.astype(np.int64))
        if self.bias is not None:
            sums = sums + self._along_channels(self.bias, sums.ndim)
        sums = np.where(sums < 0, sums * self.slope, sums)
        scale = self._along_channels(self.weight_scale, sums.ndim) * np.float32(DATA_SCALE)
        numbers = sums.astype(np.float32) * scale
        if not self.grid.quantized_output:
            return numbers
        found = np.rint(numbers / OUTPUT_SCALE) + self.grid.output_zero
        return np.clip(found, 0, 255).astype(np.uint8)

    def channels_with(self, wrong: NDArray[np.bool_]) -> list[int]:
        """Return the channels that have any of the numbers marked in an output."""
        return np.unique(np.nonzero(wrong)[self.channel_axis]).tolist()

    def _along_channels(self, values: NDArray[Any], dimensions: int) -> NDArray[Any]:
        shape = [1] * dimensions
        shape[self.channel_axis] = -1
        return values.reshape(shape)


def as_numbers(codes: Integers, zero_point: int) -> NDArray[np.float32]:
    """Return the numbers that unsigned codes of data stand for."""
    return ((codes.astype(np.int64) - zero_point) * DATA_SCALE).astype(np.float32)

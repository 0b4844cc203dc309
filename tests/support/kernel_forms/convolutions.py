"""Convolutions: integers of (outputs, inputs of a group, *kernel)."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from tests.support.kernel_forms.form import Form, Integers
from tests.support.kernel_forms.layer_graph import LayerGraph


@dataclass(frozen=True)
class Convolution(Form):
    """Conv with constant weights.

    Args:
        inputs, outputs: channels.
        kernel: its sizes; as many as the data have spatial axes.
        stride, dilation, pad: the same on every axis; padded on both sides.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    pad: int = 0
    size: int = 6
    batch: int = 16

    channel_axis = 1

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.batch, self.inputs, *[self.size] * len(self.kernel))

    @property
    def channels(self) -> int:
        return self.outputs

    @property
    def rows_shape(self) -> tuple[int, int]:
        return self.outputs, self.inputs // self.groups * math.prod(self.kernel)

    @property
    def pairs(self) -> bool:
        # Others run in float, or with the depthwise kernel.
        depthwise = self.groups == self.inputs == self.outputs
        floats = not self.grid.quantized_output or self.slope > 1
        return not (floats or depthwise or self.grid.unsigned_weight)

    def stored(self, rows: Integers) -> Integers:
        return np.moveaxis(rows.reshape(self.outputs, *self.kernel, -1), -1, 1)

    def sums(self, data: Integers, weight: Integers) -> Integers:
        padding = [(0, 0)] * 2 + [(self.pad, self.pad)] * len(self.kernel)
        return convolved(np.pad(data, padding), weight, self.groups, self.stride, self.dilation)

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        inputs = [self.data(graph), graph.weight(weight, 0), *graph.bias()]
        graph.result("Conv", inputs, len(self.data_shape), **self._attributes())

    def _attributes(self) -> dict[str, object]:
        axes = len(self.kernel)
        return {
            "group": self.groups,
            "strides": [self.stride] * axes,
            "dilations": [self.dilation] * axes,
            "pads": [self.pad] * 2 * axes,
        }


@dataclass(frozen=True)
class TransposedConvolution(Convolution):
    """ConvTranspose, with weights of (inputs, outputs of a group, *kernel)."""

    @property
    def pairs(self) -> bool:
        return False

    @property
    def rows_shape(self) -> tuple[int, int]:
        return self.inputs, self.outputs // self.groups * math.prod(self.kernel)

    def stored(self, rows: Integers) -> Integers:
        return rows.reshape(self.inputs, -1, *self.kernel)

    def sums(self, data: Integers, weight: Integers) -> Integers:
        # A convolution of the data, spread out, with the kernel turned round.
        axes = range(2, data.ndim)
        spread = np.zeros([*data.shape[:2], *[1 + self.stride * (self.size - 1)] * len(axes)], int)
        spread[(..., *[slice(None, None, self.stride)] * len(axes))] = data
        edges = [self.dilation * (k - 1) - self.pad for k in self.kernel]
        spread = np.pad(spread, [(0, 0), (0, 0), *[(edge, edge) for edge in edges]])
        groups = np.flip(weight, tuple(axes)).reshape(self.groups, -1, *weight.shape[1:])
        turned = groups.swapaxes(1, 2).reshape(self.outputs, -1, *self.kernel)
        return convolved(spread, turned, self.groups, 1, self.dilation)

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        inputs = [self.data(graph), graph.weight(weight, 1), *graph.bias()]
        graph.result("ConvTranspose", inputs, len(self.data_shape), **self._attributes())


@dataclass(frozen=True)
class IntegerConvolution(Convolution):
    """DynamicQuantizeLinear and ConvInteger, without strides, dilations and padding."""

    @property
    def pairs(self) -> bool:
        return False

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        data = graph.dynamic_data(self.data_shape)
        graph.integer_result("ConvInteger", data, graph.weight_codes(weight), len(self.data_shape))


def convolved(
    data: Integers, weight: Integers, groups: int, stride: int, dilation: int
) -> Integers:
    """Return the sums of a convolution of padded data."""
    kernel = weight.shape[2:]
    sizes = [
        (size - dilation * (k - 1) - 1) // stride + 1
        for size, k in zip(data.shape[2:], kernel, strict=True)
    ]
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    sums = np.zeros((len(data), groups, grouped.shape[1], *sizes), np.int64)
    for place in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(at * dilation, at * dilation + stride * (size - 1) + 1, stride)
            for at, size in zip(place, sizes, strict=True)
        )
        seen = data[(..., *window)].reshape(len(data), groups, -1, *sizes)
        sums += np.einsum("ngi...,goi->ngo...", seen, grouped[(..., *place)])
    return sums.reshape(len(data), -1, *sizes)

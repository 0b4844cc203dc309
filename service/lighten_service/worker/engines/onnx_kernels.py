"""`Kernel` of an ONNX node, from its attributes."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from lighten_service.worker.graphs.shapes import Shapes
from lighten_service.worker.kernels import Kernel

_SAME = ("SAME_UPPER", "SAME_LOWER")
# Spatial dimensions that torch computes.
_LARGEST_SPATIAL = 3

Attributes = Mapping[str, Any]
Pads = tuple[tuple[int, int], ...]


def kernel_of(node: onnx.NodeProto, weight: Sequence[int], shapes: Shapes) -> Kernel | None:
    """Return how a layer computes, or None where a `Kernel` cannot say it.

    Left out are products with a scaled or transposed input (``alpha``, ``beta``, ``transA`` of
    Gemm), weights that are no matrix (MatMul), automatic padding of inputs of unknown size, and
    more than three spatial dimensions.

    Args:
        node: a Conv, ConvTranspose, Gemm or MatMul.
        weight: shape of its weight as the graph stores it.
        shapes: what is known of the graph's tensors; the batch does not matter.
    """
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Gemm":
        return _gemm(attributes, weight)
    if node.op_type == "MatMul":
        return Kernel() if len(weight) == 2 else None
    spatial = len(weight) - 2
    if not 1 <= spatial <= _LARGEST_SPATIAL:
        return None
    size = shapes.get(node.input[0], ())[2:]
    kernel = _Window(attributes, tuple(weight[2:]), size if len(size) == spatial else None)
    return kernel.transposed() if node.op_type == "ConvTranspose" else kernel.plain()


def _gemm(attributes: Attributes, weight: Sequence[int]) -> Kernel | None:
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
    return Kernel() if plain and not attributes.get("transA", 0) and len(weight) == 2 else None


class _Window:
    """The window of a convolution, and the padding that its attributes imply."""

    def __init__(
        self, attributes: Attributes, window: tuple[int, ...], size: tuple[int, ...] | None
    ) -> None:
        ones = (1,) * len(window)
        self._attributes = attributes
        self._size = size
        self._auto = attributes.get("auto_pad", b"NOTSET").decode()
        self._stride = tuple(attributes.get("strides", ones))
        self._dilation = tuple(attributes.get("dilations", ones))
        self._groups = int(attributes.get("group", 1))
        # Positions that one window covers.
        self._reach = tuple(
            dilation * (length - 1) + 1
            for dilation, length in zip(self._dilation, window, strict=True)
        )

    def plain(self) -> Kernel | None:
        padding = self._plain_padding()
        if padding is None:
            return None
        return Kernel(
            spatial=len(self._reach),
            stride=self._stride,
            padding=padding,
            dilation=self._dilation,
            groups=self._groups,
        )

    def transposed(self) -> Kernel | None:
        extra = tuple(self._attributes.get("output_padding", (0,) * len(self._reach)))
        padding = self._transposed_padding(extra)
        if padding is None or any(pad < 0 for pair in padding for pad in pair):
            return None
        return Kernel(
            spatial=len(self._reach),
            transposed=True,
            stride=self._stride,
            padding=padding,
            dilation=self._dilation,
            output_padding=extra,
            groups=self._groups,
        )

    def _plain_padding(self) -> Pads | None:
        if self._auto not in _SAME:
            return self._explicit()
        if all(stride == 1 for stride in self._stride):
            return self._split([reach - 1 for reach in self._reach])
        if self._size is None:
            return None
        return self._split(
            [
                max((-(-size // stride) - 1) * stride + reach - size, 0)
                for size, stride, reach in zip(self._size, self._stride, self._reach, strict=True)
            ]
        )

    def _transposed_padding(self, extra: tuple[int, ...]) -> Pads | None:
        wanted = self._attributes.get("output_shape")
        if wanted is None and self._auto not in _SAME:
            return self._explicit()
        if self._size is None:
            return None
        if wanted is None:
            wanted = [size * stride for size, stride in zip(self._size, self._stride, strict=True)]
        # Some files count the batch and the channels too.
        wanted = wanted[-len(self._reach) :]
        return self._split(
            [
                stride * (size - 1) + more + reach - target
                for size, stride, more, reach, target in zip(
                    self._size, self._stride, extra, self._reach, wanted, strict=True
                )
            ],
            # Here the odd one comes first, unless SAME_UPPER is set.
            upper=self._auto == "SAME_UPPER",
        )

    def _explicit(self) -> Pads:
        count = len(self._reach)
        pads = tuple(self._attributes.get("pads", ())) if self._auto == "NOTSET" else ()
        pads = pads or (0,) * (2 * count)
        return tuple(zip(pads[:count], pads[count:], strict=True))

    def _split(self, totals: Sequence[int], *, upper: bool | None = None) -> Pads:
        """Halve each total; the odd one goes to the end where ``upper``."""
        upper = self._auto == "SAME_UPPER" if upper is None else upper
        small = [total // 2 for total in totals]
        pairs = [(half, total - half) for half, total in zip(small, totals, strict=True)]
        return tuple(pairs if upper else [(end, begin) for begin, end in pairs])

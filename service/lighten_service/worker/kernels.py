"""Layers as functions of their input, weight and bias, the same for both engines.

Weights are in PyTorch's layout whatever the graph's: (out, in / groups, *kernel) for convolutions,
(in, out / groups, *kernel) for transposed ones, (out, in) for matrix products.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def use_exact_float32() -> None:
    """Let GPUs compute the same for the same job: no search for the fastest kernel, no rounding to
    TF32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a layer computes. ``spatial``: number of spatial dimensions, 0 for matrix products."""

    spatial: int = 0
    transposed: bool = False
    stride: tuple[int, ...] = ()
    # (begin, end) of each spatial dimension.
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1

    @property
    def channel_axis(self) -> int:
        """Axis of the weight that counts output channels (of one group, if transposed)."""
        return 1 if self.transposed else 0

    @property
    def output_axis(self) -> int:
        """Axis of the output that counts channels: 1 for convolutions, the last otherwise."""
        return 1 if self.spatial else -1

    @property
    def depthwise(self) -> bool:
        """Whether each channel has a convolution of its own; tell by a weight's shape too."""
        return self.spatial > 0 and self.groups > 1

    def apply(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the layer's output. ``x``: (n, in, *positions), or (n, ..., in) for products."""
        if not self.spatial:
            return F.linear(x, weight, bias)
        if self.transposed:
            return self._transposed(x, weight, bias)
        x = F.pad(x, [pad for pair in reversed(self.padding) for pad in pair])
        return _CONVOLUTIONS[self.spatial](
            x, weight, bias, stride=self.stride, dilation=self.dilation, groups=self.groups
        )

    def _transposed(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        full = _TRANSPOSED[self.spatial](
            x,
            weight,
            bias,
            stride=self.stride,
            output_padding=self.output_padding,
            groups=self.groups,
            dilation=self.dilation,
        )
        # Padding of a transposed convolution cuts its output.
        for axis, (begin, end) in enumerate(self.padding, 2):
            full = full.narrow(axis, begin, full.shape[axis] - begin - end)
        return full

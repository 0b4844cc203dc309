"""Layers as matrix products (im2col): a row of inputs for each output position, times a matrix of
weights for each group.

Matrices of weights are (groups, out / groups, k), rows of inputs (groups, rows, k) and rows of
outputs (groups, rows, out / groups), where k is the number of weights that make one output. A
transposed convolution is taken as the convolution that it is on its inputs spread apart.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from lighten_service.worker.kernels import Kernel


def weight_matrix(kernel: Kernel, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as (groups, out / groups, k)."""
    if kernel.transposed:
        inputs = weight.shape[0] // kernel.groups
        grouped = weight.reshape(kernel.groups, inputs, *weight.shape[1:]).transpose(1, 2)
        return grouped.flip(_spatial_axes(kernel)).flatten(2)
    return weight.reshape(kernel.groups, weight.shape[0] // kernel.groups, -1)


def weight_of_matrix(kernel: Kernel, matrix: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the weight of ``shape`` whose `weight_matrix` is ``matrix``."""
    if kernel.transposed:
        grouped = matrix.reshape(kernel.groups, shape[1], shape[0] // kernel.groups, *shape[2:])
        return grouped.flip(_spatial_axes(kernel)).transpose(1, 2).reshape(*shape)
    return matrix.reshape(*shape)


def channel_matrix(kernel: Kernel, values: torch.Tensor) -> torch.Tensor:
    """Return one value, or one a channel, in a shape that broadcasts over `weight_matrix`."""
    if values.numel() == 1:
        return values.reshape(1, 1, 1)
    return values.reshape(1 if kernel.transposed else kernel.groups, -1, 1)


def windows(kernel: Kernel, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return a view of what each output position sees, (*positions, in, *kernel); the first axis
    counts samples. ``shape``: that of the weight."""
    if not kernel.spatial:
        return x
    stride = kernel.stride
    if kernel.transposed:
        x, stride = _spread(kernel, x, shape), (1,) * kernel.spatial
    else:
        x = F.pad(x, [pad for pair in reversed(kernel.padding) for pad in pair])
    for axis, (size, step, gap) in enumerate(zip(shape[2:], stride, kernel.dilation, strict=True)):
        x = x.unfold(axis + 2, (size - 1) * gap + 1, step)[..., ::gap]
    return x.movedim(1, 1 + kernel.spatial)


def positions(kernel: Kernel, view: torch.Tensor) -> torch.Size:
    """Return the axes of `windows` that count output positions."""
    return view.shape[: 1 + kernel.spatial] if kernel.spatial else view.shape[:-1]


def rows(kernel: Kernel, view: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
    """Return the rows of `windows` (all, or those at flat positions): (groups, rows, k)."""
    shape = positions(kernel, view)
    if index is None:
        return view.reshape(shape.numel(), kernel.groups, -1).transpose(0, 1)
    taken = view[torch.unravel_index(index, shape)]
    return taken.reshape(len(index), kernel.groups, -1).transpose(0, 1)


def output_rows(
    kernel: Kernel, output: torch.Tensor, index: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the rows of a layer's output (all, or those at flat positions): (groups, rows,
    out / groups)."""
    last = output.movedim(kernel.output_axis, -1)
    if index is not None:
        last = last[torch.unravel_index(index, last.shape[:-1])]
    return last.reshape(
        -1, kernel.groups, output.shape[kernel.output_axis] // kernel.groups
    ).transpose(0, 1)


def _spatial_axes(kernel: Kernel) -> list[int]:
    return list(range(-kernel.spatial, 0))


def _spread(kernel: Kernel, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return inputs ``stride`` apart, padded so that a plain convolution makes the output."""
    sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], kernel.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in kernel.stride))] = x
    pads: list[int] = []
    for axis in reversed(range(kernel.spatial)):
        reach = kernel.dilation[axis] * (shape[2 + axis] - 1)
        begin, end = kernel.padding[axis]
        pads += [reach - begin, reach - end + kernel.output_padding[axis]]
    return F.pad(spread, pads)

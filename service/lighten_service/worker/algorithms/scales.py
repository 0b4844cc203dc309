"""Sequential MSE: chooses the scales of a weight by the squared error of the layer's output.

As AIMET's seq_mse: candidates are equal fractions of the present range, each channel takes the
best of its own. The present range is a candidate, so the error never grows.
"""

from dataclasses import dataclass, replace

import torch

from lighten_service.worker.algorithms import unfold
from lighten_service.worker.algorithms.reconstruction import (
    Reconstruction,
    full_gram,
    row_count,
    sample_rows,
)
from lighten_service.worker.quantized import Check, Layer, Visit, WeightGrid


@dataclass(frozen=True, slots=True)
class ScaleChoice:
    """``scale`` in the shape of `WeightGrid.scale`, and the squared error of the output, summed
    over all rows and channels, with the scale before and with this one."""

    scale: torch.Tensor
    error_before: float
    error_after: float


@torch.no_grad()
def problem_of(visit: Visit, bias: torch.Tensor | None, check: Check) -> Reconstruction:
    """Return the output that the scales of a layer shall keep: without its activation, on all
    output positions."""
    count, width = (
        row_count(visit),
        unfold.weight_matrix(visit.layer.kernel, visit.float_weight).shape[2],
    )
    if count < width:  # fewer values than in the matrix of their sums
        return sample_rows(visit, bias, count, torch.Generator(), check, activation=False)
    return full_gram(visit, bias, check)


@torch.no_grad()
def choose_scale(
    layer: Layer,
    weight: torch.Tensor,
    grid: WeightGrid,
    reconstruction: Reconstruction,
    candidates: int,
    check: Check,
) -> ScaleChoice:
    """Return the best of the scales 1/n, 2/n, ... 1 of the present one, for n candidates.

    Args:
        layer: whose weight it is.
        weight: not rounded, in the layout of `Kernel`.
        grid: the present one.
        reconstruction: the layer's output to keep.
        candidates: n, at least 1.
        check: called for each candidate; raises to stop.
    """
    best_scale, best = grid.scale, _errors(layer, weight, grid, reconstruction)
    before = float(best.sum(dtype=torch.float64))
    for step in reversed(range(1, candidates)):
        check()
        scale = grid.scale * (step / candidates)
        errors = _errors(layer, weight, replace(grid, scale=scale), reconstruction)
        better = errors < best
        best = torch.where(better, errors, best)
        best_scale = torch.where(better.reshape(scale.shape), scale, best_scale)
    return ScaleChoice(best_scale, before, float(best.sum(dtype=torch.float64)))


def _errors(
    layer: Layer, weight: torch.Tensor, grid: WeightGrid, reconstruction: Reconstruction
) -> torch.Tensor:
    """Return the error of each scale of the grid, flat."""
    rounded = unfold.weight_matrix(layer.kernel, grid.round(weight))
    errors = reconstruction.error(rounded)
    if not grid.per_channel:
        return errors.sum().reshape(1)
    # Groups of a transposed convolution share their scales.
    return errors.sum(0) if layer.kernel.transposed else errors.flatten()

"""Adaptive rounding: learns for each weight of a layer whether to round it up or down.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
arXiv:2004.10568, section 3; constants as in AIMET.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lighten_service.worker.algorithms import unfold
from lighten_service.worker.algorithms.reconstruction import Gram, Rows, gram_of, sample_rows
from lighten_service.worker.integers.bounds import lowered
from lighten_service.worker.quantized import Check, Layer, Visit, WeightGrid

# The rectified sigmoid reaches from GAMMA to ZETA before it is cut to 0..1.
ZETA, GAMMA = 1.1, -0.1
# Output positions of one step of the optimizer, where they are drawn.
BATCH_ROWS = 256
# Widest matrix of sums over all positions that a step multiplies with.
_GRAM_WIDTH = 1280
# Values of a layer's inputs to learn from: 128 MB of float32.
_MAX_VALUES = 2**25
# How far Adam can carry a parameter in all steps; AIMET's 0.001 allows 10 in 10,000 steps, and next
# to nothing in few.
_REACH = 20.0
_MIN_LEARNING_RATE, _MAX_LEARNING_RATE = 1e-3, 1e-1
# What nearest rounding's share of the error weighs for each weight, against the regularization. The
# paper leaves it to the size of the outputs: where they are large, roundings stay open until the
# end, and cutting them then costs all that was learnt.
_ERROR_PER_WEIGHT = 3e-4
# Steps between two points where the work can be cancelled.
_STEPS_PER_CHECK = 20


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard to learn.

    ``regularization``: weight of the term that drives each rounding to 0 or 1, relative to the
    error that nearest rounding causes. It sets in after the share ``warm_start`` of the steps, with
    an exponent that goes from ``beta_start`` to ``beta_end``.
    """

    iterations: int
    regularization: float
    warm_start: float
    beta_start: float
    beta_end: float

    @property
    def learning_rate(self) -> float:
        """Adam's, so that few steps reach as far as many."""
        return min(max(_REACH / self.iterations, _MIN_LEARNING_RATE), _MAX_LEARNING_RATE)

    def beta(self, step: int) -> float | None:
        """Return the exponent at a step; None during the warm start."""
        start = self.warm_start * self.iterations
        if step < start:
            return None
        share = (step - start) / (self.iterations - start)
        return self.beta_end + 0.5 * (self.beta_start - self.beta_end) * (
            1 + math.cos(share * math.pi)
        )


class SoftRounding:
    """A weight between its two neighbours on a grid: floor + h, with h from 0 to 1 the rectified
    sigmoid of a parameter ``alpha``. Starts as the weight itself."""

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, low: int, high: int
    ) -> None:
        scaled = weight / scale
        floor = torch.floor(scaled)
        fraction = scaled - floor
        self.alpha = -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)
        lower = floor - offset
        # A weight beyond the grid stays at its end, however it is rounded.
        free = (lower >= low) & (lower < high)
        self._floor = (lower.clamp(low, high) + offset) * scale
        self._step = free * scale

    def soft(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weight, and h before it is cut to 0..1."""
        stretched = torch.sigmoid(self.alpha).mul_(ZETA - GAMMA).add_(GAMMA)
        return torch.addcmul(self._floor, self._step, stretched.clamp(0, 1)), stretched

    def hard(self) -> torch.Tensor:
        """Return the weight on the grid, each value rounded to the nearer side of h."""
        return torch.addcmul(self._floor, self._step, (self.alpha >= 0).to(self._step.dtype))

    def slope(
        self,
        weight_gradient: torch.Tensor,
        stretched: torch.Tensor,
        beta: float | None,
        strength: float,
    ) -> torch.Tensor:
        """Return the gradient at ``alpha`` of a loss with this gradient at the weight, plus
        ``strength`` times the sum of 1 - abs(2h - 1) ** beta; ``weight_gradient`` is overwritten.
        """
        gradient = weight_gradient.mul_(self._step)
        if beta is not None:
            side = stretched.clamp(0, 1).mul_(2).sub_(1)
            pull = side.abs().pow_(beta - 1).copysign_(side)
            gradient.add_(pull, alpha=-2 * beta * strength)
        inside = (stretched > 0).logical_and_(stretched < 1)
        # The slope of the stretched sigmoid, from its value.
        gradient.mul_(stretched - GAMMA).mul_(ZETA - stretched).mul_(inside)
        return gradient.div_(ZETA - GAMMA)


def uses_gram(weight: torch.Tensor) -> bool:
    """Whether a layer's output is kept by sums over positions, which see every one of them at each
    step but not the activation. Steps on them converge so much better than on drawn positions that
    the output behind the activation comes closer too; for wide layers they cost too much.
    ``weight``: a matrix as in `unfold`.
    """
    return weight.shape[2] <= _GRAM_WIDTH


@torch.no_grad()
def problem_of(
    visit: Visit, bias: torch.Tensor | None, generator: torch.Generator, check: Check
) -> Rows | Gram:
    """Return the output that the roundings of a layer shall keep."""
    weight = unfold.weight_matrix(visit.layer.kernel, visit.float_weight)
    limit = max(BATCH_ROWS, _MAX_VALUES // (weight.shape[0] * weight.shape[2]))
    sums = uses_gram(weight)
    rows = sample_rows(visit, bias, limit, generator, check, activation=not sums)
    return gram_of(rows, weight) if sums else rows


@torch.no_grad()
def learn(
    rounding: SoftRounding,
    problem: Rows | Gram,
    schedule: Schedule,
    generator: torch.Generator,
    on_step: Callable[[int], None],
) -> torch.Tensor:
    """Return the weight on the grid with the roundings that were learnt.

    Args:
        rounding: changed in place.
        problem: the output to keep; of rows, some are drawn for each step.
        schedule: as above.
        generator: on the CPU; draws the rows.
        on_step: called with the number of steps done now and then; may raise to stop.
    """
    strength = schedule.regularization * _unit_of_error(rounding, problem)
    rounding.alpha.requires_grad_(True)
    optimizer = torch.optim.Adam([rounding.alpha], lr=schedule.learning_rate, fused=True)
    for step in range(schedule.iterations):
        if step % _STEPS_PER_CHECK == 0:
            on_step(step)
        weight, stretched = rounding.soft()
        gradient = _draw(problem, generator).gradient(weight)
        beta = schedule.beta(step)
        rounding.alpha.grad = rounding.slope(gradient, stretched, beta, strength)
        optimizer.step()
    on_step(schedule.iterations)
    return rounding.hard()


@torch.no_grad()
def within_bounds(
    layer: Layer, weight: torch.Tensor, grid: WeightGrid, problem: Rows | Gram
) -> torch.Tensor:
    """Return a weight on its grid whose pairs obey the bound of the grid.

    Of a pair that passes it, because both were rounded away from zero, the one gives way that
    changes the output less.

    Args:
        layer: whose weight it is.
        weight: on the grid, in the layout of `Kernel`.
        grid: symmetric where it has a bound.
        problem: the output to keep.
    """
    if not grid.orders:
        return weight
    curvature = problem.curvature()
    while True:
        matrix = unfold.weight_matrix(layer.kernel, weight)
        step = unfold.channel_matrix(layer.kernel, grid.scale) * torch.sign(matrix)
        cost = step.square() * (curvature / 2) - step * problem.gradient(matrix)
        integers = lowered(
            torch.round(weight / grid.scale),
            unfold.weight_of_matrix(layer.kernel, cost, layer.weight_shape),
            grid.orders,
        )
        if integers is None:
            return weight
        weight = integers * grid.scale


def _unit_of_error(rounding: SoftRounding, problem: Rows | Gram) -> float:
    """Return what an error of `_ERROR_PER_WEIGHT` for each weight is in this problem's units."""
    nearest = float(problem.error(rounding.hard()).sum())
    unrounded = float(problem.error(rounding.soft()[0]).sum())
    # Quantized inputs can make rounding look harmless.
    caused = max(nearest - unrounded, nearest / 100) / problem.count
    return caused / (_ERROR_PER_WEIGHT * rounding.alpha.numel())


def _draw(problem: Rows | Gram, generator: torch.Generator) -> Rows | Gram:
    if isinstance(problem, Gram) or problem.count <= BATCH_ROWS:
        return problem
    index = torch.randint(problem.count, (BATCH_ROWS,), generator=generator)
    return problem.take(index.to(problem.inputs.device))

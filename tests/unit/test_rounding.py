"""AdaRound and sequential MSE on plain tensors."""

import math
from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch

from lighten_service.worker.algorithms import rounding, scales, unfold
from lighten_service.worker.algorithms.reconstruction import (
    Rows,
    full_gram,
    output_error,
    row_count,
    sample_rows,
)
from lighten_service.worker.algorithms.rounding import Schedule, SoftRounding, learn
from lighten_service.worker.integers.bounds import bounded, bounded_scale
from lighten_service.worker.integers.pairs import matrix_order
from lighten_service.worker.kernels import Kernel
from lighten_service.worker.quantized import Layer, Visit, WeightGrid

RELU = (0.0, math.inf)
PLAIN = Kernel(2, False, (1, 1), ((1, 1), (1, 1)), (1, 1))
KERNELS = {
    "plain": (PLAIN, (12, 8, 3, 3)),
    "depthwise": (replace(PLAIN, groups=8), (8, 1, 3, 3)),
    "transposed": (replace(PLAIN, transposed=True, output_padding=(0, 0)), (8, 12, 3, 3)),
    "linear": (Kernel(), (12, 8)),
}


class Stopped(Exception):
    """Stands for a cancelled job."""


def go_on(_: int = 0) -> None:
    """Never stop."""


@pytest.fixture(params=KERNELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def visit_of(
    kind: str, *, activation: tuple[float, float] | None = None, samples: int = 24
) -> Visit:
    """A layer with smooth inputs whose channels go together, and quantized ones near them."""
    kernel, shape = KERNELS[kind]
    torch.manual_seed(0)
    coarse = torch.randn(samples, 8, 3, 3) @ torch.randn(3, 3)
    mixed = torch.einsum("nchw,dc->ndhw", coarse, torch.randn(8, 8))
    x = torch.nn.functional.interpolate(mixed, scale_factor=2).relu()
    x = x if kernel.spatial else x.flatten(2).mT
    layer = Layer("layer", "Conv", kernel, "", "", shape, activation)
    inputs = [part + 0.05 * torch.randn_like(part) for part in x.split(8)]
    channels = kernel.apply(x[:1], torch.zeros(shape), None).shape[kernel.output_axis]
    return Visit(layer, x.split(8), torch.randn(shape), torch.randn(channels) * 0.1, inputs)


def grid_of(visit: Visit, bits: int = 4, *, per_channel: bool = True) -> WeightGrid:
    weight, high = visit.float_weight, 2 ** (bits - 1) - 1
    axes = [axis for axis in range(weight.ndim) if axis != visit.layer.kernel.channel_axis]
    top = weight.abs().amax(axes, keepdim=True) if per_channel else weight.abs().max()
    return WeightGrid(top / high, torch.zeros_like(top), -high - 1, high, symmetric=True)


def soft_rounding(visit: Visit, grid: WeightGrid) -> SoftRounding:
    kernel = visit.layer.kernel
    return SoftRounding(
        unfold.weight_matrix(kernel, visit.float_weight),
        unfold.channel_matrix(kernel, grid.scale),
        unfold.channel_matrix(kernel, grid.offset),
        grid.low,
        grid.high,
    )


def learnt(visit: Visit, grid: WeightGrid, iterations: int = 300, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    problem = rounding.problem_of(visit, visit.float_bias, generator, go_on)
    schedule = Schedule(iterations, 0.01, 0.2, 20, 2)
    matrix = learn(soft_rounding(visit, grid), problem, schedule, generator, go_on)
    return unfold.weight_of_matrix(visit.layer.kernel, matrix, visit.layer.weight_shape)


def direct_error(visit: Visit, weight: torch.Tensor) -> float:
    return output_error(visit, weight, visit.float_bias, go_on).noise


def test_learnt_rounding_lies_beside_each_weight_and_beats_nearest(kind: str) -> None:
    visit = visit_of(kind, activation=RELU)
    grid = grid_of(visit)
    weight = learnt(visit, grid)
    torch.testing.assert_close(weight, grid.round(weight))
    assert ((weight - visit.float_weight).abs() <= grid.scale * 1.0001).all()
    nearest = direct_error(visit, grid.round(visit.float_weight))
    assert 10 * math.log10(nearest / direct_error(visit, weight)) > 1.0


def test_the_same_seed_gives_the_same_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_GRAM_WIDTH", 0)  # rows are drawn at each step
    monkeypatch.setattr(rounding, "BATCH_ROWS", 64)
    visit = visit_of("plain", activation=RELU)
    grid = grid_of(visit)
    first = learnt(visit, grid, 50)
    assert torch.equal(first, learnt(visit, grid, 50))
    assert not torch.equal(first, learnt(visit, grid, 50, seed=1))


def test_drawn_rows_beat_nearest_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_GRAM_WIDTH", 0)
    visit = visit_of(kind, activation=RELU)
    grid = grid_of(visit)
    nearest = direct_error(visit, grid.round(visit.float_weight))
    assert direct_error(visit, learnt(visit, grid)) < 0.8 * nearest


def test_weights_beyond_the_grid_stay_at_its_end() -> None:
    visit = visit_of("linear")
    grid = grid_of(visit)
    narrow = replace(grid, scale=grid.scale / 2)
    weight = learnt(visit, narrow, 20)
    integers = torch.round(weight / narrow.scale)
    assert integers.min() >= narrow.low
    assert integers.max() <= narrow.high


@pytest.mark.parametrize("bounds", [None, RELU, (0.0, 1.5)])
@pytest.mark.parametrize("step", [0, 100])
def test_slope_is_that_of_aimets_loss(bounds: tuple[float, float] | None, step: int) -> None:
    """The gradient by hand equals autograd through AIMET's soft rounding and loss."""
    pytest.importorskip("aimet_torch")
    from aimet_torch.adaround.adaround_loss import AdaroundHyperParameters, AdaroundLoss

    visit = visit_of("linear", activation=bounds)
    grid, schedule = grid_of(visit), Schedule(200, 0.01, 0.2, 20, 2)
    rows = sample_rows(visit, visit.float_bias, 64, torch.Generator(), go_on, activation=True)
    soft = soft_rounding(visit, grid)
    weight, stretched = soft.soft()
    ours = soft.slope(
        rows.gradient(weight), stretched, schedule.beta(step), schedule.regularization
    )

    alpha = soft.alpha.clone().requires_grad_(True)
    opening = torch.clamp(torch.sigmoid(alpha) * 1.2 - 0.1, 0, 1)
    integers = torch.floor(visit.float_weight / grid.scale) + opening
    theirs = torch.clamp(integers, grid.low, grid.high) * grid.scale
    output = torch.nn.functional.linear(rows.inputs[0], theirs[0], visit.float_bias)
    if bounds is not None:
        output = output.clamp(*bounds)
    loss = AdaroundLoss.compute_recon_loss(output, rows.targets[0])
    parameters = AdaroundHyperParameters(200, 0.01, (20, 2), 0.2)
    (loss + AdaroundLoss.compute_round_loss(alpha, parameters, step)).backward()
    torch.testing.assert_close(ours, alpha.grad, rtol=1e-4, atol=1e-6)


def test_learning_can_be_stopped_between_steps() -> None:
    visit, seen = visit_of("plain"), []

    def on_step(step: int) -> None:
        seen.append(step)
        if step >= 40:
            raise Stopped

    problem = rounding.problem_of(visit, None, torch.Generator(), go_on)
    schedule = Schedule(10_000, 0.01, 0.2, 20, 2)
    with pytest.raises(Stopped):
        learn(soft_rounding(visit, grid_of(visit)), problem, schedule, torch.Generator(), on_step)
    assert seen == [0, 20, 40]


def test_sums_over_positions_give_the_error_of_the_convolution(kind: str) -> None:
    """Each candidate's error, from the Gram matrix, from rows, and from the layer itself."""
    visit = visit_of(kind)
    gram = full_gram(visit, visit.float_bias, go_on)
    rows = sample_rows(
        visit, visit.float_bias, row_count(visit), torch.Generator(), go_on, activation=False
    )
    grid = grid_of(visit)
    for share in (0.3, 0.65, 1.0):
        weight = replace(grid, scale=grid.scale * share).round(visit.float_weight)
        direct = channel_errors(visit, weight)
        matrix = unfold.weight_matrix(visit.layer.kernel, weight)
        torch.testing.assert_close(gram.error(matrix).flatten(), direct, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rows.error(matrix).flatten(), direct, rtol=1e-4, atol=1e-4)


def channel_errors(visit: Visit, weight: torch.Tensor) -> torch.Tensor:
    """The squared error of each output channel, by the layer itself."""
    kernel, total = visit.layer.kernel, torch.zeros(())
    for batch, x in enumerate(visit.inputs):
        error = kernel.apply(x, weight, visit.float_bias) - visit.float_output(batch)
        total = total + error.square().movedim(kernel.output_axis, -1).flatten(0, -2).sum(0)
    return total


def chosen(visit: Visit, grid: WeightGrid, candidates: int = 20) -> scales.ScaleChoice:
    problem = scales.problem_of(visit, visit.float_bias, go_on)
    weight = visit.float_weight
    return scales.choose_scale(visit.layer, weight, grid, problem, candidates, go_on)


@pytest.mark.parametrize("bits", [4, 8])
def test_each_channel_takes_the_best_of_its_scales(kind: str, bits: int) -> None:
    visit = visit_of(kind)
    grid = grid_of(visit, bits)
    choice = chosen(visit, grid)
    shares = [(step + 1) / 20 for step in range(20)]
    direct = torch.stack(
        [
            channel_errors(visit, replace(grid, scale=grid.scale * share).round(visit.float_weight))
            for share in shares
        ]
    )
    best = direct.gather(0, taken_shares(choice, grid, shares)[None])[0]
    torch.testing.assert_close(best, direct.min(0).values, rtol=1e-3, atol=1e-4)
    assert choice.error_after <= choice.error_before


def taken_shares(choice: scales.ScaleChoice, grid: WeightGrid, shares: list[float]) -> torch.Tensor:
    found = (choice.scale / grid.scale).flatten()
    return (found[:, None] - torch.tensor(shares)).abs().argmin(1)


def test_one_scale_for_the_tensor_is_the_best_for_all_channels_together() -> None:
    visit = visit_of("plain")
    grid = grid_of(visit, per_channel=False)
    choice = chosen(visit, grid)
    weights = {
        share: replace(grid, scale=grid.scale * share / 20).round(visit.float_weight)
        for share in range(1, 21)
    }
    best = min(weights, key=lambda share: direct_error(visit, weights[share]))
    assert choice.scale.shape == grid.scale.shape
    assert float(choice.scale / grid.scale) == pytest.approx(best / 20)


def test_few_positions_are_kept_as_rows() -> None:
    visit = visit_of("plain", samples=1)
    assert isinstance(scales.problem_of(visit, None, go_on), Rows)


def bounded_grid(visit: Visit) -> WeightGrid:
    """Return an 8-bit grid that rounding away from zero can carry past the bound of pairs."""
    grid = grid_of(visit, bits=8)
    shape = visit.layer.weight_shape
    orders = (matrix_order(shape, k_axis=1),)
    scale = bounded_scale(visit.float_weight, grid.scale, orders)
    return replace(grid, scale=scale, low=-127, orders=orders)


def largest_pair(weight: torch.Tensor, grid: WeightGrid) -> float:
    pairs = torch.round(weight / grid.scale).reshape(len(weight), -1, 2)
    return float(torch.maximum(pairs.clamp(min=0).sum(2), -pairs.clamp(max=0).sum(2)).max())


def away_from_zero(visit: Visit, grid: WeightGrid) -> torch.Tensor:
    scaled = visit.float_weight / grid.scale
    return torch.sign(scaled) * torch.ceil(scaled.abs()).clamp(max=127) * grid.scale


@pytest.mark.parametrize("width", [0, 1280])
def test_roundings_past_the_bound_give_way_where_the_output_changes_less(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "_GRAM_WIDTH", width)
    visit = visit_of("linear")
    grid = bounded_grid(visit)
    problem = rounding.problem_of(visit, visit.float_bias, torch.Generator(), go_on)
    up = away_from_zero(visit, grid)
    assert largest_pair(up, grid) > 128
    within = rounding.within_bounds(visit.layer, up, grid, problem)
    assert largest_pair(within, grid) == 128
    assert ((within - up).abs() <= grid.scale * 1.01).all()
    # The pairs that obey stay as they are.
    broken = torch.round(up / grid.scale).reshape(len(up), -1, 2).abs().sum(2) > 128
    changed = (within != up).reshape(len(up), -1, 2).any(2)
    assert not bool((changed & ~broken).any())
    scaled = up / grid.scale
    blind = bounded(torch.round(scaled), scaled, grid.orders) * grid.scale
    assert direct_error(visit, within) < direct_error(visit, blind)


def test_roundings_without_a_bound_are_left_alone() -> None:
    visit = visit_of("linear")
    grid = replace(bounded_grid(visit), orders=())
    problem = rounding.problem_of(visit, visit.float_bias, torch.Generator(), go_on)
    up = away_from_zero(visit, grid)
    assert rounding.within_bounds(visit.layer, up, grid, problem) is up

"""How far a layer with other weights is from its float output, on the inputs that a walk gives.

Weights are matrices as in `unfold`: (groups, out / groups, k).
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from lighten_service.worker.algorithms import unfold
from lighten_service.worker.quantized import Check, Layer, Visit

# Values unfolded at a time: 16 MB of float32.
_CHUNK_VALUES = 2**22


@dataclass(frozen=True, slots=True)
class OutputError:
    """Squared error of a layer's output behind its activation, and its energy in the float model,
    both summed over all samples, positions and channels."""

    noise: float
    signal: float

    @property
    def relative(self) -> float:
        """Share of the output's energy that is error."""
        return self.noise / self.signal if self.signal else self.noise


@torch.no_grad()
def output_error(
    visit: Visit, weight: torch.Tensor, bias: torch.Tensor | None, check: Check
) -> OutputError:
    """Measure a weight (in the layout of `Kernel`) on all samples of a visit."""
    noise = signal = 0.0
    for batch, x in enumerate(visit.inputs):
        check()
        target = activate(visit.layer, visit.float_output(batch))
        output = activate(visit.layer, visit.layer.kernel.apply(x, weight, bias))
        noise += float((output - target).square().sum(dtype=torch.float64))
        signal += float(target.square().sum(dtype=torch.float64))
    return OutputError(noise, signal)


def activate(layer: Layer, output: torch.Tensor) -> torch.Tensor:
    """Apply the ReLU or Clip behind the layer, if there is one."""
    return output if layer.activation is None else output.clamp(*layer.activation)


class Reconstruction(Protocol):
    """The squared error of a layer's output as a function of its weight."""

    def error(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the squared error summed over rows: (groups, out / groups)."""
        ...

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the error, summed over channels and a mean over rows."""
        ...

    def curvature(self) -> torch.Tensor:
        """Return the second derivative of that error by each weight, activations left out:
        (groups, 1, k)."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """A reconstruction from rows of inputs and of float outputs, through an activation."""

    # (groups, rows, k) and (groups, rows, out / groups), the latter behind the activation.
    inputs: torch.Tensor
    targets: torch.Tensor
    # (groups, 1, out / groups)
    bias: torch.Tensor
    bounds: tuple[float, float] | None = None

    @property
    def count(self) -> int:
        return self.inputs.shape[1]

    def take(self, index: torch.Tensor) -> "Rows":
        """Return some of the rows."""
        inputs, targets = self.inputs.index_select(1, index), self.targets.index_select(1, index)
        return Rows(inputs, targets, self.bias, self.bounds)

    def error(self, weight: torch.Tensor) -> torch.Tensor:
        output = torch.baddbmm(self.bias, self.inputs, weight.mT)
        if self.bounds is not None:
            output = output.clamp_(*self.bounds)
        return output.sub_(self.targets).square_().sum(1)

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        output = torch.baddbmm(self.bias, self.inputs, weight.mT)
        if self.bounds is None:
            slope = output.sub_(self.targets)
        else:
            low, high = self.bounds
            passes = (output > low).logical_and_(output < high)
            slope = output.clamp_(low, high).sub_(self.targets).mul_(passes)
        return torch.bmm(slope.mT, self.inputs).mul_(2 / self.count)

    def curvature(self) -> torch.Tensor:
        return self.inputs.square().sum(1, keepdim=True).mul_(2 / self.count)


@dataclass(frozen=True, slots=True)
class Gram:
    """A reconstruction without an activation, from sums over all rows: with the change e of the
    weight, the error is e G e' + 2 e s' + c. Costs the same however many the rows."""

    reference: torch.Tensor
    # X'X: (groups, k, k); r'X: (groups, out / groups, k); r'r: (groups, out / groups), with the
    # inputs X and the error r of the reference.
    gram: torch.Tensor
    slope: torch.Tensor
    constant: torch.Tensor
    count: int

    def error(self, weight: torch.Tensor) -> torch.Tensor:
        change = weight - self.reference
        product = torch.baddbmm(self.slope, change, self.gram, beta=2)
        return product.mul_(change).sum(2).add_(self.constant)

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        product = torch.baddbmm(self.slope, weight - self.reference, self.gram)
        return product.mul_(2 / self.count)

    def curvature(self) -> torch.Tensor:
        return self.gram.diagonal(dim1=1, dim2=2)[:, None] * (2 / self.count)


def row_count(visit: Visit) -> int:
    """Return how many output positions all samples of a visit have."""
    return sum(_view_rows(visit, batch) for batch in range(len(visit.inputs)))


def sample_rows(
    visit: Visit,
    bias: torch.Tensor | None,
    limit: int,
    generator: torch.Generator,
    check: Check,
    *,
    activation: bool,
) -> Rows:
    """Draw at most ``limit`` output positions of all samples, without replacement; all of them
    where there are no more. ``activation``: keep the output behind the layer's activation."""
    kernel = visit.layer.kernel
    total = row_count(visit)
    chosen = torch.randperm(total, generator=generator)[:limit].sort().values
    inputs, targets, begin = [], [], 0
    for batch in range(len(visit.inputs)):
        check()
        end = begin + _view_rows(visit, batch)
        index = chosen[(chosen >= begin) & (chosen < end)] - begin
        index = index.to(visit.inputs[batch].device)
        inputs.append(unfold.rows(kernel, _windows(visit, batch), index))
        output = visit.float_output(batch)
        if activation:
            output = activate(visit.layer, output)
        targets.append(unfold.output_rows(kernel, output, index))
        begin = end
    return Rows(
        torch.cat(inputs, 1),
        torch.cat(targets, 1),
        _bias_rows(visit, bias),
        visit.layer.activation if activation else None,
    )


def gram_of(rows: Rows, reference: torch.Tensor) -> Gram:
    """Sum up rows, which have no activation, around a reference weight."""
    error = torch.baddbmm(rows.bias, rows.inputs, reference.mT) - rows.targets
    total = _empty_gram(reference, rows.count)
    _add(total, rows.inputs, error)
    return total


def full_gram(visit: Visit, bias: torch.Tensor | None, check: Check) -> Gram:
    """Sum up all rows of a visit, without the activation, around the float weight."""
    kernel = visit.layer.kernel
    total = _empty_gram(unfold.weight_matrix(kernel, visit.float_weight), row_count(visit))
    for batch, x in enumerate(visit.inputs):
        error = kernel.apply(x, visit.float_weight, bias) - visit.float_output(batch)
        view = _windows(visit, batch)
        size = max(1, _CHUNK_VALUES * len(view) // view.numel())
        for start in range(0, len(view), size):
            check()
            part = slice(start, start + size)
            _add(total, unfold.rows(kernel, view[part]), unfold.output_rows(kernel, error[part]))
    return total


def _empty_gram(reference: torch.Tensor, count: int) -> Gram:
    groups, channels, k = reference.shape
    return Gram(
        reference,
        reference.new_zeros(groups, k, k),
        reference.new_zeros(groups, channels, k),
        reference.new_zeros(groups, channels),
        count,
    )


def _add(total: Gram, inputs: torch.Tensor, error: torch.Tensor) -> None:
    total.gram.baddbmm_(inputs.mT, inputs)
    total.slope.baddbmm_(error.mT, inputs)
    total.constant.add_(error.square().sum(1))


def _windows(visit: Visit, batch: int) -> torch.Tensor:
    return unfold.windows(visit.layer.kernel, visit.inputs[batch], visit.layer.weight_shape)


def _view_rows(visit: Visit, batch: int) -> int:
    return unfold.positions(visit.layer.kernel, _windows(visit, batch)).numel()


def _bias_rows(visit: Visit, bias: torch.Tensor | None) -> torch.Tensor:
    groups, channels, _ = unfold.weight_matrix(visit.layer.kernel, visit.float_weight).shape
    if bias is None:
        bias = visit.float_weight.new_zeros(groups * channels)
    return bias.reshape(groups, 1, channels)

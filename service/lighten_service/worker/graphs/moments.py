"""Mean activations without data: what batch norms saw, carried through the operators after them.

Nagel et al. 2019, arXiv:1906.04721, section 4.2.1 and appendix C: the output of a batch norm is
taken as normal with its shift as mean and its scale as standard deviation; a ReLU or Clip makes it
a clipped normal; sums add means and, taken as independent, variances. Zero padding at the borders
is not seen.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from lighten_service.worker.graphs.shapes import Shapes, tensor_shapes
from lighten_service.worker.graphs.walk import array, attribute, constants

_SMALLEST_STD = 1e-12


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean of each channel of a tensor, over samples and positions, and its standard deviation
    where that is known; float64, shape (channels,)."""

    mean: torch.Tensor
    std: torch.Tensor | None


def clipped_normal(mean: torch.Tensor, std: torch.Tensor, low: float, high: float) -> Spread:
    """Return mean and standard deviation of ``clip(x, low, high)`` for normal ``x``.

    Args:
        mean: of ``x``, shape (channels,).
        std: of ``x``, not negative.
        low: may be minus infinity.
        high: may be infinity, which makes a ReLU of ``low`` = 0.
    """
    mean, std = mean.double(), std.double().clamp_min(_SMALLEST_STD)
    alpha, beta = (low - mean) / std, (high - mean) / std
    below, above = torch.special.ndtr(alpha), torch.special.ndtr(-beta)
    inside = 1 - below - above
    density_low, density_high = _density(alpha), _density(beta)
    first = mean * inside + std * (density_low - density_high)
    second = (mean**2 + std**2) * inside + std * mean * (density_low - density_high)
    for bound, share, edge in ((low, below, density_low), (high, above, -density_high)):
        if math.isfinite(bound):
            first = first + bound * share
            second = second + bound**2 * share + std * bound * edge
    return Spread(first, (second - first**2).clamp_min(0).sqrt())


def _density(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def propagate(model: onnx.ModelProto, known: Mapping[str, Spread]) -> dict[str, Spread]:
    """Return what is known of each tensor, by name.

    Batch norms that were not folded are read from the graph. Operators whose mean does not follow
    from the means of their inputs (maximum pooling, gates) stop it.

    Args:
        model: float graph in execution order.
        known: outputs of layers into which batch norms were folded.
    """
    graph = _Graph(constants(model.graph), tensor_shapes(model))
    found = dict(known)
    for node in model.graph.node:
        rule = _RULES.get(node.op_type)
        if rule is None or node.output[0] in found:
            continue
        spread = rule(node, [found.get(name) for name in node.input if name], graph)
        if spread is not None:
            found[node.output[0]] = spread
    return found


@dataclass(frozen=True, slots=True)
class _Graph:
    constants: Mapping[str, onnx.TensorProto]
    shapes: Shapes

    def value(self, name: str) -> torch.Tensor | None:
        if name not in self.constants:
            return None
        return torch.from_numpy(np.array(array(self.constants[name]), np.float64))


# Takes what is known of each input (None: nothing), and returns what is known of the output.
_Rule = Callable[[onnx.NodeProto, list[Spread | None], _Graph], Spread | None]


def _keep(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:  # noqa: ARG001
    return inputs[0]


def _relu(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:  # noqa: ARG001
    return _clipped(inputs[0], 0.0, math.inf)


def _clip(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:
    bounds = []
    for position, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), 1):
        if len(node.input) > position and node.input[position]:
            value = graph.value(node.input[position])
            if value is None:
                return None
            bounds.append(float(value))
        else:
            bounds.append(float(attribute(node, name, default)))  # type: ignore[arg-type]
    return _clipped(inputs[0], *bounds)


def _clipped(spread: Spread | None, low: float, high: float) -> Spread | None:
    if spread is None or spread.std is None:
        return None
    return clipped_normal(spread.mean, spread.std, low, high)


def _batch_norm(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:  # noqa: ARG001
    scale, shift = graph.value(node.input[1]), graph.value(node.input[2])
    return None if scale is None or shift is None else Spread(shift, scale.abs())


def _add(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:  # noqa: ARG001
    known = [spread for spread in inputs if spread is not None]
    if len(known) != len(inputs) or len({spread.mean.shape for spread in known}) != 1:
        return None
    mean = torch.stack([spread.mean for spread in known]).sum(0)
    variances = [spread.std**2 for spread in known if spread.std is not None]
    std = torch.stack(variances).sum(0).sqrt() if len(variances) == len(known) else None
    return Spread(mean, std)


def _concat(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:
    known = [spread for spread in inputs if spread is not None]
    rank = len(graph.shapes.get(node.output[0], ()))
    if len(known) != len(inputs) or attribute(node, "axis") not in (1, 1 - rank):
        return None
    deviations = [spread.std for spread in known if spread.std is not None]
    return Spread(
        torch.cat([spread.mean for spread in known]),
        torch.cat(deviations) if len(deviations) == len(known) else None,
    )


def _average(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:  # noqa: ARG001
    # Zeros counted in would change the mean; how neighbours vary together is not known.
    if inputs[0] is None or attribute(node, "count_include_pad", 0):
        return None
    return Spread(inputs[0].mean, None)


def _reduce_mean(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        axes = graph.value(node.input[1])
    rank = len(graph.shapes.get(node.input[0], ()))
    if axes is None or inputs[0] is None or rank < 3:
        return None
    positions = all(int(axis) % rank >= 2 for axis in axes)  # type: ignore[attr-defined]
    return Spread(inputs[0].mean, None) if positions else None


def _reshape(node: onnx.NodeProto, inputs: list[Spread | None], graph: _Graph) -> Spread | None:
    """Keep what is known where one position is left, so that channels stay what they are."""
    shape = graph.shapes.get(node.output[0], ())
    if inputs[0] is None or len(shape) < 2 or shape[1] != math.prod(shape[1:]):
        return None
    return inputs[0] if shape[1] == len(inputs[0].mean) else None


_RULES: Mapping[str, _Rule] = {
    "Add": _add,
    "AveragePool": _average,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Dropout": _keep,
    "Flatten": _reshape,
    "GlobalAveragePool": _average,
    "Identity": _keep,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Sum": _add,
}

"""Where quantizers stand in a simulation, and which operators they belong to."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from aimet_torch.nn import BaseQuantizationMixin
from aimet_torch.quantization.base import QuantizerBase
from torch import nn

from lighten_service.worker.engines.torch_operators import Operator


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of one of the lists of quantizers that AIMET gives each module."""

    name: str
    # The operator that it belongs to; the model's input for quantizers of inputs.
    layer: str
    op: str
    # Operators that targets compute as one with it.
    names: frozenset[str]
    is_weight: bool
    module: Any
    container: Any
    key: int | str

    @property
    def quantizer(self) -> QuantizerBase | None:
        found: QuantizerBase | None = self.container[self.key]
        return found

    @property
    def parameter(self) -> torch.nn.Parameter:
        """What a quantizer of weights quantizes."""
        found: torch.nn.Parameter = getattr(self.module, str(self.key))
        return found

    def put(self, quantizer: QuantizerBase | None) -> None:
        self.container[self.key] = quantizer


def places(model: nn.Module, operators: Sequence[Operator]) -> tuple[Place, ...]:
    """Return the places that have a quantizer, in execution order.

    The quantizer after the ReLU or clip of a layer belongs to the layer where there is none
    between them. Those inside an operator of several parts belong to the whole.
    """
    heads = dict(_fused(model, operators))
    return tuple(
        place
        for operator in operators
        for place in _of_operator(model, operator, heads.get(operator.name, operator))
        if isinstance(place.quantizer, QuantizerBase)
    )


def fuse_activations(model: nn.Module, operators: Iterable[Operator]) -> int:
    """Leave one quantizer on each layer with a ReLU or clip after it; return how many went.

    AIMET joins such pairs to one place of quantization except for depthwise convolutions and some
    clips. A second quantizer costs accuracy, and keeps runtimes from fusing the two.
    """
    removed = 0
    for operator in operators:
        if not operator.activation:
            continue
        layer: Any = model.get_submodule(operator.name)
        activation: Any = model.get_submodule(operator.activation)
        if _output(activation) is not None and _output(layer) is not None:
            layer.output_quantizers[0] = None
            removed += 1
    return removed


def _fused(model: nn.Module, operators: Iterable[Operator]) -> Iterator[tuple[str, Operator]]:
    for operator in operators:
        if operator.activation and _output(model.get_submodule(operator.name)) is None:
            yield operator.activation, operator


def _output(module: nn.Module) -> QuantizerBase | None:
    if not isinstance(module, BaseQuantizationMixin):
        return None
    quantizer: QuantizerBase | None = next(iter(module.output_quantizers), None)
    return quantizer


def _of_operator(model: nn.Module, operator: Operator, head: Operator) -> list[Place]:
    # The outputs of the whole come after its parts.
    last = f"{operator.name}.output_quantizers."
    return sorted(_in_modules(model, operator, head), key=lambda place: place.name.startswith(last))


def _in_modules(model: nn.Module, operator: Operator, head: Operator) -> Iterator[Place]:
    names = frozenset({operator.name, head.name})
    for path, module in model.get_submodule(operator.name).named_modules(prefix=operator.name):
        if not isinstance(module, BaseQuantizationMixin):
            continue
        whole = path == operator.name
        for index in range(len(module.input_quantizers)):
            source = operator.reads[index] if whole and index < len(operator.reads) else ""
            yield Place(
                f"{path}.input_quantizers.{index}",
                source or head.name,
                "" if source else head.op,
                frozenset({source}) if source else names,
                False,
                module,
                module.input_quantizers,
                index,
            )
        for key in module.param_quantizers:
            name = f"{path}.param_quantizers.{key}"
            yield Place(name, head.name, head.op, names, True, module, module.param_quantizers, key)
        for index in range(len(module.output_quantizers)):
            name = f"{path}.output_quantizers.{index}"
            yield Place(
                name, head.name, head.op, names, False, module, module.output_quantizers, index
            )

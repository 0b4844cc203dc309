"""A calibrated aimet-torch simulation, opened for algorithms.

Parameters and quantizers are replaced and never written to, so that a snapshot is a list of them,
and the float module, which shares the parameters, stays as it was.
"""

import copy
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from aimet_torch.quantization.affine import AffineQuantizerBase
from aimet_torch.quantization.base import QuantizerBase
from aimet_torch.quantization.float import FloatQuantizeDequantize
from aimet_torch.quantsim import QuantizationSimModel
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.worker.checkpoints.reading import InvalidStepResult, same
from lighten_service.worker.engines import torch_simulation
from lighten_service.worker.engines.torch_bias_range import make_room_for_biases
from lighten_service.worker.engines.torch_layers import torch_layers, weight_orders
from lighten_service.worker.engines.torch_operators import LAYERS, Operator
from lighten_service.worker.engines.torch_overrides import unsigned_operators
from lighten_service.worker.engines.torch_places import Place, places
from lighten_service.worker.engines.torch_prepare import Inputs
from lighten_service.worker.engines.torch_probe import Prober
from lighten_service.worker.engines.torch_types import grid, with_bits, with_range_of, with_scale
from lighten_service.worker.engines.torch_walk import walk
from lighten_service.worker.integers.bounds import bounded_scale, kept_bounded
from lighten_service.worker.model import Batch
from lighten_service.worker.quantized import (
    Check,
    Layer,
    Moments,
    Probe,
    QuantizedModel,
    Quantizer,
    Visit,
    WeightGrid,
)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    quantizers: tuple[tuple[Place, QuantizerBase | None], ...]
    parameters: tuple[tuple[Any, torch.nn.Parameter, torch.nn.Parameter | None], ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a simulation needs from the working model that it belongs to."""

    float_module: torch.fx.GraphModule
    operators: tuple[Operator, ...]
    moments: Mapping[str, Moments]
    tensors: Callable[[Batch], Inputs]
    # Names of the tensors of the exported graph: of the weight and of the output, by layer.
    tensor_names: Callable[[], Mapping[str, tuple[str, str]]]
    quantization: pb.QuantizationConfig
    # To be called after each change.
    changed: Callable[[], None]


class TorchQuantizedModel(QuantizedModel):
    """The simulation of a `TorchModel`."""

    def __init__(self, sim: QuantizationSimModel, surroundings: Surroundings) -> None:
        self._sim = sim
        self._around = surroundings
        self._places = places(sim.model, surroundings.operators)
        self._layers: tuple[Layer, ...] | None = None
        overrides = surroundings.quantization.overrides
        # Operators whose weights the QDQ graph stores as UINT8.
        self.unsigned = unsigned_operators(surroundings.operators, overrides)

    def bound_weights(self, names: Collection[str] | None = None) -> None:
        """Raise the scales of weights until their integers obey the plan's range.

        Args:
            names: of weight quantizers; all by default.
        """
        for place, bound in self._bounded(names):
            found = place.quantizer
            if isinstance(found, AffineQuantizerBase):
                scale = bounded_scale(place.parameter, bound.scale, bound.orders)
                self._replace(found, with_scale(found, scale))
        self._keep_bounded(names)
        self._around.changed()

    @property
    def simulation(self) -> QuantizationSimModel:
        return self._sim

    @property
    def float_module(self) -> torch.fx.GraphModule:
        """The module as it was when it was calibrated."""
        return self._around.float_module

    def layers(self) -> tuple[Layer, ...]:
        if self._layers is None:
            self._layers = torch_layers(
                self._around.float_module, self._around.operators, self._around.tensor_names()
            )
        return self._layers

    def quantizers(self) -> tuple[Quantizer, ...]:
        return tuple(
            Quantizer(
                name=place.name,
                layer=place.layer,
                op=place.op,
                is_weight=place.is_weight,
                bits=_bits(place.quantizer),
                is_float=isinstance(place.quantizer, FloatQuantizeDequantize),
            )
            for place in self._first_places()
        )

    def weight(self, layer: Layer) -> torch.Tensor:
        weight: torch.Tensor = self._module(layer).weight.detach()
        return weight

    def set_weight(self, layer: Layer, weight: torch.Tensor) -> None:
        module = self._module(layer)
        module.weight = _parameter(weight, module.weight)
        self._keep_bounded([_weight_quantizer(layer)])
        self._around.changed()

    def bias(self, layer: Layer) -> torch.Tensor | None:
        bias: torch.Tensor | None = self._module(layer).bias
        return None if bias is None else bias.detach()

    def set_bias(self, layer: Layer, bias: torch.Tensor) -> None:
        module = self._module(layer)
        _accept_bias(module)
        module.bias = _parameter(bias, module.weight)
        make_room_for_biases(self._sim, [module])
        self._keep_bounded([_weight_quantizer(layer)])
        self._around.changed()

    def weight_grid(self, layer: Layer) -> WeightGrid | None:
        name = _weight_quantizer(layer)
        place = next((place for place in self._places if place.name == name), None)
        return None if place is None else self._grid(place)

    def set_weight_scale(self, layer: Layer, scale: torch.Tensor) -> None:
        quantizers = self._module(layer).param_quantizers
        quantizers["weight"] = with_scale(quantizers["weight"], scale)
        self._keep_bounded([_weight_quantizer(layer)])
        self._around.changed()

    @contextmanager
    def full_range(self) -> Iterator[None]:
        before = self.snapshot()
        try:
            for place, _ in self._bounded():
                if place.quantizer is not None:
                    full = with_range_of(with_bits(place.quantizer, 8), place.parameter)
                    self._replace(place.quantizer, full)
            make_room_for_biases(self._sim)
            self._around.changed()
            yield
        finally:
            self.restore(before)

    def moments(self) -> Mapping[str, Moments]:
        return self._around.moments

    @contextmanager
    def only(self, names: Collection[str]) -> Iterator[None]:
        off = [place for place in self._places if place.quantizer is not None]
        on = {id(place.quantizer) for place in off if place.name in names}
        kept = [(place, place.quantizer) for place in off if id(place.quantizer) not in on]
        self._put((place, None) for place, _ in kept)
        try:
            yield
        finally:
            self._put(kept)

    def probe(
        self, batches: Iterable[Batch], groups: Sequence[Collection[str]], *, check: Check
    ) -> Generator[Probe, None, None]:
        modules = {
            place.name: [other.module for other in self._places if other.quantizer is quantizer]
            for place in self._first_places()
            if (quantizer := place.quantizer) is not None
        }
        prober = Prober(self._sim.model, modules, self.only)
        for batch in batches:
            inputs = self._around.tensors(batch)
            expected = _arrays(prober.run(inputs))
            for group, outputs in prober.probe(inputs, groups, check):
                yield Probe(group, _arrays(outputs), expected)

    def calibrate_activations(
        self, batches: Callable[[], Iterable[Batch]], *, on_batch: Callable[[int], None]
    ) -> None:
        stand = [place for place in self._places if place.quantizer is not None]
        renewed = copy.deepcopy([place.quantizer for place in stand])
        self._put(zip(stand, renewed, strict=True))
        for place in stand:
            if place.is_weight and place.quantizer is not None:
                place.quantizer.allow_overwrite(False)
        torch_simulation.calibrate(
            self._sim,
            lambda: (self._around.tensors(batch) for batch in batches()),
            on_batch,
        )
        # It may have raised scales for biases.
        self._keep_bounded()
        self._around.changed()

    def set_types(self, names: Collection[str], bits: int) -> None:
        for place in self._first_places():
            if place.name not in names or place.quantizer is None:
                continue
            changed: QuantizerBase = with_bits(place.quantizer, bits)
            if place.is_weight:
                changed = with_range_of(changed, place.parameter)
            self._replace(place.quantizer, changed)
        self.bound_weights(names)

    def snapshot(self) -> object:
        return _Snapshot(
            tuple((place, place.quantizer) for place in self._places),
            tuple((module, module.weight, module.bias) for _, module in self._heavy_modules()),
        )

    def restore(self, snapshot: object) -> None:
        kept = cast(_Snapshot, snapshot)
        for module, weight, bias in kept.parameters:
            module.weight, module.bias = weight, bias
        self._put(kept.quantizers)

    def changed_parameters(self) -> dict[str, torch.Tensor]:
        """Return weights and biases that are no longer the float module's, by their path."""
        return {
            f"{name}.{key}": parameter
            for name, module in self._heavy_modules()
            for key in ("weight", "bias")
            if (parameter := getattr(module, key)) is not None
            and not _share(parameter, getattr(self._around.float_module.get_submodule(name), key))
        }

    def restore_parameters(self, changed: Mapping[str, torch.Tensor]) -> None:
        """Set what `changed_parameters` returned; grids stay.

        Raises:
            InvalidStepResult: they are another model's.
        """
        modules = dict(self._heavy_modules())
        for path, values in changed.items():
            layer, _, key = path.rpartition(".")
            if layer not in modules or key not in ("weight", "bias"):
                raise InvalidStepResult(f"there is no parameter {path}")
            module = modules[layer]
            if key == "bias":
                _accept_bias(module)
            else:
                same(tuple(values.shape), tuple(module.weight.shape), path)
            setattr(module, key, _parameter(values, module.weight))
        self._around.changed()

    def walk(
        self, batches: Iterable[Batch], *, quantize_activations: bool, check: Check
    ) -> Iterator[Visit]:
        return walk(
            self._around.float_module,
            self._sim.model,
            {layer.name: layer for layer in self.layers()},
            (self._around.tensors(batch) for batch in batches),
            quantize_activations=quantize_activations,
            check=check,
        )

    def _grid(self, place: Place) -> WeightGrid | None:
        """Return the grid of a weight. Integers of symmetric 8-bit ones must suit every CPU, where
        the plan wants that: they have bounds."""
        found = grid(place.quantizer)
        if (
            found is None
            or self._around.quantization.weight_range != pb.WEIGHT_RANGE_EVERY_CPU
            or not self.unsigned.isdisjoint(place.names)
            or (found.symmetric, found.low, found.high) != (True, -128, 127)
        ):
            return found
        return replace(found, low=-found.high, orders=weight_orders(place.module))

    def _bounded(self, names: Collection[str] | None = None) -> Iterator[tuple[Place, WeightGrid]]:
        """Yield the weights, of these quantizers or of all, whose integers must suit every CPU."""
        for place in self._places:
            if place.is_weight and (names is None or place.name in names):
                found = self._grid(place)
                if found is not None and found.low == -found.high:
                    yield place, found

    def _keep_bounded(self, names: Collection[str] | None = None) -> None:
        """Move what of weights breaks the plan's range on their grids."""
        for place, bound in self._bounded(names):
            weight = place.parameter
            kept = kept_bounded(weight.detach(), bound.scale, bound.orders)
            if kept.data_ptr() != weight.data_ptr():
                setattr(place.module, str(place.key), _parameter(kept, weight))

    def _heavy_modules(self) -> Iterator[tuple[str, Any]]:
        for name, module in self._sim.named_qmodules():
            if isinstance(module, LAYERS):
                yield name, module

    def _module(self, layer: Layer) -> Any:
        return self._sim.model.get_submodule(layer.name)

    def _first_places(self) -> Iterator[Place]:
        """Yield the places that are switched on, one for each quantizer: some share theirs."""
        seen = set[int]()
        for place in self._places:
            if place.quantizer is not None and id(place.quantizer) not in seen:
                seen.add(id(place.quantizer))
                yield place

    def _put(self, quantizers: Iterable[tuple[Place, QuantizerBase | None]]) -> None:
        for place, quantizer in quantizers:
            place.put(quantizer)
        self._around.changed()

    def _replace(self, old: QuantizerBase, new: QuantizerBase) -> None:
        self._put([(place, new) for place in self._places if place.quantizer is old])


def _weight_quantizer(layer: Layer) -> str:
    return f"{layer.name}.param_quantizers.weight"


def _arrays(outputs: Sequence[torch.Tensor]) -> list[NDArray[np.float32]]:
    return [output.float().cpu().numpy() for output in outputs]


def _bits(quantizer: Any) -> int:
    return int(quantizer.bitwidth)


def _share(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Whether two parameters are the same memory; AIMET wraps some biases anew."""
    return other is not None and one.data_ptr() == other.data_ptr()


def _accept_bias(module: Any) -> None:
    if "bias" not in module.param_quantizers:
        # What AIMET's forward pass and export look up for each parameter.
        module.param_quantizers["bias"] = None
        module._param_pre_quantizers["bias"] = None


def _parameter(values: torch.Tensor, like: torch.Tensor) -> torch.nn.Parameter:
    """Return a parameter with a copy of the values, on the device of another one."""
    return torch.nn.Parameter(values.detach().to(like, copy=True), requires_grad=like.requires_grad)

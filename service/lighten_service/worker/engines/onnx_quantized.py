"""The simulation of an ONNX model, opened for algorithms."""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from aimet_onnx.common.defs import qtype
from numpy.typing import NDArray

from lighten_service.worker.engines.onnx_grids import QuantizerState, load_scales, read_grid
from lighten_service.worker.engines.onnx_heavy import Heavy, give_biases, heavy_layers
from lighten_service.worker.engines.onnx_parameters import Parameters, Values
from lighten_service.worker.engines.onnx_probe import Prober
from lighten_service.worker.engines.onnx_simulation import Simulation
from lighten_service.worker.engines.onnx_types import is_integer, set_type
from lighten_service.worker.engines.onnx_walk import OpenSession, Passage, portions
from lighten_service.worker.formats.onnx_inputs import batch_size
from lighten_service.worker.graphs.walk import constants, consumers, producers
from lighten_service.worker.integers.bounds import bounded_scale, kept_bounded
from lighten_service.worker.integers.pairs import Order, orders_of
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
    parameters: Mapping[str, Values]
    quantizers: Mapping[str, QuantizerState]


class OnnxQuantized(QuantizedModel):
    """A float graph and AIMET's simulation of it, changed together.

    Layers that share a weight share its values and its grid: a change of one is a change of all.
    `Layer.weight` tells. A graph of a fixed batch is walked in portions of that size, one tensor a
    portion. The tensors of a walk are not to be written to.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        simulation: Simulation,
        moments: Mapping[str, Moments],
        *,
        device: str,
        open_float: OpenSession,
        on_change: Callable[[], None],
    ) -> None:
        """Open a calibrated simulation.

        Args:
            model: the float graph that the simulation was made from; changed in place.
            simulation: changed in place.
            moments: what batch norms saw, by the layer that they were folded into.
            device: of the tensors.
            open_float: opens a piece of the float graph.
            on_change: called after every change of weights, biases and grids.
        """
        self._model = model
        self._simulation = simulation
        self._moments = {name: _on(seen, device) for name, seen in moments.items()}
        self._device = device
        self._open_float = open_float
        self._on_change = on_change
        self._parameters = Parameters((model, simulation.graph))
        self._find_layers()

    def bound_weights(self, names: Iterable[str] | None = None) -> None:
        """Raise the scales of weights until their integers obey the plan's range.

        Args:
            names: of weights; all by default.
        """
        for name in sorted(self._simulation.weights if names is None else names):
            grid = self._grid(name)
            if grid is not None and self._simulation.bounds(name):
                weight = self._tensor(self._parameters.get(name))
                scale = bounded_scale(weight, grid.scale, grid.orders)
                load_scales(self._simulation.quantizers[name], scale)
                self._keep_bounded(name)
        self._on_change()

    def layers(self) -> tuple[Layer, ...]:
        return tuple(heavy.layer for heavy in self._heavy.values())

    def quantizers(self) -> tuple[Quantizer, ...]:
        owners = self._simulation.owners
        found = [
            Quantizer(
                name=name,
                layer=owners[name].name,
                op=owners[name].op,
                is_weight=name in self._simulation.weights,
                bits=int(quantizer.bitwidth),
                is_float=not is_integer(quantizer),
            )
            for name, quantizer in self._simulation.distinct().items()
            if quantizer.enabled
        ]
        order = {node.name: position for position, node in enumerate(self._model.graph.node)}
        # Inputs of the model come first, weights before outputs.
        return tuple(sorted(found, key=lambda q: (order.get(q.layer, -1), not q.is_weight)))

    def weight(self, layer: Layer) -> torch.Tensor:
        heavy = self._heavy[layer.name]
        return self._tensor(_laid_out(self._parameters.get(heavy.weight), heavy))

    def set_weight(self, layer: Layer, weight: torch.Tensor) -> None:
        heavy = self._heavy[layer.name]
        self._set(heavy.weight, _laid_out(weight.detach().cpu().numpy(), heavy))
        self._keep_bounded(heavy.weight)

    def bias(self, layer: Layer) -> torch.Tensor | None:
        name = self._heavy[layer.name].bias
        return self._tensor(self._parameters.get(name)) if name else None

    def set_bias(self, layer: Layer, bias: torch.Tensor) -> None:
        heavy = self._heavy[layer.name]
        if not heavy.bias:
            self._give_biases()
        self._set(self._heavy[layer.name].bias, bias.detach().cpu().numpy())

    def weight_grid(self, layer: Layer) -> WeightGrid | None:
        heavy = self._heavy[layer.name]
        grid = self._grid(heavy.weight)
        if grid is None or not heavy.transposed:
            return grid
        shape = layer.weight_shape
        return replace(
            grid,
            scale=grid.scale.T,
            offset=grid.offset.T,
            orders=tuple(order.after(shape, (1, 0)) for order in grid.orders),
        )

    def set_weight_scale(self, layer: Layer, scale: torch.Tensor) -> None:
        load_scales(self._simulation.quantizers[layer.weight], scale.detach())
        self._keep_bounded(layer.weight)
        self._on_change()

    @contextmanager
    def full_range(self) -> Iterator[None]:
        before = self.snapshot()
        try:
            for name in self._simulation.weights:
                if self._grid(name) is not None and self._simulation.bounds(name):
                    self._simulation.calibrate_weight(name, self._parameters.get(name))
            self._on_change()
            yield
        finally:
            self.restore(before)

    def moments(self) -> Mapping[str, Moments]:
        return self._moments

    @contextmanager
    def only(self, names: Collection[str]) -> Iterator[None]:
        off = [
            name
            for name, quantizer in self._simulation.distinct().items()
            if quantizer.enabled and name not in names
        ]
        self._switch(off, on=False)
        try:
            yield
        finally:
            self._switch(off, on=True)

    def probe(
        self, batches: Iterable[Batch], groups: Sequence[Collection[str]], *, check: Check
    ) -> Generator[Probe, None, None]:
        prober = Prober(
            self._simulation.graph,
            only=self.only,
            open_float=self._open_float,
            open_simulated=self._simulation.open_piece,
            tied=self._tied,
        )
        fixed = batch_size(self._model)
        for batch in batches:
            left = len(next(iter(batch.values())))
            for portion in portions([batch], fixed):
                expected = _rows(prober.run(portion), left)
                for group, outputs in prober.probe(portion, groups, check):
                    yield Probe(group, _rows(outputs, left), expected)
                left -= fixed or left

    def calibrate_activations(
        self, batches: Callable[[], Iterable[Batch]], *, on_batch: Callable[[int], None]
    ) -> None:
        self._on_change()
        self._simulation.calibrate_activations(batches(), on_batch)

    def set_types(self, names: Collection[str], bits: int) -> None:
        for name in names:
            set_type(self._simulation.quantizers[name], qtype.int(bits))
            if name in self._simulation.weights:
                self._simulation.calibrate_weight(name, self._parameters.get(name))
        self.bound_weights(self._simulation.weights.intersection(names))

    def snapshot(self) -> object:
        return _Snapshot(self._parameters.snapshot(), self._simulation.states())

    def restore(self, snapshot: object) -> None:
        if not isinstance(snapshot, _Snapshot):
            raise TypeError("a snapshot of another kind of model")
        self._parameters.restore(snapshot.parameters)
        self._simulation.load_states(snapshot.quantizers)
        self._changed()

    @property
    def originals(self) -> Mapping[str, Values]:
        """Values at calibration of the initializers that have changed since."""
        return self._parameters.originals

    def resume(self, originals: Mapping[str, Values]) -> None:
        """Go on with a graph whose initializers had these values at calibration."""
        self._parameters.resume(originals)

    def walk(
        self, batches: Iterable[Batch], *, quantize_activations: bool, check: Check
    ) -> Iterator[Visit]:
        data = list(portions(batches, batch_size(self._model)))
        original = Passage(
            lambda: self._model, data, self._open_float, values=self._parameters.originals
        )
        simulated = Passage(
            lambda: self._simulation.graph,
            data,
            self._simulation.open_piece,
            passed_by=lambda node: not quantize_activations and self._is_activation(node),
        )
        names = list(self._heavy) if data else []
        for position in range(len(names)):
            # Looked up again: a layer may have got a bias since.
            heavy = [self._heavy[name] for name in names[position:]]
            yield self._visit(heavy[0], *self._reach(original, simulated, heavy, check))

    def _reach(
        self, original: Passage, simulated: Passage, heavy: Sequence[Heavy], check: Check
    ) -> tuple[list[Values], list[Values]]:
        """Return the inputs of the first layer in both models, ready for those after it."""
        first, *rest = [layer.data for layer in heavy]
        float_inputs = original.reach(first, rest, check)
        writer = producers(self._simulation.graph.graph)
        first, *rest = [_data(writer, layer) for layer in heavy]
        return float_inputs, simulated.reach(first, rest, check)

    def _visit(
        self, heavy: Heavy, float_inputs: Sequence[Values], inputs: Sequence[Values]
    ) -> Visit:
        weight = _laid_out(self._parameters.original(heavy.weight), heavy)
        bias = self._parameters.original(heavy.bias) if heavy.bias else None
        return Visit(
            layer=heavy.layer,
            float_inputs=[self._shared(values) for values in float_inputs],
            float_weight=self._tensor(weight),
            float_bias=None if bias is None else self._tensor(bias),
            inputs=[self._shared(values) for values in inputs],
        )

    def _grid(self, name: str) -> WeightGrid | None:
        """Return the grid of a weight as the graph stores it."""
        quantizer = self._simulation.quantizers.get(name)
        if quantizer is None:
            return None
        shape = self._parameters.get(name).shape
        grid = read_grid(quantizer, shape, self._device)
        if grid is None or not self._simulation.bounds(name):
            return grid
        return replace(grid, low=-grid.high, orders=self._orders(name, shape))

    def _orders(self, name: str, shape: tuple[int, ...]) -> tuple[Order, ...]:
        if name not in self._known_orders:
            self._known_orders[name] = orders_of(name, shape, self._readers, self._known)
        return self._known_orders[name]

    def _keep_bounded(self, name: str) -> None:
        """Move what of a weight breaks the plan's range on its grid."""
        grid = self._grid(name)
        if grid is None or not self._simulation.bounds(name):
            return
        weight = self._tensor(self._parameters.get(name))
        kept = kept_bounded(weight, grid.scale, grid.orders)
        if kept is not weight:
            self._set(name, kept.cpu().numpy())

    def _find_layers(self) -> None:
        self._heavy = {heavy.layer.name: heavy for heavy in heavy_layers(self._model)}
        self._readers = consumers(self._model.graph)
        self._known = constants(self._model.graph)
        self._known_orders: dict[str, tuple[Order, ...]] = {}

    def _give_biases(self) -> None:
        """Give every layer a bias. AIMET must see them to quantize them, so it starts again."""
        names = give_biases(self._model)
        self._simulation.rebuild(self._model)
        self._parameters.added(names, (self._model, self._simulation.graph))
        self._find_layers()

    def _set(self, name: str, values: Values) -> None:
        self._parameters.set(name, values)
        self._changed()

    def _changed(self) -> None:
        self._simulation.changed()
        self._on_change()

    def _switch(self, names: Iterable[str], *, on: bool) -> None:
        for name in names:
            self._simulation.quantizers[name].enabled = on
        self._on_change()

    def _is_activation(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "QcQuantizeOp" and node.input[0] not in self._simulation.weights

    def _tied(self, name: str) -> list[str]:
        """Return the tensors that have the same quantizer as one, itself included."""
        quantizers = self._simulation.quantizers
        return [other for other in quantizers if quantizers[other] is quantizers[name]]

    def _shared(self, values: Values) -> torch.Tensor:
        """Return a tensor without a copy where the device allows it; not to be written to."""
        values = values if values.flags.writeable else values.copy()
        return torch.from_numpy(values).to(self._device, torch.float32)

    def _tensor(self, values: Values) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def _rows(outputs: Iterable[Values], count: int) -> list[NDArray[np.float32]]:
    """Return the outputs of samples that did not fill up a portion."""
    return [np.asarray(values[:count], np.float32) for values in outputs]


def _laid_out(values: Values, heavy: Heavy) -> Values:
    """Turn a weight from the graph's layout into that of `Kernel`, and back."""
    return values.T if heavy.transposed else values


def _data(writer: Mapping[str, onnx.NodeProto], heavy: Heavy) -> str:
    """Return what a layer reads in the simulation, where AIMET may have joined it with its Add."""
    node = writer.get(heavy.product) or writer[heavy.output]
    return node.input[0]


def _on(moments: Moments, device: str) -> Moments:
    return Moments(moments.mean.to(device), moments.std.to(device))

"""Two modules with one graph, run in step, operator by operator and batch by batch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from aimet_torch.nn import BaseQuantizationMixin
from torch.fx import Interpreter, Node

from lighten_service.worker.engines.torch_prepare import Inputs
from lighten_service.worker.quantized import Check, Layer, Visit


def walk(
    float_module: torch.fx.GraphModule,
    simulation: torch.fx.GraphModule,
    layers: Mapping[str, Layer],
    batches: Iterable[Inputs],
    *,
    quantize_activations: bool,
    check: Check,
) -> Iterator[Visit]:
    """Go through the layers of a simulation and of its float module; see `QuantizedModel.walk`.

    Args:
        float_module: with the graph of the simulation, and no quantizers.
        simulation: as it is now; changes between two visits take effect.
        layers: by the name of the module.
        batches: read once.
        quantize_activations: False switches the quantizers of activations off.
        check: called before each operator on each batch; may raise to stop.
    """
    inputs = list(batches)
    if not inputs:
        return
    reference = _Run(float_module, simulation.graph, inputs)
    present = _Run(simulation, simulation.graph, inputs)
    for node in simulation.graph.nodes:
        module = simulation.get_submodule(node.target) if node.op == "call_module" else None
        if module is not None and node.target in layers:
            layer = layers[node.target]
            yield _visit(layer, node, reference, present, quantize=quantize_activations)
        with _activations(module, quantize_activations):
            for batch in range(len(inputs)):
                check()
                reference.step(node, batch)
                present.step(node, batch)


class _Run:
    """A module under way on all batches: the values of its live nodes."""

    def __init__(
        self, module: torch.fx.GraphModule, graph: torch.fx.Graph, batches: list[Inputs]
    ) -> None:
        self.module = module
        self._batches = [Interpreter(module, graph=graph) for _ in batches]
        for interpreter, inputs in zip(self._batches, batches, strict=True):
            interpreter.args_iter = iter(inputs)

    @torch.no_grad()
    def step(self, node: Node, batch: int) -> None:
        """Compute a node, and forget the values that it was the last to need."""
        interpreter = self._batches[batch]
        interpreter.env[node] = interpreter.run_node(node)
        for dead in interpreter.user_to_last_uses.get(node, ()):
            del interpreter.env[dead]

    def values(self, node: Node) -> list[torch.Tensor]:
        return [_plain(interpreter.env[node]) for interpreter in self._batches]


def _visit(layer: Layer, node: Node, reference: _Run, present: _Run, *, quantize: bool) -> Visit:
    source = node.all_input_nodes[0]
    float_layer: Any = reference.module.get_submodule(layer.name)
    quantized_layer: Any = present.module.get_submodule(layer.name)
    inputs = present.values(source)
    quantizer = quantized_layer.input_quantizers[0]
    if quantize and quantizer is not None:
        with torch.no_grad():
            inputs = [_plain(quantizer(values)) for values in inputs]
    bias = float_layer.bias
    return Visit(
        layer,
        float_inputs=reference.values(source),
        float_weight=float_layer.weight.detach(),
        float_bias=None if bias is None else bias.detach(),
        inputs=inputs,
    )


def _plain(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor without the encodings that AIMET's subclasses carry."""
    return values.as_subclass(torch.Tensor)


@contextmanager
def _activations(module: torch.nn.Module | None, on: bool) -> Iterator[None]:
    """Switch the quantizers of a module's activations off while the block runs, unless ``on``."""
    with ExitStack() as stack:
        for part in module.modules() if module is not None and not on else ():
            if isinstance(part, BaseQuantizationMixin):
                for container in (part.input_quantizers, part.output_quantizers):
                    stack.callback(_fill, container, list(container))
                    _fill(container, [None] * len(container))
        yield


def _fill(container: torch.nn.ModuleList, quantizers: list[Any]) -> None:
    for index, quantizer in enumerate(quantizers):
        container[index] = quantizer

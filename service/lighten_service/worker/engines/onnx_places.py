"""Where quantizers stand in an ONNX graph, and which operators they belong to."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx

from lighten import v1 as pb
from lighten_service.worker.engines.onnx_heavy import HEAVY
from lighten_service.worker.graphs.walk import constants, consumers, producers
from lighten_service.worker.selectors import selected

_ACTIVATIONS = frozenset({"Clip", "Relu"})
# Constant inputs that set how an operator works, and are no operands: never quantized.
_SETTINGS = {"Clip": (1, 2), "Pad": (2,), "Pow": (1,)}


@dataclass(frozen=True, slots=True)
class Owner:
    """The operator that a quantizer belongs to. ``op`` is empty for inputs of the model."""

    name: str
    op: str
    # Operators that are computed as one with it: a selector may name any of them.
    names: frozenset[str]


class Places:
    """The float graph, looked at for its quantizers. Tensors are called as in the graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._known = constants(graph)
        self._readers = consumers(graph)
        self._writer = producers(graph)
        self._outputs = {value.name for value in graph.output}
        self.operators = tuple((node.name, node.op_type) for node in graph.node)

    def settings(self) -> tuple[str, ...]:
        """Return the constants that are settings of operators and nothing else."""
        return tuple(
            name
            for name in self._known
            if self._readers[name]
            and all(
                position in _SETTINGS.get(node.op_type, ())
                for node in self._readers[name]
                for position, used in enumerate(node.input)
                if used == name
            )
        )

    def inner_outputs(self) -> dict[str, str]:
        """Return the output of each layer that only a Relu or Clip reads, with what that writes.

        Targets compute such a pair as one.
        """
        found = {}
        for name, node in self._writer.items():
            if node.op_type not in _ACTIVATIONS:
                continue
            inner = node.input[0]
            if self._alone(inner) and self._layer(inner) is not None:
                found[inner] = name
        return found

    def owner(self, tensor: str, quantized: Collection[str]) -> Owner:
        """Return the operator that the quantizer of a tensor belongs to.

        Weights and other constants belong to what reads them; a Relu or Clip right after a layer,
        and the Add of its bias, to the layer, where nothing between them is quantized.
        """
        node = self._writer.get(tensor)
        if node is None:
            readers = self._readers.get(tensor) if tensor in self._known else None
            if not readers:
                return Owner(tensor, "", frozenset({tensor}))
            return Owner(readers[0].name, readers[0].op_type, frozenset(r.name for r in readers))
        names, current = {node.name}, node
        while (inner := self._inner(current)) is not None and inner not in quantized:
            current = self._writer[inner]
            names.add(current.name)
        head = current if current.op_type in HEAVY else node
        return Owner(head.name, head.op_type, frozenset(names))

    def _inner(self, node: onnx.NodeProto) -> str | None:
        """Return what a node reads, where the node may be one with the operator that wrote it."""
        if node.op_type in _ACTIVATIONS:
            data = [node.input[0]]
        elif node.op_type == "Add":
            data = [name for name in node.input if name not in self._known]
        else:
            return None
        if len(data) != 1 or data[0] not in self._writer or not self._alone(data[0]):
            return None
        return data[0]

    def _layer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the layer with a constant weight that writes a tensor, its bias added or not."""
        node = self._writer.get(tensor)
        if node is not None and node.op_type == "Add":
            inner = self._inner(node)
            node = self._writer[inner] if inner is not None else None
            node = node if node is not None and node.op_type == "MatMul" else None
        if node is None or node.op_type not in HEAVY:
            return None
        return node if node.input[1] in self._known else None

    def _alone(self, tensor: str) -> bool:
        return len(self._readers[tensor]) == 1 and tensor not in self._outputs


# Types by the name of a quantizer; None leaves its tensor in floating point.
Decisions = Mapping[str, pb.DataType.ValueType | None]


def decide(
    overrides: Iterable[pb.LayerOverride],
    operators: Iterable[tuple[str, str]],
    owners: Mapping[str, Owner],
    weights: Iterable[str],
) -> Decisions:
    """Return what overrides say about quantizers, later ones over earlier ones.

    Args:
        overrides: of the `QuantizationConfig`.
        operators: names and types of every operator of the graph.
        owners: by the name of each quantizer.
        weights: names of the quantizers of weights.

    Raises:
        InvalidArgument: SELECTOR_MATCHES_NOTHING.
    """
    decisions: dict[str, pb.DataType.ValueType | None] = {}
    operators, weights = tuple(operators), set(weights)
    for index, override in enumerate(overrides):
        field = f"plan.quantization.overrides[{index}].select"
        names = selected(override.select, operators, field)
        for quantizer, owner in owners.items():
            if names.isdisjoint(owner.names):
                continue
            wanted = override.weights if quantizer in weights else override.activations
            if override.leave_float:
                decisions[quantizer] = None
            elif wanted:
                decisions[quantizer] = wanted
    return decisions


def decide_unsigned(
    overrides: Iterable[pb.LayerOverride],
    operators: Iterable[tuple[str, str]],
    owners: Mapping[str, Owner],
) -> frozenset[str]:
    """Return the quantizers of operators whose weights overrides want stored as UINT8.

    Raises:
        InvalidArgument: SELECTOR_MATCHES_NOTHING.
    """
    names: set[str] = set()
    for index, override in enumerate(overrides):
        if override.uint8_weights:
            field = f"plan.quantization.overrides[{index}].select"
            names |= selected(override.select, tuple(operators), field)
    return frozenset(name for name, owner in owners.items() if not names.isdisjoint(owner.names))

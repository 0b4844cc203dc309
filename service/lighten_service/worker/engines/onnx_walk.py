"""Running an ONNX graph layer by layer, each node once.

To reach a layer, the nodes that its input still lacks run in an ONNX Runtime session of their own,
for all portions of the data. Tensors that a later piece reads are carried along, the others freed.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from lighten_service.worker.graphs.shapes import copy_fields
from lighten_service.worker.graphs.walk import graphs, subgraphs
from lighten_service.worker.model import Batch
from lighten_service.worker.quantized import Check

Values = NDArray[np.generic]
OpenSession = Callable[[onnx.ModelProto], onnxruntime.InferenceSession]


class Passage:
    """A graph on its way from the inputs to its layers, for all portions at once.

    Every step takes the weights as they are then, and nodes that were added with new initializers,
    so that what was changed is seen by the nodes that have not run yet.
    """

    def __init__(
        self,
        model: Callable[[], onnx.ModelProto],
        portions: Iterable[Batch],
        open_session: OpenSession,
        *,
        values: Mapping[str, Values] | None = None,
        passed_by: Callable[[onnx.NodeProto], bool] = lambda _: False,
    ) -> None:
        """Start at the inputs.

        Args:
            model: returns the graph as it is; names of tensors stay the same.
            portions: inputs, in portions of the size that the graph takes.
            open_session: opens a piece of the graph.
            values: what to use instead of the model's own initializers, by name; looked at for
                every step too.
            passed_by: which nodes stand for their first input.
        """
        self._model = model
        self._open = open_session
        self._values = {} if values is None else values
        self._passed_by = passed_by
        self._live: list[dict[str, Values]] = [dict(portion) for portion in portions]
        self._nodes: Nodes | None = None
        self._initializers = 0

    def reach(self, target: str, others: Collection[str], check: Check) -> list[Values]:
        """Return a tensor, one array a portion.

        Args:
            target: name of the tensor.
            others: tensors that later steps ask for.
            check: called before each portion; raises to stop.
        """
        graph = self._graph()
        known = set(self._live[0]) if self._live else set()
        target, wanted = graph.source(target), {graph.source(name) for name in others}
        now = graph.before({target}, known)
        later = graph.before({target, *wanted}, known) - now
        keep = {target, *wanted}.union(*(graph.reads[position] for position in later))
        if now:
            self._run([graph.order[position] for position in sorted(now)], keep, check)
        self._live = [{n: v for n, v in live.items() if n in keep} for live in self._live]
        return [live[target] for live in self._live]

    def _graph(self) -> "Nodes":
        model = self._model()
        if self._nodes is None or len(model.graph.initializer) != self._initializers:
            self._nodes = Nodes(model.graph, self._passed_by)
            self._initializers = len(model.graph.initializer)
        return self._nodes

    def _run(self, nodes: Sequence[onnx.NodeProto], keep: Collection[str], check: Check) -> None:
        written = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in reads(node)} - written
        outputs = sorted(written & set(keep))
        inputs = sorted(read & set(self._live[0]))
        feeds = {name: self._live[0][name] for name in inputs}
        session = self._open(piece_of(self._model(), nodes, feeds, outputs, self._values))
        for live in self._live:
            check()
            results = session.run(outputs, {name: live[name] for name in inputs})
            live.update(zip(outputs, results, strict=True))
            # At once: all portions together may not fit with what they were made from.
            for name in live.keys() - keep:
                del live[name]


def piece_of(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, Values],
    outputs: Iterable[str],
    values: Mapping[str, Values] | None = None,
) -> onnx.ModelProto:
    """Return the model of some nodes with what they read of the initializers.

    Args:
        model: whose nodes they are.
        nodes: in execution order.
        feeds: an example of each input, for its type.
        outputs: names of tensors that the nodes write.
        values: what to use instead of the model's own initializers, by name.
    """
    piece = onnx.ModelProto()
    copy_fields(model, piece, "graph")
    piece.graph.name = "piece"
    piece.graph.node.extend(nodes)
    for name, example in feeds.items():
        piece.graph.input.append(_described(name, example))
    # ONNX Runtime infers the types of outputs.
    piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    read = {name for node in nodes for name in reads(node)}
    for tensor in model.graph.initializer:
        if tensor.name not in read:
            continue
        if values and tensor.name in values:
            tensor = onnx.numpy_helper.from_array(values[tensor.name], tensor.name)
        piece.graph.initializer.append(tensor)
    return piece


def portions(batches: Iterable[Batch], size: int | None) -> Iterator[Batch]:
    """Yield batches, cut into the fixed size that a graph demands.

    The last portion of a batch is filled up with copies of its last sample.
    """
    for batch in batches:
        count = len(next(iter(batch.values())))
        for start in range(0, count, size or count):
            rows = np.minimum(np.arange(start, start + (size or count)), count - 1)
            yield {name: values[rows] for name, values in batch.items()} if size else batch


class Nodes:
    """The nodes of a graph by what they write, those that are passed by taken out."""

    def __init__(self, graph: onnx.GraphProto, passed_by: Callable[[onnx.NodeProto], bool]) -> None:
        self._renamed: dict[str, str] = {}
        # In execution order.
        self.order: list[onnx.NodeProto] = []
        for node in graph.node:
            if passed_by(node):
                self._renamed[node.output[0]] = self.source(node.input[0])
            else:
                self.order.append(self._rewired(node))
        self.reads = [reads(node) for node in self.order]
        self._writer = {
            name: position
            for position, node in enumerate(self.order)
            for name in node.output
            if name
        }

    def source(self, name: str) -> str:
        return self._renamed.get(name, name)

    def before(self, targets: Collection[str], known: Collection[str]) -> set[int]:
        """Return the positions in ``order`` of the nodes that the targets still lack."""
        pending = [name for name in targets if name not in known]
        found: set[int] = set()
        while pending:
            position = self._writer.get(pending.pop())
            if position is None or position in found:
                continue
            found.add(position)
            pending.extend(n for n in self.reads[position] if n not in known)
        return found

    def _rewired(self, node: onnx.NodeProto) -> onnx.NodeProto:
        if not self._renamed or self._renamed.keys().isdisjoint(reads(node)):
            return node
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for inner in (copy, *_inner(copy)):
            for position, name in enumerate(inner.input):
                inner.input[position] = self.source(name)
        return copy


def _inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graphs inside a node."""
    for graph in subgraphs(node):
        for current in graphs(graph):
            yield from current.node


def reads(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads, those that graphs inside it read included."""
    names = {*node.input}
    for graph in subgraphs(node):
        names.update(value.name for value in graph.output)
    for inner in _inner(node):
        names.update(inner.input)
    return names - {""}


def _described(name: str, values: Any) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [None] * values.ndim)

"""A simulation with one group of quantizers at a time, what lies before them computed once.

The graph is cut into pieces of about as many nodes. Each piece has a session without quantizers,
and one with them, which is run for the groups that have a quantizer in the piece.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import onnx
import onnxruntime

from lighten_service.worker.engines.onnx_walk import (
    Nodes,
    OpenSession,
    Values,
    piece_of,
    reads,
)
from lighten_service.worker.model import Batch
from lighten_service.worker.quantized import Check

# Switches all quantizers off but those named.
Only = Callable[[Collection[str]], AbstractContextManager[None]]

# More pieces spare more work before a group, and lose more of ONNX Runtime's fusions.
_PIECES = 16
_QUANTIZER = "QcQuantizeOp"


@dataclass
class _Piece:
    """Some nodes that follow each other. ``outputs`` are read by later pieces or by the caller.

    ``renamed`` has, for outputs that a quantizer of this piece stands behind, what that writes.
    """

    nodes: Sequence[onnx.NodeProto]
    outputs: Sequence[str]
    renamed: Mapping[str, str] = field(default_factory=dict)
    session: onnxruntime.InferenceSession | None = None


class Prober:
    """Runs a simulation for groups of its quantizers, each with this group alone switched on.

    The simulation must not change while it is in use.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        *,
        only: Only,
        open_float: OpenSession,
        open_simulated: OpenSession,
        tied: Callable[[str], Collection[str]],
    ) -> None:
        """Cut the graph.

        Args:
            graph: of the simulation, with AIMET's quantizers as nodes.
            only: of the simulation.
            open_float: opens a piece of the graph that has no quantizers.
            open_simulated: opens a piece that has some.
            tied: tensors with the same quantizer as a tensor, itself included.
        """
        self._graph = graph
        self._only = only
        self._open_float = open_float
        self._open_simulated = open_simulated
        self._tied = tied
        cuts = _Cuts(graph)
        self._source = cuts.source
        self._float = [cuts.float_piece(number) for number in range(cuts.count)]
        self._simulated = [cuts.simulated_piece(number) for number in range(cuts.count)]
        self._owners = cuts.owners
        self._names = [cuts.source(value.name) for value in graph.graph.output]

    def run(self, batch: Batch) -> list[Values]:
        """Return the outputs with all quantizers off."""
        return self._rest(dict(batch), 0, frozenset())

    def probe(
        self, batch: Batch, groups: Sequence[Collection[str]], check: Check
    ) -> Iterator[tuple[int, list[Values]]]:
        """Yield the position of each group with its outputs, in execution order."""
        touched = [
            frozenset(self._owners[tensor] for name in group for tensor in self._tied(name))
            for group in groups
        ]
        pieces = [frozenset().union(*found) for found in touched]
        live: dict[str, Values] = dict(batch)
        done = 0
        for index in sorted(range(len(groups)), key=lambda index: min(pieces[index])):
            first = min(pieces[index])
            while done < first:
                self._step(live, done, simulated=False)
                done += 1
            check()
            with self._only(groups[index]):
                yield index, self._rest(dict(live), done, pieces[index])

    def _rest(self, live: dict[str, Values], start: int, simulated: frozenset[int]) -> list[Values]:
        for number in range(start, len(self._float)):
            self._step(live, number, simulated=number in simulated)
        return [live[name] for name in self._names]

    def _step(self, live: dict[str, Values], number: int, *, simulated: bool) -> None:
        piece = (self._simulated if simulated else self._float)[number]
        wanted = [piece.renamed.get(name, name) for name in piece.outputs]
        read = {name for node in piece.nodes for name in reads(node)}
        written = {name for node in piece.nodes for name in node.output}
        feeds = {
            name: live[self._source(name)]
            for name in sorted(read - written)
            if self._source(name) in live
        }
        if piece.session is None:
            opens = self._open_simulated if simulated else self._open_float
            piece.session = opens(piece_of(self._graph, piece.nodes, feeds, wanted))
        results = piece.session.run(wanted, feeds)
        live.update(zip(piece.outputs, results, strict=True))


class _Cuts:
    """Where a graph is cut, and which quantizers stand in which piece."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        nodes = Nodes(graph.graph, _is_quantizer)
        self.source = nodes.source
        self._float = nodes.order
        self._raw = [node for node in graph.graph.node if not _is_quantizer(node)]
        self._quantizers = [node for node in graph.graph.node if _is_quantizer(node)]
        size = -(-len(self._raw) // _PIECES)
        self._starts = range(0, len(self._raw), size)
        self._size = size
        self._outputs = {nodes.source(value.name) for value in graph.graph.output}
        self.owners = self._find_owners()

    @property
    def count(self) -> int:
        return len(self._starts)

    def float_piece(self, number: int) -> _Piece:
        return _Piece(self._slice(self._float, number), self._kept(number))

    def simulated_piece(self, number: int) -> _Piece:
        nodes: list[onnx.NodeProto] = []
        inside = [node for node in self._quantizers if number in self.owners[node.input[0]]]
        written = {name for node in self._slice(self._raw, number) for name in node.output}
        after = {node.input[0]: node for node in inside if node.input[0] in written}
        nodes += [node for node in inside if node.input[0] not in written]
        for node in self._slice(self._raw, number):
            nodes += [node, *(after[name] for name in node.output if name in after)]
        renamed = {name: quantizer.output[0] for name, quantizer in after.items()}
        return _Piece(nodes, self._kept(number), renamed)

    def _find_owners(self) -> dict[str, frozenset[int]]:
        """Return the pieces that each quantized tensor's quantizer stands in: that of what writes
        the tensor, or those of all that read a weight or an input of the model."""
        writers = {
            name: at // self._size for at, node in enumerate(self._raw) for name in node.output
        }
        readers: dict[str, set[int]] = {}
        for at, node in enumerate(self._raw):
            for name in reads(node):
                readers.setdefault(name, set()).add(at // self._size)
        return {
            node.input[0]: frozenset({writers[node.input[0]]})
            if node.input[0] in writers
            else frozenset(readers.get(node.output[0], ()))
            for node in self._quantizers
        }

    def _kept(self, number: int) -> list[str]:
        """Return what later pieces, or the caller, read of a piece."""
        written = {name for node in self._slice(self._float, number) for name in node.output}
        later = self._float[self._starts[number] + self._size :]
        wanted = self._outputs.union(*(reads(node) for node in later))
        return sorted((written & wanted) - {""})

    def _slice(self, nodes: Sequence[onnx.NodeProto], number: int) -> Sequence[onnx.NodeProto]:
        return nodes[self._starts[number] : self._starts[number] + self._size]


def _is_quantizer(node: onnx.NodeProto) -> bool:
    return node.op_type == _QUANTIZER

"""What is found out about all weights of a file: by its integers, and by the kernels it gets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from lighten_service.worker.integers.findings import EXACT, Finding, of_integers
from lighten_service.worker.integers.kernels import Kernels
from lighten_service.worker.integers.products import Operand
from lighten_service.worker.integers.scopes import scopes
from lighten_service.worker.integers.weights import Weight, find_weights

_DATA: Final = "multiplies signed integers that are data"
_PACKED: Final = "MatMulNBits quantizes its data as it runs"
_BLOCKWISE: Final = "blockwise integers, of whose kernels nothing is known"
# What names of nodes and tensors end with that ONNX Runtime has made anew.
_RENAMED: Final = "_token_"
_REPACKED: Final = "_T"


class Ledger:
    """Findings by the name of the stored integers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        places = defaultdict[str, list[Weight]](list)
        for weight in find_weights(model):
            places[weight.stored].append(weight)
        self._places: dict[str, list[Weight]] = dict(places)
        self._found = {stored: of_integers(group) for stored, group in places.items()}
        # By operator: of integers that are no constants, or that the file does not have as such.
        self._others: dict[str, Finding] = {}
        self._ops = {
            node.name or node.output[0]: node.op_type
            for scope in scopes(model)
            for node in scope.graph.node
            if node.output
        }

    def findings(self) -> list[Finding]:
        """Return all of them, in the order of the operators. Weights of 4 bits count where integers
        are made of their data."""
        weights = (
            finding
            for stored, finding in self._found.items()
            if self._places[stored][0].bits == 8 or not finding.proven
        )
        order = {name: place for place, name in enumerate(self._ops)}
        return sorted(
            [*weights, *self._others.values()],
            key=lambda finding: order.get(finding.layer, len(order)),
        )

    def add_x86(self, kernels: Kernels) -> None:
        """Look for pairs that saturate without VNNI."""
        for product in kernels.products:
            if not product.pairs:
                continue
            if product.right.values is None:
                self._other(product.node, product.right.name).not_provable(_DATA, arm=False)
            for finding in self._owners(product.node, product.right):
                if finding.add_pairs(product):
                    self._blame(product.node, finding)
        self._add_unknown(kernels)

    def add_arm(self, kernels: Kernels) -> None:
        """Look for integers that overflow without dot product or in depthwise kernels: on the
        right, and on the left where those on the right are signed too."""
        for product in kernels.products:
            left, right = product.left, product.right
            if right.signed is False:
                continue
            if right.values is None and (left.values is None or not left.signed):
                self._other(product.node, right.name).not_provable(_DATA, x86=False)
            for side in (left, right):
                for finding in self._owners(product.node, side):
                    if finding.add_lowest(side):
                        self._blame(product.node, finding)
        self._add_unknown(kernels)

    def _add_unknown(self, kernels: Kernels) -> None:
        """Note what nothing is known about, on any CPU."""
        for product in kernels.products:
            for side in (product.left, product.right):
                for stored in self._same(side):
                    if self._is_blockwise(stored):
                        self._found[stored].not_provable(_BLOCKWISE)
        for node in kernels.packed:
            for finding in self._repacked(node, kernels):
                finding.not_provable(_PACKED)
        for node in kernels.unknown:
            self._other(node, node.input[0]).not_provable(f"nothing is known of {node.op_type}")

    def _owners(self, node: onnx.NodeProto, side: Operand) -> Iterator[Finding]:
        """Yield the weights that signed constants of an operator may come from; one of their own
        where the file has none that are the same."""
        if side.values is None or side.signed is False:
            return
        names = self._same(side)
        for stored in names:
            if not self._is_blockwise(stored):
                yield self._found[stored]
        if not names:
            yield self._other(node, side.name)

    def _is_blockwise(self, stored: str) -> bool:
        return any(place.blockwise for place in self._places[stored])

    def _same(self, side: Operand) -> Sequence[str]:
        """Return the weights that are this constant: of its name, or else with the same integers
        in whatever order, for transposed ones are renamed."""
        if side.name in self._found:
            return (side.name,)
        return () if side.values is None else self._by_content.get(_content(side.values), ())

    @cached_property
    def _by_content(self) -> dict[bytes, list[str]]:
        found = defaultdict[bytes, list[str]](list)
        for stored, places in self._places.items():
            for content in {_content(place.integers) for place in places}:
                found[content].append(stored)
        return found

    def _repacked(self, node: onnx.NodeProto, kernels: Kernels) -> Sequence[Finding]:
        """Return the weights that an operator may have in a form of its own: by the name that it
        has from them, or else all that are gone."""
        name = node.input[1].partition(_RENAMED)[0]
        stored = name.removesuffix(_REPACKED)
        if name.endswith(_REPACKED) and stored in self._found:
            return (self._found[stored],)
        gone = [
            self._found[stored]
            for stored, places in self._places.items()
            if stored not in kernels.constants and _in_matmul(places)
        ]
        return gone or (self._other(node, node.input[1]),)

    def _other(self, node: onnx.NodeProto, tensor: str) -> Finding:
        name, op = self._named_as(node)
        return self._others.setdefault(name, Finding(name, tensor, op, x86=EXACT, arm=EXACT))

    def _blame(self, node: onnx.NodeProto, finding: Finding) -> None:
        name, op = self._named_as(node)
        # One without a name writes what another one wrote in the file.
        if node.name and name in self._ops:
            finding.blame(name, op)

    def _named_as(self, node: onnx.NodeProto) -> tuple[str, str]:
        """Return the name and the kind that an operator of the runtime has in the file."""
        name = node.name.partition(_RENAMED)[0]
        return name or node.output[0], self._ops.get(name, node.op_type)


def _in_matmul(places: Sequence[Weight]) -> bool:
    return any(use.node.op_type == "MatMul" for place in places for use in place.uses)


def _content(values: NDArray[Any]) -> bytes:
    """Return what two tensors have in common that hold the same integers in some order."""
    if values.dtype.itemsize != 1 or values.dtype.name not in ("int8", "uint8"):
        return values.dtype.name.encode() + values.tobytes()
    codes = np.ascontiguousarray(values).view(np.uint8).ravel()
    return values.dtype.name.encode() + np.bincount(codes, minlength=256).tobytes()

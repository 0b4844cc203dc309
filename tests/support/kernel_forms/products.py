"""Matrix products: rows of the weight are its columns of K integers."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.support.kernel_forms.form import Form, Integers, as_numbers
from tests.support.kernel_forms.layer_graph import LayerGraph
from tests.support.kernel_forms.scales import DATA_SCALE


@dataclass(frozen=True)
class Product(Form):
    """MatMul of data [*batch, m, k] and a constant [*stacked, k, n].

    Args:
        stacked: leading axes of the weight, which are some of the data's last.
    """

    k: int
    n: int = 6
    m: int = 320
    batch: tuple[int, ...] = ()
    stacked: tuple[int, ...] = ()

    channel_axis = -1

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.m, self.k)

    @property
    def channels(self) -> int:
        return self.n

    @property
    def rows_shape(self) -> tuple[int, int]:
        return math.prod(self.stacked) * self.n, self.k

    @property
    def pairs(self) -> bool:
        return not self.grid.unsigned_weight

    @property
    def rank(self) -> int:
        return len(self.data_shape)

    def stored(self, rows: Integers) -> Integers:
        return rows.reshape(*self.stacked, self.n, self.k).swapaxes(-1, -2)

    def sums(self, data: Integers, weight: Integers) -> Integers:
        return data @ weight

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        inputs = [self.data(graph), graph.weight(weight, len(self.stacked) + 1)]
        graph.result("MatMul", inputs, self.rank)


@dataclass(frozen=True)
class ProductWithVector(Product):
    """A weight [k]; ``n`` is 1, and outputs have no axis for it."""

    def stored(self, rows: Integers) -> Integers:
        return rows[0]

    def channels_with(self, wrong: NDArray[np.bool_]) -> list[int]:
        return [0] if wrong.any() else []

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        graph.result("MatMul", [self.data(graph), graph.weight(weight, 0)], 1)


@dataclass(frozen=True)
class GemmProduct(Product):
    """Gemm, with a weight [n, k] where it is transposed."""

    transposed_data: bool = False
    transposed_weight: bool = True
    alpha: int = 1

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.k, self.m) if self.transposed_data else (self.m, self.k)

    @property
    def pairs(self) -> bool:
        # With a bias and another alpha it runs in float.
        return (self.alpha == 1 or not self.biased) and super().pairs

    def stored(self, rows: Integers) -> Integers:
        return rows if self.transposed_weight else rows.T

    def sums(self, data: Integers, weight: Integers) -> Integers:
        left = data.T if self.transposed_data else data
        right = weight.T if self.transposed_weight else weight
        return left @ right * self.alpha

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        axis = 0 if self.transposed_weight else 1
        inputs = [self.data(graph), graph.weight(weight, axis), *graph.bias()]
        turned = {"transA": int(self.transposed_data), "transB": int(self.transposed_weight)}
        graph.result("Gemm", inputs, self.rank, alpha=float(self.alpha), **turned)


@dataclass(frozen=True)
class ProductBehindTranspose(Product):
    """A weight [n, k] whose values are transposed before MatMul."""

    def stored(self, rows: Integers) -> Integers:
        return rows

    def sums(self, data: Integers, weight: Integers) -> Integers:
        return data @ weight.T

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        turned = graph.node("Transpose", [graph.weight(weight, 0)], "turned", perm=[1, 0])
        graph.result("MatMul", [self.data(graph), *turned], self.rank)


@dataclass(frozen=True)
class ProductBehindReshape(Product):
    """A weight [k, 1, n] whose values are reshaped before MatMul, which is float."""

    @property
    def pairs(self) -> bool:
        return False

    def stored(self, rows: Integers) -> Integers:
        return rows.T[:, None]

    def sums(self, data: Integers, weight: Integers) -> Integers:
        return data @ weight[:, 0]

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        shape = graph.constant("shape", np.array([self.k, self.n], np.int64))
        matrix = graph.node("Reshape", [graph.weight(weight, 2), shape], "matrix")
        graph.result("MatMul", [self.data(graph), *matrix], self.rank)


@dataclass(frozen=True)
class WeightFirst(Product):
    """MatMul of a constant [n, k] and data [k, m], which is float."""

    channel_axis = -2

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.k, self.m

    @property
    def pairs(self) -> bool:
        return False

    def stored(self, rows: Integers) -> Integers:
        return rows

    def sums(self, data: Integers, weight: Integers) -> Integers:
        return weight @ data

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        inputs = [graph.weight(weight, 0), self.data(graph)]
        graph.result("MatMul", inputs, self.rank)


@dataclass(frozen=True)
class IntegerProduct(Product):
    """DynamicQuantizeLinear and MatMulInteger."""

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        data = graph.dynamic_data(self.data_shape)
        graph.integer_result("MatMulInteger", data, graph.weight_codes(weight), self.rank)


@dataclass(frozen=True)
class ProductOfData(Product):
    """MatMul of two activations: what others take for the weight is an input as well."""

    @property
    def pairs(self) -> bool:
        return False

    @property
    def weight_scale(self) -> NDArray[np.float32]:
        return np.asarray(DATA_SCALE, np.float32)

    def feeds(self, codes: Integers, weight: Integers) -> dict[str, NDArray[np.float32]]:
        return {**super().feeds(codes, weight), f"{self.name}.x2": as_numbers(weight, 0)}

    def build(self, graph: LayerGraph, weight: Integers) -> None:
        inputs = [self.data(graph), graph.data("x2", weight.shape, 128)]
        graph.result("MatMul", inputs, self.rank)

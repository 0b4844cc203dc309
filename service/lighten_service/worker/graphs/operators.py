"""What ONNX Runtime makes of a graph on the CPU: how much of it computes with integers."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import onnx

from lighten import v1 as pb
from lighten_service.worker.graphs.walk import all_nodes
from lighten_service.worker.runtime import GraphSession

# Convolutions and matrix products as they come out of the optimization, fused with activations
# and laid out for the CPU.
_FLOAT: Final = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "FusedMatMulActivation",
        "Gemm",
        "GemmFastGelu",
        "MatMul",
        "MatMulBnb4",
        "MatMulNBits",
        "MultiHeadAttention",
        "NhwcFusedConv",
    }
)
_INTEGER: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
_CONVERSIONS: Final = frozenset({"DequantizeLinear", "QuantizeLinear"})


def operator_counts(path: Path) -> pb.OperatorCounts:
    """Count the operators of a file after ONNX Runtime's optimization for the CPU.

    Raises:
        InvalidArgument: INVALID_MODEL where ONNX Runtime does not load it.
    """
    with TemporaryDirectory(dir=path.parent) as folder:
        optimized = Path(folder, "optimized.onnx")
        GraphSession(path, write_optimized=optimized)
        nodes = list(all_nodes(onnx.load(optimized, load_external_data=False)))
    integer = _count(nodes, _INTEGER)
    return pb.OperatorCounts(
        heavy=_count(nodes, _FLOAT) + integer,
        integer_heavy=integer,
        conversions=_count(nodes, _CONVERSIONS),
        total=len(nodes),
    )


def _count(nodes: Iterable[onnx.NodeProto], kinds: frozenset[str]) -> int:
    return sum(node.op_type in kinds for node in nodes)

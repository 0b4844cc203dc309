"""Blockwise weights in aimet-onnx."""

from collections.abc import Collection, Mapping

import onnx
from aimet_onnx import QuantizationSimModel
from aimet_onnx.quantsim import set_blockwise_quantization_for_weights, set_lpbq_for_params

from lighten import v1 as pb
from lighten_service.worker import quantsim
from lighten_service.worker.engines.blocks import Weighted, require_blocks
from lighten_service.worker.engines.onnx_heavy import HEAVY
from lighten_service.worker.graphs.walk import attribute, constants


def weighted_layers(graph: onnx.GraphProto) -> dict[str, Weighted]:
    """Return the layers of a float graph with a constant weight, by the name of the weight."""
    known = constants(graph)
    return {
        node.input[1]: _weighted(node, tuple(known[node.input[1]].dims))
        for node in graph.node
        if node.op_type in HEAVY and node.input[1] in known
    }


def set_blocks(
    sim: QuantizationSimModel,
    layers: Mapping[str, Weighted],
    quantization: pb.QuantizationConfig,
    excluded: Collection[str],
) -> None:
    """Give weights a scale for each block of input channels.

    Args:
        sim: not yet calibrated.
        layers: from `weighted_layers`.
        quantization: with a blockwise granularity and a block size.
        excluded: names of the weights that keep the quantizers they have.

    Raises:
        InvalidArgument: BLOCKWISE_NOT_APPLICABLE.
    """
    bits, size = quantsim.weight_bits(quantization), quantization.block_size
    quantizers = sim.qc_quantize_op_dict
    chosen = [
        layer
        for weight, layer in layers.items()
        if weight in quantizers and quantizers[weight].enabled and weight not in excluded
    ]
    names = set(require_blocks(chosen, size))
    if not names:  # AIMET takes none for all
        return
    if quantization.weight_granularity == pb.GRANULARITY_LOW_POWER_BLOCKWISE:
        set_lpbq_for_params(sim, bits, size, nodes_to_include=names)
        return
    set_blockwise_quantization_for_weights(
        sim,
        tuple(HEAVY),
        bits,
        quantization.weight_symmetry != pb.SYMMETRY_ASYMMETRIC,
        size,
        strict=True,
        nodes_to_exclude=[layer.name for layer in layers.values() if layer.name not in names],
    )


def _weighted(node: onnx.NodeProto, shape: tuple[int, ...]) -> Weighted:
    if node.op_type == "Gemm":
        return Weighted(node.name, True, shape[1 if attribute(node, "transB", 0) else 0])
    if node.op_type == "MatMul":
        return Weighted(node.name, len(shape) == 2, shape[0])
    plain = node.op_type == "Conv" and attribute(node, "group", 1) == 1
    return Weighted(node.name, plain and set(shape[2:]) == {1}, shape[1])

"""Batch-norm folding and cross-layer equalization of a float ONNX graph with aimet-onnx."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx
import torch
from aimet_onnx.batch_norm_fold import BNLayer, fold_all_batch_norms_to_weight
from aimet_onnx.common.cross_layer_equalization import ClsSetInfo
from aimet_onnx.cross_layer_equalization import CrossLayerScaling, HighBiasFold
from numpy.typing import NDArray
from onnxruntime.quantization.onnx_quantizer import ONNXModel

from lighten_service.worker.graphs.activations import activation_bounds
from lighten_service.worker.graphs.walk import array, constants, producers
from lighten_service.worker.quantized import Moments

# What a ReLU6 stands after: elsewhere a Clip at 6 is part of a hard sigmoid or hard swish.
_BEFORE_RELU6 = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm"})

# Two layers that were equalized, or three, in AIMET's terms.
EqualizedPairs: TypeAlias = ClsSetInfo
# Of the outputs of layers, by the layer's name.
LayerMoments = dict[str, Moments]


def fold_batch_norms(model: onnx.ModelProto) -> tuple[int, LayerMoments]:
    """Fold every batch norm beside a convolution or linear layer.

    Returns:
        How many, and what those saw that stood after their layer: its outputs.
    """
    after, before = fold_all_batch_norms_to_weight(model)
    moments = {layer.name: _moments(batch_norm) for layer, batch_norm in after}
    return len(after) + len(before), moments


def replace_relu6(model: onnx.ModelProto) -> int:
    """Turn each Clip from 0 to 6 after a layer or batch norm into a Relu; return how many."""
    known, producer = constants(model.graph), producers(model.graph)
    replaced = 0
    for node in model.graph.node:
        before = producer.get(node.input[0]) if node.op_type == "Clip" else None
        if before is None or before.op_type not in _BEFORE_RELU6:
            continue
        if activation_bounds(node, known) == (0, 6):
            node.op_type = "Relu"
            del node.input[1:]
            node.ClearField("attribute")
            replaced += 1
    return replaced


def scale(model: onnx.ModelProto, moments: LayerMoments) -> list[EqualizedPairs]:
    """Scale across consecutive convolutions (Nagel et al. 2019, section 4.1).

    Args:
        model: batch norms folded; changed in place.
        moments: brought up to date in place.

    Returns:
        The pairs of layers, as `absorb_high_biases` takes them.
    """
    # AIMET's ConnectedGraph wants the wrapper in one place and the message in others.
    sets: list[EqualizedPairs] = CrossLayerScaling(ONNXModel(model)).scale_model()
    for pair in _pairs(sets):
        if (seen := moments.get(pair.layer1.name)) is not None:
            factor = torch.from_numpy(np.array(pair.scale_factor, np.float32))
            moments[pair.layer1.name] = Moments(seen.mean / factor, seen.std / factor)
    return sets


def scaled_layers(sets: Sequence[EqualizedPairs]) -> frozenset[str]:
    """Return the names of the layers in the pairs."""
    return frozenset(layer.name for pair in _pairs(sets) for layer in (pair.layer1, pair.layer2))


def absorb_high_biases(
    model: onnx.ModelProto, sets: Sequence[EqualizedPairs], moments: LayerMoments
) -> int:
    """Move high biases into the next layer (Nagel et al. 2019, section 4.1.3).

    Args:
        model: changed in place.
        sets: what `scale` returned.
        moments: of the layers as they are now; brought up to date in place.

    Returns:
        How many layers changed, receivers included.
    """
    folding = HighBiasFold(ONNXModel(model))
    changed: set[str] = set()
    for pair in _pairs(sets):
        name = pair.layer1.name
        before = _bias(model, name)
        if name not in moments or before is None:
            continue
        seen = moments[name]
        # AIMET divides by the factor of the pair, which the moments have behind them.
        batch_norm = BNLayer(
            gamma=seen.std.numpy() * pair.scale_factor, beta=seen.mean.numpy() * pair.scale_factor
        )
        folding.bias_fold([ClsSetInfo(pair)], {name: batch_norm})
        after = _bias(model, name)
        # Rounding alone is no change.
        if after is not None and not np.allclose(before, after):
            given = before - after
            moments[name] = Moments(seen.mean - torch.from_numpy(given), seen.std)
            changed |= {name, pair.layer2.name}
    return len(changed)


def _pairs(sets: Sequence[EqualizedPairs]) -> list[ClsSetInfo.ClsSetLayerPairInfo]:
    return [pair for found in sets for pair in found.cls_pair_info_list]


def _bias(model: onnx.ModelProto, name: str) -> NDArray[np.float32] | None:
    """Return a copy of the bias of a layer, None where it has none that is constant."""
    node = next(node for node in model.graph.node if node.name == name)
    stored = constants(model.graph).get(node.input[2]) if len(node.input) > 2 else None
    return None if stored is None else np.array(array(stored), np.float32)


def _moments(batch_norm: BNLayer) -> Moments:
    """What a batch norm writes: normal values, scaled by gamma and moved to beta."""
    mean = torch.tensor(np.asarray(batch_norm.beta), dtype=torch.float32)
    std = torch.tensor(np.asarray(batch_norm.gamma), dtype=torch.float32)
    return Moments(mean, std.abs())

"""Batch-norm folding and cross-layer equalization of a float ONNX graph with aimet-onnx."""

from collections.abc import Mapping

import numpy as np
import onnx
from aimet_onnx.batch_norm_fold import BNLayer, fold_all_batch_norms_to_weight
from aimet_onnx.cross_layer_equalization import CrossLayerScaling, HighBiasFold
from onnxruntime.quantization.onnx_quantizer import ONNXModel

from lighten_service.worker.graphs.walk import array, constants, consumers, producers

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


# Batch norms that were folded, by the name of the layer that took them up.
Folded = dict[str, BNLayer]


def fold_batch_norms(model: onnx.ModelProto) -> Folded:
    """Fold every batch norm beside a convolution or linear layer."""
    after, before = fold_all_batch_norms_to_weight(model)
    return {layer.name: batch_norm for layer, batch_norm in [*after, *before]}


def equalize(model: onnx.ModelProto, folded: Folded, *, replace_relu6: bool) -> Mapping[str, float]:
    """Run the parts of AIMET's ``equalize_model``, which would replace ReLU6 unasked.

    Scaling across consecutive convolutions, then absorption of high biases where a batch norm was
    folded (Nagel et al. 2019, sections 4.1 and 4.2).

    Args:
        model: changed in place.
        folded: batch norms folded before, so that the order of the steps makes no difference.
        replace_relu6: turn ReLU6 between convolutions into ReLU first.

    Returns:
        The counts that `WorkingModel.equalize` describes.
    """
    new = fold_batch_norms(model)
    replaced = _replace_relu6(model) if replace_relu6 else 0
    # AIMET's ConnectedGraph wants the wrapper in one place and the message in others.
    wrapped = ONNXModel(model)
    sets = CrossLayerScaling(wrapped).scale_model()
    HighBiasFold(wrapped).bias_fold(sets, folded | new)
    layers = {
        layer.name
        for found in sets
        for pair in found.cls_pair_info_list
        for layer in (pair.layer1, pair.layer2)
    }
    return {
        "equalized_layers": float(len(layers)),
        "folded_batch_norms": float(len(new)),
        "replaced_relu6": float(replaced),
    }


def _replace_relu6(model: onnx.ModelProto) -> int:
    """Turn each Clip from 0 between two convolutions into a Relu; return how many."""
    known = constants(model.graph)
    readers, producer = consumers(model.graph), producers(model.graph)
    replaced = 0
    for node in model.graph.node:
        if node.op_type != "Clip" or _lower_bound(node, known) != 0:
            continue
        before = producer.get(node.input[0])
        after = readers[node.output[0]]
        if before is None or before.op_type not in _CONVOLUTIONS:
            continue
        if not any(reader.op_type in _CONVOLUTIONS for reader in after):
            continue
        node.op_type = "Relu"
        del node.input[1:]
        node.ClearField("attribute")
        replaced += 1
    return replaced


def _lower_bound(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> float:
    for attribute in node.attribute:
        if attribute.name == "min":
            return float(attribute.f)
    if len(node.input) > 1 and node.input[1] in known:
        return float(array(known[node.input[1]]).reshape(()))
    return -np.inf

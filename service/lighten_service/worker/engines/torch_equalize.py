"""Batch-norm folding and cross-layer equalization with aimet-torch."""

import torch
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.cross_layer_equalization import CrossLayerScaling, HighBiasFold

from lighten_service.worker.engines.torch_prepare import Inputs

# (convolution or linear layer, batch norm that was folded into it).
FoldedPair = tuple[torch.nn.Module, torch.nn.Module]


def fold(module: torch.nn.Module, inputs: Inputs) -> list[FoldedPair]:
    """Fold every batch norm that can be, in place; return the pairs.

    The folded batch norms are gone from the module; the pairs keep them, because high-bias
    absorption needs their statistics.
    """
    # AIMET asks the first parameter for its device.
    if next(module.parameters(), None) is None:
        return []
    return list(fold_all_batch_norms(module, None, dummy_input=inputs))


def equalize(module: torch.nn.Module, inputs: Inputs, folded: list[FoldedPair]) -> int:
    """Equalize consecutive layers in place; return how many layers were scaled.

    The two halves of AIMET's `equalize_model`: scaling, which keeps the function of a ReLU
    network, and high-bias absorption, which does so only for activations beyond three standard
    deviations of what the batch norms saw (Nagel et al. 2019, section 4.1.3). `equalize_model`
    itself absorbs nothing when batch norms were folded by an earlier call.
    """
    if next(module.parameters(), None) is None:
        return 0
    scaled = CrossLayerScaling().scale_model(module, dummy_input=inputs)
    HighBiasFold.bias_fold(scaled, dict(folded))
    layers = {
        layer
        for cls_set in scaled
        for pair in cls_set.cls_pair_info_list
        for layer in (pair.layer1, pair.layer2)
    }
    return len(layers)


def replace_relu6(module: torch.nn.Module) -> int:
    """Replace every ReLU6 by a ReLU, in place; return how many."""
    replaced = 0
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ReLU6):
                setattr(parent, name, torch.nn.ReLU(inplace=child.inplace))
                replaced += 1
    return replaced

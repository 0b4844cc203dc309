"""Batch-norm folding and cross-layer equalization with aimet-torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.cross_layer_equalization import CrossLayerScaling, PythonHbfImpl

from lighten_service.worker.engines.torch_operators import producers
from lighten_service.worker.engines.torch_prepare import Inputs
from lighten_service.worker.quantized import Moments

# What the folded batch norms saw, by the name of the layer before each.
MomentsByLayer = Mapping[str, Moments]


@dataclass(frozen=True, slots=True)
class Pair:
    """Names of two consecutive layers that were scaled, and whether a ReLU is between them."""

    first: str
    second: str
    relu: bool


def fold(module: torch.fx.GraphModule, inputs: Inputs) -> tuple[int, MomentsByLayer]:
    """Fold every batch norm that can be, in place; return how many, and what they saw.

    A batch norm before its layer is folded too, and says nothing about the layer's output.
    """
    # AIMET asks the first parameter for its device.
    if next(module.parameters(), None) is None:
        return 0, {}
    names = {submodule: name for name, submodule in module.named_modules()}
    before = producers(module)
    pairs = fold_all_batch_norms(module, None, dummy_input=inputs)
    return len(pairs), {
        names[layer]: _moments(norm)
        for layer, norm in pairs
        if before.get(names[norm]) == names[layer]
    }


def _moments(norm: Any) -> Moments:
    known = norm.weight is not None
    std = norm.weight.detach().abs() if known else torch.ones_like(norm.running_mean)
    mean = torch.zeros_like(std) if norm.bias is None else norm.bias.detach().clone()
    return Moments(mean, std)


def scale(
    module: torch.fx.GraphModule, inputs: Inputs, moments: MomentsByLayer
) -> tuple[tuple[Pair, ...], MomentsByLayer]:
    """Scale the channels of consecutive layers in place (Nagel et al. 2019, section 4.1).

    Returns:
        The pairs that were scaled, and the moments of the layers as they are now.
    """
    if next(module.parameters(), None) is None:
        return (), moments
    names = {submodule: name for name, submodule in module.named_modules()}
    scaled, pairs = dict(moments), []
    for cls_set in CrossLayerScaling().scale_model(module, dummy_input=inputs):
        for found in cls_set.cls_pair_info_list:
            first, second = names[found.layer1], names[found.layer2]
            pairs.append(Pair(first, second, bool(found.relu_activation_between_layers)))
            if first in scaled:
                old = scaled[first]
                factor = torch.as_tensor(found.scale_factor).to(old.mean)
                scaled[first] = Moments(old.mean / factor, old.std / factor)
    return tuple(pairs), scaled


@torch.no_grad()
def absorb_high_biases(
    module: torch.fx.GraphModule, pairs: tuple[Pair, ...], moments: MomentsByLayer
) -> tuple[int, MomentsByLayer]:
    """Move high biases into the next layer, in place.

    With a ReLU between them, as much as lies three standard deviations from zero in what the batch
    norm saw (Nagel et al. 2019, section 4.1.3); else all of it. AIMET's own call leaves models out
    whose batch norms were folded by an earlier call.

    Returns:
        How many layers changed, and the moments of the layers as they are now.
    """
    changed, absorbed = set[str](), dict(moments)
    for pair in pairs:
        first: Any = module.get_submodule(pair.first)
        second: Any = module.get_submodule(pair.second)
        seen = absorbed.get(pair.first)
        if seen is None or first.bias is None or second.bias is None:
            continue
        old = first.bias.detach().clone()
        biases = PythonHbfImpl._absorb_bias(
            pair.relu,
            seen.mean.cpu().numpy(),
            seen.std.cpu().numpy(),
            _input_weights(second),
            second.bias.detach().cpu().numpy(),
            old.cpu().numpy(),
        )
        for layer, bias in zip((first, second), biases, strict=True):
            layer.bias.copy_(torch.from_numpy(bias))
        moved = old - first.bias
        if bool(moved.any()):
            changed |= {pair.first, pair.second}
            absorbed[pair.first] = Moments(seen.mean - moved, seen.std)
    return len(changed), absorbed


def _input_weights(layer: Any) -> Any:
    """Return the weight in AIMET's layout: four axes, output channels first."""
    weight = layer.weight.detach().cpu()
    if layer.transposed and layer.groups == 1:
        weight = weight.transpose(0, 1)
    return (weight.unsqueeze(-1) if weight.dim() == 3 else weight).numpy()


def replace_relu6(module: torch.nn.Module) -> int:
    """Replace every ReLU6 by a ReLU, in place; return how many."""
    replaced = 0
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ReLU6):
                setattr(parent, name, torch.nn.ReLU())
                replaced += 1
    return replaced

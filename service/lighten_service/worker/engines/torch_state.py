"""What a prepared torch module has become, as tensors and plain facts.

The module is built anew from its architecture; then its structure (batch norms that were folded,
ReLU6 that were replaced, biases that were added) and its tensors are brought back.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import nn

from lighten_service.worker.checkpoints.reading import Facts, InvalidStepResult, same, take, typed

_PREFIX: Final = "float."
# What folding and the replacement of ReLU6 make of modules, by the names of both classes.
_REPLACEMENTS: Final[Mapping[tuple[str, str], Callable[[], nn.Module]]] = {
    ("BatchNorm1d", "Identity"): nn.Identity,
    ("BatchNorm2d", "Identity"): nn.Identity,
    ("BatchNorm3d", "Identity"): nn.Identity,
    ("ReLU6", "ReLU"): nn.ReLU,
}


def module_facts(module: nn.Module) -> Facts:
    """Return the class of each module by its path."""
    return {"modules": {name: type(part).__name__ for name, part in module.named_modules() if name}}


def module_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers under their names in the file."""
    return {f"{_PREFIX}{name}": tensor for name, tensor in _tensors(module).items()}


def restore_module(
    module: nn.Module, facts: Facts, tensors: Mapping[str, torch.Tensor], device: str
) -> None:
    """Bring a module back, in place.

    Raises:
        InvalidStepResult: it is another model's.
    """
    _restore_structure(module, take(facts, "modules", dict))
    saved = {n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)}
    _add_biases(module, saved)
    present = _tensors(module)
    same(sorted(present), sorted(saved), "the list of tensors")
    for name, tensor in present.items():
        same(_kind(saved[name]), _kind(tensor), name)
        # Layers that share a parameter go on to share it.
        tensor.data = saved[name].to(device)


def _restore_structure(module: nn.Module, saved: Facts) -> None:
    present = dict(module.named_modules())
    same(sorted(saved), sorted(name for name in present if name), "the list of modules")
    for name, kind in saved.items():
        found = type(present[name]).__name__
        if found == kind:
            continue
        replacement = _REPLACEMENTS.get((found, typed(kind, str, name)))
        if replacement is None:
            raise InvalidStepResult(f"{name} is a {kind}, and here a {found}")
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, replacement())


def _add_biases(module: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    for name in saved.keys() - _tensors(module).keys():
        layer, _, key = name.rpartition(".")
        owner = dict(module.named_modules()).get(layer)
        if key != "bias" or owner is None or getattr(owner, key, owner) is not None:
            raise InvalidStepResult(f"there is no place for {name}")
        owner.register_parameter(key, nn.Parameter(torch.empty_like(saved[name])))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), str(tensor.dtype)

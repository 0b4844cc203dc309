"""The quantizers of an aimet-torch simulation, as tensors and plain facts."""

import copy
from collections.abc import Mapping
from typing import Any, Final

import torch
from aimet_torch.quantization.affine import AffineQuantizerBase
from aimet_torch.quantization.base import QuantizerBase
from aimet_torch.quantsim import QuantizationSimModel

from lighten_service.worker.checkpoints.reading import Facts, InvalidStepResult, same, take, typed

_PREFIX: Final = "quantizer."


def quantizer_state(sim: QuantizationSimModel) -> tuple[Facts, dict[str, torch.Tensor]]:
    """Return every quantizer, those that several places share once."""
    numbers: dict[int, int] = {}
    states: list[Facts] = []
    tensors: dict[str, torch.Tensor] = {}
    places: dict[str, int] = {}
    for place, quantizer in _quantizers(sim).items():
        if id(quantizer) not in numbers:
            number = numbers[id(quantizer)] = len(states)
            states.append(_facts(quantizer))
            for name, tensor in _tensors(quantizer).items():
                tensors[f"{_PREFIX}{number}.{name}"] = tensor
        places[place] = numbers[id(quantizer)]
    return {"places": places, "quantizers": states}, tensors


def restore_quantizers(
    sim: QuantizationSimModel, facts: Facts, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Bring the quantizers of a simulation back that was made anew and not calibrated.

    Raises:
        InvalidStepResult: they are another simulation's.
    """
    present = _quantizers(sim)
    places, states = take(facts, "places", dict), take(facts, "quantizers", list)
    restored: dict[int, QuantizerBase] = {}
    for place, number in places.items():
        if place not in present or typed(number, int, place) not in range(len(states)):
            raise InvalidStepResult(f"there is no quantizer {place}")
        if number not in restored:
            found = _restored(present[place], typed(states[number], dict, place))
            _load(found, number, tensors)
            restored[number] = found
        _put(sim, place, restored[number])
    # No value reached these during calibration.
    for place in present.keys() - places.keys():
        _put(sim, place, None)


def _quantizers(sim: QuantizationSimModel) -> dict[str, QuantizerBase]:
    modules = sim.model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, QuantizerBase)}


def _facts(quantizer: QuantizerBase) -> Facts:
    found: dict[str, object] = {
        "kind": type(quantizer).__name__,
        "overwrite": dict(quantizer._is_overwrite_allowed),
    }
    if isinstance(quantizer, AffineQuantizerBase):
        found |= {
            "low": int(quantizer.qmin),
            "high": int(quantizer.qmax),
            "symmetric": bool(quantizer.symmetric),
            # AIMET makes tensors of them when it copies a quantizer.
            "block_size": [int(size) for size in quantizer.block_size or ()],
            "by_scale": quantizer._is_scale_offset_quantizer(),
        }
    else:
        found["bits"] = int(quantizer.bitwidth)
    return found


def _restored(fresh: QuantizerBase, facts: Facts) -> QuantizerBase:
    """Return a quantizer with the facts, and the way of choosing ranges of the one made anew."""
    quantizer = copy.deepcopy(fresh)
    if isinstance(quantizer, AffineQuantizerBase):
        quantizer.qmin, quantizer.qmax = take(facts, "low", int), take(facts, "high", int)
        if take(facts, "by_scale", bool):
            quantizer._reparametrize_to_scale_offset()
    overwrite = take(facts, "overwrite", dict)
    same(sorted(overwrite), sorted(quantizer._is_overwrite_allowed), "what may be overwritten")
    quantizer._is_overwrite_allowed.update(overwrite)
    same(facts, _facts(quantizer), "a quantizer")
    return quantizer


@torch.no_grad()
def _load(quantizer: QuantizerBase, number: int, tensors: Mapping[str, torch.Tensor]) -> None:
    prefix = f"{_PREFIX}{number}."
    saved = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    present = _tensors(quantizer)
    same(sorted(saved), sorted(present), "the list of a quantizer's tensors")
    for name, tensor in present.items():
        same(tuple(saved[name].shape), tuple(tensor.shape), f"{prefix}{name}")
        tensor.copy_(saved[name])


def _tensors(quantizer: QuantizerBase) -> dict[str, torch.Tensor]:
    return {**dict(quantizer.named_parameters()), **dict(quantizer.named_buffers())}


def _put(sim: QuantizationSimModel, place: str, quantizer: QuantizerBase | None) -> None:
    parent, _, key = place.rpartition(".")
    container: Any = sim.model.get_submodule(parent)
    container[int(key) if isinstance(container, torch.nn.ModuleList) else key] = quantizer

"""The state of an ONNX model's simulation, as tensors and plain facts."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from aimet_onnx.common.defs import qtype
from numpy.typing import NDArray

from lighten_service.worker.checkpoints.reading import Facts, InvalidStepResult, same, take, typed
from lighten_service.worker.engines.onnx_grids import QuantizerState

_ORIGINAL: Final = "original."
_RANGES: Final = "quantizer."

Values = NDArray[np.generic]


def quantizer_tensors(states: Mapping[str, QuantizerState]) -> dict[str, torch.Tensor]:
    """Return the encodings: a row (bits, scale, offset, smallest, largest) a channel, doubles."""
    return {
        f"{_RANGES}{name}": torch.tensor(state.encodings, dtype=torch.float64)
        for name, state in states.items()
        if state.encodings
    }


def quantizer_facts(states: Mapping[str, QuantizerState]) -> Facts:
    """Return types and switches."""
    return {
        name: {"type": repr(state.precision), "enabled": bool(state.enabled)}
        for name, state in states.items()
    }


def quantizer_states(
    facts: Facts, tensors: Mapping[str, torch.Tensor]
) -> dict[str, QuantizerState]:
    """Return what `quantizer_facts` and `quantizer_tensors` were made of.

    Raises:
        InvalidStepResult: they do not fit each other.
    """
    ranges = {n.removeprefix(_RANGES): t for n, t in tensors.items() if n.startswith(_RANGES)}
    if not ranges.keys() <= facts.keys():
        raise InvalidStepResult("there are ranges without a quantizer")
    return {
        name: QuantizerState(
            take(typed(found, dict, name), "enabled", bool),
            _type(take(found, "type", str)),
            _encodings(ranges.get(name)),
        )
        for name, found in facts.items()
    }


def original_tensors(originals: Mapping[str, Values]) -> dict[str, torch.Tensor]:
    """Return the values at calibration of what has changed since."""
    return {f"{_ORIGINAL}{name}": torch.tensor(values) for name, values in originals.items()}


def originals_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Values]:
    """Return what `original_tensors` was made of."""
    return {
        name.removeprefix(_ORIGINAL): tensor.numpy()
        for name, tensor in tensors.items()
        if name.startswith(_ORIGINAL)
    }


def _type(name: str) -> qtype:
    bits = name.removeprefix("int")
    try:
        return qtype.int(int(bits)) if bits.isdecimal() else qtype.from_string(name)
    except ValueError as error:
        raise InvalidStepResult(f"there is no type {name!r}") from error


def _encodings(
    table: torch.Tensor | None,
) -> tuple[tuple[int, float, float, float, float], ...]:
    if table is None:
        return ()
    same((tuple(table.shape[1:]), str(table.dtype)), ((5,), "torch.float64"), "a range")
    return tuple((int(row[0]), row[1], row[2], row[3], row[4]) for row in table.tolist())

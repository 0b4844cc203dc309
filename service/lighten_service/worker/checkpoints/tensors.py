"""Tensors in a file, bit for bit and with their layout in memory, on which sums depend."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lighten_service.worker.checkpoints.reading import Facts, InvalidStepResult, parse, typed

# Key of the file's metadata: strides of the tensors whose rows do not follow one another.
_STRIDES = "strides"


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors of any device to a safetensors file. Raises OSError."""
    found = {name: tensor.detach() for name, tensor in tensors.items()}
    strides = {name: t.stride() for name, t in found.items() if not t.is_contiguous()}
    try:
        save_file(
            {name: _packed(tensor) for name, tensor in found.items()},
            path,
            metadata={_STRIDES: json.dumps(strides, sort_keys=True)},
        )
    except SafetensorError as error:  # a full disk, say
        raise OSError(str(error)) from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, on the CPU. Raises InvalidStepResult."""
    try:
        with safe_open(path, "pt") as file:
            strides = parse((file.metadata() or {}).get(_STRIDES, "{}").encode())
            names = file.keys()
            # Copies: what is mapped may lie at odd addresses, and ends with the file.
            return {name: _laid_out(file.get_tensor(name), name, strides) for name in names}
    except (SafetensorError, OSError) as error:
        raise InvalidStepResult(f"{path.name}: {error}") from error


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that fills its storage, as safetensors wants it."""
    packed = tensor.cpu().contiguous()
    whole = packed.untyped_storage().nbytes() == packed.nbytes
    return packed if whole else packed.clone()


def _laid_out(tensor: torch.Tensor, name: str, strides: Facts) -> torch.Tensor:
    if name not in strides:
        return tensor.clone()
    stride = [typed(step, int, name) for step in typed(strides[name], list, name)]
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=False))
    if len(stride) != tensor.dim() or min(stride) < 0 or reach + 1 != tensor.numel():
        raise InvalidStepResult(f"{name} has strides that do not fit")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)

"""What batch norms saw, among the tensors of a step result."""

from collections.abc import Iterator, Mapping

import torch

from lighten_service.worker.checkpoints.reading import InvalidStepResult
from lighten_service.worker.quantized import Moments

_MEAN, _STD = "moments.mean.", "moments.std."


def moment_tensors(moments: Mapping[str, Moments]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of moments under their names in the file."""
    for layer, seen in moments.items():
        yield f"{_MEAN}{layer}", seen.mean
        yield f"{_STD}{layer}", seen.std


def moments_of(tensors: Mapping[str, torch.Tensor], device: str = "cpu") -> dict[str, Moments]:
    """Return the moments among the tensors, by layer. Raises InvalidStepResult."""
    means = {name.removeprefix(_MEAN): t for name, t in tensors.items() if name.startswith(_MEAN)}
    stds = {name.removeprefix(_STD): t for name, t in tensors.items() if name.startswith(_STD)}
    if means.keys() != stds.keys():
        raise InvalidStepResult("moments without a mean or a deviation")
    return {
        layer: Moments(mean.to(device), stds[layer].to(device)) for layer, mean in means.items()
    }

"""An exported graph against the module it came from. Imported by `lighten.torch` alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from lighten._torch_call import Call
from lighten.errors import ExportFailed


def compare(
    path: Path,
    inputs: Sequence[str],
    names: Sequence[str],
    batches: Sequence[Call],
    expected: Sequence[Mapping[str, Tensor]],
    tolerance: float,
) -> None:
    """Check that an exported graph gives what its module gave.

    Raises:
        ExportFailed: OUTPUTS_DIFFER.
    """
    for batch, tensors, got in zip(
        batches, expected, _run(path, inputs, names, batches), strict=True
    ):
        for name, wanted, array in zip(names, tensors.values(), got, strict=True):
            _check_close(name, batch.size, wanted.cpu(), torch.from_numpy(array), tolerance)


def _run(
    path: Path, inputs: Sequence[str], names: Sequence[str], batches: Sequence[Call]
) -> Iterator[Sequence[Any]]:
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in batches:
            values = (tensor.detach().cpu().numpy() for tensor in batch.tensors)
            yield session.run(list(names), dict(zip(inputs, values, strict=True)))
    except Exception as error:  # onnxruntime's errors have no base class
        raise ExportFailed(
            f"ONNX Runtime does not run the exported graph: {error}", reason="OUTPUTS_DIFFER"
        ) from error


def _check_close(name: str, batch: int, wanted: Tensor, got: Tensor, tolerance: float) -> None:
    if got.shape != wanted.shape:
        raise ExportFailed(
            f"{name} has the shape {list(got.shape)} in ONNX Runtime and {list(wanted.shape)} in "
            f"the module, for a batch of {batch}",
            reason="OUTPUTS_DIFFER",
        )
    wanted, got = wanted.double(), got.double()
    largest = float((wanted - got).abs().max())
    scale = float(wanted.abs().max())
    # A NaN is in no order with anything.
    if not largest <= tolerance * scale:
        raise ExportFailed(
            f"{name} differs by up to {largest:.3g} from the module's in ONNX Runtime, for a batch "
            f"of {batch}; values reach {scale:.3g}, and the tolerance is {tolerance:g} of that. "
            "Does forward use random numbers, or Python values computed from its inputs?",
            reason="OUTPUTS_DIFFER",
            metadata={"max_error": repr(largest)},
        )

"""Running a float graph on made-up inputs, to see that it runs and that a rewrite kept it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.formats.onnx_files import invalid
from lighten_service.worker.formats.onnx_inputs import batch_size, graph_inputs
from lighten_service.worker.graphs.save import fits_one_file, save_single_file
from lighten_service.worker.model import Batch, Outputs
from lighten_service.worker.runtime import RUNTIME_ERRORS, GraphSession, short_reason

_DTYPES = {
    pb.ELEMENT_TYPE_FLOAT32: np.float32,
    pb.ELEMENT_TYPE_INT32: np.int32,
    pb.ELEMENT_TYPE_INT64: np.int64,
    pb.ELEMENT_TYPE_BOOL: np.bool_,
}
# Enough to see whether the batch is really open.
_SAMPLES = 2


def sample(model: onnx.ModelProto, inputs: Sequence[pb.InputSpec], seed: int) -> Batch:
    """Return made-up inputs: normal floats, ones for integers (ids, masks) and booleans."""
    generator = np.random.default_rng(seed)
    count = batch_size(model) or _SAMPLES
    batch: dict[str, np.ndarray[Any, Any]] = {}
    for spec in inputs:
        shape = (count, *spec.shape)
        dtype = _DTYPES[spec.dtype]
        values = generator.standard_normal(shape) if dtype is np.float32 else np.ones(shape)
        batch[spec.name] = values.astype(dtype)
    return batch


def settle_batch(
    model: onnx.ModelProto,
    inputs: Sequence[pb.InputSpec],
    *,
    scratch: Path,
    providers: Sequence[object],
    seed: int,
) -> Outputs:
    """Run the model once and return its outputs.

    Some graphs declare an open batch and have the size 1 in their constants. Their batch is fixed
    at 1 in place.

    Raises:
        InvalidArgument: INVALID_MODEL where the model does not run; UNSUPPORTED_BATCH.
    """
    try:
        return _run(model, inputs, scratch, providers, seed)
    except InvalidArgument:
        if batch_size(model) is not None:
            raise
    for value in (*graph_inputs(model), *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    return _run(model, inputs, scratch, providers, seed)


def open_session(
    model: onnx.ModelProto, scratch: Path, providers: Sequence[object]
) -> GraphSession:
    """Open a session of a model in memory, through a file where it is larger than a message."""
    if fits_one_file(model):
        return GraphSession(model, providers=providers)
    file = scratch / "float.onnx"
    save_single_file(model, file)
    return GraphSession(file, providers=providers)


def deviation(before: Outputs, after: Outputs) -> float:
    """Return the largest difference as a share of the output's largest magnitude."""
    worst = 0.0
    for name, expected in before.items():
        difference = np.nan_to_num(np.abs(after[name] - expected), posinf=np.inf)
        scale = max(float(np.nanmax(np.abs(expected), initial=0.0)), 1e-6)
        worst = max(worst, float(difference.max(initial=0.0)) / scale)
    return worst


def _run(
    model: onnx.ModelProto,
    inputs: Sequence[pb.InputSpec],
    scratch: Path,
    providers: Sequence[object],
    seed: int,
) -> Outputs:
    try:
        return open_session(model, scratch, providers).predict(sample(model, inputs, seed))
    except RUNTIME_ERRORS as error:
        raise invalid("INVALID_MODEL", f"the model does not run: {short_reason(error)}") from error

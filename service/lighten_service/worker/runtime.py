"""ONNX Runtime sessions, and what it says about a model that it cannot run."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from lighten_service.worker.formats.onnx_files import invalid
from lighten_service.worker.graphs.save import data_file
from lighten_service.worker.machine import cpus
from lighten_service.worker.model import Batch, Outputs
from lighten_service.worker.providers import note_run

CPU = "CPUExecutionProvider"
# Everything that ONNX Runtime raises about a model or its inputs.
RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = (
    runtime_errors.EPFail,
    runtime_errors.EngineError,
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.InvalidProtobuf,
    runtime_errors.NoModel,
    runtime_errors.NoSuchFile,
    runtime_errors.NotFound,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)
_LOAD_ERRORS: Final[tuple[type[Exception], ...]] = (
    onnx.checker.ValidationError,
    *RUNTIME_ERRORS,
)
_REASON_LENGTH = 300
_ERROR_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")


def session_options(
    *, optimize: bool = True, write_optimized: Path | None = None
) -> onnxruntime.SessionOptions:
    """Return options with the threads that this process may use, and a quiet log.

    Args:
        optimize: False runs the graph as it is.
        write_optimized: where to write the optimized graph, its weights in a file beside it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if write_optimized is not None:
        options.optimized_model_filepath = str(write_optimized)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name",
            data_file(write_optimized).name,
        )
    return options


def thread_count() -> int:
    """Return OMP_NUM_THREADS, which executors set, or the CPUs that the process may use."""
    configured = os.environ.get("OMP_NUM_THREADS", "")
    return int(configured) if configured.isdigit() else cpus()


def check_runs(file: Path) -> None:
    """Check that ONNX and ONNX Runtime accept the model.

    Raises:
        InvalidArgument: INVALID_MODEL with the short reason.
    """
    try:
        onnx.checker.check_model(str(file))
        onnxruntime.InferenceSession(str(file), session_options(optimize=False), providers=[CPU])
    except _LOAD_ERRORS as error:
        raise invalid(
            "INVALID_MODEL", f"ONNX Runtime cannot load the model: {short_reason(error)}"
        ) from error


def short_reason(error: BaseException) -> str:
    """Return what a library says about a model, without error codes, paths and its whole log."""
    text = _ERROR_CODE.sub("", " ".join(str(error).split()))
    _, _, tail = text.partition(" failed:")
    return (tail or text).strip().rstrip(".")[:_REASON_LENGTH]


class GraphSession:
    """A graph in ONNX Runtime that takes batches of any size.

    A graph that demands a fixed batch gets its samples in such portions, the last one filled up
    with copies of the last sample.
    """

    def __init__(
        self,
        source: onnx.ModelProto | Path,
        *,
        optimize: bool = True,
        write_optimized: Path | None = None,
        providers: Sequence[object] = (CPU,),
    ) -> None:
        """Load a graph, or a file with its external data beside it.

        ``write_optimized``: where to write what the optimization makes of it.

        Raises:
            InvalidArgument: INVALID_MODEL with the short reason.
        """
        content = str(source) if isinstance(source, Path) else source.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(
                content,
                session_options(optimize=optimize, write_optimized=write_optimized),
                providers=list(providers),
            )
        except RUNTIME_ERRORS as error:
            raise invalid(
                "INVALID_MODEL", f"ONNX Runtime cannot load the model: {short_reason(error)}"
            ) from error
        self._asked = tuple(providers)
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    @property
    def provider(self) -> str:
        """Execution provider that really runs the graph."""
        name: str = self._session.get_providers()[0]
        return name

    def predict(self, batch: Batch) -> Outputs:
        """Run a batch of any size."""
        note_run(self._session, self._asked)
        return run_portions(self._session, batch, self.output_names)


def run_portions(
    session: onnxruntime.InferenceSession, batch: Batch, names: Sequence[str]
) -> Outputs:
    """Run a batch in portions of the size that the session's graph demands.

    Args:
        session: the graph; its outputs are in the order of ``names``.
        batch: arrays by input name, first axis the samples.
        names: what to call the outputs.

    Raises:
        InvalidArgument: UNSUPPORTED_BATCH, for an output without a batch dimension.
    """
    fixed = session.get_inputs()[0].shape[0]
    count = len(next(iter(batch.values())))
    size = fixed if isinstance(fixed, int) else max(count, 1)
    portions = [
        session.run(None, {name: _portion(values, start, size) for name, values in batch.items()})
        for start in range(0, count, size)
    ]
    return {
        name: _joined(name, parts, size)[:count]
        for name, parts in zip(names, zip(*portions, strict=True), strict=True)
    }


def _joined(name: str, parts: Sequence[NDArray[np.generic]], size: int) -> NDArray[np.float32]:
    for part in parts:
        if part.ndim == 0 or len(part) != size:
            raise invalid(
                "UNSUPPORTED_BATCH",
                f"output {name!r} has shape {list(part.shape)} for {size} samples; "
                "the first dimension of every output must be the batch",
            )
    return np.concatenate(parts).astype(np.float32, copy=False)


def _portion(values: NDArray[np.generic], start: int, size: int) -> NDArray[np.generic]:
    part = values[start : start + size]
    missing = size - len(part)
    return np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part

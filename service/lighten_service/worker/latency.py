"""How long the models take in ONNX Runtime, measured in turns in one process.

Interleaving (A B C, A B C, ...) makes a machine that warms up, throttles or is shared hit all
models alike, so that their ratio holds even where the seconds do not.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
import onnxruntime

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.worker.model import Batch
from lighten_service.worker.providers import note_run
from lighten_service.worker.runtime import RUNTIME_ERRORS

# ValueError: feeds by a wrong name.
_RUN_ERRORS: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, ValueError)

MIN_RUNS = 5
WARM_UP_RUNS = 3


def measure_latency(
    models: Mapping[str, Path],
    feeds: Batch,
    *,
    threads: int,
    budget_seconds: float = 30.0,
    runs: int = 100,
    check: Callable[[], None] = lambda: None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> dict[str, pb.Latency]:
    """Time one inference of each ONNX file.

    Args:
        models: ONNX files by a name that the result repeats, all with the same inputs.
        feeds: one sample by input name, batch dimension included; as many samples as the graphs
            demand where their batch is fixed.
        threads: threads inside an operator.
        budget_seconds: time for all models together, warm-up included and loading not. Slow
            models get fewer rounds, but never fewer than 5 after one warm-up.
        runs: rounds at most.
        check: called before every inference; may raise to stop.
        providers: execution providers in order of preference.

    Returns:
        Latency by name: median and 90th percentile in seconds, and the provider that really ran.

    Raises:
        FailedPrecondition: RUNTIME_REFUSED_MODEL, when ONNX Runtime cannot load or run one.
    """
    size = max((len(values) for values in feeds.values()), default=0)
    sessions = {name: _load(name, path, threads, providers) for name, path in models.items()}
    deadline = monotonic() + budget_seconds
    for warm_up in range(WARM_UP_RUNS):
        if warm_up and monotonic() > deadline:
            break
        _round(sessions, feeds, check)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for done in range(max(runs, MIN_RUNS)):
        if done >= MIN_RUNS and monotonic() > deadline:
            break
        for name, taken in _round(sessions, feeds, check).items():
            seconds[name].append(taken)
    return {
        name: _latency(session, seconds[name], threads, size) for name, session in sessions.items()
    }


def _load(
    name: str, path: Path, threads: int, providers: Sequence[str]
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads of the model before must not spin while the next one is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=list(providers))
    except RUNTIME_ERRORS as error:
        raise _refused(name, error) from error
    note_run(session, providers)
    return session


def _round(
    sessions: Mapping[str, onnxruntime.InferenceSession], feeds: Batch, check: Callable[[], None]
) -> dict[str, float]:
    """Run every model once, in order; return seconds by name."""
    taken: dict[str, float] = {}
    for name, session in sessions.items():
        check()
        began = perf_counter()
        try:
            session.run(None, feeds)
        except _RUN_ERRORS as error:
            raise _refused(name, error) from error
        taken[name] = perf_counter() - began
    return taken


def _latency(
    session: onnxruntime.InferenceSession, seconds: Sequence[float], threads: int, size: int
) -> pb.Latency:
    return pb.Latency(
        median_seconds=float(np.median(seconds)),
        p90_seconds=float(np.quantile(seconds, 0.9)),
        runs=len(seconds),
        batch_size=size,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        provider=session.get_providers()[0],
        threads=threads,
    )


def _refused(name: str, error: Exception) -> FailedPrecondition:
    return FailedPrecondition(
        "RUNTIME_REFUSED_MODEL", f"ONNX Runtime cannot run the {name} model: {error}"
    )

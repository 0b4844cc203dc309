"""Every Prometheus metric of the control plane, in one place.

Names follow Prometheus' naming rules: prefix ``lighten_``, base units, ``_total`` on counters.
Labels are bounded: enums by their type, names from outside by ``_Bounded``. Job ids, object names
and projects are never labels.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import nan
from pathlib import Path
from threading import Lock
from time import time
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from lighten import v1 as pb
from lighten_service.jobs.ports import LaunchEnd
from lighten_service.telemetry.kubernetes_metrics import KubernetesMetrics
from lighten_service.telemetry.metrics_server import MetricsServer

# A second series for each counter and histogram that tells when it was made: nobody reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

RpcKind = Literal["unary", "stream"]
Adapter = Literal["s3", "local"]

_FAST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_RPC_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300, 3600)
_LONG_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Bounded:
    """Lets the first values of a label through and calls the rest ``other``."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return "other"
        self._seen.add(value)
        return value


class Metrics:
    """The metrics of one server, and one method for each thing that is counted.

    Methods are safe to call from any thread and never raise for a value of a label.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        # Memory, CPU time and open files of this process (Linux).
        ProcessCollector(registry=self.registry)
        self._technique = _Bounded()
        self._method = _Bounded()
        self._reason = _Bounded()
        self._refusal = _Bounded()
        self._failure = _Bounded(128)
        self._operation = _Bounded()
        self._workers: dict[str, pb.Heartbeat] = {}
        self._workers_lock = Lock()
        self._make_job_metrics()
        self._make_store_metrics()
        self._make_worker_metrics()
        self._make_rpc_metrics()
        self._make_access_metrics()
        self._make_storage_metrics()
        self.kubernetes = KubernetesMetrics(self.registry)

    def serve(self, host: str, port: int) -> MetricsServer:
        """Serve metrics and probes on a port of their own; port 0 takes a free one.

        Raises:
            OSError: the address is in use or not this machine's.
        """
        return MetricsServer(self.registry, host, port)

    # --- jobs and events ------------------------------------------------------------------------

    def _make_job_metrics(self) -> None:
        registry = self.registry
        self._jobs = Gauge("lighten_jobs", "Jobs by state.", ["state"], registry=registry)
        self._jobs_finished = Counter(
            "lighten_jobs_finished", "Jobs that ended, by state.", ["state"], registry=registry
        )
        for state in (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED):
            self._jobs_finished.labels(_state(state))
        self._jobs_failed = Counter(
            "lighten_jobs_failed",
            "Jobs that ended as FAILED, by reason and kind of their error.",
            ["reason", "kind"],
            registry=registry,
        )
        self._techniques_finished = Counter(
            "lighten_techniques_finished",
            "Techniques in the plans of jobs that ended, by technique and state of the job.",
            ["technique", "state"],
            registry=registry,
        )
        self._queue_wait = Histogram(
            "lighten_queue_wait_seconds",
            "Time from entering QUEUED to leaving it.",
            buckets=_LONG_SECONDS,
            registry=registry,
        )
        self._queue_since: float | None = None
        oldest = Gauge(
            "lighten_queue_oldest_wait_seconds",
            "Time since the job that waits longest entered QUEUED; 0 when none waits.",
            registry=registry,
        )
        oldest.set_function(self._oldest_wait)
        self._stage = Histogram(
            "lighten_stage_duration_seconds",
            "Time of a stage of a job, by kind of stage.",
            ["stage"],
            buckets=_LONG_SECONDS,
            registry=registry,
        )
        self._events = Counter(
            "lighten_events_appended", "Events stored, by payload.", ["payload"], registry=registry
        )

    def _make_store_metrics(self) -> None:
        registry = self.registry
        self._commit_seconds = Histogram(
            "lighten_store_commit_seconds",
            "Time of one transaction of the store's writer, decisions included.",
            buckets=_FAST_SECONDS,
            registry=registry,
        )
        self._commit_size = Histogram(
            "lighten_store_commit_requests",
            "Requests that shared one transaction of the store.",
            buckets=_GROUP_SIZES,
            registry=registry,
        )
        self._store_errors = Counter(
            "lighten_store_errors",
            "Transactions and queries that failed for the database's sake.",
            registry=registry,
        )
        self._volume_free = Gauge(
            "lighten_data_volume_free_bytes",
            "Free space of the file system that holds data_dir.",
            registry=registry,
        )
        self._volume_size = Gauge(
            "lighten_data_volume_size_bytes",
            "Size of the file system that holds data_dir.",
            registry=registry,
        )

    def jobs_counted(self, counts: Mapping[pb.JobState.ValueType, int]) -> None:
        """Set the number of jobs by state, as JobStore.counts returns them."""
        for state in pb.JobState.values():
            if state != pb.JOB_STATE_UNSPECIFIED:
                self._jobs.labels(_state(state)).set(counts.get(state, 0))

    def job_finished(self, state: pb.JobState.ValueType, techniques: Sequence[str]) -> None:
        """Count a job that ended, and each technique of its plan (Job.techniques)."""
        self._jobs_finished.labels(_state(state)).inc()
        for technique in techniques:
            self._techniques_finished.labels(self._technique(technique), _state(state)).inc()

    def job_failed(self, error: pb.JobError) -> None:
        """Count a job that failed, by its error's reason and kind."""
        kind = pb.ErrorKind.Name(error.kind).removeprefix("ERROR_KIND_").lower()
        self._jobs_failed.labels(self._failure(error.reason), kind).inc()

    def queue_waits_since(self, since: float | None) -> None:
        """Keep when the job that waits longest entered QUEUED, Unix seconds; None: none waits."""
        self._queue_since = since

    def _oldest_wait(self) -> float:
        since = self._queue_since
        return 0.0 if since is None else max(time() - since, 0.0)

    def queue_left(self, seconds: float) -> None:
        """Record how long a job was QUEUED."""
        self._queue_wait.observe(seconds)

    def stage_finished(self, kind: pb.Stage.Kind.ValueType, seconds: float) -> None:
        """Record how long a stage took."""
        name = pb.Stage.Kind.Name(kind).removeprefix("KIND_").lower()
        self._stage.labels(name).observe(seconds)

    def events_appended(self, payloads: Mapping[str, int]) -> None:
        """Count stored events by payload (name of the field in JobEvent.payload)."""
        for payload, number in payloads.items():
            self._events.labels(payload or "none").inc(number)

    def store_committed(self, requests: int, seconds: float) -> None:
        """Record a transaction of the store: the requests that shared it, and its time."""
        self._commit_size.observe(requests)
        self._commit_seconds.observe(seconds)

    def store_failed(self) -> None:
        """Count a transaction or query that the database failed."""
        self._store_errors.inc()

    def watch_volume(self, data_dir: Path) -> None:
        """Tell from now on, at each scrape, how full the file system of a folder is."""
        self._volume_free.set_function(lambda: _volume(data_dir)[0])
        self._volume_size.set_function(lambda: _volume(data_dir)[1])

    # --- workers --------------------------------------------------------------------------------

    def _make_worker_metrics(self) -> None:
        registry = self.registry
        self._worker_starts = Counter(
            "lighten_worker_starts", "Workers that the executor started.", registry=registry
        )
        self._worker_losses = Counter(
            "lighten_worker_losses",
            "Workers that ended before their job did, by reason.",
            ["reason"],
            registry=registry,
        )
        # Prometheus sees no increase where a series begins, and one such end is worth an alert.
        for end in LaunchEnd:
            self._worker_losses.labels(self._reason(end.value))
        self._workers_refused = Counter(
            "lighten_workers_refused",
            "Workers whose Attach or message was refused, by reason.",
            ["reason"],
            registry=registry,
        )
        attached = Gauge("lighten_workers_attached", "Workers attached.", registry=registry)
        attached.set_function(lambda: len(self._heartbeats()))
        memory = Gauge(
            "lighten_workers_memory_bytes",
            "Resident memory of all attached workers.",
            registry=registry,
        )
        memory.set_function(lambda: sum(beat.rss_bytes for beat in self._heartbeats()))
        gpu_used = Gauge(
            "lighten_workers_gpu_memory_bytes",
            "GPU memory in use, over the GPUs of all attached workers.",
            registry=registry,
        )
        gpu_used.set_function(lambda: sum(gpu.memory_used_bytes for gpu in self._gpus()))
        gpu_limit = Gauge(
            "lighten_workers_gpu_memory_limit_bytes",
            "Size of the memory of the GPUs of all attached workers.",
            registry=registry,
        )
        gpu_limit.set_function(lambda: sum(gpu.memory_total_bytes for gpu in self._gpus()))

    def worker_started(self) -> None:
        """Count a worker that the executor started."""
        self._worker_starts.inc()

    def worker_lost(self, reason: str) -> None:
        """Count a worker that ended before its job did, for example ``out_of_memory``."""
        self._worker_losses.labels(self._reason(reason)).inc()

    def worker_refused(self, reason: str) -> None:
        """Count a worker that was not let in: LightenError.reason, for example ``WRONG_JOB``."""
        self._workers_refused.labels(self._refusal(reason)).inc()

    def worker_heartbeat(self, job_id: str, heartbeat: pb.Heartbeat) -> None:
        """Keep what an attached worker uses."""
        with self._workers_lock:
            self._workers[job_id] = heartbeat

    def worker_detached(self, job_id: str) -> None:
        """Forget what a worker used. No error when it is not known."""
        with self._workers_lock:
            self._workers.pop(job_id, None)

    def _heartbeats(self) -> list[pb.Heartbeat]:
        with self._workers_lock:
            return list(self._workers.values())

    def _gpus(self) -> Iterator[pb.GpuUsage]:
        return (gpu for beat in self._heartbeats() for gpu in beat.gpus)

    # --- RPCs -----------------------------------------------------------------------------------

    def _make_rpc_metrics(self) -> None:
        registry = self.registry
        self._rpcs = Counter(
            "lighten_rpcs_handled",
            "RPCs that ended, by method, kind (unary or stream) and gRPC code.",
            ["method", "kind", "code"],
            registry=registry,
        )
        self._rpc_seconds = Histogram(
            "lighten_rpc_duration_seconds",
            "Time of an RPC from its arrival to its end, by method and kind.",
            ["method", "kind"],
            buckets=_RPC_SECONDS,
            registry=registry,
        )
        self._watches = Gauge(
            "lighten_watch_streams", "Watch streams open.", ["method"], registry=registry
        )

    def rpc_finished(self, method: str, kind: RpcKind, code: str, seconds: float) -> None:
        """Count an RPC: method as ``Service/Method``, code as its name, for example ``OK``."""
        method = self._method(method)
        self._rpcs.labels(method, kind, code).inc()
        self._rpc_seconds.labels(method, kind).observe(seconds)

    @contextmanager
    def watch_stream(self, method: str) -> Iterator[None]:
        """Count a watch stream as open for as long as the block runs."""
        gauge = self._watches.labels(self._method(method))
        with gauge.track_inprogress():
            yield

    # --- who may call ---------------------------------------------------------------------------

    def _make_access_metrics(self) -> None:
        registry = self.registry
        self._auth_refused = Counter(
            "lighten_auth_refused",
            "Calls refused for who made them, by reason.",
            ["reason"],
            registry=registry,
        )
        self._certificate_expiry = Gauge(
            "lighten_tls_certificate_expiry_timestamp_seconds",
            "When a certificate in use expires, Unix time.",
            ["certificate"],
            registry=registry,
        )

        self._reload_failures = Counter(
            "lighten_reload_failures",
            "Changed files that could not be read again: certificate or tokens.",
            ["what"],
            registry=registry,
        )
        for what in ("certificate", "tokens"):
            self._reload_failures.labels(what)

    def auth_refused(self, reason: str) -> None:
        """Count a call refused for its credentials or rights: LightenError.reason."""
        self._auth_refused.labels(self._refusal(reason)).inc()

    def reload_failed(self, what: str) -> None:
        """Count a changed file that cannot be read again: ``certificate`` or ``tokens``."""
        self._reload_failures.labels(what).inc()

    def certificate_loaded(self, certificate: str, expires: float) -> None:
        """Keep when a certificate expires (Unix seconds): ``server``, ``ca`` or ``client_ca``."""
        self._certificate_expiry.labels(certificate).set(expires)

    # --- object storage -------------------------------------------------------------------------

    def _make_storage_metrics(self) -> None:
        registry = self.registry
        self._storage_read = Counter(
            "lighten_storage_read_bytes", "Bytes read.", ["adapter"], registry=registry
        )
        self._storage_written = Counter(
            "lighten_storage_written_bytes", "Bytes written.", ["adapter"], registry=registry
        )
        self._storage_calls = Counter(
            "lighten_storage_calls",
            "Operations, by adapter and operation.",
            ["adapter", "operation"],
            registry=registry,
        )
        self._storage_errors = Counter(
            "lighten_storage_errors",
            "Operations that failed, by adapter, operation and reason.",
            ["adapter", "operation", "reason"],
            registry=registry,
        )

    def storage_read(self, adapter: Adapter, number: int) -> None:
        """Count bytes read from object storage."""
        self._storage_read.labels(adapter).inc(number)

    def storage_wrote(self, adapter: Adapter, number: int) -> None:
        """Count bytes written to object storage."""
        self._storage_written.labels(adapter).inc(number)

    def storage_called(self, adapter: Adapter, operation: str) -> None:
        """Count an operation that begins: method of ObjectStore."""
        self._storage_calls.labels(adapter, self._operation(operation)).inc()

    def storage_failed(self, adapter: Adapter, operation: str, reason: str) -> None:
        """Count a failed operation: method of ObjectStore, and LightenError.reason."""
        operation, reason = self._operation(operation), self._reason(reason)
        self._storage_errors.labels(adapter, operation, reason).inc()


def _volume(folder: Path) -> tuple[float, float]:
    """Return free space and size of a file system; NaN where the folder is out of reach."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return nan, nan
    return usage.free, usage.total


def _state(state: pb.JobState.ValueType) -> str:
    return pb.JobState.Name(state).removeprefix("JOB_STATE_").lower()

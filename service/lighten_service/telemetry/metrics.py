"""Every Prometheus metric of the control plane, in one place.

Names follow Prometheus' naming rules: prefix ``lighten_``, base units, ``_total`` on counters.
Labels are bounded: enums by their type, names from outside by ``_Bounded``. Job ids, object names
and projects are never labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from lighten import v1 as pb

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


class MetricsServer:
    """Serves ``/metrics`` from a daemon thread until it is closed."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        return self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


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
        self._operation = _Bounded()
        self._workers: dict[str, pb.Heartbeat] = {}
        self._workers_lock = Lock()
        self._make_job_metrics()
        self._make_worker_metrics()
        self._make_rpc_metrics()
        self._make_storage_metrics()

    def serve(self, host: str, port: int) -> MetricsServer:
        """Serve the metrics on a port of their own; port 0 takes a free one.

        Raises:
            OSError: the address is in use or not this machine's.
        """
        server, thread = start_http_server(port, addr=host, registry=self.registry)
        return MetricsServer(server, thread)

    # --- jobs and events ------------------------------------------------------------------------

    def _make_job_metrics(self) -> None:
        registry = self.registry
        self._jobs = Gauge("lighten_jobs", "Jobs by state.", ["state"], registry=registry)
        self._jobs_finished = Counter(
            "lighten_jobs_finished", "Jobs that ended, by state.", ["state"], registry=registry
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

    # --- object storage -------------------------------------------------------------------------

    def _make_storage_metrics(self) -> None:
        registry = self.registry
        self._storage_read = Counter(
            "lighten_storage_read_bytes", "Bytes read.", ["adapter"], registry=registry
        )
        self._storage_written = Counter(
            "lighten_storage_written_bytes", "Bytes written.", ["adapter"], registry=registry
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

    def storage_failed(self, adapter: Adapter, operation: str, reason: str) -> None:
        """Count a failed operation: method of ObjectStore, and LightenError.reason."""
        operation, reason = self._operation(operation), self._reason(reason)
        self._storage_errors.labels(adapter, operation, reason).inc()


def _state(state: pb.JobState.ValueType) -> str:
    return pb.JobState.Name(state).removeprefix("JOB_STATE_").lower()

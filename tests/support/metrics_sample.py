"""Metrics in which everything was counted once, so that a scrape shows every series there is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lighten import v1 as pb
from lighten_service.telemetry.metrics import Metrics


@contextmanager
def sample(folder: Path) -> Iterator[Metrics]:
    """Give metrics of a server whose data lie in a folder, with one watch stream open."""
    metrics = Metrics()
    _jobs(metrics)
    _workers(metrics)
    _edges(metrics)
    metrics.watch_volume(folder)
    with metrics.watch_stream("OptimizationService/WatchJob"):
        yield metrics


def _jobs(metrics: Metrics) -> None:
    metrics.jobs_counted({pb.JOB_STATE_QUEUED: 2, pb.JOB_STATE_RUNNING: 1})
    metrics.job_finished(pb.JOB_STATE_SUCCEEDED, ["fold_batch_norms", "calibrate"])
    metrics.job_failed(pb.JobError(reason="OUT_OF_MEMORY", kind=pb.ERROR_KIND_RESOURCE))
    metrics.queue_left(1.5)
    metrics.queue_waits_since(1.0)
    metrics.stage_finished(pb.Stage.KIND_EXPORT, 2.5)
    metrics.events_appended({"log": 3, "": 1})
    metrics.store_committed(requests=4, seconds=0.002)
    metrics.store_failed()


def _workers(metrics: Metrics) -> None:
    metrics.worker_started()
    metrics.worker_lost("out_of_memory")
    metrics.worker_refused("ATTEMPT_FENCED")
    gpu = pb.GpuUsage(device="cuda:0", memory_used_bytes=10, memory_total_bytes=40)
    metrics.worker_heartbeat("a", pb.Heartbeat(rss_bytes=100, gpus=[gpu, gpu]))
    metrics.worker_heartbeat("b", pb.Heartbeat(rss_bytes=50))
    metrics.kubernetes.request_finished("create", "jobs", 201, 0.03)
    metrics.kubernetes.request_finished("list", "pods", None, 5)
    metrics.kubernetes.watch_restarted("pods", "gone")
    metrics.kubernetes.watch_heard("pods")
    metrics.kubernetes.launches_counted({"waiting": 3, "placed": 1})


def _edges(metrics: Metrics) -> None:
    metrics.rpc_finished("OptimizationService/GetJob", "unary", "OK", 0.01)
    metrics.rpc_finished("OptimizationService/WatchJob", "stream", "UNAVAILABLE", 12)
    metrics.auth_refused("TOKEN_UNKNOWN")
    metrics.certificate_loaded("server", 1.8e9)
    metrics.reload_failed("tokens")
    metrics.storage_called("s3", "head")
    metrics.storage_read("s3", 1000)
    metrics.storage_wrote("local", 2000)
    metrics.storage_failed("s3", "head", "OBJECT_NOT_FOUND")

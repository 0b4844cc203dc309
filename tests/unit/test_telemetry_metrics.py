"""Every metric is set once, scraped over HTTP, and checked by Prometheus' own linter."""

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from lighten import v1 as pb
from lighten_service.telemetry.metrics import Metrics


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    metrics.jobs_counted({pb.JOB_STATE_QUEUED: 2, pb.JOB_STATE_RUNNING: 1})
    metrics.job_finished(pb.JOB_STATE_SUCCEEDED, ["fold_batch_norms", "calibrate"])
    metrics.queue_left(1.5)
    metrics.stage_finished(pb.Stage.KIND_EXPORT, 2.5)
    metrics.events_appended({"log": 3, "": 1})
    metrics.store_committed(requests=4, seconds=0.002)
    metrics.worker_started()
    metrics.worker_lost("out_of_memory")
    gpu = pb.GpuUsage(device="cuda:0", memory_used_bytes=10, memory_total_bytes=40)
    metrics.worker_heartbeat("a", pb.Heartbeat(rss_bytes=100, gpus=[gpu, gpu]))
    metrics.worker_heartbeat("b", pb.Heartbeat(rss_bytes=50))
    metrics.rpc_finished("OptimizationService/GetJob", "unary", "OK", 0.01)
    metrics.rpc_finished("OptimizationService/WatchJob", "stream", "UNAVAILABLE", 12)
    metrics.storage_read("s3", 1000)
    metrics.storage_wrote("local", 2000)
    metrics.storage_failed("s3", "head", "OBJECT_NOT_FOUND")
    with metrics.watch_stream("OptimizationService/WatchJob"):
        yield metrics


def scrape(metrics: Metrics) -> str:
    server = metrics.serve("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            return str(answer.read().decode())
    finally:
        server.close()


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_a_scrape_has_every_metric_with_its_value(metrics: Metrics) -> None:
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families(scrape(metrics)).values()
        for sample in family.samples
    }
    expected = {
        ("lighten_jobs", "queued"): 2,
        ("lighten_jobs", "running"): 1,
        ("lighten_jobs", "failed"): 0,
        ("lighten_jobs_finished_total", "succeeded"): 1,
        ("lighten_techniques_finished_total", "calibrate", "succeeded"): 1,
        ("lighten_techniques_finished_total", "fold_batch_norms", "succeeded"): 1,
        ("lighten_queue_wait_seconds_sum",): 1.5,
        ("lighten_stage_duration_seconds_sum", "export"): 2.5,
        ("lighten_events_appended_total", "log"): 3,
        ("lighten_events_appended_total", "none"): 1,
        ("lighten_store_commit_seconds_count",): 1,
        ("lighten_store_commit_requests_sum",): 4,
        ("lighten_worker_starts_total",): 1,
        ("lighten_worker_losses_total", "out_of_memory"): 1,
        ("lighten_workers_attached",): 2,
        ("lighten_workers_memory_bytes",): 150,
        ("lighten_workers_gpu_memory_bytes",): 20,
        ("lighten_workers_gpu_memory_limit_bytes",): 80,
        ("lighten_rpcs_handled_total", "OK", "OptimizationService/GetJob", "unary"): 1,
        ("lighten_rpc_duration_seconds_sum", "OptimizationService/WatchJob", "stream"): 12,
        ("lighten_watch_streams", "OptimizationService/WatchJob"): 1,
        ("lighten_storage_read_bytes_total", "s3"): 1000,
        ("lighten_storage_written_bytes_total", "local"): 2000,
        ("lighten_storage_errors_total", "OBJECT_NOT_FOUND", "head", "s3"): 1,
    }
    assert {key: samples.get(key) for key in expected} == expected


def test_every_metric_of_ours_is_prefixed_explained_and_set(metrics: Metrics) -> None:
    for name, family in families(scrape(metrics)).items():
        assert name.startswith(("lighten_", "process_"))
        assert family.documentation
        assert family.samples
        assert not name.endswith("_created")


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_of(metrics: Metrics) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape(metrics), capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_labels_from_outside_are_bounded(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.rpc_finished(f"Unknown/{number}", "unary", "UNIMPLEMENTED", 0.1)
        metrics.worker_lost(f"reason {number}")
    metrics.rpc_finished("OptimizationService/GetJob", "unary", "OK", 0.01)
    text = scrape(metrics)
    samples = families(text)["lighten_rpcs_handled"].samples
    assert len(samples) <= 70
    assert {sample.labels["method"] for sample in samples} >= {
        "OptimizationService/GetJob",
        "other",
    }
    assert len(families(text)["lighten_worker_losses"].samples) <= 70


def test_closed_streams_and_detached_workers_are_forgotten(metrics: Metrics) -> None:
    value = metrics.registry.get_sample_value
    labels = {"method": "OptimizationService/WatchJobs"}
    with metrics.watch_stream(labels["method"]), metrics.watch_stream(labels["method"]):
        assert value("lighten_watch_streams", labels) == 2
    assert value("lighten_watch_streams", labels) == 0
    metrics.worker_detached("a")
    metrics.worker_detached("never seen")
    assert value("lighten_workers_memory_bytes") == 50


def test_an_address_in_use_is_an_os_error(metrics: Metrics) -> None:
    server = metrics.serve("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        metrics.serve("127.0.0.1", server.port)
    server.close()

"""Every metric is set once, scraped over HTTP, and checked by Prometheus' own linter."""

import math
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from lighten_service.jobs.ports import LaunchEnd
from lighten_service.telemetry.metrics import Metrics
from lighten_service.telemetry.metrics_server import Readiness
from tests.support.metrics_sample import sample


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    with sample(tmp_path) as metrics:
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
        (found.name, *sorted(found.labels.values())): found.value
        for family in families(scrape(metrics)).values()
        for found in family.samples
    }
    expected = {
        ("lighten_jobs", "queued"): 2,
        ("lighten_jobs", "running"): 1,
        ("lighten_jobs", "failed"): 0,
        ("lighten_jobs_finished_total", "succeeded"): 1,
        ("lighten_jobs_failed_total", "OUT_OF_MEMORY", "resource"): 1,
        ("lighten_techniques_finished_total", "calibrate", "succeeded"): 1,
        ("lighten_techniques_finished_total", "fold_batch_norms", "succeeded"): 1,
        ("lighten_queue_wait_seconds_sum",): 1.5,
        ("lighten_stage_duration_seconds_sum", "export"): 2.5,
        ("lighten_events_appended_total", "log"): 3,
        ("lighten_events_appended_total", "none"): 1,
        ("lighten_store_commit_seconds_count",): 1,
        ("lighten_store_commit_requests_sum",): 4,
        ("lighten_store_errors_total",): 1,
        ("lighten_worker_starts_total",): 1,
        ("lighten_worker_losses_total", "out_of_memory"): 1,
        ("lighten_workers_refused_total", "ATTEMPT_FENCED"): 1,
        ("lighten_workers_attached",): 2,
        ("lighten_workers_memory_bytes",): 150,
        ("lighten_workers_gpu_memory_bytes",): 20,
        ("lighten_workers_gpu_memory_limit_bytes",): 80,
        ("lighten_rpcs_handled_total", "OK", "OptimizationService/GetJob", "unary"): 1,
        ("lighten_rpc_duration_seconds_sum", "OptimizationService/WatchJob", "stream"): 12,
        ("lighten_watch_streams", "OptimizationService/WatchJob"): 1,
        ("lighten_auth_refused_total", "TOKEN_UNKNOWN"): 1,
        ("lighten_tls_certificate_expiry_timestamp_seconds", "server"): 1.8e9,
        ("lighten_storage_calls_total", "head", "s3"): 1,
        ("lighten_storage_read_bytes_total", "s3"): 1000,
        ("lighten_storage_written_bytes_total", "local"): 2000,
        ("lighten_storage_errors_total", "OBJECT_NOT_FOUND", "head", "s3"): 1,
        ("lighten_kubernetes_requests_total", "201", "create", "jobs"): 1,
        ("lighten_kubernetes_requests_total", "list", "none", "pods"): 1,
        ("lighten_kubernetes_request_duration_seconds_sum", "create", "jobs"): 0.03,
        ("lighten_kubernetes_watch_restarts_total", "gone", "pods"): 1,
        ("lighten_kubernetes_launches", "waiting"): 3,
        ("lighten_kubernetes_launches", "placed"): 1,
        ("lighten_kubernetes_launches", "ended"): 0,
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
    assert {each.labels["method"] for each in samples} >= {
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


def test_the_data_volume_is_measured_at_each_scrape(metrics: Metrics, tmp_path: Path) -> None:
    value = metrics.registry.get_sample_value
    size = value("lighten_data_volume_size_bytes")
    free = value("lighten_data_volume_free_bytes")
    assert size is not None
    assert free is not None
    assert 0 < free <= size
    tmp_path.rmdir()
    assert math.isnan(value("lighten_data_volume_free_bytes") or 0)


def test_the_longest_wait_grows_until_nobody_waits(metrics: Metrics) -> None:
    value = metrics.registry.get_sample_value
    metrics.queue_waits_since(time.time() - 100)
    assert value("lighten_queue_oldest_wait_seconds") == pytest.approx(100, abs=10)
    metrics.queue_waits_since(None)
    assert value("lighten_queue_oldest_wait_seconds") == 0


def test_every_end_of_a_worker_begins_at_zero() -> None:
    value = Metrics().registry.get_sample_value
    for end in LaunchEnd:
        assert value("lighten_worker_losses_total", {"reason": end.value}) == 0


def test_a_watch_is_silent_from_its_last_sign_on(metrics: Metrics) -> None:
    def silence() -> float:
        found = metrics.registry.get_sample_value(
            "lighten_kubernetes_watch_silence_seconds", {"resource": "pods"}
        )
        assert found is not None
        return found

    first = silence()
    assert silence() > first
    before = silence()
    metrics.kubernetes.watch_heard("pods")
    assert silence() < before


def test_an_address_in_use_is_an_os_error(metrics: Metrics) -> None:
    server = metrics.serve("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        metrics.serve("127.0.0.1", server.port)
    server.close()


def test_a_client_that_breaks_off_is_no_line_of_the_log(
    metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    server = metrics.serve("127.0.0.1", 0)
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET")
        # Threads take connections in their order: this one comes after the reset.
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz") as answer:
            assert answer.status == 200
        time.sleep(0.2)
    finally:
        server.close()
    assert capfd.readouterr().err == ""


def test_probes_hear_of_the_process_and_of_the_server(metrics: Metrics) -> None:
    server = metrics.serve("127.0.0.1", 0)

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
                return answer.status, answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode().strip()

    try:
        assert ask("/healthz") == (200, "alive")
        for state in Readiness:
            server.readiness = state
            status = 200 if state is Readiness.READY else 503
            assert ask("/readyz") == (status, state.value)
        assert ask("/jobs")[0] == 404
    finally:
        server.close()

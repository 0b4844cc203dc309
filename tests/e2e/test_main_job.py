"""The main job as a user runs it: real S3, real server, real worker, real AIMET."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import lighten
from lighten import v1 as pb

STAGES = ["FETCH", "LOAD", "PREPARE", "BASELINE", "STEP", "EVALUATE", "EXPORT", "VERIFY", "PUBLISH"]


def run(client: lighten.Client, spec: dict[str, object]) -> tuple[pb.Job, list[pb.JobEvent]]:
    job = client.submit(spec)
    events = list(client.watch(job.name))
    return client.get(job.name), events


def failure(client: lighten.Client, spec: dict[str, object]) -> pb.JobError:
    job, _ = run(client, spec)
    assert job.state == pb.JOB_STATE_FAILED, job
    return job.error


def test_architecture_becomes_encodings_and_int8_onnx(
    client: lighten.Client, torch_spec: dict[str, object], output: Path
) -> None:
    job, events = run(client, torch_spec)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    started = [event.stage for event in events if event.HasField("stage_started")]
    kinds = [pb.Stage.Kind.Name(stage.kind).removeprefix("KIND_") for stage in started]
    assert list(dict.fromkeys(kinds)) == STAGES
    fractions = [event.progress.fraction for event in events if event.HasField("progress")]
    assert fractions == sorted(fractions)

    result = job.result
    assert all(check.passed for check in result.checks)
    assert {check.name for check in result.checks} == {
        "encodings_cover_quantizable_tensors",
        "qdq_matches_encodings",
        "onnxruntime_unoptimized",
        "onnxruntime_optimized",
    }
    for report in (result.baseline, result.naive, result.optimized):
        metrics = {value.metric: value for value in report.metrics}
        assert metrics[pb.METRIC_TOP1].samples == 48
        assert report.macs > 1e6
        assert report.latency.median_seconds > 0
    assert result.baseline.file_bytes / result.optimized.file_bytes > 3.3
    # 53 weights: what no kernel saturates on, and depthwise layers.
    assert (result.proof.weights, result.proof.unproven) == (53, 0)
    assert result.proof.bounded > 30
    assert result.weight_range.samples == 32
    assert "NOT_PROVEN_ON_EVERY_CPU" not in {warning.reason for warning in result.warnings}
    assert result.optimized.bops == result.baseline.bops / 16
    assert result.steps[0].findings["folded_batch_norms"] == 52
    assert result.provenance.versions["aimet-torch"]
    (cpu,), (worker,) = result.provenance.cpus, client.capabilities().workers
    assert (cpu.attempt, bool(cpu.model)) == (1, True)
    assert worker.HasField("int8_saturates")
    assert cpu.int8_saturates == worker.int8_saturates
    stages = [pb.Stage.Kind.Name(report.stage.kind) for report in result.stages]
    assert [*dict.fromkeys(kind.removeprefix("KIND_") for kind in stages)] == STAGES
    assert {report.device for report in result.stages} == {"cpu"}
    ran = {report.stage.kind: report.provider for report in result.stages}
    assert ran[pb.Stage.KIND_VERIFY] == "CPUExecutionProvider"
    assert ran[pb.Stage.KIND_FETCH] == ""
    assert "RAN_ON_CPU" not in {warning.reason for warning in result.warnings}

    files = {path.name: path for path in client.download(job.name, output)}
    assert set(files) == {
        "cross_layer_equalization.json",
        "model.encodings",
        "model.encodings-0.6.1.json",
        "model.encodings-1.0.0.json",
        "model.onnx",
        "model.qdq.onnx",
        "report.html",
    }
    page = files["report.html"].read_text(encoding="utf-8")
    assert job.name in page
    assert 'src="http' not in page  # opens offline
    assert json.loads(files["model.encodings"].read_text())["version"] == "2.0.0"
    session = onnxruntime.InferenceSession(files["model.qdq.onnx"])
    scores = session.run(None, {"image": np.zeros((5, 3, 32, 32), np.float32)})[0]
    assert scores.shape == (5, 10)
    weights = onnx.load(files["model.qdq.onnx"]).graph.initializer
    floats = sum(np.prod(w.dims) for w in weights if w.data_type == onnx.TensorProto.FLOAT)
    assert floats < 0.05 * result.optimized.parameters


def test_the_same_spec_gives_the_same_bytes(
    client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    first, _ = run(client, onnx_spec)
    second, _ = run(client, onnx_spec)

    assert first.state == second.state == pb.JOB_STATE_SUCCEEDED, (first.error, second.error)
    # The report tells the times that each run took.
    digests = [
        {a.name: a.sha256 for a in job.result.artifacts if a.kind != pb.ARTIFACT_KIND_REPORT}
        for job in (first, second)
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == {"model.encodings", "model.onnx", "model.qdq.onnx"}


def test_an_upload_is_quantized_without_storage_credentials(
    client: lighten.Client, onnx_spec: dict[str, object], tmp_path: Path
) -> None:
    from tests.support.models import convnet

    model = tmp_path / "mine.onnx"
    onnx.save(convnet(seed=7, opset=13), model)
    uploaded = client.upload(model)
    onnx_spec["model"] = {
        "artifact": {"uri": uploaded.uri, "sha256": uploaded.sha256},
        "format": "ONNX",
    }
    # For a fleet whose CPUs are known; the file does not know them.
    onnx_spec["plan"]["quantization"] = {"weight_range": "FULL"}  # type: ignore[index]
    job, _ = run(client, onnx_spec)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert job.result.provenance.input_sha256[uploaded.uri] == uploaded.sha256
    told = {warning.reason: warning.message for warning in job.result.warnings}
    assert "saturates without VNNI" in told["NOT_PROVEN_ON_EVERY_CPU"]
    assert job.result.proof.x86 == pb.INTEGER_VERDICT_SATURATES
    assert not job.result.HasField("weight_range")


def test_a_wrong_digest_fails_the_job_and_names_the_object(
    client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    onnx_spec["model"]["artifact"]["sha256"] = "0" * 64  # type: ignore[index]
    error = failure(client, onnx_spec)

    assert (error.reason, error.kind) == ("DIGEST_MISMATCH", pb.ERROR_KIND_USER)
    assert error.field == "model.artifact"
    assert error.stage.kind == pb.Stage.KIND_FETCH


def test_data_with_the_wrong_shape_fail_the_job_and_name_the_field(
    client: lighten.Client, onnx_spec: dict[str, object], tmp_path: Path
) -> None:
    data = tmp_path / "small.npz"
    np.savez(data, image=np.zeros((4, 3, 16, 16), np.float32))
    onnx_spec["calibration"]["data"]["uri"] = client.upload(data).uri  # type: ignore[index]
    error = failure(client, onnx_spec)

    assert error.kind == pb.ERROR_KIND_USER
    assert error.field.startswith("calibration")
    assert "32" in error.message
    assert "16" in error.message
    assert error.stage.kind == pb.Stage.KIND_LOAD


def test_a_missing_object_is_refused_before_the_job_is_stored(
    client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    onnx_spec["model"]["artifact"]["uri"] += ".gone"  # type: ignore[index]
    with pytest.raises(lighten.errors.NotFound) as caught:
        client.submit(onnx_spec)
    assert caught.value.reason == "OBJECT_NOT_FOUND"

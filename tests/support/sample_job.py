"""A job that ran, its events, and the artifacts' bytes: for tests of SDK and CLI."""

import hashlib

from lighten import v1 as pb
from lighten.spec import load_spec
from tests.support.scripted_service import JOB

SPEC = """\
model: {artifact: {uri: "s3://bucket/model.onnx"}, format: onnx}
calibration: {data: {uri: "s3://bucket/images/"}, format: image_folder}
plan:
  quantization: {weights: int8, activations: int8}
  steps:
    - {id: fold, fold_batch_norms: {}}
    - {id: calibrate, calibrate: {scheme: min_max}}
display_name: MobileNetV2
"""
FILES = {"model.qdq.onnx": b"qdq" * 50_000, "encodings/model.json": b"{}"}

REPORT = "<!doctype html><p>12.5 dB ± 0.1</p>\n".encode()


def finished_job() -> pb.Job:
    spec = load_spec(SPEC)
    spec.outputs.verify = True
    return pb.Job(
        name=JOB,
        state=pb.JOB_STATE_SUCCEEDED,
        display_name=spec.display_name,
        techniques=["fold_batch_norms", "calibrate"],
        spec=spec,
        resolved_spec=spec,
        result=result(),
    )


def guided_job() -> pb.Job:
    """Return a job with a goal that a candidate met."""
    job = finished_job()
    for spec in (job.spec, job.resolved_spec):
        spec.plan.goal.CopyFrom(pb.Goal(max_drop=0.01, max_trials=24, max_bops_ratio=1))
    job.techniques[:] = ["goal"]
    job.result.metric = pb.METRIC_TOP1
    job.result.goal.CopyFrom(
        pb.GoalReport(
            met=True,
            winner="sqnr-ranges",
            trials=trials(),
            explanation=["Activations alone cost 5.1 dB, weights alone 0.4 dB."],
            stop_reason=pb.STOP_REASON_GOAL_MET,
        )
    )
    return job


def trials() -> list[pb.TrialReport]:
    naive = [metric(pb.METRIC_TOP1, 0.5, 0.1), metric(pb.METRIC_SQNR, 7.5)]
    better = [metric(pb.METRIC_TOP1, 0.85, 0.08), metric(pb.METRIC_SQNR, 12.5)]
    return [
        pb.TrialReport(name="naive", metrics=naive, bops=19_250_000_000, seconds=4),
        pb.TrialReport(name="cle", failure="no two convolutions follow each other", seconds=0.2),
        pb.TrialReport(
            name="sqnr-ranges", metrics=better, bops=19_250_000_000, seconds=75, met=True
        ),
    ]


def result() -> pb.JobResult:
    return pb.JobResult(
        attempt=1,
        baseline=report(top1=0.9, file_bytes=14_000_000, seconds=0.012),
        naive=report(top1=0.5, file_bytes=3_600_000, seconds=0.008, sqnr=7.5, agreement=0.55),
        optimized=report(top1=0.85, file_bytes=3_600_000, seconds=0.006, sqnr=12.5, agreement=0.9),
        checks=[pb.Check(name="qdq_matches_encodings", passed=True, detail="104 of 104 scales")],
        warnings=[pb.Warning(reason="SAMPLES_SKIPPED", message="2 images were left out")],
        artifacts=[
            pb.Artifact(
                name=name,
                kind=pb.ARTIFACT_KIND_QDQ_ONNX,
                uri=f"s3://bucket/out/{name}",
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
            )
            for name, content in FILES.items()
        ],
    )


def report_artifact() -> pb.Artifact:
    return pb.Artifact(
        name="report.html",
        kind=pb.ARTIFACT_KIND_REPORT,
        sha256=hashlib.sha256(REPORT).hexdigest(),
        bytes=len(REPORT),
    )


def report(
    *, top1: float, file_bytes: int, seconds: float, sqnr: float = 0, agreement: float = 0
) -> pb.ModelReport:
    metrics = [metric(pb.METRIC_TOP1, top1, 0.08)]
    if sqnr:
        metrics.append(metric(pb.METRIC_SQNR, sqnr))
        metrics.append(metric(pb.METRIC_AGREEMENT, agreement, 0.05))
    latency = pb.Latency(median_seconds=seconds, p90_seconds=seconds, runs=50, batch_size=1)
    latency.runtime, latency.provider, latency.threads = "onnxruntime 1", "CPU", 2
    return pb.ModelReport(
        metrics=metrics,
        file_bytes=file_bytes,
        weight_bytes=file_bytes,
        parameters=3_500_000,
        macs=300_800_000,
        bops=300_800_000 * 64,
        latency=latency,
    )


def metric(
    kind: pb.Metric.ValueType, value: float, standard_error: float | None = None
) -> pb.MetricValue:
    return pb.MetricValue(metric=kind, value=value, samples=20, standard_error=standard_error)


def state(to: pb.JobState.ValueType, reason: str = "") -> pb.JobEvent:
    return pb.JobEvent(state_changed=pb.StateChanged(to=to, reason=reason))


def stage(kind: pb.Stage.Kind.ValueType, step_id: str = "", **payload) -> pb.JobEvent:
    return pb.JobEvent(attempt=1, stage=pb.Stage(kind=kind, step_id=step_id), **payload)


def events() -> list[pb.JobEvent]:
    """Return the story of a job that succeeds: 13 events."""
    fetch, step = pb.Stage.KIND_FETCH, pb.Stage.KIND_STEP
    half = pb.Progress(done=50, total=100, unit="batches", fraction=0.4, eta_seconds=65)
    whole = pb.Progress(done=100, total=100, unit="batches", fraction=0.6, eta_seconds=20)
    top1 = metric(pb.METRIC_TOP1, 0.85, 0.08)
    return [
        state(pb.JOB_STATE_QUEUED, "waiting for a CPU slot"),
        state(pb.JOB_STATE_STARTING),
        state(pb.JOB_STATE_RUNNING),
        stage(fetch, stage_started=pb.StageStarted(title="Fetch the inputs")),
        stage(fetch, stage_finished=pb.StageFinished(seconds=0.4, summary="2 files, 14 MB")),
        stage(step, "fold", stage_started=pb.StageStarted(title="Fold batch norms")),
        stage(step, "fold", stage_finished=pb.StageFinished(seconds=1, summary="52 folded")),
        stage(step, "calibrate", stage_started=pb.StageStarted(title="Calibrate")),
        stage(step, "calibrate", progress=half),
        stage(step, "calibrate", progress=whole),
        pb.JobEvent(attempt=1, metric=pb.MetricReported(column="optimized", value=top1)),
        pb.JobEvent(attempt=1, warning=pb.Warning(reason="X", message="2 images were left out")),
        state(pb.JOB_STATE_SUCCEEDED),
    ]

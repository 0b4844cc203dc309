"""What people see, from messages alone."""

# ruff: noqa: RUF001  figures are compared as people see them

import io
import re

import pytest
from rich.console import Console

from lighten import v1 as pb
from lighten.cli.render import text
from lighten.cli.render.advice import advice
from lighten.cli.render.jobs import capabilities, job_details, jobs_table
from lighten.cli.render.live import render_progress
from lighten.cli.render.plain import PlainView
from lighten.cli.render.progress import JobProgress, StageStatus
from lighten.cli.render.proof import proof_view
from lighten.cli.render.report import comparison, render_result, type_name
from tests.support import report_sample
from tests.support.sample_job import events, finished_job, metric, stage, state


def drawn(renderable, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


def rows(table: str) -> dict[str, list[str]]:
    cells = [re.split(r"  +", line.strip()) for line in table.splitlines()]
    return {cell[0]: cell[1:] for cell in cells if len(cell) > 1}


def numbered(items: list[pb.JobEvent]) -> list[pb.JobEvent]:
    for number, event in enumerate(items, start=1):
        event.sequence = number
        event.time.FromSeconds(1_800_000_000 + number)
    return items


# --- the result ---------------------------------------------------------------------------------


def test_the_comparison_has_every_column_and_figure() -> None:
    table = drawn(comparison(finished_job()), width=80)
    found = rows(table)

    assert found["FP32"] == ["naive INT8", "optimized INT8"]
    assert found["top-1 (n = 20)"] == ["90.0 % ± 8.0", "50.0 % ± 8.0", "85.0 % ± 8.0"]
    assert found["SQNR (n = 20)"] == ["7.5 dB", "12.5 dB"]
    assert found["agreement (n = 20)"][1] == "90.0 % ± 5.0"
    assert found["file size"] == ["14 MB", "3.6 MB (3.9× smaller)", "3.6 MB (3.9× smaller)"]
    assert found["MACs"] == ["301 M", "301 M", "301 M"]
    assert "latency: batch of 1, onnxruntime 1, CPU, 2 threads, 50 runs" in table
    assert found["latency (median)"] == ["12 ms", "8 ms (1.5× faster)", "6 ms (2.0× faster)"]


def test_without_naive_and_latency_there_is_no_column_and_no_row() -> None:
    job = finished_job()
    job.result.ClearField("naive")
    for report in (job.result.baseline, job.result.optimized):
        report.ClearField("latency")
    table = drawn(comparison(job))

    assert "naive" not in table
    assert "latency" not in table


def test_the_report_names_checks_warnings_files_and_the_next_thing(tmp_path) -> None:
    job = finished_job()
    job.result.checks.add(name="deterministic", passed=False, detail="differs")
    report = drawn(render_result(job, {"model.qdq.onnx": tmp_path / "model.qdq.onnx"}), 300)

    assert "✔ qdq_matches_encodings 104 of 104 scales" in report
    assert "✘ deterministic" in report
    assert "warning: 2 images were left out [SAMPLES_SKIPPED]" in report
    assert f"Artifacts in {tmp_path}/" in report
    assert "Artifacts in s3://bucket/out/" in report
    assert "encodings/model.json" in report
    assert "Next: " in report


def test_the_result_shows_the_proof_and_the_cpus() -> None:
    job = finished_job()
    job.result.proof.CopyFrom(report_sample.proof())
    job.result.provenance.cpus.add(attempt=1, model="AMD EPYC 7763", int8_saturates=True)
    shown = drawn(render_result(job), 200)

    assert (
        "Integer arithmetic: "
        "34 of 53 weights bounded, 17 exact in onnxruntime 1.31.1, 2 not proven\n"
        "! x86 saturates without VNNI in 1 of 53 weights, "
        "worst in features.2.conv.2 (a pair of 201, limit 128)\n"
        "! ARM can overflow in 2 of 53 weights, "
        "worst in features.1.conv.0.0 (integers of -128: 3)"
    ) in re.sub(r" +\n", "\n", shown)
    assert "features.2.conv.2    Conv  x86 saturates, ARM saturates" in shown
    assert "not tested: x86 with AVX-512 and without VNNI; runtimes other than" in shown
    assert "Ran on: AMD EPYC 7763, whose INT8 kernels saturate\n" in shown

    job.result.provenance.cpus.add(attempt=2, model="AMD EPYC 9654")
    assert "kernels saturate; attempt 2: AMD EPYC 9654\n" in drawn(render_result(job), 200)


def test_of_many_weights_that_are_not_proven_the_first_ten_are_shown() -> None:
    proof = report_sample.proof()
    for number in range(20):
        proof.details.add(layer=f"late.{number}[0]", x86=pb.INTEGER_VERDICT_NOT_PROVABLE)
    proof.unproven = 130
    shown = drawn(proof_view(proof))
    assert "late.7[0]" in shown
    assert "late.8[0]" not in shown
    assert "and 120 more" in shown


def test_a_proof_of_everything_is_two_lines() -> None:
    bounded = pb.INTEGER_VERDICT_BOUNDED
    proof = pb.IntegerProof(x86=bounded, arm=bounded, weights=2, bounded=2)
    lines = [line.strip() for line in drawn(proof_view(proof)).splitlines()]
    assert lines == [
        "Integer arithmetic: 2 of 2 weights bounded",
        "✔ x86 is exact with and without VNNI",
        "✔ ARM is exact with and without dot product",
    ]


def test_the_type_is_named_by_its_widths() -> None:
    job = finished_job()
    assert type_name(job) == "INT8"
    job.resolved_spec.plan.quantization.weights = pb.DATA_TYPE_INT4
    assert type_name(job) == "W4A8"


def test_advice_goes_through_what_the_plan_left_out() -> None:
    job = finished_job()
    plan = job.resolved_spec.plan
    plan.quantization.weight_granularity = pb.GRANULARITY_PER_TENSOR
    assert "per_channel" in advice(job)
    plan.quantization.weight_granularity = pb.GRANULARITY_PER_CHANNEL
    assert "cross_layer_equalization" in advice(job)
    plan.steps.steps.add().cross_layer_equalization.SetInParent()
    assert "sqnr" in advice(job)
    plan.steps.steps[1].calibrate.scheme = pb.RANGE_SCHEME_SQNR
    assert "bias_correction" in advice(job)
    plan.steps.steps.add().bias_correction.SetInParent()
    assert "int16" in advice(job)
    job.result.optimized.metrics[2].value = 0.99
    assert "close to FP32; run" in advice(job)


# --- progress -----------------------------------------------------------------------------------


def test_the_live_view_shows_stages_bars_metrics_and_warnings() -> None:
    progress = JobProgress()
    progress.plan(finished_job())
    for event in events()[:9]:
        progress.apply(event)
    picture = drawn(render_progress(progress, "*"))

    assert "RUNNING" in picture
    assert "40 %  1:05 left" in picture
    assert "✔ fetch" in picture
    assert "52 folded" in picture
    assert "50 of 100 batches" in picture
    assert "· publish" in picture
    for event in events()[9:12]:
        progress.apply(event)
    picture = drawn(render_progress(progress, "*", "connection lost"))
    assert "85.0 % ± 8.0" in picture
    assert "warning: 2 images were left out" in picture
    assert "connection lost" in picture


def test_a_queued_job_shows_why_it_waits() -> None:
    progress = JobProgress()
    progress.apply(events()[0])

    assert "waiting for a CPU slot" in drawn(render_progress(progress))


def test_a_new_attempt_begins_anew_and_a_failure_marks_its_stage() -> None:
    progress = JobProgress()
    progress.plan(finished_job())
    for event in events()[:11]:
        progress.apply(event)
    load = stage(pb.Stage.KIND_LOAD, stage_started=pb.StageStarted())
    load.attempt = 2
    progress.apply(load)
    assert progress.fraction == 0
    assert not progress.metrics
    assert progress.stages["fold"].status is StageStatus.WAITING
    assert "attempt 2" in drawn(render_progress(progress))

    progress.apply(state(pb.JOB_STATE_FAILED))
    assert progress.stages["load"].status is StageStatus.FAILED


def test_plain_lines_tell_what_matters_once() -> None:
    lines = []
    view = PlainView(lines.append)
    view.plan(finished_job())
    for done in range(1, 101):
        item = pb.Progress(done=done * 1000, total=100_000, unit="bytes")
        view.event(numbered([stage(pb.Stage.KIND_FETCH, progress=item)])[0])
    assert [line.partition(" ")[2] for line in lines] == [
        f"fetch: {done} kB of 100 kB" for done in (25, 50, 75, 100)
    ]

    lines.clear()
    start = stage(pb.Stage.KIND_FETCH, stage_started=pb.StageStarted())
    half = stage(pb.Stage.KIND_FETCH, progress=pb.Progress(done=1, total=2, unit="files"))
    for event in numbered([start, half]):
        view.event(event)
    assert [line.partition(" ")[2] for line in lines] == ["fetch: started", "fetch: 1 of 2 files"]

    lines.clear()
    for event in numbered(events()):
        view.event(event)
    assert lines[0] == "08:00:01 QUEUED: waiting for a CPU slot"
    assert "08:00:05 fetch: done in 0.4 s: 2 files, 14 MB" in lines
    assert "08:00:11 optimized top-1: 85.0 % ± 8.0 (n = 20)" in lines
    assert lines[-1] == "08:00:13 SUCCEEDED"


# --- jobs and words -----------------------------------------------------------------------------


def test_jobs_and_capabilities_as_tables() -> None:
    job = finished_job()
    job.labels["team"] = "vision"

    assert "0123456789abcdefghjkmnpqrs" in drawn(jobs_table([job]))
    assert "team=vision" in drawn(job_details(job))
    parameter = pb.Parameter(
        name="scheme",
        values=["MIN_MAX", "SQNR"],
        bounds=pb.Bounds(default_value="MIN_MAX"),
    )
    answer = pb.GetCapabilitiesResponse(
        techniques=[
            pb.TechniqueCapability(
                name="calibrate",
                info=pb.TechniqueInfo(needs=[pb.NEED_BATCH_NORMS]),
                parameters=[parameter],
            )
        ],
        type_support=[
            pb.TypeSupport(
                engine=pb.ENGINE_ONNX,
                weights=pb.DATA_TYPE_INT8,
                granularities=[pb.GRANULARITY_PER_CHANNEL],
            )
        ],
        dataset_formats=[pb.DATASET_FORMAT_NPZ],
        workers=[pb.WorkerInventory(devices=["cpu"], versions={"torch": "2.15"})],
    )
    picture = drawn(capabilities(answer))
    assert "scheme: MIN_MAX | SQNR (default MIN_MAX)" in picture
    assert "(needs batch norms)" in picture
    assert "per channel" in picture
    assert "dataset formats: NPZ" in picture
    assert "worker: torch 2.15\n" in re.sub(r" +\n", "\n", picture)
    answer.workers[0].int8_saturates = True
    assert "worker: torch 2.15; INT8 kernels saturate" in drawn(capabilities(answer))
    answer.workers[0].int8_saturates = False
    assert "worker: torch 2.15; INT8 kernels are exact" in drawn(capabilities(answer))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.seconds(0.44), "0.4 s"),
        (text.seconds(59.4), "59 s"),
        (text.seconds(59.6), "1:00"),
        (text.seconds(3729), "1:02:09"),
        (text.size(999), "999 B"),
        (text.size(14_000_000), "14 MB"),
        (text.amount(300_800_000), "301 M"),
        (text.amount(999_900), "1 M"),
        (text.ratio(1.0, 2.0, "faster", "slower"), "2.0× slower"),
        (text.ratio(0.0, 2.0, "faster", "slower"), ""),
        (text.metric_value(metric(pb.METRIC_TOP1, 0.5)), "50.0 %"),
        (text.metric_value(metric(pb.METRIC_KL_DIVERGENCE, 0.00123)), "0.00123"),
        (text.metric_value(metric(pb.METRIC_COSINE, 0.99999)), "1.0000"),
        (text.metric_name(99), "metric 99"),
        (text.latency(0.0125), "12.5 ms"),
        (text.latency(48.6e-6), "48.6 µs"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected

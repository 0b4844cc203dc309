"""``decisions.json`` is read strictly: what is not as it was written is not used."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from lighten import v1 as pb
from lighten_service.worker.checkpoints.decisions import Decisions, Origin, Progress
from lighten_service.worker.checkpoints.reading import InvalidStepResult
from lighten_service.worker.checkpoints.step_results import require_same_job

FOLD = pb.Step(id="fold", fold_batch_norms=pb.FoldBatchNorms())
CALIBRATE = pb.Step(id="calibrate", calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_SQNR))
ORIGIN = Origin("projects/default/jobs/a", pb.ENGINE_ONNX, {"torch": "2.9"}, {"s3://m": "ab"})


def decisions() -> Decisions:
    report = pb.StepReport(step=FOLD, seconds=0.1 + 0.2, findings={"folded_batch_norms": 7})
    report.metrics.add(metric=pb.METRIC_SQNR, value=1 / 3, samples=48)
    warning = pb.Warning(reason="TOO_FEW_SAMPLES", message="…", step_id="fold")
    analyses = {"fold": {"layers": [{"layer": "a", "db": 2 / 3}]}}
    cpu = pb.AttemptCpu(attempt=1, model="AMD EPYC 7763", instruction_sets=["avx2", "fma3"])
    progress = Progress([report], analyses, [warning], [cpu])
    return Decisions(ORIGIN, progress, {"modules": {"a": "ReLU"}})


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(decisions().to_text())
    change(document)
    return json.dumps(document).encode()


def test_every_bit_comes_back() -> None:
    assert Decisions.from_text(decisions().to_text().encode()) == decisions()


def test_a_result_from_before_cpus_were_written_down_is_read() -> None:
    read = Decisions.from_text(changed(lambda d: d.pop("cpus")))
    assert read.progress.cpus == []
    assert read.progress.steps == decisions().progress.steps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format_version=2), "format 2, and this Lighten reads 1"),
        (lambda d: d.update(format_version="1"), "format_version is no int"),
        (lambda d: d.update(format_version=True), "format_version is no int"),
        (lambda d: d.update(extra=1), "unknown parts: extra"),
        (lambda d: d.pop("job"), "job is no str"),
        (lambda d: d.update(engine="ENGINE_X"), "ENGINE_X"),
        (lambda d: d["steps"][0].update(later=1), "later"),
        (lambda d: d.update(steps=["fold"]), "a step is no dict"),
        (lambda d: d.update(steps={}), "steps is no list"),
        (lambda d: d.update(analyses={"fold": []}), "fold is no dict"),
        (lambda d: d.update(warnings=[1]), "a warning is no dict"),
        (lambda d: d.update(cpus=None), "cpus is no list"),
        (lambda d: d.update(cpus=["AMD"]), "a CPU is no dict"),
        (lambda d: d["cpus"][0].update(cores=2), "no AttemptCpu"),
        (lambda d: d.update(model=None), "model is no dict"),
    ],
)
def test_another_document_is_refused(
    change: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(InvalidStepResult, match=words):
        Decisions.from_text(changed(change))


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff\xfe", b'{"format_version": 1', b"null"])
def test_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidStepResult):
        Decisions.from_text(text)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (Origin("another", ORIGIN.engine, ORIGIN.versions, ORIGIN.input_sha256), "its job"),
        (Origin(ORIGIN.job, pb.ENGINE_TORCH, ORIGIN.versions, ORIGIN.input_sha256), "engine"),
        (Origin(ORIGIN.job, ORIGIN.engine, {"torch": "3"}, ORIGIN.input_sha256), "software"),
        (Origin(ORIGIN.job, ORIGIN.engine, ORIGIN.versions, {"s3://m": "cd"}), "made of"),
    ],
)
def test_a_result_of_another_job_or_software_is_refused(origin: Origin, words: str) -> None:
    with pytest.raises(InvalidStepResult, match=words):
        require_same_job(decisions(), origin, [FOLD, CALIBRATE], "fold")


def test_the_steps_must_be_the_first_of_the_plan() -> None:
    require_same_job(decisions(), ORIGIN, [FOLD, CALIBRATE], "fold")
    for steps, step_id in [
        ([CALIBRATE, FOLD], "fold"),
        ([FOLD, CALIBRATE], "calibrate"),
        ([], "fold"),
    ]:
        with pytest.raises(InvalidStepResult, match="not those of the plan"):
            require_same_job(decisions(), ORIGIN, steps, step_id)

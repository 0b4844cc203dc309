"""Techniques over a working model, and their registry."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument
from lighten_service.techniques import TECHNIQUES, run_step
from lighten_service.worker.context import Cancelled, StepContext
from lighten_service.worker.data import LabelledBatch
from lighten_service.worker.model import Batch


class Recorder:
    """A reporter that keeps events, and cancels after some of them."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.events: list[pb.JobEvent] = []
        self._cancel_after = cancel_after

    def send(self, event: pb.JobEvent) -> None:
        self.events.append(event)

    def check(self) -> None:
        if self._cancel_after is not None and len(self.events) >= self._cancel_after:
            raise Cancelled


class Noise:
    """Samples in memory: 10 of them in batches of 4."""

    count = 10
    labelled = False

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        for size in (4, 4, 2):
            yield LabelledBatch({"input": np.zeros((size, 3), np.float32)})


class Model:
    """The part of a working model that techniques use."""

    def __init__(self, folded: int = 52) -> None:
        self._folded = folded
        self.seen = 0
        self.quantization: pb.QuantizationConfig | None = None

    def fold_batch_norms(self) -> int:
        return self._folded

    def calibrate(
        self,
        quantization: pb.QuantizationConfig,
        parameters: pb.Calibrate,
        batches: Callable[[], Iterable[Batch]],
        *,
        on_batch: Callable[[int], None],
    ) -> Mapping[str, float]:
        self.quantization = quantization
        for number, batch in enumerate(batches(), 1):
            self.seen += len(batch["input"])
            on_batch(number)
        return {"weight_quantizers": 53, "activation_quantizers": 65}


def context(tmp_path: Path, reporter: Recorder, calibration: Noise | None = None) -> StepContext:
    return StepContext(
        stage=pb.Stage(kind=pb.Stage.KIND_STEP, step_id="step"),
        reporter=reporter,
        quantization=pb.QuantizationConfig(weights=pb.DATA_TYPE_INT8),
        calibration=calibration,
        evaluation=None,
        scratch=tmp_path,
        device="cpu",
        seed=0,
    )


def test_the_registry_holds_exactly_the_techniques_of_the_contract() -> None:
    contract = {field.name for field in pb.Step.DESCRIPTOR.oneofs_by_name["technique"].fields}

    assert set(TECHNIQUES) == contract


def test_folding_nothing_is_no_failure(tmp_path: Path) -> None:
    step = pb.Step(fold_batch_norms=pb.FoldBatchNorms())

    findings = run_step(context(tmp_path, Recorder()), Model(folded=0), step)

    assert findings.values == {"folded_batch_norms": 0}
    assert findings.summary == "0 batch norms folded"


def test_calibration_reports_samples_as_they_pass(tmp_path: Path) -> None:
    recorder, model = Recorder(), Model()

    findings = run_step(
        context(tmp_path, recorder, Noise()), model, pb.Step(calibrate=pb.Calibrate())
    )

    assert [event.progress.done for event in recorder.events] == [4, 8, 10]
    assert {event.progress.total for event in recorder.events} == {10}
    assert model.seen == 10
    assert model.quantization == pb.QuantizationConfig(weights=pb.DATA_TYPE_INT8)
    assert findings.values["calibration_samples"] == 10


def test_calibration_stops_at_the_next_batch_when_cancelled(tmp_path: Path) -> None:
    model = Model()

    with pytest.raises(Cancelled):
        run_step(
            context(tmp_path, Recorder(cancel_after=1), Noise()),
            model,
            pb.Step(calibrate=pb.Calibrate()),
        )

    assert model.seen == 8


def test_calibration_needs_data(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        run_step(context(tmp_path, Recorder()), Model(), pb.Step(calibrate=pb.Calibrate()))

    assert (caught.value.reason, caught.value.field) == ("MISSING_CALIBRATION_DATA", "calibration")


def test_a_step_without_a_technique_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="names no technique"):
        run_step(context(tmp_path, Recorder()), Model(), pb.Step(id="empty"))

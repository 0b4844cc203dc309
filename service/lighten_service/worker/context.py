"""What a running attempt offers to its parts: progress, warnings, cancellation, scratch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from lighten import v1 as pb

if TYPE_CHECKING:  # numpy reads its number of threads when it is loaded
    from lighten_service.worker.data import Samples
    from lighten_service.worker.judge import Judge


class Cancelled(BaseException):
    """The job was cancelled or its worker fenced: unwind, clean up, say nothing.

    Not an Exception, so that no handler in a library swallows it.
    """


class Reporter(Protocol):
    """Takes what an attempt has to tell. Never blocks on the network; coalesces by itself."""

    def send(self, event: pb.JobEvent) -> None:
        """Queue an event; ``stage`` and one payload are set, the rest is left to the server."""
        ...

    def check(self) -> None:
        """Raise Cancelled when the attempt shall stop. Cheap: call it in every loop."""
        ...


@dataclass
class StepContext:
    """What a technique gets beside the model and its parameters."""

    stage: pb.Stage
    reporter: Reporter
    quantization: pb.QuantizationConfig
    calibration: "Samples | None"
    evaluation: "Samples | None"
    scratch: Path
    device: str
    seed: int
    # Absent before the FP32 model was measured.
    judge: "Judge | None" = None
    # Candidate of a guided job that the work belongs to; empty for none.
    trial: str = ""
    # Share of the whole job that is done at the start and at the end of this stage.
    fraction_start: float = 0.0
    fraction_end: float = 1.0
    warnings: list[pb.Warning] = field(default_factory=list)
    # What the stage did, for a person; told when it has finished.
    summary: str = ""

    def check(self) -> None:
        """Raise Cancelled when the job shall stop."""
        self.reporter.check()

    def progress(self, done: int, total: int, unit: str) -> None:
        """Report how far the stage is; also a point where it can be cancelled."""
        self.check()
        share = done / total if total else 0.0
        fraction = self.fraction_start + (self.fraction_end - self.fraction_start) * share
        # Sums of parts differ in their last bits, and it never decreases.
        fraction = round(fraction, 9)
        self._send(
            progress=pb.Progress(
                stage=self.stage, done=done, total=total, unit=unit, fraction=min(fraction, 1.0)
            )
        )

    def part(self, start: float, end: float) -> "StepContext":
        """Return the context of a part of the stage, from one share of it to another."""
        width = self.fraction_end - self.fraction_start
        return replace(
            self,
            fraction_start=self.fraction_start + width * start,
            fraction_end=self.fraction_start + width * end,
        )

    def warn(self, reason: str, message: str) -> None:
        """Record something that changes the result and is no error."""
        warning = pb.Warning(reason=reason, message=message, step_id=self.stage.step_id)
        if warning not in self.warnings:  # each pass over the data finds the same ones
            self.warnings.append(warning)
            self._send(warning=warning)

    def log(self, message: str, level: pb.LogLevel.ValueType = pb.LOG_LEVEL_INFO) -> None:
        self._send(log=pb.LogLine(level=level, message=message))

    def metric(self, column: str, value: pb.MetricValue) -> None:
        self._send(metric=pb.MetricReported(column=column, value=value))

    def trial_finished(self, finished: pb.TrialFinished) -> None:
        """Tell of a candidate for the goal."""
        self._send(trial_finished=finished)

    def artifact(self, artifact: pb.Artifact) -> None:
        self._send(artifact=artifact)

    def rng(self) -> random.Random:
        """Return a generator seeded by the job's seed and the step, whichever stage runs it."""
        return random.Random(f"{self.seed}/{self.stage.step_id}")

    @contextmanager
    def timed(self, title: str) -> Iterator[None]:
        """Report the stage as started, and as finished with its seconds unless it raises."""
        self.check()
        self._send(stage_started=pb.StageStarted(title=title))
        began = monotonic()
        yield
        seconds = monotonic() - began
        self._send(stage_finished=pb.StageFinished(seconds=seconds, summary=self.summary))

    def _send(self, **payload: object) -> None:
        self.reporter.send(
            pb.JobEvent(stage=self.stage, trial=self.trial, **payload)  # type: ignore[arg-type]
        )

"""How good a model is: accuracy against labels, fidelity against the FP32 outputs.

One pass, memory of one batch. The FP32 outputs that a model is compared with lie on disk
(``Reference``).

Top-1, top-5, agreement and KL divergence are of the first output, where it has the shape of class
scores, (samples, classes) with at least two classes; otherwise they are left out. SQNR and cosine
are measured for every output, and the model's own figure is that of its worst output.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, Internal, InvalidArgument
from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.metrics import (
    Fidelity,
    Measured,
    OutputSums,
    RankSums,
    ScoreSums,
    are_scores,
)
from lighten_service.worker.model import Batch, Outputs

Predict = Callable[[Batch], Outputs]
# Called with the number of samples evaluated so far, after each batch; may raise to stop.
OnBatch = Callable[[int], None]

# Recorded outputs that ``compare`` holds at a time, unless one sample has more.
_COMPARED_BYTES = 16 << 20
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one pass found. ``outputs`` is empty without a reference."""

    samples: int
    metrics: tuple[Measured, ...]
    outputs: tuple[Fidelity, ...] = ()

    def value(self, metric: pb.Metric.ValueType) -> float | None:
        """Return a metric, or None where it does not apply."""
        return next((found.value for found in self.metrics if found.metric == metric), None)

    def metric_values(self) -> list[pb.MetricValue]:
        return [
            pb.MetricValue(
                metric=found.metric,
                value=found.value,
                samples=found.samples,
                standard_error=found.standard_error,
            )
            for found in self.metrics
        ]

    def output_fidelity(self) -> list[pb.OutputFidelity]:
        return [
            pb.OutputFidelity(
                output=found.output,
                sqnr_db=found.sqnr_db,
                cosine=found.cosine,
                max_abs_error=found.max_abs_error,
            )
            for found in self.outputs
        ]


def evaluate(
    predict: Predict,
    samples: Samples,
    *,
    reference: "Reference | None" = None,
    on_batch: OnBatch = lambda _: None,
    label_field: str = "evaluation.data",
) -> Evaluation:
    """Run a model over all samples and measure it.

    Args:
        predict: the model; outputs in graph order, first axis the samples.
        reference: FP32 outputs for the same samples in the same order. Without one, only
            accuracy is measured.
        on_batch: progress, and a point where the pass can be stopped.
        label_field: field named by an error about labels.

    Raises:
        InvalidArgument: LABEL_OUT_OF_RANGE; what ``samples`` raises.
        FailedPrecondition: NON_FINITE_OUTPUT, OUTPUT_NOT_BATCHED.
        Internal: REFERENCE_MISMATCH, the reference is of other samples or another model.
    """
    accuracy = _Accuracy(label_field) if samples.labelled else None
    comparison = _Comparison(reference) if reference else None
    done = 0
    for batch in samples.batches():
        outputs = predict(batch.inputs)
        check_outputs(outputs, done, batch.size)
        if accuracy:
            accuracy.add(outputs, batch)
        if comparison:
            comparison.add(outputs, done, batch.size)
        done += batch.size
        on_batch(done)
    measured = accuracy.results() if accuracy else ()
    if not comparison:
        return Evaluation(done, measured)
    return Evaluation(done, measured + comparison.results(), comparison.fidelity())


def compare(found: "Reference", expected: "Reference", *, limit: int | None = None) -> Evaluation:
    """Measure the fidelity of recorded outputs to others, on the samples that both begin with.

    Raises:
        Internal: REFERENCE_MISMATCH, they are of models with other outputs.
    """
    comparison = _Comparison(expected)
    count = min(found.count, expected.count, limit or found.count)
    rows = max(_COMPARED_BYTES // max(found.sample_bytes, 1), 1)
    for start in range(0, count, rows):
        size = min(rows, count - start)
        comparison.add(found.rows(start, size), start, size)
    return Evaluation(count, comparison.results(), comparison.fidelity())


def excess_noise(
    found: "Reference", other: "Reference", expected: "Reference", factor: float
) -> dict[str, float]:
    """Return by output how much more noise there is in one model than ``factor`` times another's.

    In standard errors of the paired difference over samples; infinite for a single one. Both are
    compared with ``expected``, on the samples that all three begin with.
    """
    count = min(found.count, other.count, expected.count)
    differences: dict[str, list[NDArray[np.float64]]] = {name: [] for name in found.output_names}
    rows = max(_COMPARED_BYTES // max(found.sample_bytes, 1), 1)
    for start in range(0, count, rows):
        size = min(rows, count - start)
        ideal, one, two = (each.rows(start, size) for each in (expected, found, other))
        for name, parts in differences.items():
            noise = _noise(ideal[name], one[name]) - factor * _noise(ideal[name], two[name])
            parts.append(noise)
    return {name: _standard_errors(np.concatenate(parts)) for name, parts in differences.items()}


def _noise(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared error of each sample."""
    error = (found.astype(np.float64) - expected).reshape(len(found), -1)
    noise: NDArray[np.float64] = np.square(error).sum(axis=1)
    return noise


def _standard_errors(differences: NDArray[np.float64]) -> float:
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if error:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0


def check_outputs(outputs: Mapping[str, NDArray[np.float32]], done: int, size: int) -> None:
    """Raise FailedPrecondition unless every output is finite and has one row a sample."""
    for name, values in outputs.items():
        if not values.shape or values.shape[0] != size:
            raise FailedPrecondition(
                "OUTPUT_NOT_BATCHED",
                f"output '{name}' has shape {list(values.shape)} for a batch of {size} samples; "
                "its first axis must be the batch",
                field="model.artifact",
            )
        finite = np.isfinite(values).reshape(size, -1).all(axis=1)
        if not finite.all():
            raise FailedPrecondition(
                "NON_FINITE_OUTPUT",
                f"output '{name}' is NaN or infinite for sample {done + int(np.argmin(finite))} "
                "of the evaluation",
            )


class Reference:
    """Outputs of a model for every sample, as raw float32 files; read back batch by batch.

    Attributes:
        evaluation: accuracy of that model, found in the pass that recorded it.
    """

    def __init__(
        self, files: Mapping[str, tuple[Path, tuple[int, ...]]], evaluation: Evaluation
    ) -> None:
        self._files = dict(files)
        self.evaluation = evaluation

    @classmethod
    def record(
        cls,
        predict: Predict,
        samples: Samples,
        folder: Path,
        *,
        on_batch: OnBatch = lambda _: None,
        label_field: str = "evaluation.data",
    ) -> Self:
        """Evaluate a model and keep its outputs below ``folder``, which must outlive it.

        Raises:
            FailedPrecondition: OUTPUT_SHAPE_VARIES, when a sample's output changes its shape from
                batch to batch; and as ``evaluate``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _Recorder(predict, folder) as recorder:
            evaluation = evaluate(recorder, samples, on_batch=on_batch, label_field=label_field)
        return cls(recorder.files, evaluation)

    @property
    def count(self) -> int:
        return self.evaluation.samples

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(self._files)

    @property
    def sample_bytes(self) -> int:
        """Bytes of all outputs of one sample."""
        return sum(math.prod(shape) * _FLOAT_BYTES for _, shape in self._files.values())

    def rows(self, start: int, count: int) -> Outputs:
        """Return the outputs of samples ``start`` to ``start + count - 1``."""
        return {name: self._read(name, start, count) for name in self._files}

    def _read(self, name: str, start: int, count: int) -> NDArray[np.float32]:
        path, shape = self._files[name]
        width = math.prod(shape)
        offset = start * width * _FLOAT_BYTES
        values = np.fromfile(path, dtype=np.float32, count=count * width, offset=offset)
        return values.reshape(count, *shape)

    def close(self) -> None:
        """Delete the files."""
        for path, _ in self._files.values():
            path.unlink(missing_ok=True)


class _Recorder:
    """A model that writes down what it predicts."""

    def __init__(self, predict: Predict, folder: Path) -> None:
        self._predict = predict
        self._folder = folder
        self._open = ExitStack()
        self._writers: dict[str, BinaryIO] = {}
        self.files: dict[str, tuple[Path, tuple[int, ...]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, batch: Batch) -> Outputs:
        outputs = self._predict(batch)
        for name, values in outputs.items():
            self._append(name, values)
        return outputs

    def _append(self, name: str, values: NDArray[np.float32]) -> None:
        shape = values.shape[1:]
        if name not in self.files:
            path = self._folder / f"output-{len(self.files)}.f32"
            self.files[name] = (path, shape)
            self._writers[name] = self._open.enter_context(path.open("wb"))
        if shape != self.files[name][1]:
            raise FailedPrecondition(
                "OUTPUT_SHAPE_VARIES",
                f"a sample of output '{name}' has shape {list(shape)} and earlier "
                f"{list(self.files[name][1])}; outputs whose shape depends on the data cannot be "
                "compared",
                field="model.artifact",
            )
        self._writers[name].write(np.ascontiguousarray(values, dtype=np.float32).data)


class _Accuracy:
    """The first output against the labels."""

    def __init__(self, label_field: str) -> None:
        self._field = label_field
        self._ranks = RankSums()

    def add(self, outputs: Outputs, batch: LabelledBatch) -> None:
        scores = next(iter(outputs.values()))
        if batch.labels is not None and are_scores(scores):
            self._check(batch.labels, scores.shape[1])
            self._ranks.add(scores, batch.labels)

    def _check(self, labels: NDArray[np.int64], classes: int) -> None:
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            label = int(labels[int(np.argmax(wrong))])
            raise InvalidArgument(
                "LABEL_OUT_OF_RANGE",
                f"the data hold the label {label}, but the model has {classes} classes: labels go "
                f"from 0 to {classes - 1}",
                field=self._field,
            )

    def results(self) -> tuple[Measured, ...]:
        return self._ranks.results()


class _Comparison:
    """Outputs against the reference."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._outputs = {name: OutputSums() for name in reference.output_names}
        self._scores = ScoreSums()
        self._count = 0

    def add(self, outputs: Outputs, start: int, size: int) -> None:
        self._check_names(outputs, start + size)
        expected = self._reference.rows(start, size)
        for name, sums in self._outputs.items():
            _check_shapes(name, expected[name], outputs[name])
            sums.add(expected[name], outputs[name])
        self._count += size
        first = self._reference.output_names[0]
        if are_scores(expected[first]):
            self._scores.add(expected[first], outputs[first])

    def _check_names(self, outputs: Outputs, end: int) -> None:
        if outputs.keys() != self._outputs.keys() or end > self._reference.count:
            raise Internal(
                "REFERENCE_MISMATCH",
                f"outputs {sorted(outputs)} of {end} samples are compared with outputs "
                f"{sorted(self._outputs)} of {self._reference.count}",
            )

    def fidelity(self) -> tuple[Fidelity, ...]:
        return tuple(sums.result(name) for name, sums in self._outputs.items())

    def results(self) -> tuple[Measured, ...]:
        found = self.fidelity()
        return (
            Measured(pb.METRIC_SQNR, min(output.sqnr_db for output in found), self._count),
            Measured(pb.METRIC_COSINE, min(output.cosine for output in found), self._count),
            *self._scores.results(),
        )


def _check_shapes(name: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    if expected.shape != found.shape:
        raise Internal(
            "REFERENCE_MISMATCH",
            f"output '{name}' of shape {list(found.shape)} is compared with {list(expected.shape)}",
        )

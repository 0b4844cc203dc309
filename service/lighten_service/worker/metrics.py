"""Sums over batches from which metrics follow. Float64, and nothing but sums is kept."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb

# dB that a perfect copy reports, and the negative of what pure noise reports.
MAX_SQNR_DB = 200.0
TOP_K = 5
# Values that are turned into float64 at a time.
CHUNK_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric with the samples that it was measured on."""

    metric: pb.Metric.ValueType
    value: float
    samples: int
    # Of a share of samples: sqrt(p (1 - p) / n).
    standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How close one output is to FP32."""

    output: str
    sqnr_db: float
    cosine: float
    max_abs_error: float


class RankSums:
    """Top-1 and top-5."""

    def __init__(self) -> None:
        self._top1 = 0
        self._top5 = 0
        self._count = 0

    def add(self, scores: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Add scores of shape (n, classes), and labels between 0 and classes - 1."""
        own = scores[np.arange(len(labels)), labels][:, None]
        # Among equal scores the lower class goes first, as in argmax.
        before = np.arange(scores.shape[1]) < labels[:, None]
        rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
        self._top1 += int((rank < 1).sum())
        self._top5 += int((rank < TOP_K).sum())
        self._count += len(labels)

    def results(self) -> tuple[Measured, ...]:
        if not self._count:
            return ()
        return (
            _share(pb.METRIC_TOP1, self._top1, self._count),
            _share(pb.METRIC_TOP5, self._top5, self._count),
        )


class ScoreSums:
    """Agreement and KL divergence of class scores with the FP32 scores."""

    def __init__(self) -> None:
        self._agreed = 0
        self._divergence = 0.0
        self._count = 0

    def add(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Add scores of shape (n, classes)."""
        self._agreed += int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
        log_p, log_q = log_softmax(expected), log_softmax(found)
        self._divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
        self._count += len(expected)

    def results(self) -> tuple[Measured, ...]:
        if not self._count:
            return ()
        # Rounding takes an exact zero a little below.
        divergence = max(self._divergence / self._count, 0.0)
        return (
            _share(pb.METRIC_AGREEMENT, self._agreed, self._count),
            Measured(pb.METRIC_KL_DIVERGENCE, divergence, self._count),
        )


@dataclass
class OutputSums:
    """Distance of one output from FP32."""

    signal: float = 0.0
    noise: float = 0.0
    cosine: float = 0.0
    max_abs_error: float = 0.0
    count: int = 0

    def add(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Add values of shape (n, ...), a few samples at a time where they are large."""
        x, y = expected.reshape(len(expected), -1), found.reshape(len(found), -1)
        rows = max(CHUNK_VALUES // max(x.shape[1], 1), 1)
        for at in range(0, len(x), rows):
            self._add(x[at : at + rows].astype(np.float64), y[at : at + rows].astype(np.float64))

    def _add(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        x_power, y_power = (x * x).sum(axis=1), (y * y).sum(axis=1)
        error = x - y
        self.signal += float(x_power.sum())
        self.noise += float((error * error).sum())
        self.cosine += float(_cosine((x * y).sum(axis=1), x_power, y_power).sum())
        self.max_abs_error = max(self.max_abs_error, float(np.abs(error).max(initial=0.0)))
        self.count += len(x)

    def result(self, name: str) -> Fidelity:
        return Fidelity(
            output=name,
            sqnr_db=sqnr_db(self.signal, self.noise),
            cosine=self.cosine / self.count if self.count else 0.0,
            max_abs_error=self.max_abs_error,
        )


def sqnr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), within +-200 dB; sums of squares go in."""
    if noise <= 0:
        return MAX_SQNR_DB
    if signal <= 0:
        return -MAX_SQNR_DB
    return min(max(10 * math.log10(signal / noise), -MAX_SQNR_DB), MAX_SQNR_DB)


def _cosine(
    dot: NDArray[np.float64], x_power: NDArray[np.float64], y_power: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the cosine of each sample; two zero vectors are alike, one zero vector is not."""
    norms = np.sqrt(x_power) * np.sqrt(y_power)
    both_zero = (x_power == 0) & (y_power == 0)
    cosine: NDArray[np.float64] = both_zero.astype(np.float64)
    np.divide(dot, norms, out=cosine, where=norms > 0)
    np.clip(cosine, -1.0, 1.0, out=cosine)
    return cosine


def are_scores(values: NDArray[np.float32]) -> bool:
    """Whether an output has the shape of class scores, (n, classes)."""
    return values.ndim == 2 and values.shape[1] > 1


def log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log probabilities of scores of shape (n, classes)."""
    shifted = scores.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _share(metric: pb.Metric.ValueType, hits: int, count: int) -> Measured:
    share = hits / count
    return Measured(metric, share, count, math.sqrt(share * (1 - share) / count))

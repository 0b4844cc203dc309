"""What judging one file on one CPU found, sample by sample, and the figures that follow."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Found:
    """``signal`` and ``noise``: sums of squares, (samples, outputs). ``agreed``: whether the best
    class is FP32's. ``digests``: of all outputs."""

    signal: NDArray[np.float64]
    noise: NDArray[np.float64]
    agreed: NDArray[np.bool_]
    digests: tuple[str, ...]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        signal, noise = (np.array(found[name], np.float64) for name in ("signal", "noise"))
        return cls(signal, noise, np.array(found["agreed"], bool), tuple(found["digests"]))

    @property
    def count(self) -> int:
        return len(self.agreed)

    def first(self, count: int) -> "Found":
        """Return what was found on the first samples."""
        parts = self.signal[:count], self.noise[:count], self.agreed[:count]
        return Found(*parts, self.digests[:count])

    def sqnr(self) -> Estimate:
        """Return the SQNR in dB of the worst output."""
        return _jackknife(self.count, lambda kept: self._sqnr(kept))

    def sqnr_over(self, other: "Found") -> Estimate:
        """Return by how many dB this one is better than another one on the same samples."""
        return _jackknife(self.count, lambda kept: self._sqnr(kept) - other._sqnr(kept))

    def agreement(self) -> Estimate:
        share = float(self.agreed.mean())
        return Estimate(share, math.sqrt(share * (1 - share) / self.count))

    def equal(self, other: "Found") -> int:
        """Return on how many samples both have the same outputs, bit for bit."""
        return sum(one == two for one, two in zip(self.digests, other.digests, strict=True))

    def _sqnr(self, kept: NDArray[np.bool_]) -> float:
        signal, noise = self.signal[kept].sum(0), self.noise[kept].sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(10 * np.log10(signal / noise).min())


def mcnemar(one: Found, other: Found) -> float:
    """Return the probability of so uneven an agreement of two files, were they equally good: the
    exact two-sided test on the samples on which only one of them agrees with FP32."""
    gained, lost = int((one.agreed & ~other.agreed).sum()), int((~one.agreed & other.agreed).sum())
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost).pvalue)


def _jackknife(count: int, figure: Callable[[NDArray[np.bool_]], float]) -> Estimate:
    """Return a figure of all samples, its error from leaving out each in turn."""
    without = np.array([figure(np.arange(count) != index) for index in range(count)])
    error = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    return Estimate(figure(np.ones(count, bool)), error)

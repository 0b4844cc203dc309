"""Sensitivity of single layers, by Lighten and by AIMET's own analysis: ``python -m
tests.benchmarks.bench_sensitivity``.

Both sides measure the same groups of quantizers of the same simulation on the same batches, in one
process and in turns: the SQNR of the model's output with one group alone switched on. AIMET runs
the whole model for each. Also timed is Lighten's whole technique, which has fewer groups (a layer
and the activation after it are one) and more figures.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks import common

TARGET = 0.5
SIDE = 64
BATCHES = 2
ENGINES = ("torch", "onnx")


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of each side. Figures are in dB, by group."""

    aimet_seconds: float
    lighten_seconds: float
    aimet: Sequence[float]
    lighten: Sequence[float]


def bench(engine: str, pairs: int) -> None:
    # Imported with the threads that the command line asks for.
    from tests.benchmarks.sensitivities import open_sides

    with tempfile.TemporaryDirectory() as folder:
        sides = open_sides(engine, SIDE, BATCHES, Path(folder))
        turns = []
        for number in range(pairs):
            spent: dict[Callable[[], Sequence[float]], tuple[float, Sequence[float]]] = {}
            # Neither is always the first.
            for side in (sides.aimet, sides.lighten)[:: 1 if number % 2 else -1]:
                spent[side] = _timed(side)
            aimet, lighten = spent[sides.aimet], spent[sides.lighten]
            turns.append(Turn(aimet[0], lighten[0], aimet[1], lighten[1]))
        whole, _ = _timed(sides.technique)
    report(f"aimet-{engine}", turns, whole)


def report(title: str, turns: Sequence[Turn], whole: float) -> None:
    ratios = [turn.lighten_seconds / turn.aimet_seconds for turn in turns]
    last = turns[-1]
    apart = np.abs(np.subtract(last.aimet, last.lighten)).max()
    listed = " ".join(f"{ratio:.3f}" for ratio in ratios)
    print(
        f"{title}: {len(last.aimet)} groups, AIMET "
        f"{statistics.median(turn.aimet_seconds for turn in turns):.1f} s, Lighten "
        f"{statistics.median(turn.lighten_seconds for turn in turns):.1f} s; "
        f"Lighten's whole technique {whole:.1f} s\n"
        f"  wall time, Lighten / AIMET: median {statistics.median(ratios):.3f} of {listed} "
        f"(target {TARGET})\n"
        f"  figures: at most {apart:.3f} dB apart, rank correlation "
        f"{rank_correlation(last.aimet, last.lighten):.4f}",
        flush=True,
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's coefficient."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("only", nargs="*", choices=(*ENGINES, []), metavar="ENGINE")
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    common.settle(options.threads)
    print(
        f"sensitivity: MobileNetV2 with ImageNet weights, {BATCHES} batches of 8 photos at "
        f"{SIDE} px, {common.machine(options.threads)}"
    )
    for engine in options.only or ENGINES:
        bench(engine, options.pairs)


def _timed(run: Callable[[], Sequence[float]]) -> tuple[float, Sequence[float]]:
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


if __name__ == "__main__":
    main()

"""Calibration by the pipeline against the same AIMET calls by hand: ``python -m
tests.benchmarks.bench_pipeline``.

Both sides get the same float model with folded batch norms, the same configuration and the same
batches, in one process and in turns. The pipeline's side is the technique with a real context and
reporter: what it adds are checks, progress and cancellation. Both must return the same bits.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lighten import v1 as pb
from tests.benchmarks import common
from tests.benchmarks.common import Cost, cost

TARGET = 1.05
SIDE = 160
BATCH_SIZE = 8
BATCHES = 4


@dataclass(frozen=True, slots=True)
class Case:
    engine: str
    architecture: str
    scheme: pb.RangeScheme.ValueType
    pairs: int = 7

    @property
    def title(self) -> str:
        scheme = pb.RangeScheme.Name(self.scheme).removeprefix("RANGE_SCHEME_").lower()
        return f"aimet-{self.engine} {self.architecture} {scheme}"


CASES = (
    Case("torch", "resnet18", pb.RANGE_SCHEME_MIN_MAX),
    Case("torch", "mobilenet_v2", pb.RANGE_SCHEME_MIN_MAX),
    Case("onnx", "resnet18", pb.RANGE_SCHEME_MIN_MAX),
    Case("onnx", "mobilenet_v2", pb.RANGE_SCHEME_MIN_MAX),
    Case("torch", "mobilenet_v2", pb.RANGE_SCHEME_SQNR, pairs=2),
    Case("onnx", "mobilenet_v2", pb.RANGE_SCHEME_SQNR, pairs=2),
)


def bench(case: Case, pairs: int) -> None:
    # Imported with the threads that the command line asks for.
    from tests.benchmarks.calibrations import Setting, onnx_sides, torch_sides

    rng = np.random.default_rng(0)
    shape = BATCH_SIZE, 3, SIDE, SIDE
    batches = [{"input": rng.standard_normal(shape).astype(np.float32)} for _ in range(BATCHES)]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(case.architecture, SIDE, case.scheme, batches, Path(folder))
        make = {"torch": torch_sides, "onnx": onnx_sides}[case.engine]
        by_hand, by_pipeline = make(setting)
        costs: list[tuple[Cost, Cost]] = []
        for number in range(pairs + 1):
            hand, pipeline = by_hand(), by_pipeline()
            # Neither is always the first.
            sides = (hand, pipeline) if number % 2 else (pipeline, hand)
            spent = {side: cost(side.run) for side in sides}
            costs.append((spent[hand], spent[pipeline]))
            np.testing.assert_array_equal(hand.predict(), pipeline.predict())
    report(case.title, costs[1:])  # the first pair warms up


def report(title: str, costs: list[tuple[Cost, Cost]]) -> None:
    cpu = [pipeline.cpu / hand.cpu for hand, pipeline in costs]
    wall = [pipeline.wall / hand.wall for hand, pipeline in costs]
    hand, pipeline = (
        statistics.median(spent.cpu for spent in side) for side in zip(*costs, strict=True)
    )
    print(
        f"{title}: by hand {hand:.2f} s of CPU, pipeline {pipeline:.2f} s\n"
        f"  CPU time, pipeline / by hand: {_ratios(cpu)} (target {TARGET})\n"
        f"  wall time, the same:          {_ratios(wall)}",
        flush=True,
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("only", nargs="*", metavar="WORD", help="cases whose title has all of them")
    parser.add_argument(
        "--pairs", type=int, help="for every case; by default 7, and 2 of the slow ones"
    )
    options = parser.parse_args()
    common.settle(options.threads)
    print(
        f"pipeline: {BATCHES} batches of {BATCH_SIZE} at {SIDE} px, "
        f"{common.machine(options.threads)}"
    )
    for case in CASES:
        if all(word in case.title for word in options.only):
            bench(case, options.pairs or case.pairs)


def _ratios(values: list[float]) -> str:
    listed = " ".join(f"{value:.3f}" for value in values)
    return f"median {statistics.median(values):.3f} of {listed}"


if __name__ == "__main__":
    main()

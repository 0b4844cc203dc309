"""AdaRound and sequential MSE by the pipeline against AIMET's own calls: ``python -m
tests.benchmarks.bench_rounding``.

Both sides go from one float model to a calibrated W4A8 one on the same samples, with equal settings
and seed, each once and in turns. SQNR against FP32 is that of other samples.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lighten import v1 as pb
from tests.benchmarks import common
from tests.benchmarks.common import cost

TARGET = 0.5
BATCH_SIZE = 32
UNSEEN_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Case:
    """``iterations`` 0: sequential MSE, with 20 candidates."""

    engine: str
    architecture: str
    side: int
    batches: int
    iterations: int = 0

    @property
    def title(self) -> str:
        technique = f"ada_round {self.iterations} iterations" if self.iterations else "seq_mse"
        return f"aimet-{self.engine} {self.architecture} {technique}"


CASES = (
    Case("torch", "resnet18", 96, 4, iterations=200),
    Case("onnx", "resnet18", 96, 4, iterations=200),
    Case("torch", "mobilenet_v2", 96, 4, iterations=200),
    Case("torch", "resnet18", 96, 2),
    Case("onnx", "resnet18", 96, 2),
)


def bench(case: Case) -> None:
    # Imported with the threads that the command line asks for.
    from tests.benchmarks.calibrations import Setting
    from tests.benchmarks.roundings import Predict, Side, Work, onnx_sides, torch_sides
    from tests.support.small_models import sqnr_db

    seen, unseen = _pictures(case, case.batches, 0), _pictures(case, UNSEEN_BATCHES, 1)
    scheme = pb.RANGE_SCHEME_MIN_MAX

    def quality(reference: Predict, side: Side) -> float:
        pairs = [(reference(batch), side.predict(batch)) for batch in unseen]
        return sqnr_db(*(np.concatenate(outputs) for outputs in zip(*pairs, strict=True)))

    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(case.architecture, case.side, scheme, seen, Path(folder))
        make = {"torch": torch_sides, "onnx": onnx_sides}[case.engine]
        reference, nearest, pipeline, by_hand = make(Work(setting, case.iterations))
        cost(nearest.run)  # warms up
        ours, theirs = cost(pipeline.run), cost(by_hand.run)
        print(
            f"{case.title}, {case.batches * BATCH_SIZE} samples of {case.side} px\n"
            f"  wall time: AIMET {theirs.wall:.1f} s, pipeline {ours.wall:.1f} s: "
            f"{ours.wall / theirs.wall:.2f} (target {TARGET})\n"
            f"  CPU time: AIMET {theirs.cpu:.1f} s, pipeline {ours.cpu:.1f} s: "
            f"{ours.cpu / theirs.cpu:.2f}\n"
            f"  SQNR on {UNSEEN_BATCHES * BATCH_SIZE} other samples: nearest "
            f"{quality(reference, nearest):.2f} dB, AIMET {quality(reference, by_hand):.2f} dB, "
            f"pipeline {quality(reference, pipeline):.2f} dB",
            flush=True,
        )


def _pictures(case: Case, batches: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Return smooth random pictures."""
    rng = np.random.default_rng(seed)
    shape = BATCH_SIZE, 3, case.side // 8, case.side // 8
    return [
        {"input": rng.standard_normal(shape).repeat(8, 2).repeat(8, 3).astype(np.float32)}
        for _ in range(batches)
    ]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("only", nargs="*", metavar="WORD", help="cases whose title has all of them")
    options = parser.parse_args()
    common.settle(options.threads)
    print(f"rounding: {common.machine(options.threads)}")
    for case in CASES:
        if all(word in case.title for word in options.only):
            bench(case)


if __name__ == "__main__":
    main()

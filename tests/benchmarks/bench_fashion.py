"""What 4-bit weights cost a trained network on Fashion-MNIST, and what AdaRound and sequential MSE
win back: ``python -m tests.benchmarks.bench_fashion``.

Every model answers the same 10,000 test images; calibration takes training images alone. Recovered
is the share of the top-1 that nearest rounding loses against FP32. The interval is that of the
paired difference to FP32.
"""

import math
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from tests.benchmarks import common
from tests.benchmarks.fashion.data import CALIBRATION_IMAGES, test_images

TARGET = 0.9
MIN_LOSS = 0.05
STEPS = {
    "nearest": None,
    "sequential MSE": pb.Step(
        sequential_mse=pb.SequentialMse(candidates=50, max_samples=CALIBRATION_IMAGES)
    ),
    "AdaRound": pb.Step(
        ada_round=pb.AdaRound(
            iterations=2000,
            max_samples=CALIBRATION_IMAGES,
            regularization=0.01,
            warm_start=0.2,
            beta_start=20,
            beta_end=2,
        )
    ),
}


def bench() -> None:
    # Imported with the threads that the command line asks for.
    from tests.benchmarks.fashion.quantize import float_model, predictions, quantized_model

    tests = test_images()
    with tempfile.TemporaryDirectory() as folder:
        model = float_model(Path(folder))
        fp32 = predictions(model, tests.pixels) == tests.labels
        model.close()
        print(f"FP32: top-1 {fp32.mean():.4f}, n = {len(fp32)}", flush=True)
        lost = 0.0
        for name, step in STEPS.items():
            began = time.perf_counter()
            model = quantized_model(Path(folder), step)
            seconds = time.perf_counter() - began
            right = predictions(model, tests.pixels) == tests.labels
            model.close()
            loss = float(fp32.mean() - right.mean())
            lost = lost or loss
            print(f"{name}: {_row(fp32, right)}, {seconds:.0f} s", flush=True)
            if step is not None:
                print(f"  recovered {1 - loss / lost:.1%} of the loss (target {TARGET:.0%})")
            elif loss < MIN_LOSS:
                print(f"  nearest rounding loses less than {MIN_LOSS:.0%}")


def _row(fp32: NDArray[np.bool_], right: NDArray[np.bool_]) -> str:
    difference = right.astype(np.float64) - fp32
    spread = 1.96 * difference.std() / math.sqrt(len(difference))
    return f"top-1 {right.mean():.4f}, {difference.mean():+.4f} ± {spread:.4f} to FP32"


def main() -> None:
    options = common.parser(__doc__).parse_args()
    common.settle(options.threads)
    print(
        f"fashion: W4A8 per tensor, {CALIBRATION_IMAGES} calibration images, "
        f"{common.machine(options.threads)}"
    )
    bench()


if __name__ == "__main__":
    main()

"""CPU time of models, one sample and one thread, in turns.

Usage: ``python -m tests.benchmarks.cpus.timing FOLDER RUNTIME SECONDS FILE ...``, as of `judge`.
Prints by file the CPU seconds of each round, in JSON. Whole processes are measured, in which one
thread alone works: FP32 is ``model.onnx``.
"""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.cpus.running import runner

_WARM_UP, _MIN_ROUNDS = 2, 7


def main() -> None:
    folder, runtime, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    sample = np.load(folder / "judged.npy", mmap_mode="r")[:1]
    runs = {name: runner(folder / name, openvino=runtime == "openvino") for name in sys.argv[4:]}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names, began, rounds, order = [*runs], time.monotonic(), 0, random.Random(0)
    while rounds < _WARM_UP + _MIN_ROUNDS or time.monotonic() - began < seconds:
        for name in names:
            start = time.process_time()
            runs[name](sample)
            taken[name].append(time.process_time() - start)
        # The one before leaves its data in the caches.
        order.shuffle(names)
        rounds += 1
    print(json.dumps({name: times[_WARM_UP:] for name, times in taken.items()}))


if __name__ == "__main__":
    main()

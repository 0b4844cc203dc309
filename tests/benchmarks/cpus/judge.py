"""Runs models on the samples to judge on, on whichever CPU this process has.

Usage: ``python -m tests.benchmarks.cpus.judge FOLDER COUNT RUNTIME FILE ...``, the runtime
``onnxruntime`` or ``openvino``, the files by their names in the folder. The outputs of FP32 lie
there (``fp32-0.npy`` ...). Prints what `judged.Found` holds of each file, in JSON.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.cpus.running import Run, runner


def main() -> None:
    folder, count, runtime = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    samples = np.load(folder / "judged.npy", mmap_mode="r")[:count]
    expected = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("fp32-*.npy"))]
    found = {
        name: _compare(runner(folder / name, openvino=runtime == "openvino"), samples, expected)
        for name in sys.argv[4:]
    }
    print(json.dumps(found))


def _compare(
    run: Run, samples: NDArray[np.generic], expected: list[NDArray[np.float32]]
) -> dict[str, list]:
    signal, noise, agreed, digests = [], [], [], []
    for index in range(len(samples)):
        outputs = run(samples[index : index + 1])
        wanted = [output[index : index + 1] for output in expected]
        signal.append([_energy(one) for one in wanted])
        pairs = zip(wanted, outputs, strict=True)
        noise.append([_energy(np.subtract(*pair, dtype=np.float64)) for pair in pairs])
        agreed.append(choice(outputs[0]) == choice(wanted[0]))
        digests.append(hashlib.sha256(b"".join(one.tobytes() for one in outputs)).hexdigest())
    return {"signal": signal, "noise": noise, "agreed": agreed, "digests": digests}


def _energy(values: NDArray[np.floating]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def choice(scores: NDArray[np.float32]) -> list[int]:
    """Return the best class of one sample; of a row of scores, as recognizers of text give, the
    classes in their order, repetitions and blanks (0) left out."""
    best = scores.argmax(-1).reshape(-1).tolist()
    if len(best) == 1:
        return best
    return [
        one for one, before in zip(best, [0, *best[:-1]], strict=True) if one not in (0, before)
    ]


if __name__ == "__main__":
    main()

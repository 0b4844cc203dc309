"""Run models on the CPU at hand: ``python guest.py FOLDER``. Needs numpy and ONNX Runtime alone.

Runs each ``NAME.onnx`` of the folder on ``NAME.inputs.npz``, writes ``NAME.outputs.npz``, and
prints what holds for the CPU, in JSON.
"""

import ctypes
import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

# Of Linux on ARM: the number of a process' capabilities, and a bit of theirs.
_AT_HWCAP, _ASIMDDP = 16, 1 << 20


def main(folder: Path) -> None:
    for file in sorted(folder.glob("*.onnx")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        with np.load(file.with_suffix(".inputs.npz")) as inputs:
            outputs = session.run(None, dict(inputs))
        names = [output.name for output in session.get_outputs()]
        np.savez(file.with_suffix(".outputs.npz"), **dict(zip(names, outputs, strict=True)))
    print(json.dumps({"machine": platform.machine(), "dot_product": _has_dot_product()}))


def _has_dot_product() -> bool:
    if platform.machine() != "aarch64":
        return False
    return bool(ctypes.CDLL(None).getauxval(_AT_HWCAP) & _ASIMDDP)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

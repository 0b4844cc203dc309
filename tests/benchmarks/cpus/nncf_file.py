"""NNCF's post-training quantization of an OpenVINO model, with its mixed preset (symmetric weights,
asymmetric activations). Runs in the peers' environment.

Usage: ``python -m tests.benchmarks.cpus.nncf_file MODEL CALIBRATION TARGET [transformer]``.
"""

import sys

import nncf
import numpy as np
import openvino


def main() -> None:
    source, archive, target, *kind = sys.argv[1:]
    with np.load(archive) as arrays:
        ((name, samples),) = arrays.items()
    # One sample at a time: NNCF averages ranges over what it is given.
    quantized = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(samples, lambda sample: {name: sample[None]}),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if kind else None,
    )
    openvino.save_model(quantized, target)


if __name__ == "__main__":
    main()

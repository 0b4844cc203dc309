"""The files that are compared, and the commands that make them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class File:
    """``path`` and ``twin`` lie in the folder of a model."""

    key: str
    title: str
    path: str
    # The same grids with unsigned weights; absent where the file is that itself.
    twin: str | None = None

    @property
    def on_openvino(self) -> bool:
        return self.path.endswith(".xml")


def _runtime(key: str, title: str) -> File:
    return File(key, f"ONNX Runtime, {title}", f"{key}.onnx", f"{key}.twin.onnx")


PLAIN = _runtime("plain", "plain")
SEVEN = _runtime("seven", "7 bits")
RUNTIME_UINT8 = File("uint8", "ONNX Runtime, uint8", "plain.twin.onnx")
RUNTIME_SAFE = _runtime("safe", "pair-safe")
NNCF = File("nncf", "NNCF in OpenVINO", "nncf.xml")
UINT8 = File("lighten-uint8", "Lighten, uint8", "lighten-uint8/model.qdq.onnx")
FULL = File("lighten-full", "Lighten, full range", "lighten-full/model.qdq.onnx", UINT8.path)
SAFE = File(
    "lighten-safe",
    "Lighten, pair-safe",
    "lighten-safe/model.qdq.onnx",
    "lighten-safe/model.qdq.twin.onnx",
)

FILES = (PLAIN, SEVEN, RUNTIME_UINT8, RUNTIME_SAFE, NNCF, FULL, UINT8, SAFE)
# Made in processes of their own.
LIGHTEN = (FULL, UINT8, SAFE)

_UINT8_LAYERS = {"select": {"op_types": ["Conv", "Gemm", "MatMul"]}, "uint8_weights": True}
_QUANTIZATION = {
    FULL: {"weight_range": "FULL"},
    UINT8: {"weight_range": "FULL", "overrides": [_UINT8_LAYERS]},
    SAFE: {"weight_range": "EVERY_CPU"},
}


def runtime_command(folder: Path) -> list[str | Path]:
    """Return what makes ONNX Runtime's files, and their twins."""
    return [sys.executable, "-m", "tests.benchmarks.cpus.runtime_files", folder]


def nncf_command(folder: Path, peers: Path, *, transformer: bool) -> list[str | Path]:
    files = [folder / name for name in ("model.onnx", "calibration.npz", NNCF.path)]
    kind = ["transformer"] if transformer else []
    return [peers, "-m", "tests.benchmarks.cpus.nncf_file", *files, *kind]


def lighten_command(folder: Path, file: File) -> list[str | Path]:
    """Return what runs a plain job: batch norms folded, min-max."""
    place = (folder / file.path).parent
    place.mkdir(exist_ok=True)
    spec = place / "job.yaml"
    spec.write_text(json.dumps(_spec(folder, file)))  # which is YAML, too
    lighten = Path(sys.executable).with_name("lighten")
    return [lighten, "run", spec, "--to", place, "--output", "json"]


def _spec(folder: Path, file: File) -> dict[str, object]:
    steps = [
        {"fold_batch_norms": {}, "if_not_applicable": "SKIP_WITH_WARNING"},
        {"calibrate": {"scheme": "MIN_MAX"}},
    ]
    quantization = {
        "weights": "INT8",
        "activations": "INT8",
        "weight_granularity": "PER_CHANNEL",
        **_QUANTIZATION[file],
    }
    return {
        "model": {"artifact": {"uri": str(folder / "model.onnx")}, "format": "ONNX"},
        "calibration": {"data": {"uri": str(folder / "calibration.npz")}, "format": "NPZ"},
        "metric": "SQNR",
        "plan": {"quantization": quantization, "steps": {"steps": steps}},
        "outputs": {"float_onnx": False, "report": False},
        "skip_naive": True,
    }


def version_command(python: Path, *packages: str) -> list[str | Path]:
    """Return what prints the versions of packages in another environment, in JSON."""
    found = f"{{name: version(name) for name in {packages!r}}}"
    program = f"import json; from importlib.metadata import version; print(json.dumps({found}))"
    return [python, "-c", program]

"""Writes what all get: MobileNetV2 in FP32, photos to calibrate on, other photos to judge on.

Usage: ``python -m tests.benchmarks.peers.prepare FOLDER CALIBRATION JUDGED`` (numbers of photos).
"""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from tests.benchmarks.peers.task import INPUT
from tools.demo_data import ROOT, labelled_class, on_white, stamps, weights_and_photos

# Smaller than the demo's: as many photos as there can be.
_MIN_SIDE = 130
_UNKNOWN = -1
_OPSET = 17
_WEIGHTS = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1


def main() -> None:
    folder, calibration, judged = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    cache = ROOT / ".cache" / "demo"
    cache.mkdir(parents=True, exist_ok=True)
    weights, labelled = weights_and_photos(cache, print)
    pictures = list(_once_each(stamps(cache / "stamps", print, _MIN_SIDE)))
    others = pictures[calibration:][: max(0, judged - len(labelled))]
    chosen = [*labelled, *others][:judged]
    if len(chosen) < judged:
        sys.exit(f"{len(chosen)} photos to judge on instead of {judged}: apt-get has no more here")
    classes = [labelled_class(path) for path in labelled] + [_class_of(path) for path in others]
    np.savez(folder / "calibration.npz", **{INPUT: _arrays(pictures[:calibration])})
    np.save(folder / "judged.npy", _arrays(chosen))
    np.save(folder / "labels.npy", np.array(classes[:judged]))
    _write_model(weights, folder / "model.onnx")


def _once_each(pictures: Iterable[Path]) -> Iterator[Path]:
    """Leave out mirrored pictures, and those in several folders."""
    seen = set()
    for path in pictures:
        if path.name not in seen and not path.stem.endswith("_mirror"):
            seen.add(path.name)
            yield path


def _class_of(path: Path) -> int:
    """Return the ImageNet class that has the name of a photo's file, where there is just one."""
    drawn = "cartoon" in path.parts
    return _UNKNOWN if drawn else _CLASSES.get(_letters(path.stem), _UNKNOWN)


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def _by_name(categories: list[str]) -> dict[str, int]:
    names = [_letters(name) for name in categories]
    count = Counter(names)
    return {name: index for index, name in enumerate(names) if count[name] == 1}


_CLASSES = _by_name(_WEIGHTS.meta["categories"])


def _arrays(pictures: Iterable[Path]) -> NDArray[np.float32]:
    transform = _WEIGHTS.transforms()
    return torch.stack([transform(on_white(path)) for path in pictures]).numpy()


def _write_model(weights: Path, target: Path) -> None:
    # The exporter without dynamo, which announces its end: most files in use come from it.
    warnings.simplefilter("ignore", DeprecationWarning)
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(weights, weights_only=True))
    torch.onnx.export(
        model.eval(),
        (torch.zeros(1, 3, 224, 224),),
        target,
        input_names=[INPUT],
        output_names=["scores"],
        dynamic_axes={INPUT: {0: "batch"}, "scores": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,
    )


if __name__ == "__main__":
    main()

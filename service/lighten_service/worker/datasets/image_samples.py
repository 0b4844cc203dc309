"""Samples that are stored as pictures."""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.datasets.decoding import BadImage, TooManyPixels, decode
from lighten_service.worker.datasets.image_index import ImageIndex, listed
from lighten_service.worker.datasets.prefetch import default_threads, prefetch
from lighten_service.worker.datasets.preprocessing import ImagePreprocessing
from lighten_service.worker.datasets.request import Request
from lighten_service.worker.datasets.selection import select

# Pictures decoded ahead of the consumer at most, whatever the batch size.
MAX_AHEAD = 64


def open_images(request: Request, index: ImageIndex) -> Samples:
    """Check the preprocessing and select samples. Raises as ``open_dataset``."""
    return ImageSamples(request, index, ImagePreprocessing(request))


class ImageSamples:
    """Batches of pictures, decoded ahead by a few threads."""

    def __init__(
        self, request: Request, index: ImageIndex, preprocessing: ImagePreprocessing
    ) -> None:
        self._request = request
        self._preprocessing = preprocessing
        dataset = request.dataset
        chosen = select(len(index.images), dataset.max_samples, dataset.seed).tolist()
        self._images = [index.images[number] for number in chosen]
        self._labels = (
            None
            if index.labels is None
            else np.array([index.labels[number] for number in chosen], dtype=np.int64)
        )
        self._bad: set[int] = set()
        self._batch_size = max(dataset.batch_size, 1)

    @property
    def count(self) -> int:
        return len(self._images) - len(self._bad)

    @property
    def labelled(self) -> bool:
        return self._labels is not None

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        """Yield batches in stored order, the same on every pass.

        Pictures that are left out do not shorten a batch: the next ones move up.

        Raises:
            InvalidArgument: UNDECODABLE_IMAGE with its name, DATASET_EMPTY when none can be
                decoded, DECOMPRESSION_BOMB, SHAPE_MISMATCH.
        """
        size = batch_size or self._batch_size
        with closing(self._decoded(min(2 * size, MAX_AHEAD))) as decoded:
            while group := list(islice(decoded, size)):
                numbers = [number for number, _ in group]
                inputs = {self._request.inputs[0].name: np.stack([pixels for _, pixels in group])}
                group.clear()
                yield LabelledBatch(inputs, None if self._labels is None else self._labels[numbers])

    def _decoded(self, ahead: int) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
        numbers = [number for number in range(len(self._images)) if number not in self._bad]
        found: dict[int, BadImage] = {}
        try:
            with closing(
                prefetch(self._decode, numbers, threads=default_threads(), ahead=ahead)
            ) as results:
                for number, result in zip(numbers, results, strict=True):
                    if isinstance(result, BadImage):
                        found[number] = self._tolerate(number, result)
                    else:
                        yield number, result
        finally:
            self._bad |= found.keys()
            self._warn(found)
        if not self.count:
            name, error = self._images[next(iter(found), 0)].name, next(iter(found.values()), "")
            raise self._request.refuse(
                "DATASET_EMPTY", f"no image can be decoded; the first is '{name}': {error}"
            )

    def _decode(self, number: int) -> NDArray[np.float32] | BadImage:
        """Decode one picture; runs in a thread."""
        image = self._images[number]
        try:
            picture = decode(
                image.read(),
                color=self._preprocessing.color,
                max_pixels=self._request.limits.image_pixels,
            )
            return self._preprocessing.apply(picture, image.name)
        except BadImage as error:
            return error
        except TooManyPixels as error:
            raise self._request.refuse("DECOMPRESSION_BOMB", f"'{image.name}': {error}") from error

    def _tolerate(self, number: int, error: BadImage) -> BadImage:
        if self._request.dataset.bad_samples == pb.BAD_SAMPLE_POLICY_SKIP_WITH_WARNING:
            return error
        raise self._request.refuse(
            "UNDECODABLE_IMAGE",
            f"'{self._images[number].name}' cannot be decoded: {error}; replace it, or set "
            f"{self._request.field}.bad_samples to SKIP_WITH_WARNING",
        )

    def _warn(self, found: dict[int, BadImage]) -> None:
        if found:
            names = [self._images[number].name for number in found]
            self._request.warn(
                "SAMPLES_SKIPPED",
                f"{len(names)} of {len(self._images)} images cannot be "
                f"decoded and were left out: {listed(names)}",
            )

"""Stored arrays by name, mapped from disk."""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Opens one stored array; unpacks it first where that is needed.
OpenArray = Callable[[], "MappedArray"]


@dataclass(frozen=True, slots=True)
class MappedArray:
    """An array whose bytes stay on disk: shape (samples, ...)."""

    array: NDArray[np.generic]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """Return a copy of some samples and drop the pages that were read for it.

        Mapped pages count as memory of the process; without this a pass would end with the whole
        file in it.
        """
        rows = np.array(self.array[indices], order="C", copy=None, subok=False)
        buffer: object = self.array.base
        if isinstance(buffer, mmap.mmap):
            buffer.madvise(mmap.MADV_DONTNEED)
        return rows


# Every array of a dataset; nothing is read before it is opened.
ArraySource = Mapping[str, OpenArray]

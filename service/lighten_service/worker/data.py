"""Datasets as the pipeline and the techniques see them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lighten_service.worker.model import Batch


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Model inputs by name, first axis the samples; ``labels``: shape (n,) or None."""

    inputs: Batch
    labels: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        return len(next(iter(self.inputs.values())))


class Samples(Protocol):
    """A dataset that can be read again and again, in the same order, in bounded memory."""

    @property
    def count(self) -> int:
        """Samples that a pass yields, bad ones left out once they are known."""
        ...

    @property
    def labelled(self) -> bool: ...

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        """Yield all samples; default size: the dataset's own. The last batch may be smaller."""
        ...

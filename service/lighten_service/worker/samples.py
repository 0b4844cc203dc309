"""Parts of a dataset."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.model import Batch


@dataclass(frozen=True, slots=True)
class Head(Samples):
    """The first ``limit`` samples of another dataset."""

    samples: Samples
    limit: int

    @property
    def count(self) -> int:
        return min(self.samples.count, self.limit)

    @property
    def labelled(self) -> bool:
        return self.samples.labelled

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        left = self.limit
        with closing(self.samples.batches(batch_size)) as batches:  # type: ignore[type-var]
            for batch in batches:
                yield batch if batch.size <= left else _first(batch, left)
                left -= batch.size
                if left <= 0:
                    return


def first_samples(samples: Samples, count: int) -> Batch:
    """Return the first samples, repeated where there are not so many."""
    inputs = next(iter(Head(samples, count).batches(count))).inputs
    return {
        name: np.take(values, range(count), axis=0, mode="wrap") for name, values in inputs.items()
    }


def _first(batch: LabelledBatch, count: int) -> LabelledBatch:
    return LabelledBatch(
        {name: values[:count] for name, values in batch.inputs.items()},
        None if batch.labels is None else batch.labels[:count],
    )

"""Samples that are stored as arrays."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.worker.data import LabelledBatch, Samples
from lighten_service.worker.datasets.array_source import ArraySource
from lighten_service.worker.datasets.binding import BoundArrays, bind
from lighten_service.worker.datasets.element_types import convert, target_dtype
from lighten_service.worker.datasets.normalization import Normalization, array_normalizations
from lighten_service.worker.datasets.prefetch import prefetch
from lighten_service.worker.datasets.request import Request
from lighten_service.worker.datasets.selection import select


def open_arrays(request: Request, source: ArraySource) -> Samples:
    """Bind stored arrays to the model's inputs and select samples. Raises as ``open_dataset``."""
    normalizations = array_normalizations(request)
    bound = bind(request, source)
    return ArraySamples(request, bound, normalizations)


class ArraySamples:
    """Batches cut from mapped arrays, one batch read ahead."""

    def __init__(
        self, request: Request, bound: BoundArrays, normalizations: dict[str, Normalization]
    ) -> None:
        self._request = request
        self._bound = bound
        self._normalizations = normalizations
        dataset = request.dataset
        self._indices = select(bound.count, dataset.max_samples, dataset.seed)
        self._batch_size = max(dataset.batch_size, 1)

    @property
    def count(self) -> int:
        return len(self._indices)

    @property
    def labelled(self) -> bool:
        return self._bound.labels is not None

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        """Yield batches in stored order.

        Raises:
            InvalidArgument: NON_FINITE_DATA or VALUE_OUT_OF_RANGE, with the sample's number.
        """
        size = batch_size or self._batch_size
        groups = (self._indices[at : at + size] for at in range(0, self.count, size))
        with closing(prefetch(self._read, groups, threads=1, ahead=1)) as read:
            yield from read

    def _read(self, indices: NDArray[np.int64]) -> LabelledBatch:
        inputs = {
            model_input.name: self._read_input(model_input, indices)
            for model_input in self._request.inputs
        }
        labels = self._bound.labels
        return LabelledBatch(inputs, None if labels is None else labels[indices])

    def _read_input(
        self, model_input: pb.InputSpec, indices: NDArray[np.int64]
    ) -> NDArray[np.generic]:
        target = target_dtype(model_input.dtype)
        rows = self._bound.inputs[model_input.name].rows(indices)
        converted, faulty = convert(rows, target)
        if faulty is not None:
            sample = int(indices[int(np.argmax(faulty))])
            floating = target == np.float32
            raise self._request.refuse(
                "NON_FINITE_DATA" if floating else "VALUE_OUT_OF_RANGE",
                f"sample {sample} of the model input '{model_input.name}' holds "
                + ("NaN or infinity" if floating else f"a value beyond {target}"),
            )
        normalization = self._normalizations.get(model_input.name)
        return normalization.apply(converted) if normalization else converted

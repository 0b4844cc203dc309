"""Which samples of a dataset are used."""

import numpy as np
from numpy.typing import NDArray


def select(count: int, max_samples: int, seed: int) -> NDArray[np.int64]:
    """Choose at most ``max_samples`` of ``count`` samples, spread over the whole set.

    The set is cut into ``max_samples`` equal stretches and one sample is drawn from each, so that
    a set sorted by class keeps its mixture of classes. ``max_samples`` 0 means all.

    Returns:
        Indices in ascending order, shape (min(count, max_samples),); the same for the same
        arguments on every machine.
    """
    if not 0 < max_samples < count:
        return np.arange(count, dtype=np.int64)
    edges = np.arange(max_samples + 1, dtype=np.int64) * count // max_samples
    # RandomState, because NumPy promises that its stream never changes (NEP 19).
    draws = np.random.RandomState(seed).random_sample(max_samples)
    widths = np.diff(edges)
    chosen: NDArray[np.int64] = edges[:-1] + (draws * widths).astype(np.int64)
    return chosen

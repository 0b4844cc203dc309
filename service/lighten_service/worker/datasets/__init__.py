"""Datasets: stored samples in, batches of model inputs out, in bounded memory.

``open_dataset`` checks a dataset against the model's inputs and returns a ``Samples``. Each
format has a file of its own; nothing is unpickled and nothing leaves the scratch folder.
"""

from lighten_service.worker.datasets.limits import Limits
from lighten_service.worker.datasets.opening import open_dataset

__all__ = ["Limits", "open_dataset"]

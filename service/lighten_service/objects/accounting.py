"""Counts what an adapter moves and where it fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from lighten_service.jobs.errors import LightenError
from lighten_service.telemetry.metrics import Adapter, Metrics


class Accounting:
    """The metrics of one adapter; counts nothing when there are none."""

    def __init__(self, metrics: Metrics | None, adapter: Adapter) -> None:
        self._metrics = metrics
        self._adapter: Adapter = adapter

    def read(self, number: int) -> None:
        """Count bytes read."""
        if self._metrics is not None:
            self._metrics.storage_read(self._adapter, number)

    def wrote(self, number: int) -> None:
        """Count bytes written."""
        if self._metrics is not None:
            self._metrics.storage_wrote(self._adapter, number)

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Count an operation, and its error where it fails, which passes."""
        if self._metrics is not None:
            self._metrics.storage_called(self._adapter, name)
        try:
            yield
        except LightenError as error:
            if self._metrics is not None:
                self._metrics.storage_failed(self._adapter, name, error.reason)
            raise

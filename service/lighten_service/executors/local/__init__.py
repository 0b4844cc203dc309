"""The executor of one machine: workers are processes."""

from lighten_service.executors.local.executor import LocalExecutor, LocalOptions

__all__ = ["LocalExecutor", "LocalOptions"]

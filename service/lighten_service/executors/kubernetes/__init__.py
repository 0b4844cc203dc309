"""The executor of a cluster: workers are pods of Jobs."""

from lighten_service.executors.kubernetes.executor import KubernetesExecutor
from lighten_service.executors.kubernetes.options import (
    GpuProfile,
    KubernetesOptions,
    Limits,
    PriorityClass,
    Timeouts,
)
from lighten_service.executors.kubernetes.template import TemplateError, load

__all__ = [
    "GpuProfile",
    "KubernetesExecutor",
    "KubernetesOptions",
    "Limits",
    "PriorityClass",
    "TemplateError",
    "Timeouts",
    "load",
]

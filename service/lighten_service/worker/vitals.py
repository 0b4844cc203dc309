"""What a worker process says of itself: identity, versions, memory."""

import logging
import os
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from lighten import v1 as pb
from lighten_service.worker.machine import cpus, memory_bytes

_log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PACKAGES = ("lighten", "aimet-torch", "aimet-onnx", "torch", "onnx", "onnxruntime")


@cache
def instance_id() -> str:
    """Return who this process is; no other one ever has the same.

    ``LIGHTEN_INSTANCE_ID`` where the executor names its workers, the UID of a pod say; otherwise
    ``boot-id:pid:start-time`` with the start time in clock ticks since boot, as in field 22 of
    ``/proc/PID/stat``.
    """
    if given := os.environ.get("LIGHTEN_INSTANCE_ID"):
        return given
    stat = Path("/proc/self/stat").read_text()
    # The command's name (field 2) stands in parentheses and may hold anything.
    start_time = stat.rpartition(")")[2].split()[19]
    return f"{_BOOT_ID.read_text().strip()}:{psutil.Process().pid}:{start_time}"


@cache
def build() -> str:
    """Return the version of Lighten that runs."""
    return metadata.version("lighten")


@cache
def inventory() -> pb.WorkerInventory:
    """Return versions and devices. A GPU is named only where torch is loaded already."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cuda = _cuda()
    gpus = range(cuda.device_count() if cuda else 0)
    return pb.WorkerInventory(
        versions=versions,
        devices=["cpu", *(f"cuda:{index} {cuda.get_device_name(index)}" for index in gpus)],
        memory_bytes=memory_bytes(),
        cpus=cpus(),
        int8_saturates=_int8_saturates(),
    )


def _int8_saturates() -> bool | None:
    """Return whether ONNX Runtime's kernels for INT8 weights do; None where it does not work."""
    try:
        # A quarter of a second in a process that has imported none of it.
        from lighten_service.worker.integers.saturation import saturates

        return saturates()
    except Exception:
        # The attempt that needs it will fail with the reason.
        _log.exception("cannot try the kernels of ONNX Runtime")
        return None


def heartbeat() -> pb.Heartbeat:
    """Return the memory in use: resident bytes of this process and its children, and of GPUs."""
    me = psutil.Process()
    rss = 0
    for process in (me, *me.children(recursive=True)):
        try:
            rss += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return pb.Heartbeat(rss_bytes=rss, gpus=_gpu_usage())


def _gpu_usage() -> list[pb.GpuUsage]:
    cuda = _cuda()
    usage = []
    for index in range(cuda.device_count() if cuda else 0):
        free, total = cuda.mem_get_info(index)
        usage.append(
            pb.GpuUsage(
                device=f"cuda:{index}", memory_used_bytes=total - free, memory_total_bytes=total
            )
        )
    return usage


def _cuda() -> Any:
    """Return torch.cuda once it is in use; asking earlier would start it.

    While another thread imports torch, it is there in part.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return cuda if is_initialized is not None and is_initialized() else None

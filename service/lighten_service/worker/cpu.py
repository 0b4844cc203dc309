"""The CPU that an attempt runs on, and whether attempts on several can give the same bytes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from lighten import v1 as pb
from lighten_service.worker.context import StepContext
from lighten_service.worker.integers.saturation import saturates

RESUMED_ON_ANOTHER_CPU: Final = "RESUMED_ON_ANOTHER_CPU"
# How those instruction sets begin that numeric kernels choose by, on x86 and on ARM.
_NUMERIC: Final = (
    *("amx", "avx", "f16c", "fma", "sse"),
    *("bf16", "dot", "fhm", "fp16", "i8mm", "neon", "sme", "sve"),
)
# What a CPU is called that does not say its name; most for ARM do not.
_UNNAMED: Final = ("", "Unknown")


def this_cpu(attempt: int) -> pb.AttemptCpu:
    """Return the CPU of this process, by CPUID: an emulator's own, not that of its host."""
    return described(torch.cpu.get_capabilities(), attempt, saturating=saturates())


def described(capabilities: Mapping[str, Any], attempt: int, *, saturating: bool) -> pb.AttemptCpu:
    """Return a CPU from what `torch.cpu.get_capabilities` says of it."""
    name = str(capabilities.get("cpu_name", "")).strip()
    return pb.AttemptCpu(
        attempt=attempt,
        model=str(capabilities["architecture"]) if name in _UNNAMED else name,
        instruction_sets=sorted(
            each
            for each, there in capabilities.items()
            if there is True and each.startswith(_NUMERIC)
        ),
        int8_saturates=saturating,
    )


def warn_if_unlike(context: StepContext, cpus: Sequence[pb.AttemptCpu]) -> None:
    """Warn where the attempts that a result comes from ran on several kinds of CPU.

    ``cpus``: at least one.
    """
    if len({(cpu.model, *cpu.instruction_sets) for cpu in cpus}) == 1:
        return
    shared = set.intersection(*(set(cpu.instruction_sets) for cpu in cpus))
    attempts = ", ".join(f"attempt {cpu.attempt} ran on {_told(cpu, shared)}" for cpu in cpus)
    context.warn(
        RESUMED_ON_ANOTHER_CPU,
        f"{attempts}: equal bytes are promised for one kind of CPU alone",
    )


def _told(cpu: pb.AttemptCpu, shared: set[str]) -> str:
    more = [name for name in cpu.instruction_sets if name not in shared]
    return f"{cpu.model} with {' '.join(more)}" if more else cpu.model

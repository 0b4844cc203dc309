"""Which CPU an attempt ran on, and when attempts ran on several kinds of it."""

from pathlib import Path

import pytest
import torch

from lighten import v1 as pb
from lighten_service.worker.context import StepContext
from lighten_service.worker.cpu import described, this_cpu, warn_if_unlike
from lighten_service.worker.integers.saturation import saturates, saturating
from tests.support.technique_kit import Silent

# As torch has it of a Xeon with AMX, of a Neoverse V1, and of a CPU of which nothing is known.
XEON = {
    "cpu_name": "Intel Xeon Platinum 8488C",
    "architecture": "x86_64",
    "num_logical_cores": 2,
    "l2_cache_size": 2097152,
    "clflush": True,
    "popcnt": True,
    "avx2": True,
    "avx512_vnni": True,
    "avx512_4vnniw": False,
    "amx_int8": True,
}
NEOVERSE = {
    "cpu_name": "Unknown",
    "architecture": "arm64",
    "neon": True,
    "dot": True,
    "i8mm": True,
    "sve": True,
    "sve2": False,
    "sve_max_length": 32,
    "crc32": True,
}


def test_a_cpu_is_named_with_the_instruction_sets_that_kernels_choose_by() -> None:
    found = described(XEON, 3, saturating=False)
    assert found == pb.AttemptCpu(
        attempt=3,
        model="Intel Xeon Platinum 8488C",
        instruction_sets=["amx_int8", "avx2", "avx512_vnni"],
    )
    assert described(XEON, 3, saturating=True).int8_saturates


def test_a_cpu_without_a_name_is_called_by_its_architecture() -> None:
    found = described(NEOVERSE, 1, saturating=False)
    assert (found.model, [*found.instruction_sets]) == ("arm64", ["dot", "i8mm", "neon", "sve"])
    assert described({"architecture": "x86_64"}, 1, saturating=False).model == "x86_64"


def test_this_cpu_tells_of_itself_what_its_kernels_do() -> None:
    found = this_cpu(2)
    assert found.attempt == 2
    assert found.model
    assert [*found.instruction_sets] == sorted(found.instruction_sets)
    assert found.int8_saturates == saturates()
    if torch.cpu.get_capabilities()["architecture"] == "x86_64":
        vnni = {"avx512_vnni", "avx_vnni"} & {*found.instruction_sets}
        assert saturating() == (frozenset() if vnni else {"Conv", "Gemm", "MatMul"})


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return StepContext(
        stage=pb.Stage(kind=pb.Stage.KIND_PREPARE),
        reporter=Silent(),
        quantization=pb.QuantizationConfig(),
        calibration=None,
        evaluation=None,
        scratch=tmp_path,
        device="cpu",
        seed=0,
    )


def cpu(attempt: int, model: str, *sets: str) -> pb.AttemptCpu:
    return pb.AttemptCpu(attempt=attempt, model=model, instruction_sets=sets)


@pytest.mark.parametrize(
    ("cpus", "words"),
    [
        ([cpu(1, "Zen 3", "avx2")], None),
        ([cpu(1, "Zen 3", "avx2"), cpu(2, "Zen 3", "avx2")], None),
        (
            [cpu(1, "Zen 3", "avx2"), cpu(2, "Zen 2", "avx2")],
            "attempt 1 ran on Zen 3, attempt 2 ran on Zen 2: equal bytes",
        ),
        (
            [cpu(1, "KVM", "avx2"), cpu(2, "KVM", "avx2", "avx512_f", "avx512_vnni")],
            "attempt 1 ran on KVM, attempt 2 ran on KVM with avx512_f avx512_vnni: equal bytes",
        ),
        # Back on the first kind, the second one still had its share.
        ([cpu(1, "Zen 3"), cpu(2, "Zen 2"), cpu(3, "Zen 3")], "attempt 2 ran on Zen 2"),
    ],
)
def test_several_kinds_of_cpu_are_warned_of(
    context: StepContext, cpus: list[pb.AttemptCpu], words: str | None
) -> None:
    warn_if_unlike(context, cpus)
    if words is None:
        assert not context.warnings
    else:
        (warning,) = context.warnings
        assert warning.reason == "RESUMED_ON_ANOTHER_CPU"
        assert words in warning.message

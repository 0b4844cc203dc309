"""Fixtures: emulated CPUs for the whole run, or why there are none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.emulation import arm, x86
from tests.support.emulation.cpu import Cpu
from tests.support.emulation.debian import Unavailable

VARIABLE = "LIGHTEN_TEST_WITHOUT_QEMU"
_CACHE = Path(__file__).parents[3] / ".cache" / "emulation"


@pytest.fixture(scope="session")
def x86_without_vnni() -> Cpu:
    """An x86 CPU whose kernels for INT8 weights saturate."""
    return found(lambda: x86.x86_without_vnni(_CACHE))


@pytest.fixture(scope="session", params=[True, False], ids=["dot_product", "no_dot_product"])
def arm_cpu(request: pytest.FixtureRequest) -> Cpu:
    """Each of two ARM CPUs."""
    return found(lambda: arm.arm(_CACHE, dot_product=request.param))


def found(find: Callable[[], Cpu]) -> Cpu:
    """Return the CPU; where there is none the test fails, or is skipped where that is allowed."""
    try:
        return find()
    except Unavailable as error:
        missing = str(error)
    if os.environ.get(VARIABLE) == "1":
        pytest.skip(missing)
    pytest.fail(f"{missing}\nWith {VARIABLE}=1 tests of other CPUs are skipped.", pytrace=False)

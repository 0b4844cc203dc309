"""What a worker may use of its machine, as control groups of both versions say it."""

import math
import os
from pathlib import Path

import pytest

from lighten_service.executors.local.cgroups import MemoryGroup, find_parent
from lighten_service.worker import machine
from lighten_service.worker.machine import ControlGroups

GIB = 1 << 30
# What version 1 says where nothing is limited.
UNLIMITED = (1 << 63) - 4096
POD = "kubepods/burstable/pod1"


@pytest.fixture
def groups(tmp_path: Path) -> ControlGroups:
    return ControlGroups(tmp_path / "cgroup", tmp_path / "membership")


def write(groups: ControlGroups, membership: str, files: dict[str, str]) -> None:
    groups.membership.write_text(membership)
    for name, text in files.items():
        file = groups.mount / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def test_version_2_in_a_container(groups: ControlGroups) -> None:
    write(groups, "0::/\n", {"cpu.max": "150000 100000", "memory.max": str(4 * GIB)})
    assert groups.cpu_quota() == 1.5
    assert groups.memory_limit() == 4 * GIB


def test_version_2_without_limits(groups: ControlGroups) -> None:
    write(groups, "0::/\n", {"cpu.max": "max 100000", "memory.max": "max"})
    assert (groups.cpu_quota(), groups.memory_limit()) == (None, None)


def test_the_tightest_group_around_the_process_counts(groups: ControlGroups) -> None:
    files = {
        f"{POD}/one/cpu.max": "max 100000",
        f"{POD}/one/memory.max": str(8 * GIB),
        f"{POD}/cpu.max": "200000 100000",
        f"{POD}/memory.max": str(6 * GIB),
    }
    write(groups, f"0::/{POD}/one\n", files)
    assert (groups.cpu_quota(), groups.memory_limit()) == (2.0, 6 * GIB)


def test_version_1_in_a_container(groups: ControlGroups) -> None:
    """The path is the host's; the mount shows the container's own group."""
    files = {
        "cpu/cpu.cfs_quota_us": "200000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(2 * GIB),
    }
    write(groups, f"4:memory:/{POD}/one\n3:cpu,cpuacct:/{POD}/one\n0::/\n", files)
    assert (groups.cpu_quota(), groups.memory_limit()) == (2.0, 2 * GIB)


def test_version_1_without_limits(groups: ControlGroups) -> None:
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(UNLIMITED),
    }
    write(groups, "4:memory:/\n1:cpu:/\n", files)
    assert groups.cpu_quota() is None
    assert groups.memory_limit() == UNLIMITED


@pytest.mark.parametrize("membership", ["", "0::/../../elsewhere\n", "1:name=systemd:/\n"])
def test_nothing_to_read_is_no_limit(groups: ControlGroups, membership: str) -> None:
    write(groups, membership, {})
    assert (groups.cpu_quota(), groups.memory_limit()) == (None, None)


@pytest.mark.skipif(find_parent() is None, reason="memory cgroups cannot be made here")
async def test_the_kernels_own_files_are_read(tmp_path: Path) -> None:
    parent = find_parent()
    assert parent is not None
    group = MemoryGroup.make(parent / f"lighten-test-{os.getpid()}", GIB)
    try:
        names = Path("/proc/self/cgroup").read_text().splitlines()
        own = [line for line in names if line.split(":")[1] in ("memory", "")]
        moved = "\n".join(f"{line.rstrip('/')}/{group.folder.name}" for line in own)
        membership = tmp_path / "membership"
        membership.write_text(moved)
        assert ControlGroups(membership=membership).memory_limit() == GIB
    finally:
        await group.remove()


def test_this_process_has_a_whole_number_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = len(os.sched_getaffinity(0))
    for quota, expected in ((None, allowed), (0.1, 1), (1.2, min(2, allowed)), (1e6, allowed)):
        monkeypatch.setattr(ControlGroups, "cpu_quota", lambda _, quota=quota: quota)
        assert machine.cpus.__wrapped__() == expected
    assert math.log2(machine.memory_bytes()) > 27

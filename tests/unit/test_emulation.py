"""What tests of other CPUs stand on: it says no where the CPU is not the one asked for."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.support.emulation import fixtures
from tests.support.emulation.cpu import Cpu, Facts
from tests.support.emulation.debian import Unavailable, unpack
from tests.support.emulation.once import made_once
from tests.support.emulation.x86 import x86_without_vnni


def test_a_run_on_another_cpu_fails(tmp_path: Path) -> None:
    cpu = Cpu("no ARM", Facts("aarch64", dot_product=True))

    with pytest.raises(AssertionError, match=r"no ARM is Facts\(machine='x86_64'"):
        cpu.run({}, tmp_path)


def test_a_run_that_fails_says_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("no model")

    with pytest.raises(AssertionError, match="INVALID_PROTOBUF"):
        Cpu("this machine", Facts("x86_64")).run({}, tmp_path)


def test_packages_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "sources.list"
    sources.touch()
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))

    with pytest.raises(Unavailable, match="qemu-user-static"):
        unpack(["qemu-user-static"], "amd64", tmp_path)


def test_an_unknown_choice_of_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTEN_TEST_CPU", "arm")

    with pytest.raises(Unavailable, match="LIGHTEN_TEST_CPU is native or qemu, not arm"):
        x86_without_vnni(tmp_path)


def test_tests_fail_without_qemu_unless_they_may_be_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find() -> Cpu:
        raise Unavailable("no apt-get here")

    monkeypatch.delenv(fixtures.VARIABLE, raising=False)
    with pytest.raises(pytest.fail.Exception, match="no apt-get here"):
        fixtures.found(find)

    monkeypatch.setenv(fixtures.VARIABLE, "1")
    with pytest.raises(pytest.skip.Exception, match="no apt-get here"):
        fixtures.found(find)


def test_a_folder_is_made_once_and_whole(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "first").touch()
        time.sleep(0.1)
        (folder / "second").touch()

    def want(_: int) -> int:
        return len(list(made_once(tmp_path / "wanted", make).iterdir()))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(want, range(4))) == [2] * 4
    assert len(made) == 1


def test_nothing_is_left_of_a_folder_whose_making_failed(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise Unavailable("no packages")

    with pytest.raises(Unavailable):
        made_once(tmp_path / "wanted", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["wanted.lock"]

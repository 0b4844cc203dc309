"""The figures of the benchmark on CPUs, and ONNX Runtime's files made pair-safe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from lighten_service.worker.integers.proof import is_proven, prove
from tests.benchmarks.cpus import files
from tests.benchmarks.cpus.judge import choice
from tests.benchmarks.cpus.judged import Found, mcnemar
from tests.benchmarks.cpus.measuring import FP32, Result
from tests.benchmarks.cpus.models import MODELS
from tests.benchmarks.cpus.pair_safe import write_pair_safe
from tests.benchmarks.cpus.runtime_files import prepare, quantize
from tests.benchmarks.cpus.table import rows_of
from tests.benchmarks.cpus.targets import print_targets
from tests.benchmarks.fashion.train import CHECKPOINT

SAMPLES = 20


def found(noise: float, *, digest: str = "same") -> Found:
    """Return what judging finds of a file whose noise is this share of the signal, about."""
    spread = np.linspace(0.9, 1.1, SAMPLES)[:, None] * noise
    agreed = np.ones(SAMPLES, bool)
    return Found(np.ones((SAMPLES, 1)), spread, agreed, (digest,) * SAMPLES)


def disagreeing(count: int) -> Found:
    return replace(found(0.1), agreed=np.arange(SAMPLES) >= count)


def test_sqnr_is_of_the_worst_output_and_of_all_samples_together() -> None:
    signal = np.array([[100.0, 1.0], [300.0, 1.0]])
    noise = np.array([[1.0, 0.1], [3.0, 0.3]])
    one = Found(signal, noise, np.array([True, False]), ("a", "b"))
    assert one.sqnr().value == pytest.approx(10 * np.log10(2 / 0.4))
    assert one.first(1).sqnr().value == pytest.approx(10)
    assert one.agreement().value == 0.5


def test_a_difference_on_the_same_samples_has_a_smaller_error_than_each_figure() -> None:
    one, other = found(0.1), found(0.2)
    difference = one.sqnr_over(other)
    assert difference.value == pytest.approx(10 * np.log10(2))
    assert difference.error < 1e-6 < one.sqnr().error


def test_equal_outputs_are_counted() -> None:
    assert found(0.1).equal(found(0.1)) == SAMPLES
    assert found(0.1).equal(found(0.1, digest="other")) == 0


def test_mcnemar_counts_the_samples_on_which_one_alone_agrees() -> None:
    assert mcnemar(disagreeing(3), disagreeing(3)) == 1.0
    assert mcnemar(disagreeing(5), disagreeing(0)) == pytest.approx(2 * 0.5**5)
    assert mcnemar(disagreeing(8), disagreeing(0)) < 0.05


def scores(*best: int) -> NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[list(best)][None]


def test_a_row_of_scores_is_read_without_repetitions_and_blanks() -> None:
    assert choice(scores(0, 1, 1, 0, 1, 3)) == [1, 1, 3]
    assert choice(scores(2, 2, 0, 0, 0, 1)) == [2, 1]
    assert choice(np.float32([[0.2, 0.1, 0.7]])) == [2]


def test_files_of_onnx_runtime_are_made_pair_safe(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 1, 28, 28)).astype(np.float32)
    np.savez(tmp_path / "images.npz", image=images)
    prepared, plain, safe = (tmp_path / f"{name}.onnx" for name in ("float", "plain", "safe"))
    prepare(CHECKPOINT, prepared)
    quantize(prepared, tmp_path / "images.npz", plain, reduce_range=False)
    write_pair_safe(plain, prepared, safe)
    assert not is_proven(prove(plain))
    assert is_proven(prove(safe))
    onnx.checker.check_model(onnx.load(safe), full_check=True)


def judged(**changed: Found) -> Result:
    """Return a result in which every target is met, but for changes by the key of a file."""
    result = Result(MODELS[0])
    for file in files.FILES:
        noise = 0.2 if file in (files.SEVEN, files.FULL) else 0.1
        own = changed.get(file.key.replace("-", "_"), found(noise))
        for path in filter(None, (file.path, file.twin)):
            result.here.setdefault(path, found(noise))
            result.without.setdefault(path, found(noise))
        result.here[file.path] = result.without[file.path] = own
    paths = [FP32, *(file.path for file in files.FILES)]
    result.seconds = {path: [1.0, 2.0, 1.0] for path in paths}
    return result


def said(result: Result, capsys: pytest.CaptureFixture[str]) -> str:
    print_targets({"model": (result, rows_of(result, saturating=False))})
    return capsys.readouterr().out


def test_targets_are_met(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(judged(), capsys)
    assert out.count(": met") == 8
    assert "missed" not in out


@pytest.mark.parametrize(
    ("changed", "target"),
    [
        ({"lighten_safe": found(0.1, digest="other")}, "bit for bit its twin"),
        ({"lighten_safe": found(0.3)}, "more dB than 7 bits"),
        ({"lighten_safe": found(0.3)}, "mean -1.76 ± 0.00 dB"),
        ({"lighten_safe": disagreeing(10)}, "agreement not significantly below"),
    ],
)
def test_targets_are_missed(
    changed: dict[str, Found], target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(judged(**changed), capsys).splitlines()
    assert any(target in line and "**missed**" in line for line in lines)


def test_a_slower_file_misses_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    result = judged()
    result.seconds[files.SAFE.path] = [1.1, 2.2, 1.1]
    lines = said(result, capsys).splitlines()
    assert any("at most 1.100" in line and "**missed**" in line for line in lines)

"""`lighten check`, with the check in a process of its own as it always runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

pytest.importorskip("onnxruntime")

from lighten.cli import check as command
from lighten.cli.main import app
from lighten_service.worker.integers import check
from tests.support.onnx_models import mobile_net
from tests.support.quantized_graphs import QuantizedBuilder, full, product, within_bound

NOT_PROVEN = 6


def lighten_check(*arguments: object, code: int):
    result = CliRunner().invoke(app, ["check", *map(str, arguments)], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def unproven(tmp_path: Path) -> Path:
    """A file whose second weight saturates on x86 in two of three channels, and can on ARM."""
    b = QuantizedBuilder()
    first = b.add("MatMul", [b.data("x", 2, 6), b.integers("a", within_bound(6, 6))], "first")
    integers = np.zeros((6, 3), np.int8)
    integers[:2, 0], integers[2:4, 2] = 100, -128
    last = b.add("MatMul", [b.quantized(first, "h"), b.integers("b", integers)], "last")
    b.result(b.quantized(last, "y"))
    return saved(b.build(), tmp_path)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


# --- verdicts -----------------------------------------------------------------------------------


def test_a_proven_file(tmp_path: Path) -> None:
    path = saved(product(within_bound(6, 4)), tmp_path)
    shown = lighten_check(path, code=0).stdout
    assert "model.onnx: proven on every CPU" in shown
    assert "1 of 1 weights bounded" in shown
    assert "x86 is exact with and without VNNI" in shown
    assert "ARM is exact with and without dot product" in shown
    assert "Not tested: x86 with AVX-512 and without VNNI; " in shown
    assert "Next:" not in shown


def test_a_file_that_is_not_proven(unproven: Path) -> None:
    shown = lighten_check(unproven, code=NOT_PROVEN).stdout
    assert "model.onnx: not proven" in shown
    assert "1 of 2 weights bounded, 1 not proven" in shown
    assert "x86 saturates without VNNI in 1 of 2 weights, worst in last (a pair of 256" in shown
    assert "ARM can overflow in 1 of 2 weights" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.strip().startswith("last ")]
    assert row[:4] == ["last", "MatMul", "saturates", "saturates"]
    assert " ".join(row[4:]) == "pairs of up to 256 in 2 of 3 channels; integers of -128: 2"
    assert "weight_range: EVERY_CPU" in shown
    assert "--twin FILE" in shown


def test_json_is_the_proof_alone(unproven: Path) -> None:
    document = json.loads(lighten_check(unproven, "-o", "json", code=NOT_PROVEN).stdout)
    assert document["x86"] == document["arm"] == "INTEGER_VERDICT_SATURATES"
    assert (document["weights"], document["bounded"], document["unproven"]) == (2, 1, 1)
    (weight,) = document["details"]
    assert (weight["layer"], weight["weight"], weight["channels"]) == ("last", "b", [0, 2])
    assert (weight["largest_pair"], weight["lowest_count"]) == (256, "2")


def test_the_twin_is_written_and_proven(unproven: Path) -> None:
    twin = unproven.parent / "new" / "twin.onnx"
    shown = lighten_check(unproven, "--twin", twin, code=NOT_PROVEN).stdout
    assert "Next: use the twin" in shown
    assert "twin.onnx, exact on every CPU: 2 of 2 weights bounded" in " ".join(shown.split())
    assert lighten_check(twin, "-o", "json", code=0)


# --- what is no file to check -------------------------------------------------------------------


def test_the_reason_why_a_file_is_refused(tmp_path: Path) -> None:
    path = saved(mobile_net(), tmp_path)
    result = lighten_check(path, code=2)
    assert "Error: model.onnx computes in float" in result.stderr
    assert "reason: NOT_QUANTIZED" in result.stderr
    assert json.loads(lighten_check(path, "-o", "json", code=2).stderr)["error"]["reason"] == (
        "NOT_QUANTIZED"
    )


def test_a_check_that_ends_otherwise_is_no_verdict(
    unproven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_MODULE", "lighten_service.no_such_module")
    result = lighten_check(unproven, code=5)
    assert "reason: CHECK_FAILED" in result.stderr
    assert "no_such_module" in result.stderr


def test_without_the_worker_part_it_says_what_to_install(
    unproven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    result = lighten_check(unproven, code=5)
    assert "the worker part of Lighten is not installed (missing: onnxruntime)" in result.stderr
    assert "pip install '.[worker]'" in result.stderr


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Return reason and message of a refusal."""
    assert check.main([*map(str, arguments)]) == 2
    document = json.loads(capsys.readouterr().out)
    return document["reason"], document["message"]


def test_files_that_are_not_there_or_no_onnx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason, message = refused(capsys, tmp_path / "no.onnx")
    assert (reason, "no.onnx" in message) == ("MODEL_FILE_NOT_FOUND", True)
    text = tmp_path / "model.onnx"
    text.write_text("no model")
    assert refused(capsys, text)[0] == "INVALID_MODEL"
    text.write_bytes(product(full(6, 4)).SerializeToString()[:-40])
    assert refused(capsys, text)[0] == "INVALID_MODEL"


def test_operators_that_onnx_runtime_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = product(full(6, 4))
    model.graph.node[2].domain = "aimet.customop"
    model.opset_import.add(domain="aimet.customop", version=1)
    reason, message = refused(capsys, saved(model, tmp_path))
    assert reason == "INVALID_MODEL"
    assert "aimet.customop" in message


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd"])
def test_data_outside_of_its_folder_are_not_read(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = product(full(64, 64))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights").write_bytes(bytes(64 * 64))
    assert refused(capsys, saved(model, tmp_path / "inner"))[0] == "UNSAFE_MODEL"


def test_external_data_beside_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(product(full(64, 64)), path, save_as_external_data=True, size_threshold=0)
    assert check.main([str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == 1
    next(file for file in tmp_path.iterdir() if file != path).unlink()
    assert refused(capsys, path)[0] == "EXTERNAL_DATA_MISSING"


def test_a_twin_that_cannot_be_written(unproven: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = unproven.read_bytes()
    reason, message = refused(capsys, unproven, "--twin", unproven)
    assert (reason, "is the file itself" in message) == ("FILE_ERROR", True)
    assert unproven.read_bytes() == before
    assert refused(capsys, unproven, "--twin", unproven / "twin.onnx")[0] == "FILE_ERROR"

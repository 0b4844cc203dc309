"""``lighten run``: a real server and a real worker, started for one job and gone after it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import psutil
import pytest

from tests.support.models import convnet, write_samples

SPEC = """\
model: {artifact: {uri: convnet.onnx}, format: onnx}
calibration: {data: {uri: ./calibration.npz}, format: npz}
evaluation: {data: {uri: evaluation.npz}, format: npz}
plan:
  quantization: {weights: int8, activations: int8}
  steps:
    - fold_batch_norms: {}
    - calibrate: {scheme: min_max}
"""


class Run:
    """``lighten run`` in a folder of its own, as a process."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.temporary = folder / "inputs", folder / "tmp"
        self.inputs.mkdir()
        self.temporary.mkdir()
        self.spec = self.inputs / "spec.yaml"
        self.output = folder / "output"

    def start(self, *options: str, **settings: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "lighten.cli.main", "run", str(self.spec)]
        return subprocess.Popen(
            [*command, "--to", str(self.output), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary), **settings},
        )

    def left_behind(self) -> list[str]:
        """Return files and processes that outlived the command."""
        found = [str(path) for path in self.temporary.glob("lighten-run-*")]
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if str(self.temporary) in line:
                found.append(line)
        return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    made.spec.write_text(SPEC)
    onnx.save(convnet(), made.inputs / "convnet.onnx")
    write_samples(made.inputs / "calibration.npz", 16, seed=1)
    write_samples(made.inputs / "evaluation.npz", 16, seed=2)
    yield made
    assert made.left_behind() == []


def test_a_job_leaves_its_artifacts_and_nothing_else(run: Run) -> None:
    out, err = (process := run.start("-o", "json")).communicate(timeout=150)

    assert process.returncode == 0, out + err
    *told, last = [json.loads(line) for line in out.splitlines()]
    assert [int(item["event"]["sequence"]) for item in told] == list(range(1, len(told) + 1))
    assert last["job"]["state"] == "JOB_STATE_SUCCEEDED"
    for artifact in last["job"]["result"]["artifacts"]:
        path = Path(last["files"][artifact["name"]])
        assert path.is_relative_to(run.output)
        assert path.stat().st_size == int(artifact["bytes"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_cancels_the_job_and_stops_the_server(run: Run, number: int) -> None:
    process = run.start()
    for line in process.stdout:
        if "STARTING" in line:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Cancelling the job" in err
    assert "Traceback" not in err
    assert not run.output.exists()


def test_nohup_outlives_the_terminal(run: Run) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = run.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    for line in process.stdout:
        if "STARTING" in line:
            break
    status = Path(f"/proc/{process.pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    process.terminate()
    process.communicate(timeout=60)

    assert ignored & 1 << (signal.SIGHUP - 1)
    assert process.returncode == 130


def test_a_spec_that_the_server_refuses(run: Run) -> None:
    run.spec.write_text(SPEC.replace("format: onnx", "format: state_dict"))
    _, err = (process := run.start()).communicate(timeout=60)

    assert process.returncode == 2
    assert "model.architecture" in err


def test_a_server_that_does_not_start_says_why(run: Run) -> None:
    _, err = (process := run.start(LIGHTEN_LOG_LEVEL="loud")).communicate(timeout=60)

    assert process.returncode == 5
    assert "did not start" in err
    assert "LIGHTEN_LOG_LEVEL" in err


def test_a_missing_input_is_named_before_anything_starts(run: Run) -> None:
    (run.inputs / "convnet.onnx").unlink()
    _, err = (process := run.start()).communicate(timeout=60)

    assert process.returncode == 2
    assert "model.artifact.uri" in err

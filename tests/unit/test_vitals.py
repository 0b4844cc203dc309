"""What a worker says of itself, at whatever moment it is asked."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lighten_service.worker import vitals
from lighten_service.worker.integers.saturation import saturates


@pytest.mark.parametrize("cuda", [None, SimpleNamespace()], ids=["no cuda yet", "cuda in part"])
def test_heartbeat_while_torch_is_being_imported(
    monkeypatch: pytest.MonkeyPatch, cuda: object
) -> None:
    """The session's thread asks while the main thread imports: torch is there in part."""
    torch = ModuleType("torch")
    if cuda is not None:
        monkeypatch.setattr(torch, "cuda", cuda, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    beat = vitals.heartbeat()
    assert beat.rss_bytes > 0
    assert not beat.gpus


ASK = """\
import sys
from lighten_service.worker.vitals import inventory
found = inventory()
print(found.int8_saturates if found.HasField("int8_saturates") else None, "torch" in sys.modules)
"""


def asked_anew(path: Path) -> str:
    """Ask a process that has imported nothing yet; ``path``: where it looks for modules first."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_worker_that_attaches_early_tells_whether_its_kernels_saturate(tmp_path: Path) -> None:
    assert asked_anew(tmp_path) == f"{saturates()} False"


def test_a_worker_without_onnx_runtime_tells_nothing_of_its_kernels(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such library')")
    assert asked_anew(tmp_path) == "None False"

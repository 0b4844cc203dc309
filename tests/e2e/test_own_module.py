"""A caller's own module becomes an INT8 file that ONNX Runtime executes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lighten
import lighten.torch
from lighten import v1 as pb
from tests.support.lighten_server import LightenServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "your-own-module.md"
TARGET = "127.0.0.1:8470"


@pytest.mark.slow
def test_the_documented_example_runs(server: LightenServer, tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
    assert code.count(TARGET) == 1
    (tmp_path / "example.py").write_text(code.replace(TARGET, server.target))
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    accuracies = dict(re.findall(r"^(.+?):? top-1 ([\d.]+)", done.stdout, re.MULTILINE))
    assert list(accuracies) == ["baseline", "naive", "optimized", "INT8 in ONNX Runtime"]
    # Something was learned, and quantization of so easy a problem costs next to nothing.
    assert float(accuracies["baseline"]) > 0.9
    assert float(accuracies["optimized"]) > float(accuracies["baseline"]) - 0.03
    assert accuracies["INT8 in ONNX Runtime"] == accuracies["optimized"]


async def test_the_asyncio_client_uploads_a_module(server: LightenServer, bucket: str) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()
    )
    async with lighten.aio.Client(server.target) as client:
        model = await lighten.torch.upload_async(
            module,
            torch.randn(2, 3, 32, 32),
            client=client,
            name="stem",
            input_names=["image"],
        )
        assert model.artifact.uri.endswith("/stem.onnx")
        data = pb.Dataset(
            data=pb.ObjectRef(uri=f"{bucket}/calibration.npz"), format=pb.DATASET_FORMAT_NPZ
        )
        steps = [pb.Step(fold_batch_norms=pb.FoldBatchNorms()), pb.Step(calibrate=pb.Calibrate())]
        job = await client.submit(
            pb.JobSpec(model=model, calibration=data, plan=pb.Plan(steps=pb.Steps(steps=steps)))
        )
        result = await client.result(job.name)

    assert result.steps[0].findings["folded_batch_norms"] == 1
    assert result.provenance.input_sha256[model.artifact.uri] == model.artifact.sha256
    assert np.isfinite(result.optimized.latency.median_seconds)

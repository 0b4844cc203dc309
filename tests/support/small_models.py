"""Small torch models with every construction that the quantizer treats specially."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lighten import v1 as pb
from lighten_service.worker.model import Batch


class SmallNet(nn.Module):
    """Depthwise and plain convolutions, ReLU6, a residual, a gate, pooling, softmax: 3x32x32 in,
    10 classes out. Batch norms with statistics as after training."""

    def __init__(self, relu6: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6() if relu6 else nn.ReLU()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.gate = nn.Sigmoid()
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 10)
        self.softmax = nn.Softmax(-1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.point(self.depthwise(x))
        x = self.pool((x + y) * self.gate(y))
        return self.softmax(self.head(x.mean((2, 3))))


def batches(count: int = 4, size: int = 8, side: int = 32, seed: int = 0) -> list[Batch]:
    """Return reproducible batches of normal noise for one input called `input`."""
    rng = np.random.default_rng(seed)
    return [
        {"input": rng.standard_normal((size, 3, side, side)).astype(np.float32)}
        for _ in range(count)
    ]


def architecture_spec(name: str, side: int, *, opset: int = 21) -> pb.JobSpec:
    """Return a spec for a torchvision architecture with safetensors weights."""
    return pb.JobSpec(
        model=pb.ModelSource(
            format=pb.MODEL_FORMAT_SAFETENSORS,
            architecture=pb.Architecture(library=pb.ARCHITECTURE_LIBRARY_TORCHVISION, name=name),
            inputs=[pb.InputSpec(name="input", shape=[3, side, side])],
        ),
        outputs=pb.Outputs(opset=opset),
    )


def save_weights(name: str, path: Path, seed: int = 0) -> Path:
    """Write random weights of a torchvision architecture, batch norms as after training."""
    from safetensors.torch import save_file
    from torchvision import models

    torch.manual_seed(seed)
    module = models.get_model(name, weights=None)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0.0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.1)
    save_file(module.state_dict(), path)
    return path


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the signal to noise ratio in dB, 200 for equal arrays."""
    signal = np.square(reference, dtype=np.float64).sum()
    noise = np.square(reference.astype(np.float64) - other).sum()
    return min(200.0, float(10 * np.log10(signal / noise))) if noise else 200.0

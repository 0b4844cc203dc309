"""A small depthwise network whose batch norms saw the data, for both engines."""

import io

import numpy as np
import onnx
import torch
from torch import nn

from lighten_service.worker.model import Batch

SIDE = 16


class DepthwiseNet(nn.Module):
    """Stem, two inverted residuals, pooling, linear: 3x16x16 in, 6 classes out.

    As after training: statistics are those of the data, and channels differ widely in scale, so
    that per-tensor weights shift the means of outputs.
    """

    def __init__(self, *, relu6: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        act = nn.ReLU6 if relu6 else nn.ReLU
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), act())
        self.first = _inverted(12, 24, act)
        self.second = _inverted(12, 24, act)
        self.head = nn.Linear(12, 6)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.3, 2.0)
                nn.init.normal_(module.bias, 0.3, 0.8)
            elif isinstance(module, nn.Conv2d):
                scale = torch.exp(torch.randn(module.out_channels) * 0.8)
                module.weight.data *= scale.view(-1, 1, 1, 1)
        self._settle()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.first(x)
        x = x + self.second(x)
        return self.head(x.mean((2, 3)))

    def _settle(self) -> None:
        """Let batch norms see samples of the data."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        self.train()
        with torch.no_grad():
            for batch in pictures(16, seed=99):
                self(torch.from_numpy(batch["input"]))
        self.eval()


def _inverted(channels: int, hidden: int, act: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        act(),
        nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False),
        nn.BatchNorm2d(hidden),
        act(),
        nn.Conv2d(hidden, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )


def pictures(count: int, size: int = 8, seed: int = 0) -> list[Batch]:
    """Return batches of smooth pictures for one input called ``input``."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, size, 3, 4, 4)) + rng.normal(size=(count, size, 3, 1, 1))
    fine = coarse.repeat(SIDE // 4, axis=3).repeat(SIDE // 4, axis=4)
    return [{"input": batch} for batch in fine.astype(np.float32)]


def exported(module: nn.Module) -> onnx.ModelProto:
    """Return the module as ONNX with its batch norms, the batch open."""
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        (torch.zeros(1, 3, SIDE, SIDE),),
        buffer,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
        opset_version=17,
        dynamo=False,
    )
    return onnx.load_from_string(buffer.getvalue())

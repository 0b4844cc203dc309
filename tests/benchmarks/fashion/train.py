"""Trains the small depthwise network of the benchmark and writes ``network.onnx`` beside this file:
``python -m tests.benchmarks.fashion.train``. About 10 minutes on two cores."""

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.fashion.data import test_images, training_images

CHECKPOINT = Path(__file__).with_name("network.onnx")
_EPOCHS, _BATCH, _PEAK_RATE = 3, 128, 0.01
_OPSET = 17


def network() -> nn.Sequential:
    """Five depthwise separable blocks, as MobileNet has them."""
    blocks = ((32, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1))
    layers = [_convolution(1, 32, kernel=3, stride=2)]
    for before, after, stride in blocks:
        layers.append(_convolution(before, before, kernel=3, stride=stride, groups=before))
        layers.append(_convolution(before, after, kernel=1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def _convolution(
    before: int, after: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(
        before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def train(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    """Train with flips, shifts and label smoothing, the learning rate up and down once."""
    steps = len(pixels) // _BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _PEAK_RATE, epochs=_EPOCHS, steps_per_epoch=steps
    )
    model.train()
    for epoch in range(_EPOCHS):
        order = torch.randperm(len(pixels))
        total = 0.0
        for batch in order[: steps * _BATCH].split(_BATCH):
            loss = F.cross_entropy(
                model(_augment(pixels[batch])), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {_EPOCHS}: loss {total / steps:.3f}", flush=True)
    model.eval()


def _augment(pixels: torch.Tensor) -> torch.Tensor:
    flipped = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels.flip(3), pixels)
    shift = torch.randint(-2, 3, (2,)).tolist()
    return flipped.roll(shift, (2, 3))


@torch.no_grad()
def accuracy(model: nn.Module, pixels: torch.Tensor, labels: NDArray[np.int64]) -> float:
    found = torch.cat([model(part).argmax(1) for part in pixels.split(1000)])
    return float((found.numpy() == labels).mean())


def main() -> None:
    torch.manual_seed(0)
    images, tests = training_images(), test_images()
    model = network()
    train(model, torch.from_numpy(images.pixels), torch.from_numpy(images.labels))
    print(f"top-1 {accuracy(model, torch.from_numpy(tests.pixels), tests.labels):.4f}, n = 10,000")
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        CHECKPOINT,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "n"}, "scores": {0: "n"}},
        opset_version=_OPSET,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    onnx.checker.check_model(str(CHECKPOINT))


if __name__ == "__main__":
    main()

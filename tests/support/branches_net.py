"""A small network in which quantizers stand in every way: tied, on fixed ranges, in blocks."""

import torch
from torch import nn


class BranchesNet(nn.Module):
    """Concat, depthwise gate, transposed convolution, linear layers with and without a bias,
    softmax: 3x16x16 in, 6 classes out."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU())
        self.point = nn.Conv2d(32, 32, 1)
        self.gate = nn.Sigmoid()
        self.up = nn.ConvTranspose2d(32, 8, 2, 2)
        self.inner = nn.Linear(8, 16, bias=False)
        self.act = nn.ReLU()
        self.head = nn.Linear(16, 6)
        self.softmax = nn.Softmax(-1)
        norm = self.first[1]
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.first(x), self.second(x)], 1)
        x = self.up(self.gate(self.point(x)) * x)
        x = self.act(self.inner(x.flatten(2).transpose(1, 2))).mean(1)
        return self.softmax(self.head(x))

"""Groups of quantizers alone: the shortcut gives what the whole model gives."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lighten import v1 as pb
from lighten_service.worker.algorithms.sensitivity import by_layer
from lighten_service.worker.model import Batch, WorkingModel
from tests.support.depthwise_net import SIDE, DepthwiseNet, exported
from tests.support.technique_kit import ENGINES, open_engine, open_graph


class Branches(nn.Module):
    """Keeps the size of the batch and two branches alive past quantized layers, and joins them
    by a concatenation, whose inputs share a grid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(16 * SIDE * SIDE, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples = x.size(0)
        x = self.relu(self.stem(x))
        joined = torch.cat([self.left(x), self.right(x)], dim=1)
        return self.head(joined.reshape(samples, -1))


def batches(*sizes: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    shapes = [(size, 3, SIDE, SIDE) for size in sizes]
    return [{"input": rng.standard_normal(shape).astype(np.float32)} for shape in shapes]


def check(model: WorkingModel, data: list[Batch]) -> None:
    model.fold_batch_norms()
    model.calibrate(
        pb.QuantizationConfig(),
        pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX),
        lambda: iter(data),
        on_batch=lambda _: None,
    )
    quantized = model.quantized_model()
    quantizers = quantized.quantizers()
    groups = [[each.name for each in group] for group in by_layer(quantizers)]
    # The first is spread over the whole model.
    groups.insert(0, [each.name for each in quantizers if each.is_weight])
    found: dict[int, list[np.ndarray]] = {}
    floats: dict[int, list[np.ndarray]] = {}
    for probe in quantized.probe(iter(data), groups, check=lambda: None):
        found.setdefault(probe.group, []).append(probe.outputs[0])
        floats.setdefault(probe.group, []).append(probe.float_outputs[0])
    assert sorted(found) == list(range(len(groups)))
    for names, kept in [*((groups[group], found[group]) for group in found), ((), floats[0])]:
        with quantized.only(names):
            want = [model.predict(batch)["output"] for batch in data]
        apart = np.abs(np.concatenate(kept) - np.concatenate(want)).max(axis=1)
        # Another order of additions takes few values over the middle between two steps.
        assert np.median(apart) < 2e-5, names
        assert apart.max() < 2e-3, names


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("module", [Branches, DepthwiseNet])
def test_a_probe_gives_what_the_whole_model_gives(engine, module, tmp_path: Path) -> None:
    check(open_engine(engine, module().eval(), tmp_path), batches(4, 4, 3))


def test_a_fixed_batch_is_probed_in_portions(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(exported(DepthwiseNet().eval()).SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    check(open_graph(model, tmp_path), batches(4, 3))

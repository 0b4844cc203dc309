"""A module of one's own becomes ONNX that computes the same, or an error that says why not."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lighten import errors
from lighten import v1 as pb
from lighten.torch import export
from lighten_service.worker.formats.onnx_safety import load_onnx_model


class Net(nn.Module):
    """Convolution, batch norm, depthwise with ReLU6, pooling, linear, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.depthwise(self.stem(image)).relu().mean((2, 3))
        return self.head(self.drop(features))


class Tokens(nn.Module):
    """Two named inputs of integers and booleans, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4)
        self.encoder = nn.GRU(4, 6, batch_first=True)

    def forward(self, ids: torch.Tensor, *, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        states, last = self.encoder(self.embed(ids) * keep[..., None])
        return {"states": states, "last": last[0]}


class Function(nn.Module):
    """A module that computes what it is given."""

    def __init__(self, compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: torch.Tensor):
        return self.compute(x)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def refusal(module, examples, path: Path, **options) -> errors.LightenError:
    with pytest.raises((errors.InvalidArgument, errors.ExportFailed)) as caught:
        export(module, examples, path, **options)
    assert not path.exists()
    return caught.value


def test_any_batch_gives_what_the_module_gives(tmp_path: Path) -> None:
    module = Net()
    path = tmp_path / "net.onnx"
    inputs = export(module, images(1), path)

    assert inputs == (pb.InputSpec(name="image", shape=[3, 16, 16], dtype=pb.ELEMENT_TYPE_FLOAT32),)
    session = onnxruntime.InferenceSession(path)
    module.eval()
    for size in (1, 2, 7):
        (scores,) = session.run(["output"], {"image": images(size).numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(scores, module(images(size)).numpy(), atol=1e-5)


def test_the_graph_keeps_batch_norms_and_the_names_of_modules(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(Net(), images(2), path)
    model = load_onnx_model(path)  # the server's own check

    operators = {node.name: node.op_type for node in model.graph.node}
    assert operators["stem.0"] == operators["depthwise"] == "Conv"
    assert operators["stem.1"] == "BatchNormalization"
    assert Counter(operators.values())["Dropout"] == 0
    # Sources and paths of this machine stay here.
    assert __file__.encode() not in path.read_bytes()


def test_the_module_is_not_changed(tmp_path: Path) -> None:
    module = Net()
    module.depthwise.eval()
    module.head.weight.requires_grad_(False)
    before = copy.deepcopy(module)
    export(module, images(2), tmp_path / "net.onnx")

    assert [m.training for m in module.modules()] == [m.training for m in before.modules()]
    assert not module.head.weight.requires_grad
    assert module.stem[0].weight.requires_grad
    assert all(p.grad is None for p in module.parameters())
    for name, tensor in before.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_a_forward_that_writes_into_inputs_and_buffers_leaves_both_as_they_were(
    tmp_path: Path,
) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x.relu_() * 2

    module, example = Counting(), -torch.ones(2, 3)
    export(module, example, tmp_path / "x.onnx")

    assert module.calls.item() == 0
    assert torch.equal(example, -torch.ones(2, 3))


def test_named_inputs_and_outputs(tmp_path: Path) -> None:
    path = tmp_path / "tokens.onnx"
    examples = {
        "keep": torch.ones(2, 7, dtype=torch.bool),
        "ids": torch.arange(14).reshape(2, 7),
    }
    inputs = export(Tokens(), examples, path)

    assert [(i.name, list(i.shape), i.dtype) for i in inputs] == [
        ("ids", [7], pb.ELEMENT_TYPE_INT64),
        ("keep", [7], pb.ELEMENT_TYPE_BOOL),
    ]
    outputs = onnx.load(path).graph.output
    assert [output.name for output in outputs] == ["states", "last"]


def test_names_opset_and_a_fixed_batch_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(
        Net(),
        (images(3),),
        path,
        input_names=["pixels"],
        output_names=["scores"],
        dynamic_batch=False,
        opset=18,
    )
    model = onnx.load(path)

    shape = model.graph.input[0].type.tensor_type.shape
    assert (model.graph.input[0].name, shape.dim[0].dim_value) == ("pixels", 3)
    assert model.graph.output[0].name == "scores"
    assert model.opset_import[0].version == 18


def test_the_same_module_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(Net(), images(2), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("examples", "reason", "words"),
    [
        (np.zeros((1, 3, 16, 16), np.float32), "EXAMPLES_NOT_TENSORS", "ndarray"),
        ([], "EXAMPLES_NOT_TENSORS", "a tensor"),
        ((images(1), 3), "EXAMPLES_NOT_TENSORS", "tuple"),
        ((images(1), images(1)), "EXAMPLES_MISMATCH", "too many positional arguments"),
        ({"picture": images(1)}, "EXAMPLES_MISMATCH", "image"),
        (torch.tensor(1.0), "EXAMPLES_MISMATCH", "first axis"),
        (images(1).double(), "UNSUPPORTED_TYPE", "float64"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tmp_path: Path, examples, reason, words) -> None:
    error = refusal(Net(), examples, tmp_path / "net.onnx")

    assert (error.reason, error.field) == (reason, "example_inputs")
    assert words in error.message


@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        ({"opset": 17}, "UNSUPPORTED_OPSET", "opset"),
        ({"input_names": ["a", "b"]}, "NAMES_MISMATCH", "input_names"),
        ({"output_names": []}, "NAMES_MISMATCH", "output_names"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options, reason, field) -> None:
    error = refusal(Net(), images(1), tmp_path / "net.onnx", **options)
    assert (error.reason, error.field) == (reason, field)


@pytest.mark.parametrize(
    ("compute", "reason", "words"),
    [
        (lambda x: x.sum(), "OUTPUT_WITHOUT_BATCH", "[]"),
        (lambda x: x.reshape(1, -1), "OUTPUT_WITHOUT_BATCH", "for a batch of 2"),
        (lambda x: x.log(), "OUTPUT_NOT_FINITE", "NaN"),
        (lambda x: (x, 3), "OUTPUTS_NOT_TENSORS", "int"),
        (lambda x: x @ x, "FORWARD_FAILED", "RuntimeError"),
        (lambda x: x if x.sum() > 0 else -x, "EXPORT_FAILED", "data-dependent"),
    ],
)
def test_a_module_that_cannot_be_exported_says_why(tmp_path: Path, compute, reason, words) -> None:
    example = -torch.ones(1, 3, 4)
    error = refusal(Function(compute), example, tmp_path / "x.onnx")

    assert isinstance(error, errors.ExportFailed)
    assert error.reason == reason
    assert words in error.message


def test_a_graph_that_computes_something_else_is_refused_with_its_error(tmp_path: Path) -> None:
    noise = iter(torch.randn(9, 1))
    error = refusal(
        Function(lambda x: x + next(noise).item()), torch.ones(2, 3), tmp_path / "x.onnx"
    )

    assert error.reason == "OUTPUTS_DIFFER"
    assert float(error.metadata["max_error"]) > 0.01
    assert "differs by up to" in error.message


def test_weights_in_another_type_or_too_large_are_refused(tmp_path: Path) -> None:
    half = refusal(Net().half(), images(1), tmp_path / "half.onnx")
    assert half.reason == "UNSUPPORTED_TYPE"
    assert "module.float()" in half.message

    large = nn.Linear(30_000, 20_000, device="meta")  # 2.4 GB, and none of it in memory
    error = refusal(large, torch.ones(1, 30_000), tmp_path / "large.onnx")
    assert error.reason == "MODEL_TOO_LARGE"
    assert "2.4 GB" in error.message

"""From a module as its library builds it to one that AIMET can work on."""

import copy
from collections.abc import Sequence
from typing import Final

import torch
from aimet_torch.model_preparer import prepare_model
from timm.layers.norm_act import BatchNormAct2d

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument

Inputs = tuple[torch.Tensor, ...]

_DTYPES: Final = {
    pb.ELEMENT_TYPE_UNSPECIFIED: torch.float32,
    pb.ELEMENT_TYPE_FLOAT32: torch.float32,
    pb.ELEMENT_TYPE_INT32: torch.int32,
    pb.ELEMENT_TYPE_INT64: torch.int64,
    pb.ELEMENT_TYPE_BOOL: torch.bool,
}
# What a forward pass raises on inputs that do not fit the model.
_FORWARD_ERRORS: Final = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Preparation only renames and separates modules, so that outputs stay equal up to the order of
# float operations.
_TOLERANCE: Final = 1e-4


def example_inputs(specs: Sequence[pb.InputSpec], *, seed: int, device: str = "cpu") -> Inputs:
    """Return one random sample for tracing: normal floats, zeros elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for spec in specs:
        shape, dtype = (1, *spec.shape), _DTYPES[spec.dtype]
        if dtype.is_floating_point:
            tensor = torch.randn(shape, generator=generator)
        else:
            tensor = torch.zeros(shape, dtype=dtype)
        tensors.append(tensor.to(device))
    return tuple(tensors)


def torch_dtype(spec: pb.InputSpec) -> torch.dtype:
    """Return the type of an input's elements."""
    return _DTYPES[spec.dtype]


def prepare(module: torch.nn.Module, inputs: Inputs) -> torch.fx.GraphModule:
    """Return an equivalent module in which every operation is a module used once.

    No module writes to its input.

    Args:
        module: in eval mode, on the CPU; left as it is.
        inputs: one sample, on the CPU.

    Raises:
        InvalidArgument: INPUT_MISMATCH, or UNSUPPORTED_MODEL when AIMET cannot prepare it.
    """
    expected = _forward(module, inputs)
    # prepare_model shares submodules with what it is given.
    module = copy.deepcopy(module)
    _split_fused_batch_norms(module)
    _stop_writing_to_inputs(module)
    try:
        prepared: torch.fx.GraphModule = prepare_model(module).eval()
        actual = flatten_outputs(run(prepared, inputs))
    except _FORWARD_ERRORS as error:
        raise _unsupported(f"AIMET cannot prepare it: {error}") from error
    for before, after in zip(expected, actual, strict=True):
        scale = max(1.0, float(before.abs().max()))
        if not torch.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * scale):
            raise _unsupported("its outputs change when AIMET prepares it")
    return prepared


def run(module: torch.nn.Module, inputs: Inputs) -> object:
    """Run a module without recording gradients."""
    with torch.no_grad():
        return module(*inputs)


def flatten_outputs(result: object) -> list[torch.Tensor]:
    """Return the tensors of what a forward pass returned, in their order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in flatten_outputs(part)]
    return []


def _forward(module: torch.nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in inputs)
    try:
        outputs = flatten_outputs(run(module, inputs))
    except _FORWARD_ERRORS as error:
        raise InvalidArgument(
            "INPUT_MISMATCH",
            f"the model does not run on inputs of shape {shapes}: {error}",
            field="model.inputs",
        ) from error
    if not outputs or any(len(output) != 1 for output in outputs if output.dim()):
        raise _unsupported("its outputs are no tensors with the samples as first axis")
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        raise _unsupported("it returns NaN or infinity on random inputs")
    return outputs


def _stop_writing_to_inputs(module: torch.nn.Module) -> None:
    for part in module.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010


def _split_fused_batch_norms(module: torch.nn.Module) -> None:
    """Replace timm's batch norm with activation by the two, which AIMET can fold."""
    for name, child in module.named_children():
        if not isinstance(child, BatchNormAct2d):
            _split_fused_batch_norms(child)
            continue
        norm = torch.nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
        norm.load_state_dict({key: child.state_dict()[key] for key in norm.state_dict()})
        setattr(module, name, torch.nn.Sequential(norm, child.drop, child.act).eval())


def _unsupported(reason: str) -> InvalidArgument:
    return InvalidArgument(
        "UNSUPPORTED_MODEL",
        f"this architecture cannot be quantized by aimet-torch: {reason}. Export it to ONNX and "
        "submit that",
        field="model.architecture",
    )

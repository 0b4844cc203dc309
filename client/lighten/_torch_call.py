"""A module and example inputs, checked and run. Imported by `lighten.torch` alone."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lighten import v1 as pb
from lighten.errors import ExportFailed, InvalidArgument, Violation

# One tensor, one for each argument of ``forward``, or one for each named argument.
Examples: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

ELEMENTS = {
    torch.float32: pb.ELEMENT_TYPE_FLOAT32,
    torch.int32: pb.ELEMENT_TYPE_INT32,
    torch.int64: pb.ELEMENT_TYPE_INT64,
    torch.bool: pb.ELEMENT_TYPE_BOOL,
}
# The largest message that protobuf writes, less room for the graph itself.
_MAX_WEIGHT_BYTES = 2**31 - 2**24


@dataclass(frozen=True, slots=True)
class Call:
    """Examples as arguments of ``forward``: one batch of ``size`` samples."""

    arguments: inspect.BoundArguments
    size: int

    @property
    def tensors(self) -> list[Tensor]:
        """In the order of the graph's inputs."""
        return [*self.arguments.args, *self.arguments.kwargs.values()]

    def resized(self, size: int) -> "Call":
        """Return a batch of ``size`` samples, the examples' own in turns."""
        rows = torch.arange(size) % self.size
        signature = self.arguments.signature
        args = [tensor[rows.to(tensor.device)] for tensor in self.arguments.args]
        kwargs = {k: v[rows.to(v.device)] for k, v in self.arguments.kwargs.items()}
        return Call(signature.bind(*args, **kwargs), size)


def bind(module: nn.Module, examples: Examples) -> Call:
    """Return examples as a call of ``forward``.

    Raises:
        InvalidArgument: EXAMPLES_NOT_TENSORS, EXAMPLES_MISMATCH, UNSUPPORTED_TYPE.
    """
    named = examples if isinstance(examples, Mapping) else {}
    positional: Sequence[Any] = ()
    if isinstance(examples, Tensor):
        positional = (examples,)
    elif not named and isinstance(examples, Sequence):
        positional = examples
    tensors = [*positional, *named.values()]
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise _bad_examples(
            "EXAMPLES_NOT_TENSORS",
            "must be a tensor, a tuple of tensors, or tensors by argument name; "
            f"got {type(examples).__name__}",
        )
    signature = inspect.signature(module.forward)
    try:
        arguments = signature.bind(*positional, **named)
    except TypeError as error:
        raise _bad_examples(
            "EXAMPLES_MISMATCH", f"do not fit forward{signature}: {error}"
        ) from error
    return Call(arguments, _batch_size(tensors))


def _batch_size(tensors: Sequence[Tensor]) -> int:
    for tensor in tensors:
        if tensor.dtype not in ELEMENTS:
            raise _bad_examples(
                "UNSUPPORTED_TYPE",
                f"must be float32, int32, int64 or bool, and one is {tensor.dtype}",
            )
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    if len(sizes) > 1 or 0 in sizes:
        raise _bad_examples(
            "EXAMPLES_MISMATCH",
            "must have the samples of one batch as their first axis; its sizes, 0 for none: "
            f"{sorted(sizes)}",
        )
    return sizes.pop()


def batches_of(call: Call, dynamic: bool) -> list[Call]:
    """Return the batches to compare on: the examples, and other sizes where there may be any."""
    sizes = [call.size, call.size + 1, 1] if dynamic else [call.size]
    return [call if size == call.size else call.resized(size) for size in dict.fromkeys(sizes)]


def check_weights(module: nn.Module) -> None:
    """Check types and size of parameters and buffers.

    Raises:
        InvalidArgument: UNSUPPORTED_TYPE, MODEL_TOO_LARGE.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InvalidArgument(
                f"{name} is {tensor.dtype}; convert the module first: module.float()",
                reason="UNSUPPORTED_TYPE",
            )
    size = sum(tensor.nbytes for _, tensor in tensors)
    if size > _MAX_WEIGHT_BYTES:
        raise InvalidArgument(
            f"the weights have {size / 1e9:.1f} GB, and one ONNX file holds 2 GB; export the "
            "module with external data, and upload the folder with Client.upload",
            reason="MODEL_TOO_LARGE",
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch training mode and gradients off; then put modes and buffers back as they were."""
    before = {child: child.training for child in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for buffer, value in buffers:
            buffer.detach().copy_(value)
        for child, training in before.items():
            child.training = training


def run(module: nn.Module, batch: Call) -> dict[str, Tensor]:
    """Return the module's outputs by the name that they get in the graph.

    Raises:
        ExportFailed: FORWARD_FAILED, OUTPUTS_NOT_TENSORS, OUTPUT_WITHOUT_BATCH, OUTPUT_NOT_FINITE.
    """
    # A copy, for forward may change its inputs in place.
    arguments = batch.resized(batch.size).arguments
    try:
        result = module(*arguments.args, **arguments.kwargs)
    except Exception as error:
        raise ExportFailed(
            f"forward fails on a batch of {batch.size} made of the examples: "
            f"{type(error).__name__}: {error}",
            reason="FORWARD_FAILED",
        ) from error
    outputs = dict(_flatten(result, ""))
    if "" in outputs:
        outputs = {"output": outputs[""]}
    for name, tensor in outputs.items():
        _check_output(name, tensor, batch.size)
    return outputs


def _check_output(name: str, tensor: Tensor, batch: int) -> None:
    if tensor.ndim == 0 or tensor.shape[0] != batch:
        raise ExportFailed(
            f"{name} has the shape {list(tensor.shape)} for a batch of {batch}: the first axis of "
            "every output must be the batch",
            reason="OUTPUT_WITHOUT_BATCH",
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ExportFailed(
            f"{name} has NaN or infinite values on the examples", reason="OUTPUT_NOT_FINITE"
        )


def _flatten(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{name or 'output'}_{index}")
    else:
        raise ExportFailed(
            f"forward returns {type(value).__name__}; it must return tensors, or tuples or "
            "mappings of them",
            reason="OUTPUTS_NOT_TENSORS",
        )


def invalid(reason: str, field: str, message: str) -> InvalidArgument:
    """Return the error for one argument of `lighten.torch.upload`."""
    return InvalidArgument(
        f"{field} {message}", reason=reason, violations=[Violation(field, message)]
    )


def _bad_examples(reason: str, message: str) -> InvalidArgument:
    return invalid(reason, "example_inputs", message)

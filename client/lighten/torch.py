"""A way in for a module of your own: from ``torch.nn.Module`` to what a spec names as its model.

    from lighten.torch import upload

    spec.model.CopyFrom(upload(module, torch.randn(1, 3, 224, 224), client=client))

The module becomes ONNX, is compared with it in ONNX Runtime, and is uploaded. Nothing of its code
leaves this machine. Needs ``pip install 'lighten[torch]'``; the rest of the SDK does not.
"""

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighten import v1 as pb

try:
    from torch import nn

    from lighten._torch_call import ELEMENTS, Examples, batches_of, bind, check_weights, evaluating
    from lighten._torch_call import run as run_module
    from lighten._torch_compare import compare
    from lighten._torch_graph import check_names, write_graph
except ImportError as error:
    raise ImportError(
        "lighten.torch needs PyTorch, ONNX Script and ONNX Runtime: pip install 'lighten[torch]'"
    ) from error

if TYPE_CHECKING:
    import lighten
    from lighten._files import Uploaded

__all__ = ["Examples", "export", "upload", "upload_async"]

DEFAULT_OPSET = 20
DEFAULT_TOLERANCE = 1e-3


def upload(
    module: nn.Module,
    example_inputs: Examples,
    *,
    client: "lighten.Client",
    name: str = "model",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    opset: int = DEFAULT_OPSET,
    tolerance: float = DEFAULT_TOLERANCE,
) -> pb.ModelSource:
    """Export a module to ONNX, check it against the module, and upload it.

    The module is left as it is; its training mode is switched off meanwhile. Batch norms stay in
    the graph, for the techniques that use them.

    Args:
        example_inputs: inputs of one batch, the first axis of each the samples. Real ones are the
            best check.
        client: where to upload to; with ``lighten.aio.Client`` call `upload_async`.
        name: name of the uploaded file, without its suffix.
        input_names: names in the graph. Default: those of the arguments of ``forward``.
        output_names: names in the graph. Default: the keys where ``forward`` returns a mapping,
            else ``output``, or ``output_0``, ``output_1``, ...
        dynamic_batch: the graph takes any batch size. Otherwise that of the examples alone.
        opset: ONNX opset of the graph, 18 to 24.
        tolerance: largest difference between the module and ONNX Runtime, relative to the largest
            absolute value of each output.

    Returns:
        For ``JobSpec.model``.

    Raises:
        InvalidArgument: EXAMPLES_NOT_TENSORS, EXAMPLES_MISMATCH (their batch sizes differ, or
            ``forward`` does not take them), UNSUPPORTED_TYPE, UNSUPPORTED_OPSET, NAMES_MISMATCH,
            MODEL_TOO_LARGE (2 GB of weights).
        ExportFailed: FORWARD_FAILED, OUTPUTS_NOT_TENSORS, OUTPUT_WITHOUT_BATCH,
            OUTPUT_NOT_FINITE, EXPORT_FAILED, OUTPUTS_DIFFER with the largest difference.
        LightenError: what ``Client.upload`` raises.
    """
    with tempfile.TemporaryDirectory(prefix="lighten-torch-") as folder:
        path = Path(folder) / f"{name}.onnx"
        inputs = export(
            module,
            example_inputs,
            path,
            input_names=input_names,
            output_names=output_names,
            dynamic_batch=dynamic_batch,
            opset=opset,
            tolerance=tolerance,
        )
        return _source(client.upload(path), inputs)


async def upload_async(
    module: nn.Module,
    example_inputs: Examples,
    *,
    client: "lighten.aio.Client",
    name: str = "model",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    opset: int = DEFAULT_OPSET,
    tolerance: float = DEFAULT_TOLERANCE,
) -> pb.ModelSource:
    """Do as `upload`, for an asyncio client. The export runs in a thread: leave the module alone
    meanwhile, and export one at a time."""
    with tempfile.TemporaryDirectory(prefix="lighten-torch-") as folder:
        path = Path(folder) / f"{name}.onnx"
        inputs = await asyncio.to_thread(
            export,
            module,
            example_inputs,
            path,
            input_names=input_names,
            output_names=output_names,
            dynamic_batch=dynamic_batch,
            opset=opset,
            tolerance=tolerance,
        )
        return _source(await client.upload(path), inputs)


def export(
    module: nn.Module,
    example_inputs: Examples,
    path: str | os.PathLike[str],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    opset: int = DEFAULT_OPSET,
    tolerance: float = DEFAULT_TOLERANCE,
) -> tuple[pb.InputSpec, ...]:
    """Write a module as one ONNX file that was compared with it, for example for ``lighten run``.

    Arguments and errors are those of `upload`. Nothing is left at ``path`` after an error.

    Returns:
        The inputs, for ``ModelSource.inputs``.
    """
    check_weights(module)
    call = bind(module, example_inputs)
    with evaluating(module):
        batches = batches_of(call, dynamic_batch)
        expected = [run_module(module, batch) for batch in batches]
        names = list(output_names) if output_names is not None else list(expected[0])
        check_names("output_names", names, len(expected[0]))
        # torch.export takes a batch of 1 for a constant.
        traced = call if call.size > 1 or not dynamic_batch else call.resized(2)
        graph_inputs = write_graph(
            module,
            traced.arguments.args,
            traced.arguments.kwargs,
            Path(path),
            input_names=input_names,
            output_names=names,
            dynamic=dynamic_batch,
            opset=opset,
        )
    try:
        compare(Path(path), graph_inputs, names, batches, expected, tolerance)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return tuple(
        pb.InputSpec(name=name, shape=tensor.shape[1:], dtype=ELEMENTS[tensor.dtype])
        for name, tensor in zip(graph_inputs, call.tensors, strict=True)
    )


def _source(uploaded: "Uploaded", inputs: Sequence[pb.InputSpec]) -> pb.ModelSource:
    return pb.ModelSource(
        artifact=pb.ObjectRef(uri=uploaded.uri, sha256=uploaded.sha256),
        format=pb.MODEL_FORMAT_ONNX,
        inputs=inputs,
    )

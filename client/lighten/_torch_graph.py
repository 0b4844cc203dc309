"""From a module to an ONNX file that a Lighten server takes. Imported by `lighten.torch` alone."""

import ast
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from lighten._torch_call import invalid
from lighten.errors import ExportFailed

# The exporter writes nothing older; the server reads nothing newer.
_OPSETS = range(18, 25)
# Where the exporter writes the modules that an operator comes from.
_SCOPES = "pkg.torch.onnx.name_scopes"
# The rules that clean up what the exporter writes, without those that fold batch norms.
_RULES = (
    rules.cast_cast_rule,
    rules.collapse_slice_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
)


def write_graph(
    module: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    path: Path,
    *,
    input_names: Sequence[str] | None,
    output_names: Sequence[str],
    dynamic: bool,
    opset: int,
) -> list[str]:
    """Write a module that is in evaluation mode as one ONNX file; return its inputs' names.

    Raises:
        InvalidArgument: UNSUPPORTED_OPSET, NAMES_MISMATCH.
        ExportFailed: EXPORT_FAILED.
    """
    if opset not in _OPSETS:
        message = f"must be {_OPSETS[0]} to {_OPSETS[-1]}, and is {opset}"
        raise invalid("UNSUPPORTED_OPSET", "opset", message)
    if input_names is not None:
        check_names("input_names", input_names, len(args) + len(kwargs))
    try:
        model = _trace(
            module,
            args,
            kwargs=dict(kwargs),
            input_names=input_names,
            output_names=output_names,
            opset_version=opset,
            dynamic_shapes=_dynamic_shapes(module, args, kwargs) if dynamic else None,
        )
        _tidy(model)
    except Exception as error:  # whatever the module's own code or the exporter raises
        raise ExportFailed(
            f"PyTorch cannot export the module to ONNX: {_root_cause(error)}",
            reason="EXPORT_FAILED",
        ) from error
    names = [str(value.name) for value in model.graph.inputs]
    if len(names) != len(args) + len(kwargs):
        raise ExportFailed(
            f"the exported graph has the inputs {names}, others than forward was given",
            reason="EXPORT_FAILED",
        )
    onnx_ir.save(model, path)
    return names


def check_names(field: str, names: Sequence[str], count: int) -> None:
    """Check that there is a different name for each of ``count`` tensors.

    Raises:
        InvalidArgument: NAMES_MISMATCH.
    """
    if len(names) != count or len(set(names)) != count:
        message = f"must be {count} different names, and is {list(names)}"
        raise invalid("NAMES_MISMATCH", field, message)


def _trace(module: nn.Module, args: tuple[Tensor, ...], **options: Any) -> onnx_ir.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, args, dynamo=True, optimize=False, verbose=False, **options
        )
    if program is None:  # the type allows it; with dynamo there is always one
        raise TypeError("the exporter returned nothing")
    return program.model


def _dynamic_shapes(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1)

    def shapes(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(shapes(item) for item in value)
        if isinstance(value, dict):
            return {key: shapes(item) for key, item in value.items()}
        return {0: batch}

    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {name: shapes(value) for name, value in bound.items()}


def _tidy(model: onnx_ir.Model) -> None:
    """Compute what is constant; leave out source lines and paths of this machine."""
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, pattern_rewrite_rules=_RULES)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    _name_after_modules(model)
    passes.ClearMetadataAndDocStringPass()(model)
    passes.NameFixPass()(model)


def _name_after_modules(model: onnx_ir.Model) -> None:
    """Call each operator as its module is called, as reports and layer selectors will show it."""
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        # The scopes go from the root's, which is empty, to the operator's own.
        if len(scopes) > 2:
            node.name = scopes[-2]


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

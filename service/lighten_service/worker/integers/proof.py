"""The proof that a QDQ file gives the same integer sums on every CPU, or where it does not.

What the integers of the file rule out by themselves holds for every kernel. Of the rest, the graph
that ONNX Runtime makes of the file tells which kernels there are, and in which order they multiply.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx
from onnx.inliner import inline_local_functions

from lighten import v1 as pb
from lighten._proof import describe, is_proven
from lighten_service.worker.integers.findings import BOUNDED, EXACT, Finding, weakest
from lighten_service.worker.integers.kernels import RUNTIME, kernels_of
from lighten_service.worker.integers.ledger import Ledger
from lighten_service.worker.integers.scopes import scopes

__all__ = ["describe", "is_proven", "prove", "prove_model"]

_LISTED: Final = 100
_NOT_TESTED: Final = (
    "x86 with AVX-512 and without VNNI",
    "runtimes other than ONNX Runtime on the CPU",
)


def prove(path: Path) -> pb.IntegerProof:
    """Prove what can be proven of a trusted file, with external data beside it.

    Raises:
        InvalidArgument: INVALID_MODEL where ONNX Runtime does not load it.
    """
    return prove_model(onnx.load(path), path, path.parent)


def prove_model(
    model: onnx.ModelProto, file: Path | None = None, scratch: Path | None = None
) -> pb.IntegerProof:
    """Prove what can be proven of a model in memory, with all of its weights.

    Args:
        file: where it comes from; without it the model must fit one message.
        scratch: folder for temporary files; None for the system's.

    Raises:
        InvalidArgument: INVALID_MODEL where ONNX Runtime does not load it.
    """
    source = file or model
    x86 = arm = kernels_of(source, signed_activations=False, scratch=scratch)
    # Not before the runtime has found the model sound.
    inlined = inline_local_functions(model) if model.functions else model
    if _has_signed_activations(inlined):
        arm = kernels_of(source, signed_activations=True, scratch=scratch)
    ledger = Ledger(inlined)
    ledger.add_x86(x86)
    ledger.add_arm(arm)
    return _message(ledger.findings())


def _has_signed_activations(model: onnx.ModelProto) -> bool:
    return any(
        node.op_type == "QuantizeLinear"
        and scope.element_type(node.output[0]) == onnx.TensorProto.INT8
        for scope in scopes(model)
        for node in scope.graph.node
    )


def _message(findings: Sequence[Finding]) -> pb.IntegerProof:
    unproven = [finding for finding in findings if not finding.proven]
    not_tested = list(_NOT_TESTED)
    if any(EXACT in (finding.x86, finding.arm) for finding in findings):
        not_tested.append(f"versions other than {RUNTIME}, of what is exact in it")
    return pb.IntegerProof(
        x86=weakest(finding.x86 for finding in findings),
        arm=weakest(finding.arm for finding in findings),
        runtime=RUNTIME,
        weights=len(findings),
        bounded=sum(finding.verdict == BOUNDED for finding in findings),
        exact_in_runtime=sum(finding.verdict == EXACT for finding in findings),
        unproven=len(unproven),
        details=[finding.message() for finding in unproven[:_LISTED]],
        not_tested=not_tested,
    )

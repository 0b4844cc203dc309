"""Batch-norm folding."""

from lighten import v1 as pb
from lighten_service.techniques.base import Findings
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel


class FoldBatchNorms:
    """Folds batch norms into the layers beside them. Finding none is no failure."""

    def run(
        self,
        context: StepContext,
        model: WorkingModel,
        parameters: pb.FoldBatchNorms,  # noqa: ARG002
    ) -> Findings:
        context.check()
        folded = model.fold_batch_norms()
        noun = "batch norm" if folded == 1 else "batch norms"
        return Findings(f"{folded} {noun} folded", {"folded_batch_norms": folded})

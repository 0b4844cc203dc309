"""One line on what to try after a result."""

from lighten import v1 as pb

# At either of these there is usually little accuracy left to win back.
_GOOD_AGREEMENT = 0.97
_GOOD_SQNR_DB = 30.0


def advice(job: pb.Job) -> str:
    """Return the next thing worth trying, from the result and from what the plan left out."""
    if _is_close(job.result.optimized):
        return (
            "the model is close to FP32; run the QDQ model in ONNX Runtime, or take the float "
            "ONNX with the encodings to Qualcomm's tools."
        )
    return f"the model is not close to FP32 yet; try {_untried(job.resolved_spec.plan)}."


def _is_close(report: pb.ModelReport) -> bool:
    values = {item.metric: item.value for item in report.metrics}
    return (
        values.get(pb.METRIC_AGREEMENT, 0.0) >= _GOOD_AGREEMENT
        or values.get(pb.METRIC_SQNR, 0.0) >= _GOOD_SQNR_DB
    )


def _untried(plan: pb.Plan) -> str:
    techniques = {step.WhichOneof("technique"): step for step in plan.steps.steps}
    config = plan.quantization
    if config.weight_granularity == pb.GRANULARITY_PER_TENSOR:
        return "`weight_granularity: per_channel`"
    if "cross_layer_equalization" not in techniques:
        return "a step `cross_layer_equalization: {}` after folding batch norms"
    if techniques["calibrate"].calibrate.scheme != pb.RANGE_SCHEME_SQNR:
        return "`calibrate: {scheme: sqnr}`, which is less moved by outliers"
    if config.activations != pb.DATA_TYPE_INT16:
        return "`activations: int16`, or more calibration samples"
    return "more calibration samples that look like the real inputs"

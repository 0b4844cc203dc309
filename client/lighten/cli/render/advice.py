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
    plan = job.resolved_spec.plan
    untried = _after_goal(job) if plan.HasField("goal") else _untried(plan)
    return f"the model is not close to FP32 yet; try {untried}."


def _is_close(report: pb.ModelReport) -> bool:
    values = {item.metric: item.value for item in report.metrics}
    return (
        values.get(pb.METRIC_AGREEMENT, 0.0) >= _GOOD_AGREEMENT
        or values.get(pb.METRIC_SQNR, 0.0) >= _GOOD_SQNR_DB
    )


def _after_goal(job: pb.Job) -> str:
    goal = job.resolved_spec.plan.goal
    match job.result.goal.stop_reason:
        case pb.STOP_REASON_TIME_BUDGET:
            return "a longer `time_budget`"
        case pb.STOP_REASON_TRIAL_BUDGET:
            return f"a `max_trials` above {goal.max_trials}"
    if goal.max_bops_ratio <= 1:
        return "`max_bops_ratio: 1.5`, which lets the most sensitive layers be wider"
    return _wider(job.resolved_spec.plan.quantization)


def _untried(plan: pb.Plan) -> str:
    techniques = {step.WhichOneof("technique"): step for step in plan.steps.steps}
    config = plan.quantization
    if config.weight_granularity == pb.GRANULARITY_PER_TENSOR:
        return "`weight_granularity: per_channel`"
    if "cross_layer_equalization" not in techniques:
        return "a step `cross_layer_equalization: {}` after folding batch norms"
    if techniques["calibrate"].calibrate.scheme != pb.RANGE_SCHEME_SQNR:
        return "`calibrate: {scheme: sqnr}`, which is less moved by outliers"
    if "bias_correction" not in techniques:
        return "a step `bias_correction: {}` after calibrating, or a `goal` in place of `steps`"
    return _wider(config)


def _wider(config: pb.QuantizationConfig) -> str:
    if config.activations != pb.DATA_TYPE_INT16:
        return "`activations: int16`, or more calibration samples"
    return "more calibration samples that look like the real inputs"

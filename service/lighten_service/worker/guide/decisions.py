"""What is tried, in the order of the guidebook: the cheap and the general first.

Each decision yields alternatives to what was best when it began; the search measures one before it
asks for the next, and the best of all goes into the next decision. Greedy: what a decision settled
is not opened again. Weights come first where they are at fault, activations otherwise; the rest
follows Nagel et al. 2021 (arXiv:2106.08295, section 3) and AIMET's guidebook.
"""

from collections.abc import Callable, Iterator
from typing import Final

from lighten import v1 as pb
from lighten_service.jobs.resolve import with_defaults
from lighten_service.worker.algorithms.rounding import Schedule
from lighten_service.worker.algorithms.rounding_cost import estimate
from lighten_service.worker.guide.diagnosis import diagnose, relief
from lighten_service.worker.guide.plans import Candidate, put, quantize
from lighten_service.worker.guide.search import Search, Stop

Decision = Callable[[Search], Iterator[Candidate]]

_CORRECT_WEIGHTS: Final = pb.Step(
    bias_correction=pb.BiasCorrection(method=pb.BIAS_CORRECTION_METHOD_EMPIRICAL_WEIGHTS)
)
_CORRECT_ALL: Final = pb.Step(
    bias_correction=pb.BiasCorrection(method=pb.BIAS_CORRECTION_METHOD_EMPIRICAL)
)
# Share of the noise that comes from weights, from which on they are at fault alone.
_WEIGHTS_AT_FAULT = 2 / 3
# dB that leaving a type of operator in float must gain.
_WORTH_DB = 1.0
# Share of the noise from which on weights are worth rounding better.
_WEIGHTS_MATTER = 0.1
# AdaRound: fewer steps than these learn little; and the share of the time left that it may take.
_LEAST_ITERATIONS = 200
_ROUNDING_TIME = 0.5


def decide(search: Search) -> None:
    """Go through all decisions, and explain what came of each.

    Raises:
        Stop: a budget is spent, or the goal is met.
        Cancelled: the job shall stop.
    """
    for title, decision in _ordered(search):
        before, tried = search.best, len(search.trials)
        try:
            for candidate in decision(search):
                search.consider(candidate)
        except Stop:
            raise
        except Exception as error:  # whatever breaks here must not cost the best so far
            search.say(f"{title}: given up: {search.reason(error)}")
        finally:
            if len(search.trials) > tried:
                search.conclude(title, before)


def _ordered(search: Search) -> tuple[tuple[str, Decision], ...]:
    """Find out what is at fault, and return what helps against that first."""
    try:
        with search.inspect() as (context, model):
            found = diagnose(context, model)
    except Stop:
        raise
    except Exception as error:  # the order alone depends on it
        search.say(f"Diagnosis: given up: {search.reason(error)}")
    else:
        search.say(found.sentence)
        if found.weights_share > _WEIGHTS_AT_FAULT:
            return (*FIRST, *WEIGHTS, *ACTIVATIONS, *LAST)
    # Ranges are quicker to change than weights, and leave the float function as it is.
    return (*FIRST, *ACTIVATIONS, *WEIGHTS, *LAST)


def equalization(search: Search) -> Iterator[Candidate]:
    """Ranges of weights matched between layers, across ReLU6 too."""
    base = search.best.candidate
    yield base.changed("cle", "cross-layer equalization", put(_equalize()))
    yield base.changed(
        "cle-relu6",
        "cross-layer equalization after ReLU6 became ReLU",
        put(_equalize(replace_relu6=True)),
    )


def weight_correction(search: Search) -> Iterator[Candidate]:
    """Mean outputs corrected for what rounding weights does, which hardly ever costs anything."""
    yield search.best.candidate.changed(
        "bias-correction", "biases corrected for rounded weights", put(_CORRECT_WEIGHTS)
    )


def bias_correction(search: Search) -> Iterator[Candidate]:
    """Mean outputs corrected, for rounded activations too."""
    base = search.best.candidate
    yield from weight_correction(search)
    yield base.changed(
        "bias-correction-all",
        "biases corrected for rounded weights and activations",
        put(_CORRECT_ALL),
    )


def grids(search: Search) -> Iterator[Candidate]:
    """Finer grids, where the plan leaves them open."""
    base, asked = search.best.candidate, search.best.candidate.plan.quantization
    # Without a hardware configuration these two are the default.
    if asked.hardware_config and not asked.weight_granularity:
        finer = pb.QuantizationConfig(weight_granularity=pb.GRANULARITY_PER_CHANNEL)
        yield base.changed("per-channel", "a scale for each channel", quantize(finer))
    if asked.hardware_config and not asked.activation_symmetry:
        finer = pb.QuantizationConfig(activation_symmetry=pb.SYMMETRY_ASYMMETRIC)
        yield base.changed("asymmetric", "asymmetric activations", quantize(finer))


def mean_ranges(search: Search) -> Iterator[Candidate]:
    """Ranges of activations averaged over samples."""
    base = search.best.candidate
    for reach in (0.2, 0.5):
        calibrate = pb.Calibrate(scheme=pb.RANGE_SCHEME_MEAN_MIN_MAX, reach=reach)
        yield base.changed(
            f"mean-ranges-{reach:g}",
            f"ranges averaged over samples, widened by {reach:g} of the way to the extremes",
            put(pb.Step(calibrate=calibrate)),
        )


def channels(search: Search) -> Iterator[Candidate]:
    """Channels of activations matched, so that one grid serves all of them."""
    base = search.best.candidate
    for strength in (0.5, 0.3):
        step = pb.Step(activation_equalization=pb.ActivationEqualization(strength=strength))
        yield base.changed(
            f"equal-channels-{strength:g}",
            f"channels of activations equalized with strength {strength:g}",
            put(step),
        )


def ranges(search: Search) -> Iterator[Candidate]:
    """Ranges chosen by another scheme."""
    base = search.best.candidate
    for label, description, calibrate in RANGES:
        yield base.changed(label, description, put(pb.Step(calibrate=calibrate)))


def placement(search: Search) -> Iterator[Candidate]:
    """Operators without multiplications left in float, where each gains much alone."""
    with search.inspect() as (context, model):
        found = [(op, gain) for op, gain in relief(context, model) if gain >= _WORTH_DB]
    for op, gain in sorted(found, key=lambda item: -item[1]):
        search.say(f"The outputs of {op} alone cost {gain:.1f} dB.")
        left = pb.LayerOverride(select=pb.LayerSelector(op_types=[op]), leave_float=True)
        change = quantize(pb.QuantizationConfig(overrides=[left]))
        yield search.best.candidate.changed(f"float-{op.lower()}", f"{op} left in float", change)
    if not found:
        search.say("No type of operator loses much by itself: all stay quantized.")


def rounding(search: Search) -> Iterator[Candidate]:
    """Weights rounded by the error of each layer's output, where weights still matter."""
    with search.inspect() as (context, model):
        share = diagnose(context, model).weights_share
    if share < _WEIGHTS_MATTER:
        search.say(
            f"Weights make {share:.0%} of the noise that is left: rounding them better is not "
            "worth its time."
        )
        return
    base = search.best.candidate
    yield base.changed(
        "seq-mse",
        "scales of weights chosen by the error of each layer",
        put(pb.Step(sequential_mse=pb.SequentialMse())),
    )
    iterations = _affordable_iterations(search)
    if iterations:
        yield search.best.candidate.changed(
            "ada-round",
            "learnt rounding of weights",
            put(pb.Step(ada_round=pb.AdaRound(iterations=iterations))),
        )


def batch_norms(search: Search) -> Iterator[Candidate]:
    """Statistics of batch norms measured anew in the quantized model."""
    if search.best.candidate.plan.quantization.weight_granularity == pb.GRANULARITY_PER_TENSOR:
        return
    yield search.best.candidate.changed(
        "batch-norms",
        "batch norms measured anew",
        put(pb.Step(reestimate_batch_norms=pb.ReestimateBatchNorms())),
    )


def widths(search: Search) -> Iterator[Candidate]:
    """The most sensitive layers made wider, as far as the goal allows."""
    most = search.limit_bops_ratio
    base = search.best.candidate
    for ratio in (1 + (most - 1) * share for share in (0.25, 0.5, 1.0) if most > 1):
        yield base.changed(
            f"mixed-{ratio:.3g}",
            f"wider types for at most {ratio:.3g} times the bit operations",
            put(pb.Step(mixed_precision=pb.MixedPrecision(max_bops_ratio=ratio))),
        )


def _affordable_iterations(search: Search) -> int:
    """Return how many steps AdaRound may take in the time left; 0 where too few."""
    wanted = with_defaults(pb.AdaRound()).iterations
    with search.inspect() as (context, model):
        quantized = model.quantized_model()
        names = [layer.name for layer in quantized.layers()]
        one = estimate(quantized, names, Schedule(1, 0.01, 0.2, 20.0, 2.0), context.check).total
    iterations = min(int(_ROUNDING_TIME * search.seconds_left / max(one, 1e-9)), wanted)
    if iterations < _LEAST_ITERATIONS:
        search.say(
            f"AdaRound would take {one * _LEAST_ITERATIONS:.0f} s for {_LEAST_ITERATIONS} steps a "
            "layer, too much for the time that is left."
        )
        return 0
    return iterations


def _equalize(*, replace_relu6: bool = False) -> pb.Step:
    return pb.Step(cross_layer_equalization=pb.CrossLayerEqualization(replace_relu6=replace_relu6))


# Label, description, parameters.
RANGES: Final = (
    (
        "sqnr-ranges",
        "ranges of the highest SQNR",
        pb.Calibrate(scheme=pb.RANGE_SCHEME_SQNR),
    ),
    *(
        (
            f"percentile-{percentile:g}",
            f"ranges that cover {percentile:g} % of the values",
            pb.Calibrate(scheme=pb.RANGE_SCHEME_PERCENTILE, percentile=percentile),
        )
        for percentile in (99.99, 99.9)
    ),
)

# Ranges are compared with biases corrected for weights, as a scheme moves means less than weights
# do. Correction for activations comes last: it is worth what the ranges leave to it.
FIRST: Final[tuple[tuple[str, Decision], ...]] = (
    ("Bias correction for weights", weight_correction),
)
WEIGHTS: Final[tuple[tuple[str, Decision], ...]] = (
    ("Equalization", equalization),
    ("Grids", grids),
)
ACTIVATIONS: Final[tuple[tuple[str, Decision], ...]] = (
    ("Averaged ranges", mean_ranges),
    ("Channels of activations", channels),
    ("Other ranges", ranges),
    ("Placement", placement),
)
LAST: Final[tuple[tuple[str, Decision], ...]] = (
    ("Rounding of weights", rounding),
    ("Bias correction", bias_correction),
    ("Batch norms", batch_norms),
    ("Wider types", widths),
)

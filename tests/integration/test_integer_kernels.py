"""ONNX Runtime's kernels for 8-bit weights on other CPUs: against integer arithmetic, and against
what the proof says of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from lighten import v1 as pb
from lighten_service.worker.integers.proof import prove_model
from lighten_service.worker.integers.twin import unsigned_twin
from tests.support import kernel_forms as kf
from tests.support.emulation.cpu import Cpu

PROVEN = (pb.INTEGER_VERDICT_BOUNDED, pb.INTEGER_VERDICT_EXACT_IN_RUNTIME)
PAIRED = {form.name for form in kf.FORMS if form.pairs}
ROUNDS_ON_X86, ROUNDS_ON_ARM = 8, 2

# Integers of a form: its data or its weight.
Make = Callable[[kf.Form, np.random.Generator], kf.Integers]


@dataclass(frozen=True)
class Outcome:
    """What a CPU made of a model of many forms, and what the proof says of it.

    ``wrong``: channels with other numbers than integer arithmetic's, by form.
    """

    case: kf.Case
    wrong: dict[str, list[int]]
    proof: pb.IntegerProof

    def unproven(self, side: str) -> dict[str, pb.UnprovenWeight]:
        """Return the weights that are not proven for ``x86`` or ``arm``, by form."""
        return {
            weight.layer.partition(".")[0]: weight
            for weight in self.proof.details
            if getattr(weight, side) not in PROVEN
        }


def case(
    weights: Make,
    codes: Make = kf.any_codes,
    forms: Iterable[kf.Form] = kf.FORMS,
    seed: int = 0,
) -> kf.Case:
    rng = np.random.default_rng(seed)
    return kf.case_of([kf.Layer(form, codes(form, rng), weights(form, rng)) for form in forms])


def twin(signed: kf.Case) -> kf.Case:
    """Return the case in which weights are stored as unsigned integers: the same must come out."""
    return replace(signed, model=unsigned_twin(signed.model))


def outcomes(cpu: Cpu, cases: dict[str, kf.Case], folder: Path) -> dict[str, Outcome]:
    """Run all cases in one process."""
    found = cpu.run({name: (each.model, each.feeds) for name, each in cases.items()}, folder)
    return {
        name: Outcome(each, kf.wrong(each, found[name]), prove_model(each.model))
        for name, each in cases.items()
    }


@pytest.fixture(scope="module")
def on_x86(x86_without_vnni: Cpu, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    unbounded = case(kf.any_weight)
    cases = {
        "bounded": case(kf.bounded_weight),
        "over": case(kf.with_pair_over),
        "unbounded": unbounded,
        "twin": twin(unbounded),
    }
    return outcomes(x86_without_vnni, cases, tmp_path_factory.mktemp("x86"))


def test_weights_at_the_bound_are_exact(on_x86: dict[str, Outcome]) -> None:
    bounded = on_x86["bounded"]

    assert bounded.proof.unproven == 0
    assert {bounded.proof.x86, bounded.proof.arm} <= {*PROVEN}
    assert bounded.wrong == {}


def test_one_pair_beyond_the_bound_saturates_where_the_proof_says(
    on_x86: dict[str, Outcome],
) -> None:
    over = on_x86["over"]
    unproven = over.unproven("x86")

    assert over.wrong.keys() == unproven.keys() == PAIRED
    assert {name: list(weight.channels) for name, weight in unproven.items()} == over.wrong
    assert {weight.largest_pair for weight in unproven.values()} == {kf.PAIR_LIMIT + 1}
    assert {weight.x86 for weight in unproven.values()} == {pb.INTEGER_VERDICT_SATURATES}


def test_unsigned_twins_are_exact_whatever_the_weights(on_x86: dict[str, Outcome]) -> None:
    assert on_x86["unbounded"].wrong.keys() == on_x86["unbounded"].unproven("x86").keys() == PAIRED
    assert on_x86["twin"].proof.unproven == 0
    assert on_x86["twin"].wrong == {}


@pytest.mark.slow
def test_random_sizes_at_the_bound_and_beyond(x86_without_vnni: Cpu, tmp_path: Path) -> None:
    cases = {}
    for seed in range(ROUNDS_ON_X86):
        forms = varied(seed)
        cases[f"bounded-{seed}"] = case(kf.bounded_weight, forms=shifted(forms, seed), seed=seed)
        cases[f"over-{seed}"] = case(kf.with_pair_over, forms=forms, seed=seed)
        cases[f"twin-{seed}"] = twin(case(kf.any_weight, forms=shifted(forms, seed), seed=seed))
    found = outcomes(x86_without_vnni, cases, tmp_path)

    for name, outcome in found.items():
        unproven = outcome.unproven("x86")
        paired = {form.name for form in outcome.case.forms if form.pairs}
        assert unproven.keys() == (paired if name.startswith("over") else set()), name
        saturating = {form: list(weight.channels) for form, weight in unproven.items()}
        assert outcome.wrong == saturating, name


def varied(seed: int) -> list[kf.Form]:
    rng = np.random.default_rng(seed)
    return [kf.varied(form, rng) for form in kf.FORMS]


def shifted(forms: Iterable[kf.Form], seed: int) -> list[kf.Form]:
    """Return the forms with other zero points of their data."""
    zeros = np.random.default_rng(seed).choice((0, 77, 128, 255), len(kf.FORMS)).tolist()
    return [
        replace(form, grid=replace(form.grid, zero_point=zero))
        for form, zero in zip(forms, zeros, strict=True)
    ]


@pytest.fixture(scope="module")
def on_arm(arm_cpu: Cpu, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    lowest = case(kf.lowest_weight, kf.lowest_codes)
    cases = {"lowest": lowest, "twin": twin(lowest), "bounded": case(kf.bounded_weight)}
    within = partial(kf.any_weight, lowest=-127)
    for seed in range(ROUNDS_ON_ARM):
        forms = shifted(varied(seed), seed)
        cases[f"within-{seed}"] = case(within, forms=forms, seed=seed)
        cases[f"ends-{seed}"] = case(kf.ends_weight, kf.lowest_codes, forms, seed)
    return outcomes(arm_cpu, cases, tmp_path_factory.mktemp("arm"))


@pytest.mark.slow
def test_arm_is_exact_without_the_lowest_integer(on_arm: dict[str, Outcome]) -> None:
    exact = {name: outcome for name, outcome in on_arm.items() if name != "lowest"}

    assert {name: outcome.wrong for name, outcome in exact.items()} == {name: {} for name in exact}
    assert {name: outcome.unproven("arm") for name, outcome in exact.items()} == {
        name: {} for name in exact
    }


@pytest.mark.slow
def test_arm_overflows_on_the_lowest_integer_where_the_proof_says(
    arm_cpu: Cpu, on_arm: dict[str, Outcome]
) -> None:
    lowest = on_arm["lowest"]

    assert lowest.wrong.keys() >= {"depthwise_many", "depthwise_1d"}
    assert ("conv_2d" in lowest.wrong) is not arm_cpu.facts.dot_product
    assert lowest.wrong.keys() <= lowest.unproven("arm").keys()

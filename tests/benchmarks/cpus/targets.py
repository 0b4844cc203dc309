"""What pair-safe files shall keep to, over all models."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from tests.benchmarks.cpus.files import FULL, PLAIN, RUNTIME_SAFE, SAFE, SEVEN, File
from tests.benchmarks.cpus.judged import Estimate, mcnemar
from tests.benchmarks.cpus.measuring import Result
from tests.benchmarks.cpus.table import Rows

MEAN_DB, WORST_DB = 0.0, -1.6
SIGNIFICANT = 0.05
TIME_RATIO = 1.02

_COMPARED = {PLAIN, SEVEN, RUNTIME_SAFE, FULL, SAFE}

Models = Mapping[str, tuple[Result, Rows]]


def print_targets(models: Models) -> None:
    """Print each target and what was found, over the models that have all files."""
    whole = {name: one for name, one in models.items() if one[1].keys() >= _COMPARED}
    if not whole:
        print("\ntargets: no model has all files")
        return
    print("\nTargets:\n")
    for file, plain in ((SAFE, FULL), (RUNTIME_SAFE, PLAIN)):
        _twin(whole, file)
        _above_seven(whole, file)
        _time(whole, file, plain)
    _full_range(whole)
    _agreement(whole)


def _twin(models: Models, file: File) -> None:
    found = {name: rows[file].as_twin() for name, (_, rows) in models.items()}
    wrong = [f"{name} {counts}" for name, counts in found.items() if counts != "all, all"]
    _say(f"{file.title}: bit for bit its twin on every model", not wrong, wrong)


def _above_seven(models: Models, file: File) -> None:
    found = _differences(models, file, SEVEN)
    wrong = [_signed(name, by) for name, by in found.items() if by.value <= 0]
    _say(f"{file.title}: more dB than 7 bits on every model", not wrong, wrong)


def _full_range(models: Models) -> None:
    found = _differences(models, SAFE, FULL)
    values = [by.value for by in found.values()]
    average, worst = mean(values), min(values)
    error = math.hypot(*(by.error for by in found.values())) / len(found)
    sentence = (
        f"{SAFE.title} less full range in exact arithmetic: mean {average:+.2f} ± {error:.2f} dB "
        f"(target {MEAN_DB}), worst {worst:+.2f} ({WORST_DB})"
    )
    _say(
        sentence,
        average >= MEAN_DB and worst >= WORST_DB,
        [_signed(name, by) for name, by in found.items()],
    )


def _differences(models: Models, one: File, other: File) -> dict[str, Estimate]:
    """Return by how many dB one file is better than the other on each model."""
    return {
        name: rows[one].exact.sqnr_over(rows[other].exact) for name, (_, rows) in models.items()
    }


def _signed(name: str, by: Estimate) -> str:
    return f"{name} {by.value:+.2f} ± {by.error:.2f} dB"


def _agreement(models: Models) -> None:
    wrong, shown = [], []
    for name, (result, rows) in models.items():
        if not result.model.scores:
            continue
        safe, full = rows[SAFE].exact, rows[FULL].exact
        chance = mcnemar(safe, full)
        lower = safe.agreement().value - full.agreement().value
        shown.append(f"{name} {lower:+.3f} (p {chance:.2f})")
        wrong += [name] if lower < 0 and chance < SIGNIFICANT else []
    sentence = f"{SAFE.title}: agreement not significantly below full range (McNemar)"
    _say(sentence, not wrong, shown)


def _time(models: Models, file: File, plain: File) -> None:
    found = {name: rows[file].time_ratio(plain.path) for name, (_, rows) in models.items()}
    worst = max(found.values())
    sentence = f"{file.title}: CPU time ÷ {plain.title}: at most {worst:.3f} (target {TIME_RATIO})"
    _say(sentence, worst <= TIME_RATIO, [f"{name} {ratio:.3f}" for name, ratio in found.items()])


def _say(sentence: str, met: bool, details: Sequence[str]) -> None:
    verdict = "met" if met else "**missed**"
    print(f"- {sentence}: {'; '.join([verdict, *details])}")

"""SQNR and percentile ranges of weights: AIMET's own, found with one search."""

from pathlib import Path

import pytest
import torch

from lighten import v1 as pb
from lighten_service.jobs.resolve import with_defaults

pytest.importorskip("aimet_torch")

from aimet_torch.quantsim import QuantizationSimModel

from lighten_service.worker.context import Cancelled
from lighten_service.worker.engines import torch_simulation
from lighten_service.worker.engines.torch_operators import operators
from lighten_service.worker.engines.torch_prepare import prepare
from tests.support.small_models import SmallNet, batches

DATA = [(torch.from_numpy(batch["input"]),) for batch in batches(count=2)]
EXAMPLE = (DATA[0][0][:1],)
SCHEMES = [pb.RANGE_SCHEME_SQNR, pb.RANGE_SCHEME_PERCENTILE]
CHANNEL, TENSOR = pb.GRANULARITY_PER_CHANNEL, pb.GRANULARITY_PER_TENSOR


def simulation(
    scratch: Path, scheme: pb.RangeScheme.ValueType, **quantization: object
) -> QuantizationSimModel:
    module = prepare(SmallNet(), EXAMPLE)
    return torch_simulation.simulate(
        module,
        operators(module, EXAMPLE, ["input"]),
        EXAMPLE,
        pb.QuantizationConfig(**quantization),
        with_defaults(pb.Calibrate(scheme=scheme)),
        scratch,
    )


def ranges(sim: QuantizationSimModel) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{end}": getattr(quantizer, f"get_{end}")()
        for name, quantizer in sim.named_quantizers()
        for end in ("min", "max")
    }


@pytest.mark.parametrize("granularity", [CHANNEL, TENSOR])
@pytest.mark.parametrize("symmetry", [pb.SYMMETRY_SYMMETRIC, pb.SYMMETRY_ASYMMETRIC])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranges_are_aimets_bit_for_bit(
    tmp_path: Path,
    scheme: pb.RangeScheme.ValueType,
    symmetry: pb.Symmetry.ValueType,
    granularity: pb.Granularity.ValueType,
) -> None:
    options = {"weight_symmetry": symmetry, "weight_granularity": granularity}
    plain, ours = (simulation(tmp_path, scheme, **options) for _ in range(2))

    plain.compute_encodings(lambda model: [model(*inputs) for inputs in DATA])
    torch_simulation.calibrate(ours, lambda: DATA, lambda done: None)

    expected, found = ranges(plain), ranges(ours)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_weight_is_searched_once(tmp_path: Path, scheme: pb.RangeScheme.ValueType) -> None:
    sim = simulation(tmp_path, scheme)
    calls: list[int] = []

    torch_simulation.calibrate(sim, lambda: DATA, calls.append)

    weights = torch_simulation.count_quantizers(sim)["weight_quantizers"]
    assert calls == [0] * int(weights) + [1, 2]


def test_the_search_can_be_stopped(tmp_path: Path) -> None:
    sim = simulation(tmp_path, pb.RANGE_SCHEME_SQNR)
    calls: list[int] = []

    def stop_at_the_second(done: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        torch_simulation.calibrate(sim, lambda: DATA, stop_at_the_second)
    assert calls == [0, 0]

"""A model that is saved after any step and brought back goes on as if nothing had happened."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lighten import v1 as pb
from lighten_service.worker.checkpoints.reading import Facts, InvalidStepResult
from lighten_service.worker.checkpoints.tensors import load_tensors, save_tensors
from lighten_service.worker.graphs import save as graph_files
from lighten_service.worker.model import WorkingModel
from tests.support.branches_net import BranchesNet
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.models import convnet
from tests.support.technique_kit import CHANNEL, ENGINES, Bench, InMemory, open_engine

Step = Mapping[str, object]

CALIBRATE: Step = {"calibrate": pb.Calibrate(scheme=pb.RANGE_SCHEME_SQNR)}
CORRECT: Step = {"bias_correction": pb.BiasCorrection(max_samples=8)}
# Every technique, in an order in which each has something to change.
STEPS: list[Step] = [
    {"fold_batch_norms": pb.FoldBatchNorms()},
    {"cross_layer_equalization": pb.CrossLayerEqualization(replace_relu6=True)},
    {"activation_equalization": pb.ActivationEqualization(max_samples=8)},
    CALIBRATE,
    {"analyze_sensitivity": pb.AnalyzeSensitivity(max_samples=8)},
    {"mixed_precision": pb.MixedPrecision(max_bops_ratio=1.5, max_samples=8)},
    {"sequential_mse": pb.SequentialMse(max_samples=8)},
    {"ada_round": pb.AdaRound(iterations=20, max_samples=8)},
    CORRECT,
    {"reestimate_batch_norms": pb.ReestimateBatchNorms(max_samples=8)},
]


class Saved:
    """The state of a model, and what it predicted then."""

    def __init__(self, model: WorkingModel, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.facts: Facts = json.loads(json.dumps(model.save_state(folder)))
        self.outputs = predicted(model)

    def restore(self, model: WorkingModel) -> None:
        model.load_state(self.folder, self.facts)

    def assert_equal(self, other: "Saved") -> None:
        assert self.facts == other.facts
        for name, values in self.outputs.items():
            np.testing.assert_array_equal(values, other.outputs[name])
        files = sorted(path.name for path in self.folder.iterdir())
        assert files == sorted(path.name for path in other.folder.iterdir())
        for name in files:
            assert (self.folder / name).read_bytes() == (other.folder / name).read_bytes()


def predicted(model: WorkingModel) -> dict[str, np.ndarray]:
    return model.predict(pictures(1, seed=7)[0])


def exported(model: WorkingModel, folder: Path) -> list[bytes]:
    files = [folder / name for name in ("model.onnx", "model.encodings", "model.qdq.onnx")]
    model.export_float(files[0])
    model.export_encodings(files[1], pb.ENCODINGS_VERSION_2_0_0)
    model.export_qdq(files[2])
    return [file.read_bytes() for file in files]


def bench_of(
    engine: str, module: torch.nn.Module, scratch: Path, quantization: pb.QuantizationConfig
) -> Bench:
    scratch.mkdir()
    data = InMemory(pictures(1)), InMemory(pictures(1, seed=1))
    return Bench(open_engine(engine, module, scratch), *data, scratch, quantization)


@pytest.mark.parametrize("engine", ENGINES)
def test_after_every_technique(engine: str, tmp_path: Path) -> None:
    quantization = pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4)
    quantization.MergeFrom(CHANNEL)

    def open_bench(name: str) -> Bench:
        return bench_of(engine, DepthwiseNet(relu6=True), tmp_path / name, quantization)

    whole, states = open_bench("whole"), []
    for number, step in enumerate(STEPS):
        whole.run(**step)
        states.append(Saved(whole.model, tmp_path / f"state{number}"))
    expected = exported(whole.model, tmp_path / "whole")

    for number, (before, after) in enumerate(zip(states, [*states[1:], None], strict=True)):
        resumed = open_bench(f"resumed{number}")
        before.restore(resumed.model)
        before.assert_equal(Saved(resumed.model, tmp_path / f"again{number}"))
        if after is None:
            assert exported(resumed.model, tmp_path / f"resumed{number}") == expected
        else:
            resumed.run(**STEPS[number + 1])
            after.assert_equal(Saved(resumed.model, tmp_path / f"next{number}"))


def blocks(granularity: pb.Granularity.ValueType) -> pb.QuantizationConfig:
    convolutions = pb.LayerSelector(op_types=["Conv", "ConvTranspose"])
    wider = pb.LayerOverride(select=convolutions, weights=pb.DATA_TYPE_INT8)
    return pb.QuantizationConfig(
        weights=pb.DATA_TYPE_INT4, weight_granularity=granularity, block_size=8, overrides=[wider]
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("quantization", "calibrate"),
    [
        (
            pb.QuantizationConfig(weight_granularity=pb.GRANULARITY_PER_TENSOR),
            pb.Calibrate(scheme=pb.RANGE_SCHEME_MEAN_MIN_MAX, reach=0.2),
        ),
        pytest.param(
            pb.QuantizationConfig(weight_symmetry=pb.SYMMETRY_ASYMMETRIC),
            pb.Calibrate(scheme=pb.RANGE_SCHEME_PERCENTILE, percentile=99.9),
            marks=pytest.mark.slow,
        ),
        (pb.QuantizationConfig(activations=pb.DATA_TYPE_FLOAT16), pb.Calibrate()),
        pytest.param(
            pb.QuantizationConfig(activations=pb.DATA_TYPE_INT16),
            pb.Calibrate(),
            marks=pytest.mark.slow,
        ),
        pytest.param(blocks(pb.GRANULARITY_BLOCKWISE), pb.Calibrate(), marks=pytest.mark.slow),
        (blocks(pb.GRANULARITY_LOW_POWER_BLOCKWISE), pb.Calibrate()),
    ],
    ids=["mean-ranges", "asymmetric", "half", "int16", "blocks", "low-power-blocks"],
)
def test_with_every_kind_of_quantizer(
    engine: str, quantization: pb.QuantizationConfig, calibrate: pb.Calibrate, tmp_path: Path
) -> None:
    whole = bench_of(engine, BranchesNet(), tmp_path / "whole", quantization)
    whole.run(calibrate=calibrate)
    calibrated = Saved(whole.model, tmp_path / "calibrated")
    whole.run(**CORRECT)
    corrected = Saved(whole.model, tmp_path / "corrected")

    resumed = bench_of(engine, BranchesNet(), tmp_path / "resumed", quantization)
    calibrated.restore(resumed.model)
    calibrated.assert_equal(Saved(resumed.model, tmp_path / "again"))
    resumed.run(**CORRECT)
    corrected.assert_equal(Saved(resumed.model, tmp_path / "corrected-again"))
    assert exported(resumed.model, tmp_path / "resumed") == exported(
        whole.model, tmp_path / "whole"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_of_another_model_is_refused(engine: str, tmp_path: Path) -> None:
    one = bench_of(engine, DepthwiseNet(), tmp_path / "one", CHANNEL)
    one.run(**CALIBRATE)
    saved = Saved(one.model, tmp_path / "state")
    other = bench_of(engine, BranchesNet(), tmp_path / "other", CHANNEL)
    if engine == "torch":
        with pytest.raises(InvalidStepResult, match="the list of modules"):
            saved.restore(other.model)
    else:
        onnx.save(convnet(), saved.folder / "model.onnx")
        with pytest.raises(InvalidStepResult, match="inputs and outputs"):
            saved.restore(other.model)


@pytest.mark.parametrize("engine", ENGINES)
def test_damaged_files_are_refused(engine: str, tmp_path: Path) -> None:
    bench = bench_of(engine, DepthwiseNet(), tmp_path / "bench", CHANNEL)
    saved = Saved(bench.model, tmp_path / "state")
    for file in saved.folder.iterdir():
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(InvalidStepResult, match=file.name):
            saved.restore(bench.model)
        file.write_bytes(content)
    saved.restore(bench.model)


def test_a_simulation_with_a_quantizer_too_few_is_refused(tmp_path: Path) -> None:
    bench = bench_of("onnx", DepthwiseNet(), tmp_path / "bench", CHANNEL)
    bench.run(**CALIBRATE)
    saved = Saved(bench.model, tmp_path / "state")
    saved.facts["simulation"]["quantizers"].popitem()
    other = bench_of("onnx", DepthwiseNet(), tmp_path / "other", CHANNEL)
    with pytest.raises(InvalidStepResult, match=r"without a quantizer|list of quantizers"):
        saved.restore(other.model)


def test_tensors_keep_their_bits_and_their_layout(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4) / 7
    tensors = {
        "transposed": base.transpose(0, 2),
        "part": base[1],
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "none": torch.empty(0, 3),
        "whole": torch.tensor([2**53 + 1]),
    }
    save_tensors(tensors, tmp_path / "tensors")
    found = load_tensors(tmp_path / "tensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride())


def test_a_graph_too_large_for_one_file_keeps_every_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_files, "_INLINE_LIMIT", 1024)
    model = convnet()
    graph_files.save_exact(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").exists()
    assert graph_files.load_exact(tmp_path / "model.onnx") == model

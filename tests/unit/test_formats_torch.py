"""Architectures and weights from files that callers send."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.formats.architecture import load_architecture_model

NAME = "squeezenet1_1"
CLASSES = 7


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.get_model(NAME, weights=None, num_classes=CLASSES).state_dict()


def source(
    model_format: pb.ModelFormat.ValueType = pb.MODEL_FORMAT_STATE_DICT,
    name: str = NAME,
    library: pb.ArchitectureLibrary.ValueType = pb.ARCHITECTURE_LIBRARY_TORCHVISION,
    classes: int = CLASSES,
) -> pb.ModelSource:
    architecture = pb.Architecture(library=library, name=name, num_classes=classes)
    return pb.ModelSource(format=model_format, architecture=architecture)


def load(path: Path, model: pb.ModelSource | None = None) -> nn.Module:
    return load_architecture_model(model or source(), path, seed=0)


def refused(path: Path, reason: str = "INVALID_MODEL", model: pb.ModelSource | None = None) -> str:
    with pytest.raises(InvalidArgument) as caught:
        load(path, model)
    assert caught.value.reason == reason
    assert caught.value.kind == pb.ERROR_KIND_USER
    return f"{caught.value.field}: {caught.value.message}"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_loads_in_both_formats_of_torch(
    tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)

    module = load(tmp_path / "w.pth")

    assert not module.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_safetensors_in_half_precision_become_float32(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "folder").mkdir()
    half = {name: value.half() for name, value in state.items()}
    save_file(half, tmp_path / "folder" / "w.safetensors")

    module = load(tmp_path / "folder", source(pb.MODEL_FORMAT_SAFETENSORS))

    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}


def test_common_wrappers_are_taken_off(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": v for name, v in state.items()}}
    torch.save(wrapped, tmp_path / "w.pt")

    module = load(tmp_path / "w.pt")

    assert torch.equal(next(iter(module.state_dict().values())), next(iter(state.values())))


def test_a_timm_model_takes_its_channels(tmp_path: Path) -> None:
    import timm

    weights = timm.create_model("mobilenetv3_small_050", num_classes=3, in_chans=1).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    model = source(
        pb.MODEL_FORMAT_SAFETENSORS,
        "mobilenetv3_small_050.lamb_in1k",
        pb.ARCHITECTURE_LIBRARY_TIMM,
        3,
    )
    model.architecture.in_channels = 1

    module = load(tmp_path / "w.safetensors", model)

    assert module(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "library", "hint"),
    [
        ("mobilnet_v2", pb.ARCHITECTURE_LIBRARY_TORCHVISION, "mobilenet_v2"),
        ("fasterrcnn_resnet50_fpn", pb.ARCHITECTURE_LIBRARY_TORCHVISION, "no model"),
        ("resnet8", pb.ARCHITECTURE_LIBRARY_TIMM, "resnet18"),
        ("hf-hub:timm/resnet18", pb.ARCHITECTURE_LIBRARY_TIMM, "names a source"),
        ("local-dir:/etc", pb.ARCHITECTURE_LIBRARY_TIMM, "names a source"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(
    tmp_path: Path, name: str, library: pb.ArchitectureLibrary.ValueType, hint: str
) -> None:
    message = refused(tmp_path, "UNKNOWN_ARCHITECTURE", source(name=name, library=library))

    assert message.startswith("model.architecture.name: ")
    assert hint in message


def test_a_pickled_module_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")

    assert "pickle" in refused(tmp_path / "w.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "w.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"weight": Payload()}, tmp_path / "v.pt")

    assert "save model.state_dict()" in refused(tmp_path / "w.pt")
    assert "pickle" in refused(tmp_path / "v.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))

    assert "TorchScript" in refused(tmp_path / "w.pt")


def test_an_exported_program_is_refused(tmp_path: Path) -> None:
    torch.export.save(
        torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "w.pt2"
    )

    assert "ExportedProgram" in refused(tmp_path / "w.pt2")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5])
@pytest.mark.parametrize("model_format", [pb.MODEL_FORMAT_STATE_DICT, pb.MODEL_FORMAT_SAFETENSORS])
def test_truncated_files_are_refused(
    tmp_path: Path,
    state: dict[str, torch.Tensor],
    model_format: pb.ModelFormat.ValueType,
    keep: float,
) -> None:
    path = tmp_path / "w"
    if model_format == pb.MODEL_FORMAT_SAFETENSORS:
        save_file(state, path)
    else:
        torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])

    assert refused(path, model=source(model_format)).startswith("model.artifact: ")


def test_members_that_grow_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({name: torch.zeros_like(value) for name, value in state.items()}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as original,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in original.infolist():
            bomb.writestr(member.filename, original.read(member), zipfile.ZIP_DEFLATED)

    assert "compressed" in refused(tmp_path / "b.pt")


def test_a_tensor_larger_than_its_storage_is_refused(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    huge = {**state, "classifier.1.weight": torch.zeros(1).expand(10**9, 10**3, 1, 1)}
    torch.save(huge, tmp_path / "w.pt")

    assert "1000000000" in refused(tmp_path / "w.pt", "WEIGHTS_MISMATCH")


def test_mismatches_are_listed(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    changed = {**state, "extra.weight": torch.zeros(1)}
    del changed["features.0.bias"]
    torch.save(changed, tmp_path / "w.pt")

    message = refused(tmp_path / "w.pt", "WEIGHTS_MISMATCH", source(classes=9))

    for part in (
        "missing: features.0.bias",
        "unexpected: extra.weight",
        "classifier.1.weight is (7, 512, 1, 1), not (9, 512, 1, 1)",
        "num_classes",
    ):
        assert part in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named(
    tmp_path: Path, state: dict[str, torch.Tensor], value: float
) -> None:
    bias = state["features.0.bias"].clone()
    bias[3] = value
    torch.save({**state, "features.0.bias": bias}, tmp_path / "w.pt")

    assert "features.0.bias" in refused(tmp_path / "w.pt", "NON_FINITE_WEIGHTS")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({}, "no tensors"),
        ({"weight": torch.zeros(1), "lr": 0.1}, "lr"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
    ],
)
def test_files_that_hold_something_else_are_refused(
    tmp_path: Path, content: object, word: str
) -> None:
    torch.save(content, tmp_path / "w.pt")

    assert word in refused(tmp_path / "w.pt")


def test_types_that_are_no_weights_are_refused(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    bias = state["features.0.bias"]
    torch.save({**state, "features.0.bias": bias.to(torch.int32)}, tmp_path / "w.pt")
    assert "int32" in refused(tmp_path / "w.pt")

    torch.save({**state, "features.0.bias": bias.to_sparse()}, tmp_path / "w.pt")
    assert "no plain tensor" in refused(tmp_path / "w.pt")


def test_a_folder_must_hold_one_file(tmp_path: Path) -> None:
    assert "found none" in refused(tmp_path)

    (tmp_path / "a.pt").touch()
    (tmp_path / "b.pth").touch()
    assert "found a.pt, b.pth" in refused(tmp_path)

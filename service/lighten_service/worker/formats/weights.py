"""Weights from safetensors and PyTorch state_dict files, without executing what is in them."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument

Weights = dict[str, torch.Tensor]

_FIELD: Final = "model.artifact"
_SUFFIXES: Final = {
    pb.MODEL_FORMAT_SAFETENSORS: (".safetensors",),
    pb.MODEL_FORMAT_STATE_DICT: (".pt", ".pth", ".bin", ".ckpt", ".th"),
}
# Keys under which training scripts put the state_dict beside optimizer state and counters.
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net", "module")
# DataParallel and torch.compile put these before every name.
_PREFIXES: Final = ("module.", "_orig_mod.")
_FLOATS: Final = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
# What the restricted unpickler raises on files that are damaged or hold more than tensors.
_LOAD_ERRORS: Final = (
    pickle.PickleError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_LISTED: Final = 10


def load_weights(artifact: Path, model_format: pb.ModelFormat.ValueType) -> Weights:
    """Read all tensors of a file, or of the one such file in a folder.

    Raises:
        InvalidArgument: INVALID_MODEL.
    """
    path = _single_file(artifact, model_format)
    if path.stat().st_size == 0:
        raise _invalid(f"{path.name} is empty")
    if model_format == pb.MODEL_FORMAT_SAFETENSORS:
        return _strip_prefix(_read_safetensors(path))
    return _strip_prefix(_read_state_dict(path))


def match_weights(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> Weights:
    """Return the weights in the types of the model, after checking names and shapes.

    Shapes come first: a crafted tensor can claim any size over a storage of a few bytes.

    Raises:
        InvalidArgument: WEIGHTS_MISMATCH, or INVALID_MODEL for types that cannot be weights.
    """
    # Counters of training steps, absent in old files and without any use in inference.
    optional = {name for name in expected if name.endswith(".num_batches_tracked")}
    missing = [name for name in expected if name not in weights and name not in optional]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{title}: {_first(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes))
        if names
    ]
    if problems:
        raise InvalidArgument(
            "WEIGHTS_MISMATCH",
            f"the weights do not fit the architecture; {'; '.join(problems)}. Check its name and "
            "num_classes",
            field=_FIELD,
        )
    return {name: _cast(name, weights.get(name, value), value) for name, value in expected.items()}


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise InvalidArgument (NON_FINITE_WEIGHTS) when a tensor holds NaN or infinity."""
    bad = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise InvalidArgument(
            "NON_FINITE_WEIGHTS",
            f"weights hold NaN or infinity: {_first(bad)}; save a model that trained to the end",
            field=_FIELD,
        )


def _single_file(artifact: Path, model_format: pb.ModelFormat.ValueType) -> Path:
    if not artifact.is_dir():
        return artifact
    suffixes = _SUFFIXES[model_format]
    found = sorted(p for p in artifact.rglob("*") if p.is_file() and p.suffix in suffixes)
    if len(found) != 1:
        names = _first([path.name for path in found]) if found else "none"
        raise _invalid(
            f"the folder must hold one file that ends with {' or '.join(suffixes)}; found {names}"
        )
    return found[0]


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, *_LOAD_ERRORS) as error:
        raise _invalid(f"{path.name} is no readable safetensors file: {error}") from error


def _read_state_dict(path: Path) -> Weights:
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_archive(path)
    try:
        # Mapped, so that only what is used comes into memory; the old format cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        raise _invalid(
            f"{path.name} is a pickle that holds more than tensors, and loading it could execute "
            "code; save model.state_dict() instead"
        ) from error
    except _LOAD_ERRORS as error:
        raise _invalid(f"{path.name} is truncated or no PyTorch file: {_line(error)}") from error
    return _tensors(_unwrap(content), path.name)


def _check_archive(path: Path) -> None:
    """Refuse archives of other kinds, and members that grow when they are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise _invalid(f"{path.name} is damaged: {error}") from error
    names = [member.filename for member in members]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise _invalid(f"{path.name} is TorchScript, which carries code; save model.state_dict()")
    if any(_is_exported_program(name) for name in names):
        raise _invalid(
            f"{path.name} is a .pt2 ExportedProgram, and loading one can execute code; save "
            "model.state_dict(), or export ONNX"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise _invalid(f"{path.name} is a zip archive and no PyTorch file; save model.state_dict()")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _invalid(f"{path.name} is compressed, which torch.save never does; save it again")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _invalid(f"{path.name} claims more bytes than it has")


def _is_exported_program(name: str) -> bool:
    return name.endswith("archive_format") or "serialized_exported_program" in name


def _unwrap(content: object) -> object:
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            inner = content.get(key)
            if isinstance(inner, Mapping) and inner:
                return inner
    return content


def _tensors(content: object, file: str) -> Weights:
    if isinstance(content, torch.Tensor) or not isinstance(content, Mapping):
        raise _invalid(f"{file} holds a {type(content).__name__}; save model.state_dict()")
    if not content:
        raise _invalid(f"{file} holds no tensors")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise _invalid(f"{file} holds entries that are no tensors: {_first(others)}")
    return {str(name): value for name, value in content.items()}


def _strip_prefix(weights: Weights) -> Weights:
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _cast(name: str, value: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise _invalid(f"{name} is no plain tensor (sparse, quantized or without data)")
    if value.dtype == expected.dtype:
        return value
    if expected.dtype in _FLOATS and value.dtype not in _FLOATS:
        raise _invalid(f"{name} is {value.dtype}, which cannot be used as {expected.dtype}")
    return value.to(expected.dtype)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument("INVALID_MODEL", message, field=_FIELD)

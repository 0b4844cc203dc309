"""Finding and reading the files of an ONNX model without leaving their folder."""

from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from lighten_service.jobs.errors import InvalidArgument

FIELD = "model.artifact"
# The largest message that protobuf reads.
_MAX_GRAPH_BYTES = 2**31 - 1


def invalid(reason: str, message: str) -> InvalidArgument:
    """Return the error for a model that cannot be used."""
    return InvalidArgument(reason, message, field=FIELD)


def find_model_file(path: Path) -> Path:
    """Return the ``.onnx`` file that ``path`` is, or the one that it holds as a folder.

    Raises:
        InvalidArgument: MODEL_FILE_NOT_FOUND, INVALID_MODEL.
    """
    if path.is_symlink():
        raise invalid("UNSAFE_MODEL", f"{path.name} is a link; store the file itself")
    if path.is_file():
        return path
    found = sorted(path.glob("*.onnx")) if path.is_dir() else []
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise invalid(
            "MODEL_FILE_NOT_FOUND", f"the folder must hold exactly one .onnx file; found: {names}"
        )
    return find_model_file(found[0])


def read_graph(file: Path) -> onnx.ModelProto:
    """Parse the file; external data stays where it is.

    Raises:
        InvalidArgument: INVALID_MODEL.
    """
    size = file.stat().st_size
    if size == 0:
        raise invalid("INVALID_MODEL", f"{file.name} is empty")
    if size > _MAX_GRAPH_BYTES:
        raise invalid(
            "INVALID_MODEL",
            f"{file.name} has {size} bytes, more than a single ONNX file can have; "
            "store the weights as external data",
        )
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise invalid(
            "INVALID_MODEL", f"{file.name} is no ONNX model, or is cut off: {error}"
        ) from error
    if not model.graph.node:
        raise invalid("INVALID_MODEL", f"{file.name} holds no operator: it is no ONNX model")
    return model


def load_external_data(model: onnx.ModelProto, folder: Path, max_bytes: int) -> None:
    """Read external weights into the model, from files below ``folder`` alone.

    Raises:
        InvalidArgument: UNSAFE_MODEL, EXTERNAL_DATA_MISSING, MODEL_TOO_LARGE.
    """
    total = 0
    # onnx has no public way to list the tensors in attributes.
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        total += _check_location(tensor, folder)
        if total > max_bytes:
            raise invalid("MODEL_TOO_LARGE", f"the weights have more than {max_bytes} bytes")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise invalid(
                "INVALID_MODEL", f"external data of {tensor.name} cannot be read: {error}"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")


def _check_location(tensor: onnx.TensorProto, folder: Path) -> int:
    """Check where a tensor's data lie, and return their bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = PurePosixPath(entries.get("location", ""))
    unsafe = location.is_absolute() or ".." in location.parts or "\\" in str(location)
    if unsafe or not location.parts:
        raise invalid(
            "UNSAFE_MODEL",
            f"external data of {tensor.name} lie at {str(location)!r}; "
            "only paths below the model's own folder are read",
        )
    file = folder
    for part in location.parts:
        file = file / part
        if file.is_symlink():
            raise invalid("UNSAFE_MODEL", f"external data {str(location)!r} are a link")
    if not file.is_file():
        raise invalid(
            "EXTERNAL_DATA_MISSING",
            f"external data {str(location)!r} of {tensor.name} are not there; "
            "give a folder that holds the .onnx file and its data, with a URI that ends with /",
        )
    return _checked_length(tensor, entries, file)


def _checked_length(tensor: onnx.TensorProto, entries: dict[str, str], file: Path) -> int:
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > size:
        raise invalid(
            "INVALID_MODEL",
            f"external data of {tensor.name} reach beyond the {size} bytes of {file.name}",
        )
    return length

"""Models that torchvision or timm builds from a name, with weights from a file."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import torch

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.formats.weights import check_finite, load_weights, match_weights

_NAME: Final = "model.architecture.name"
# What the constructors raise on arguments that a model does not take.
_BUILD_ERRORS: Final = (AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def load_architecture_model(model: pb.ModelSource, artifact: Path, *, seed: int) -> torch.nn.Module:
    """Build the architecture and load its weights; the module is on the CPU, in eval mode.

    Args:
        model: resolved; format SAFETENSORS or STATE_DICT, with an architecture.
        artifact: the weights file, or a folder that holds one.
        seed: for buffers that a constructor initialises and a state_dict does not hold.

    Raises:
        InvalidArgument: UNKNOWN_ARCHITECTURE, INVALID_ARCHITECTURE, INVALID_MODEL (the file or
            what is in it), WEIGHTS_MISMATCH or NON_FINITE_WEIGHTS.
    """
    torch.manual_seed(seed)
    module = _build(model.architecture)
    weights = load_weights(artifact, model.format)
    matched = match_weights(weights, module.state_dict())
    check_finite(matched)
    module.load_state_dict(matched)
    return module.eval()


def _build(architecture: pb.Architecture) -> torch.nn.Module:
    try:
        if architecture.library == pb.ARCHITECTURE_LIBRARY_TORCHVISION:
            return _build_torchvision(architecture)
        if architecture.library == pb.ARCHITECTURE_LIBRARY_TIMM:
            return _build_timm(architecture)
    except _BUILD_ERRORS as error:
        raise InvalidArgument(
            "INVALID_ARCHITECTURE",
            f"{architecture.name!r} cannot be built with these arguments: {error}",
            field="model.architecture",
        ) from error
    raise InvalidArgument(
        "INVALID_ARCHITECTURE",
        "the architecture needs a library: TORCHVISION or TIMM",
        field="model.architecture.library",
    )


def _build_torchvision(architecture: pb.Architecture) -> torch.nn.Module:
    from torchvision import models

    # Of this module alone: detection and segmentation models have other outputs.
    _check_name(architecture.name, models.list_models(module=models), "torchvision")
    if architecture.HasField("in_channels"):
        raise InvalidArgument(
            "INVALID_ARCHITECTURE",
            "torchvision models take 3 channels; leave in_channels out, or use TIMM",
            field="model.architecture.in_channels",
        )
    options = {}
    if architecture.HasField("num_classes"):
        options["num_classes"] = architecture.num_classes
    if architecture.name in ("googlenet", "inception_v3"):
        # The library's own initialisation takes half a minute, and is overwritten anyway.
        options["init_weights"] = False
    module: torch.nn.Module = models.get_model(architecture.name, weights=None, **options)
    return module


def _build_timm(architecture: pb.Architecture) -> torch.nn.Module:
    import timm
    from timm.layers.config import set_fused_attn

    name = architecture.name
    # A tag after the dot names pretrained weights of the same architecture.
    _check_name(name.partition(".")[0], timm.list_models(), "timm", shown=name)
    # Attention as plain matrix products, which AIMET can quantize and ONNX can hold.
    set_fused_attn(False)
    options: dict[str, Any] = {}
    if architecture.HasField("num_classes"):
        options["num_classes"] = architecture.num_classes
    if architecture.HasField("in_channels"):
        options["in_chans"] = architecture.in_channels
    module: torch.nn.Module = timm.create_model(name, pretrained=False, **options)
    return module


def _check_name(name: str, known: list[str], library: str, shown: str = "") -> None:
    shown = shown or name
    if ":" in shown or "/" in shown:
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE",
            f"{shown!r} names a source; give the architecture's own name as {library} lists it",
            field=_NAME,
        )
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE", f"{library} has no model {shown!r}{hint}", field=_NAME
        )

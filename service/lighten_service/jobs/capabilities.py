"""What this server can do, read from the descriptors and the tables that the checks read."""

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from lighten import v1 as pb
from lighten_service.jobs.support import (
    HARDWARE_CONFIGS,
    TECHNIQUES,
    TechniqueFacts,
    type_support,
)

_TYPE_NAMES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def capabilities(
    *,
    server_version: str,
    limits: pb.Limits,
    gpu_profiles: Iterable[pb.GpuProfile] = (),
    workers: Iterable[pb.WorkerInventory] = (),
) -> pb.GetCapabilitiesResponse:
    """Return the answer of GetCapabilities."""
    return pb.GetCapabilitiesResponse(
        server_version=server_version,
        techniques=[_technique(facts) for facts in TECHNIQUES.values()],
        model_formats=_named(pb.ModelFormat),
        dataset_formats=_named(pb.DatasetFormat),
        type_support=type_support(),
        hardware_configs=HARDWARE_CONFIGS,
        gpu_profiles=gpu_profiles,
        workers=workers,
        limits=limits,
        encodings_versions=_named(pb.EncodingsVersion),
        metrics=_named(pb.Metric),
    )


def _named(enum: Any) -> list[Any]:
    return [number for number in enum.values() if number]


def _technique(facts: TechniqueFacts) -> pb.TechniqueCapability:
    return pb.TechniqueCapability(
        name=facts.name,
        message=facts.message.full_name,
        info=facts.info,
        parameters=_parameters(facts),
    )


def _parameters(facts: TechniqueFacts) -> Iterator[pb.Parameter]:
    for field in facts.message.fields:
        enum, message = field.enum_type, field.message_type
        typed = enum or message
        options = field.GetOptions()
        yield pb.Parameter(
            name=field.name,
            type=typed.full_name if typed is not None else _TYPE_NAMES[field.type],
            bounds=options.Extensions[pb.bounds] if options.HasExtension(pb.bounds) else None,
            values=[value.name for value in enum.values if value.number] if enum else [],
        )

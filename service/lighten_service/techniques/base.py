"""What a technique is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel

P = TypeVar("P", bound=Message, contravariant=True)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a step did, for the result."""

    # For a person, one line.
    summary: str
    # What was counted or measured, for example {"folded_batch_norms": 52}.
    values: Mapping[str, float] = field(default_factory=dict)
    # Written as `<step id>.json` beside the result where it is not empty: JSON of dicts, lists,
    # strings and finite numbers, with a "format_version".
    data: Mapping[str, object] = field(default_factory=dict)


class NotApplicable(Exception):
    """The technique finds nothing in this model that it can change; the message has the layers
    and the reason. Step.if_not_applicable decides what follows."""


class Technique(Protocol[P]):
    """One file in this folder, one message in techniques.proto, one line in the registry."""

    def run(self, context: StepContext, model: WorkingModel, parameters: P) -> Findings:
        """Change ``model`` in place. ``parameters`` has every default of its .proto.

        Raises:
            NotApplicable: there is nothing to do here.
            LightenError: the model or the data are at fault.
            Cancelled: the job was cancelled.
        """
        ...

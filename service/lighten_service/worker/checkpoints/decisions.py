"""``decisions.json``: what a step result says beside its tensors.

Enough to build the model's structure without data, and what the finished steps reported.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lighten import v1 as pb
from lighten_service.worker.checkpoints.reading import (
    Facts,
    InvalidStepResult,
    M,
    filled,
    parse,
    plain,
    take,
    typed,
)

FORMAT_VERSION: Final = 1
_NAMES: Final = frozenset(
    {
        "format_version",
        "job",
        "engine",
        "versions",
        "input_sha256",
        "steps",
        "analyses",
        "warnings",
        "cpus",
        "model",
    }
)


@dataclass(frozen=True, slots=True)
class Progress:
    """What the finished steps left beside the model."""

    # In the order of the plan.
    steps: list[pb.StepReport] = field(default_factory=list)
    # What steps found in detail, by their id.
    analyses: dict[str, Mapping[str, object]] = field(default_factory=dict)
    warnings: list[pb.Warning] = field(default_factory=list)
    # Of the attempts that ran the steps, the first one first; none where that was not written down.
    cpus: list[pb.AttemptCpu] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Origin:
    """What must be equal, or another attempt's model would not be the same."""

    # Job.name.
    job: str
    engine: pb.Engine.ValueType
    # Of packages that can change a result.
    versions: Mapping[str, str]
    # By the URI of each input.
    input_sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Decisions:
    """The whole document. ``model`` is what `WorkingModel.save_state` returned."""

    origin: Origin
    progress: Progress
    model: Facts

    def to_text(self) -> str:
        """Return the JSON. Numbers keep every bit."""
        document = {
            "format_version": FORMAT_VERSION,
            "job": self.origin.job,
            "engine": pb.Engine.Name(self.origin.engine),
            "versions": dict(self.origin.versions),
            "input_sha256": dict(self.origin.input_sha256),
            "steps": [plain(report) for report in self.progress.steps],
            "analyses": self.progress.analyses,
            "warnings": [plain(warning) for warning in self.progress.warnings],
            "cpus": [plain(cpu) for cpu in self.progress.cpus],
            "model": self.model,
        }
        return json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_text(cls, text: bytes) -> "Decisions":
        """Read the JSON strictly.

        Raises:
            InvalidStepResult: it is damaged, or of a format that is newer than this Lighten.
        """
        document = parse(text)
        version = take(document, "format_version", int)
        if version != FORMAT_VERSION:
            raise InvalidStepResult(
                f"it is of format {version}, and this Lighten reads {FORMAT_VERSION}"
            )
        if unknown := document.keys() - _NAMES:
            raise InvalidStepResult(f"it has unknown parts: {', '.join(sorted(unknown))}")
        return cls(_origin(document), _progress(document), take(document, "model", dict))


def _origin(document: Facts) -> Origin:
    try:
        engine = pb.Engine.Value(take(document, "engine", str))
    except ValueError as error:
        raise InvalidStepResult(str(error)) from error
    return Origin(
        take(document, "job", str),
        engine,
        take(document, "versions", dict),
        take(document, "input_sha256", dict),
    )


def _progress(document: Facts) -> Progress:
    analyses = take(document, "analyses", dict)
    return Progress(
        _messages(document, "steps", "a step", pb.StepReport),
        {name: typed(found, dict, name) for name, found in analyses.items()},
        _messages(document, "warnings", "a warning", pb.Warning),
        # Younger than the format.
        _messages(document, "cpus", "a CPU", pb.AttemptCpu) if "cpus" in document else [],
    )


def _messages(document: Facts, name: str, noun: str, kind: Callable[[], M]) -> list[M]:
    return [filled(typed(one, dict, noun), kind()) for one in take(document, name, list)]

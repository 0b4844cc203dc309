"""The filter of ListJobs and WatchJobs: terms joined by AND."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from lighten import v1 as pb

Operator = Literal["=", "!=", "<", "<=", ">", ">="]

_COMPARE: Final[dict[Operator, Callable[[float, float], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison.

    ``field`` is ``state`` (value: name without prefix, for example ``RUNNING``), ``labels.KEY``,
    ``create_time`` (value: Unix seconds as text), ``model_sha256`` or ``technique``. Only
    ``create_time`` takes an order; the others take ``=`` and ``!=``. ``!=`` is the opposite of
    ``=``: a job without the label has another value.
    """

    field: str
    operator: Operator
    value: str

    def matches(self, job: pb.Job) -> bool:
        """Whether the job is one that this term asks for."""
        if self.field == "create_time":
            created = job.create_time.seconds + job.create_time.nanos / 1e9
            return _COMPARE[self.operator](created, float(self.value))
        return self._equals(job) == (self.operator == "=")

    def _equals(self, job: pb.Job) -> bool:
        if self.field == "state":
            return job.state == pb.JobState.Value(f"JOB_STATE_{self.value}")
        if self.field == "model_sha256":
            return job.model_sha256 == self.value
        if self.field == "technique":
            return self.value in job.techniques
        return job.labels.get(self.field.removeprefix("labels.")) == self.value


@dataclass(frozen=True, slots=True)
class Filter:
    terms: tuple[Term, ...] = ()

    def matches(self, job: pb.Job) -> bool:
        """Whether the job is one that every term asks for."""
        return all(term.matches(job) for term in self.terms)

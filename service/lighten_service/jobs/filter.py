"""The filter of ListJobs and WatchJobs: terms joined by AND."""

from dataclasses import dataclass
from typing import Literal

Operator = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison.

    ``field`` is ``state`` (value: name without prefix, for example ``RUNNING``), ``labels.KEY``,
    ``create_time`` (value: Unix seconds as text), ``model_sha256`` or ``technique``. Only
    ``create_time`` takes an order; ``labels`` and ``technique`` take ``=`` and ``!=``.
    """

    field: str
    operator: Operator
    value: str


@dataclass(frozen=True, slots=True)
class Filter:
    terms: tuple[Term, ...] = ()

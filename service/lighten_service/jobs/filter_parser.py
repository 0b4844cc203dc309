"""Reads the filter of ListJobs and WatchJobs (a small part of google.aip.dev/160)."""

import re
from datetime import UTC, datetime
from typing import Final, cast

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.filter import Filter, Operator, Term

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*")
      | (?P<operator><=|>=|!=|=|<|>)
      | (?P<word>[A-Za-z0-9_][A-Za-z0-9_.:+/-]*)
    )""",
    re.VERBOSE,
)
_ORDERS: Final = frozenset({"<", "<=", ">", ">="})
_FIELDS: Final = ("state", "labels.KEY", "create_time", "model_sha256", "technique")
_MAX_TERMS: Final = 16


def parse_filter(text: str) -> Filter:
    """Return the terms of a filter, for example ``state = RUNNING AND labels.team = "vision"``.

    Raises:
        InvalidArgument: reason INVALID_FILTER; the message says what is wrong and where.
    """
    tokens = _tokens(text)
    terms: list[Term] = []
    while tokens:
        if terms:
            if tokens.pop(0) != ("word", "AND"):
                raise _invalid("terms are joined by AND alone")
            if not tokens:
                raise _invalid("a term must follow AND")
        terms.append(_term(tokens))
    if len(terms) > _MAX_TERMS:
        raise _invalid(f"it has {len(terms)} terms; at most {_MAX_TERMS} are allowed")
    return Filter(tuple(terms))


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].lstrip()
            where = len(text) - len(rest) + 1
            raise _invalid(f"character {where} cannot be read: {rest[:20]!r}")
        kind = match.lastgroup or ""
        token = match[kind]
        if kind == "text":
            token = re.sub(r"\\(.)", r"\1", token[1:-1])
        # `labels."any key"`: a word that ends with a dot takes the text behind it.
        if kind == "text" and tokens and tokens[-1][0] == "word" and tokens[-1][1] == "labels.":
            tokens[-1] = ("word", f"labels.{token}")
        else:
            tokens.append((kind, token))
        position = match.end()
    return tokens


def _term(tokens: list[tuple[str, str]]) -> Term:
    if len(tokens) < 3 or [kind for kind, _ in tokens[:2]] != ["word", "operator"]:
        raise _invalid("a term is FIELD OPERATOR VALUE")
    (_, field), (_, operator), (kind, value) = tokens[:3]
    if kind == "operator":
        raise _invalid(f"a value must follow {field} {operator}; put text in double quotes")
    del tokens[:3]
    return Term(field, cast(Operator, operator), _value(field, operator, value))


def _value(field: str, operator: str, value: str) -> str:
    """Return the value as `Term` has it."""
    if field == "create_time":
        return _seconds(value)
    if operator in _ORDERS:
        raise _invalid(f"{field} takes = and != alone")
    if field == "state":
        return _state(value)
    if field in ("model_sha256", "technique") or (field.startswith("labels.") and field[7:]):
        return value
    raise _invalid(f"there is no field {field!r}; use one of {', '.join(_FIELDS)}")


def _state(value: str) -> str:
    name = value.removeprefix("JOB_STATE_")
    names = [item.removeprefix("JOB_STATE_") for item in pb.JobState.keys()[1:]]
    if name not in names:
        raise _invalid(f"there is no state {value!r}; use one of {', '.join(names)}")
    return name


def _seconds(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise _invalid(f'{value!r} is no time; write "2026-01-31T00:00:00Z"') from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return repr(moment.timestamp())


def _invalid(why: str) -> InvalidArgument:
    return InvalidArgument("INVALID_FILTER", f"the filter cannot be read: {why}", field="filter")

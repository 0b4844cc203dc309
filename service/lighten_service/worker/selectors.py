"""Which operators of a model a `LayerSelector` means."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument

_LISTED = 10


def selected(
    selector: pb.LayerSelector, operators: Sequence[tuple[str, str]], field: str
) -> set[str]:
    """Return the names of the operators that a selector finds.

    Args:
        selector: at least one of its lists is set; an operator must be in each list that is.
        operators: (name, ONNX operator) of each operator that could be meant.
        field: path of the selector in the request, for the error.

    Raises:
        InvalidArgument: SELECTOR_MATCHES_NOTHING, with some names and the operator types that
            there are.
    """
    found = {
        name
        for name, op in operators
        if (not selector.layers or any(_matches(name, pattern) for pattern in selector.layers))
        and (not selector.op_types or op in selector.op_types)
    }
    if found and (selector.layers or selector.op_types):
        return found
    raise InvalidArgument(
        "SELECTOR_MATCHES_NOTHING",
        f"no operator of the model has {_wanted(selector)}; it has the layers "
        f"{_first([name for name, _ in operators])} and the operator types "
        f"{', '.join(sorted({op for _, op in operators if op})) or 'none'}",
        field=field,
    )


def _matches(name: str, pattern: str) -> bool:
    # Square brackets are part of names, not sets of characters.
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _wanted(selector: pb.LayerSelector) -> str:
    wanted = []
    if selector.layers:
        wanted.append(f"a name like {_first(list(selector.layers))}")
    if selector.op_types:
        wanted.append(f"the type {_first(list(selector.op_types))}")
    return " and ".join(wanted) or "what an empty selector asks for"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more

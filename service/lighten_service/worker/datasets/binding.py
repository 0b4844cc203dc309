"""Which stored array feeds which model input, and whether it can."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.jobs.resolve import with_defaults
from lighten_service.worker.datasets.array_source import ArraySource, MappedArray
from lighten_service.worker.datasets.element_types import check_dtype
from lighten_service.worker.datasets.request import Request


@dataclass(frozen=True, slots=True)
class BoundArrays:
    """Arrays by model input, all with the same number of samples, and their labels."""

    inputs: dict[str, MappedArray]
    labels: NDArray[np.int64] | None
    count: int


def bind(request: Request, source: ArraySource) -> BoundArrays:
    """Match arrays with inputs by ``input_keys``, by name, or as the only pair there is.

    Raises:
        InvalidArgument: INPUT_NOT_FOUND, SHAPE_MISMATCH, DTYPE_MISMATCH, SAMPLE_COUNT_MISMATCH,
            DATASET_EMPTY, or what is wrong with the labels.
    """
    names = match_names(request, source)
    arrays: dict[str, MappedArray] = {}
    for model_input in request.inputs:
        array = source[names[model_input.name]]()
        _check_array(request, names[model_input.name], array, model_input)
        arrays[model_input.name] = array
    count = _common_count(request, {names[key]: array for key, array in arrays.items()})
    return BoundArrays(arrays, _labels(request, source, count), count)


def match_names(request: Request, source: ArraySource) -> dict[str, str]:
    """Return the array name for every input name. Raises InvalidArgument (INPUT_NOT_FOUND)."""
    keys = dict(request.dataset.input_keys)
    there = [name for name in source if name != request.dataset.label_key]
    expected = [model_input.name for model_input in request.inputs]
    for input_name, array_name in keys.items():
        if input_name not in expected:
            raise request.refuse(
                "INPUT_NOT_FOUND",
                f"the model has no input '{input_name}'; its inputs are {_listed(expected)}",
                at="input_keys",
            )
        if array_name not in source:
            raise request.refuse(
                "INPUT_NOT_FOUND",
                f"there is no array '{array_name}'; the data hold {_listed(list(source))}",
                at="input_keys",
            )
    if not keys and len(there) == len(expected) == 1:
        return {expected[0]: there[0]}
    matched = {name: keys.get(name, name) for name in expected}
    for input_name, array_name in matched.items():
        if array_name not in source:
            raise request.refuse(
                "INPUT_NOT_FOUND",
                f"no array for the model input '{input_name}': the data hold "
                f"{_listed(list(source))}; name the array in {request.field}.input_keys",
                at="input_keys",
            )
    return matched


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:20]) or "nothing"
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _check_array(
    request: Request, name: str, array: MappedArray, model_input: pb.InputSpec
) -> None:
    expected = tuple(model_input.shape)
    if not array.shape or array.shape[1:] != expected:
        raise request.refuse(
            "SHAPE_MISMATCH",
            f"array '{name}' has shape {list(array.shape)}, but the model input "
            f"'{model_input.name}' needs [samples, {', '.join(map(str, expected))}]",
        )
    if problem := check_dtype(array.dtype, model_input.dtype):
        raise request.refuse(
            "DTYPE_MISMATCH",
            f"array '{name}' for the model input '{model_input.name}' {problem}",
        )


def _common_count(request: Request, arrays: dict[str, MappedArray]) -> int:
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
        raise request.refuse(
            "SAMPLE_COUNT_MISMATCH", f"the arrays differ in their number of samples: {listed}"
        )
    count = next(iter(counts.values()), 0)
    if not count:
        raise request.refuse("DATASET_EMPTY", "the arrays hold no sample")
    return count


def _labels(request: Request, source: ArraySource, count: int) -> NDArray[np.int64] | None:
    key = request.dataset.label_key
    if not request.wants_labels or not key:
        return None
    if key not in source:
        if key == with_defaults(pb.Dataset()).label_key:
            return None
        raise request.refuse(
            "LABELS_MISSING",
            f"there is no array '{key}'; the data hold {_listed(list(source))}",
            at="label_key",
        )
    stored = source[key]()
    if not np.issubdtype(stored.dtype, np.integer):
        raise request.refuse(
            "LABELS_NOT_INTEGER",
            f"the labels in '{key}' are {stored.dtype}; store class numbers as integers",
            at="label_key",
        )
    if stored.shape != (count,):
        raise request.refuse(
            "SAMPLE_COUNT_MISMATCH",
            f"the labels in '{key}' have shape {list(stored.shape)}, but there are {count} "
            f"samples, which need [{count}]",
            at="label_key",
        )
    return _in_range(request, np.array(stored.array))


def _in_range(request: Request, labels: NDArray[np.generic]) -> NDArray[np.int64]:
    numbers = labels.astype(np.int64)
    classes = len(request.class_names)
    wrong = numbers < 0
    if classes:
        wrong |= numbers >= classes
    if wrong.any():
        sample = int(np.argmax(wrong))
        upper = f"{classes - 1}" if classes else "the number of classes - 1"
        raise request.refuse(
            "LABEL_OUT_OF_RANGE",
            f"the label of sample {sample} is {labels[sample]}; labels go from 0 to {upper}",
        )
    return numbers

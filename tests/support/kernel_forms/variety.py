"""Forms of random sizes."""

from dataclasses import replace

import numpy as np

from tests.support.kernel_forms.convolutions import (
    Convolution,
    IntegerConvolution,
    TransposedConvolution,
)
from tests.support.kernel_forms.form import Form
from tests.support.kernel_forms.products import Product, ProductWithVector


def varied(form: Form, rng: np.random.Generator) -> Form:
    """Return the same kind of form with other sizes, and as many groups, stride and padding as it
    may have; no sum has more than 500 terms, which single precision holds.
    """
    match form:
        case ProductWithVector():
            return replace(form, k=_terms(rng))
        case Product():
            return replace(form, k=_terms(rng), n=int(rng.integers(1, 40)))
        case Convolution():
            return _convolution(form, rng)
    raise TypeError(f"no sizes for {type(form).__name__}")


def _terms(rng: np.random.Generator) -> int:
    return int(rng.integers(2, 40 if rng.random() < 0.8 else 500))


def _convolution(form: Convolution, rng: np.random.Generator) -> Convolution:
    groups, inputs, outputs = _channels(form, rng)
    kernel = _kernel(form, rng)
    if inputs == 1:
        # One term alone has no neighbour.
        kernel = (max(2, kernel[0]), *kernel[1:])
    stride, dilation, pad = form.stride, form.dilation, form.pad
    if not isinstance(form, IntegerConvolution):
        stride, dilation, pad = (int(rng.integers(low, low + 2)) for low in (1, 1, 0))
    reach = dilation * (max(kernel) - 1) + 1
    return replace(
        form,
        inputs=groups * inputs,
        outputs=groups * outputs,
        groups=groups,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        pad=pad,
        size=reach + int(rng.integers(5, 8)) * (8 if len(kernel) == 1 else 1),
    )


def _kernel(form: Convolution, rng: np.random.Generator) -> tuple[int, ...]:
    # A transposed one is not padded by more than its kernel reaches.
    smallest = 2 if isinstance(form, TransposedConvolution) else 1
    largest = 3 if len(form.kernel) > 2 else 5
    return tuple(int(size) for size in rng.integers(smallest, largest + 1, len(form.kernel)))


def _channels(form: Convolution, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return groups, and input and output channels of each."""
    depthwise = form.groups == form.inputs > 1
    inputs = 1 if form.inputs == form.groups else int(rng.integers(2, 10))
    if depthwise:
        return int(rng.integers(2, 40)), inputs, form.outputs // form.groups
    groups = 1 if form.groups == 1 else int(rng.integers(2, 6))
    # One input and one output run with the depthwise kernel.
    return groups, inputs, int(rng.integers(2 if inputs == 1 else 1, 7))

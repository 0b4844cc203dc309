"""One-layer QDQ graphs, one for each form in which ONNX Runtime multiplies 8-bit weights.

Every scale is a power of two: integer arithmetic says what a kernel must return, bit for bit.
Needs numpy and onnx alone.
"""

from tests.support.kernel_forms.catalogue import FORMS
from tests.support.kernel_forms.form import Form, Grid, Integers
from tests.support.kernel_forms.integers import (
    PAIR_LIMIT,
    any_codes,
    any_weight,
    bounded_weight,
    ends_weight,
    lowest_codes,
    lowest_weight,
    with_pair_over,
)
from tests.support.kernel_forms.model import Case, Layer, case_of, wrong
from tests.support.kernel_forms.variety import varied

__all__ = [
    "FORMS",
    "PAIR_LIMIT",
    "Case",
    "Form",
    "Grid",
    "Integers",
    "Layer",
    "any_codes",
    "any_weight",
    "bounded_weight",
    "case_of",
    "ends_weight",
    "lowest_codes",
    "lowest_weight",
    "varied",
    "with_pair_over",
    "wrong",
]

"""Random data and weights: at the bound of pairs, one step beyond it, and without one."""

from typing import Final

import numpy as np

from tests.support.kernel_forms.form import Form, Integers

# Like-signed neighbours may add up to this: 128 * 255 fits into 16 bits, 129 * 255 does not.
PAIR_LIMIT: Final = 128
_LARGEST: Final = 127


def any_codes(form: Form, rng: np.random.Generator) -> Integers:
    """Return data as unsigned codes: a third at 255, half at the zero point, both ends.

    So sums stay close to zero, where the output is not cut off, and any two neighbours are often
    255 together.
    """
    codes = rng.integers(0, 256, form.data_shape)
    kind = rng.random(form.data_shape)
    codes[kind < 0.85] = 255
    codes[kind < 0.5] = form.grid.zero_point
    # DynamicQuantizeLinear takes its scale from the ends.
    codes.flat[0], codes.flat[-1] = 0, 255
    return codes


def any_weight(form: Form, rng: np.random.Generator, lowest: int = -128) -> Integers:
    """Return a weight that obeys no bound, from ``lowest`` to 127."""
    return form.stored(rng.integers(lowest, _LARGEST + 1, form.rows_shape))


def lowest_codes(form: Form, rng: np.random.Generator) -> Integers:
    """Return data most of which are 0, as behind a Relu, and some 255."""
    return np.where(rng.random(form.data_shape) < 0.7, 0, any_codes(form, rng))


def lowest_weight(form: Form, rng: np.random.Generator) -> Integers:
    """Return a weight of -128 alone."""
    return form.stored(np.full(form.rows_shape, -128))


def ends_weight(form: Form, rng: np.random.Generator) -> Integers:
    """Return a weight of -127 and 127 alone."""
    return form.stored(rng.choice([-_LARGEST, _LARGEST], form.rows_shape))


def bounded_weight(form: Form, rng: np.random.Generator) -> Integers:
    """Return a weight without -128 whose like-signed neighbours add up to exactly the limit, and
    whose others are anything."""
    return form.stored(_bounded_rows(form, rng))


def with_pair_over(form: Form, rng: np.random.Generator) -> Integers:
    """Return such a weight with one pair one step beyond the limit."""
    rows = _bounded_rows(form, rng)
    row, pair = rng.integers(len(rows)), rng.integers(rows.shape[1] // 2)
    first = rng.integers(PAIR_LIMIT + 1 - _LARGEST, _LARGEST + 1)
    over = np.array([first, PAIR_LIMIT + 1 - first]) * rng.choice([-1, 1])
    rows[row, 2 * pair : 2 * pair + 2] = over
    return form.stored(rows)


def _bounded_rows(form: Form, rng: np.random.Generator) -> Integers:
    count, k = form.rows_shape
    shape = (count, k // 2 + k % 2)
    first = rng.integers(1, _LARGEST + 1, shape)
    unlike = rng.random(shape) < 0.3
    second = np.where(unlike, -rng.integers(0, _LARGEST + 1, shape), PAIR_LIMIT - first)
    pairs = np.stack([first, second], -1) * rng.choice([-1, 1], (*shape, 1))
    # One in a few of those without a like-signed neighbour is as large as it may be.
    alone = unlike & (rng.random(shape) < 0.3)
    pairs[alone] = np.sign(pairs[alone]) * _LARGEST
    return pairs.reshape(count, -1)[:, :k]

"""Scales of every form: powers of two, so that no rounding hides what a kernel adds up."""

from typing import Final

DATA_SCALE: Final = 2.0**-4
# In turns, where each channel has its own.
WEIGHT_SCALES: Final = (2.0**-6, 2.0**-5)
# A step for each 128 or 64 of the sums: a pair that saturates loses at least 127.
OUTPUT_SCALE: Final = DATA_SCALE * 2.0

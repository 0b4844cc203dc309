"""Kubernetes' notation of amounts: ``8589934592``, ``4Gi``, ``1500m``."""

from decimal import Decimal, InvalidOperation

_SCALES = {
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    "m": Decimal("0.001"),
    "u": Decimal("0.000001"),
    "n": Decimal("0.000000001"),
}


def cpus(number: float) -> str:
    """Return a number of CPU cores, to the thousandth."""
    return f"{round(number * 1000)}m"


def parse(text: str) -> Decimal:
    """Return an amount in its base unit: bytes, cores. Raises ValueError."""
    text = text.strip()
    suffix = next((end for end in _SCALES if text.endswith(end)), "")
    try:
        amount = Decimal(text.removesuffix(suffix)) * _SCALES.get(suffix, Decimal(1))
    except InvalidOperation:
        raise ValueError(f'"{text}" is no quantity; write for example 500m, 4 or 8Gi') from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f'"{text}" is no quantity; write for example 500m, 4 or 8Gi')
    return amount

"""Ids that sort by time."""

import secrets
import time

# Crockford's base 32 in lower case: no i, l, o, u.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80
_LENGTH = 26


def new_id(now: float | None = None) -> str:
    """Return 26 characters: 48 bits of Unix milliseconds, then 80 random bits.

    Ids made in different milliseconds sort by their time.
    """
    milliseconds = int((time.time() if now is None else now) * 1000)
    number = (milliseconds & (1 << 48) - 1) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in range(_LENGTH - 1, -1, -1))


def time_of(identifier: str) -> float | None:
    """Return when an id was made, in Unix seconds; None when it is no id."""
    if len(identifier) != _LENGTH or not set(identifier) <= set(_ALPHABET):
        return None
    number = 0
    for character in identifier:
        number = number << 5 | _ALPHABET.index(character)
    return (number >> _RANDOM_BITS) / 1000

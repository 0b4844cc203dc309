"""Which execution providers of ONNX Runtime really ran, for the report of each stage.

ONNX Runtime takes the CPU where the provider that was asked for cannot be loaded, and goes on. One
process works on one job, so what ran is kept for the process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnxruntime


@dataclass
class Ran:
    """Providers in the order of their first use; ``instead_of``: one that was asked for in vain."""

    providers: list[str] = field(default_factory=list)
    instead_of: str = ""


_ran = Ran()


def note_run(session: onnxruntime.InferenceSession, asked: Sequence[object]) -> None:
    """Take note that a session runs.

    Args:
        session: after it was opened.
        asked: the providers that it was opened with, names or (name, options).
    """
    provider = session.get_providers()[0]
    if provider not in _ran.providers:
        _ran.providers.append(provider)
    first = asked[0]
    preferred = str(first[0] if isinstance(first, tuple) else first)
    if preferred != provider:
        _ran.instead_of = preferred


def what_ran() -> Ran:
    """Return what ran since the last call."""
    global _ran
    ran, _ran = _ran, Ran()
    return ran

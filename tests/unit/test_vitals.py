"""What a worker says of itself, at whatever moment it is asked."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lighten_service.worker import vitals


@pytest.mark.parametrize("cuda", [None, SimpleNamespace()], ids=["no cuda yet", "cuda in part"])
def test_heartbeat_while_torch_is_being_imported(
    monkeypatch: pytest.MonkeyPatch, cuda: object
) -> None:
    """The session's thread asks while the main thread imports: torch is there in part."""
    torch = ModuleType("torch")
    if cuda is not None:
        monkeypatch.setattr(torch, "cuda", cuda, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    beat = vitals.heartbeat()
    assert beat.rss_bytes > 0
    assert not beat.gpus

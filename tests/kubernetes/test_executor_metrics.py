"""What alerts on the Kubernetes API stand on, while that API goes away and comes back."""

import asyncio
from typing import Any

import pytest

from lighten_service.executors.kubernetes import reflector
from tests.support.cluster.control_plane import ControlPlane
from tests.support.cluster.kubectl import Kubectl
from tests.support.cluster_executor import Listener, options_for, until

pytestmark = pytest.mark.kubernetes


def value(listener: Listener, name: str, **labels: Any) -> float:
    return listener.registry.get_sample_value(f"lighten_kubernetes_{name}", labels) or 0.0


async def test_an_api_server_that_goes_is_seen_in_the_metrics(
    control_plane: ControlPlane, kubectl: Kubectl
) -> None:
    async with Listener(options_for(kubectl)) as listener:
        await listener.start()
        await until(lambda: value(listener, "launches", state="waiting") == 1)
        assert listener.requests("create", "jobs")["201"] >= 1
        assert sum(listener.requests("watch", "pods").values()) >= 1
        assert value(listener, "request_duration_seconds_count", verb="create", resource="jobs")
        before = value(listener, "watch_silence_seconds", resource="pods")
        control_plane.kill_api_server()
        try:
            await until(
                lambda: value(
                    listener, "watch_restarts_total", resource="pods", reason="unavailable"
                )
            )
            await until(
                lambda: sum(
                    listener.requests(verb, "pods").get("none", 0) for verb in ("list", "watch")
                )
            )
            silent = value(listener, "watch_silence_seconds", resource="pods")
            assert silent > before
        finally:
            control_plane.start_api_server()
        await until(lambda: value(listener, "watch_silence_seconds", resource="pods") < silent)


async def test_a_watch_of_which_nothing_comes_is_no_silent_one(
    kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Events have no bookmarks: the end of each watch is all that is heard of a quiet namespace.
    monkeypatch.setattr(reflector, "_WATCH_SECONDS", (1, 1))
    async with Listener(options_for(kubectl)) as listener:
        labels = {"resource": "events", "reason": "timeout"}
        await until(lambda: value(listener, "watch_restarts_total", **labels) >= 3)
        silences = []
        for _ in range(20):
            silences.append(value(listener, "watch_silence_seconds", resource="events"))
            await asyncio.sleep(0.2)
        assert max(silences) > min(silences)
        assert sorted(silences) != silences

"""What the watches of a cluster leave in the view: pods that went, lists, late answers."""

from typing import Any

import pytest

pytest.importorskip("kubernetes_asyncio")

from lighten_service.executors.kubernetes import naming, sinks
from lighten_service.executors.kubernetes.naming import LaunchKey
from lighten_service.executors.kubernetes.view import View

KEY: LaunchKey = ("a" * 26, 1)


class Seen:
    """A view and the launches that it told of."""

    def __init__(self) -> None:
        self.changed: list[LaunchKey] = []
        self.view = View("lighten", lambda: 0.0, self.changed.append)
        self.pods = sinks.Pods(self.view)
        self.jobs = sinks.Jobs(self.view, "lighten")

    def gone(self) -> dict[str, bool]:
        launch = self.view.get(KEY)
        return {pod.facts.uid: pod.gone for pod in launch.pods} if launch is not None else {}

    def job_is_gone(self) -> bool:
        launch = self.view.get(KEY)
        return launch is not None and launch.job is None and launch.job_gone


@pytest.fixture
def seen() -> Seen:
    return Seen()


def item(uid: str, **parts: Any) -> dict[str, Any]:
    labels = naming.labels("lighten", KEY, "default")
    return {"metadata": {"uid": uid, "name": uid, "labels": labels}, "spec": {}, **parts}


def test_pod_that_was_deleted_does_not_come_back(seen: Seen) -> None:
    seen.pods.put(item("one"))
    seen.pods.gone(item("one"))
    # An answer that was on its way when the watch told of the end.
    seen.pods.put(item("one"))
    assert seen.gone() == {"one": True}


def test_pod_that_a_list_lacks_is_gone(seen: Seen) -> None:
    seen.pods.put(item("one"))
    seen.pods.put(item("two"))
    seen.pods.begin_list()
    seen.pods.put(item("two"))
    seen.pods.end_list()
    assert seen.gone() == {"one": True, "two": False}


def test_pod_of_a_suspended_job_that_is_admitted_again(seen: Seen) -> None:
    """Why it had to go is kept, though its Job runs again before it has ended."""
    seen.pods.put(item("one"))
    for suspend in (True, False):
        seen.jobs.put(item("job", spec={"suspend": suspend}))
    seen.pods.put(item("one", status={"phase": "Failed"}))
    seen.pods.put(item("two"))
    launch = seen.view.get(KEY)
    assert launch is not None
    assert launch.job is not None
    assert not launch.job.suspended
    assert {pod.facts.uid: pod.suspended for pod in launch.pods} == {"one": True, "two": False}


def test_launch_of_which_nothing_is_left_is_dropped(seen: Seen) -> None:
    seen.jobs.put(item("job"))
    seen.pods.put(item("one"))
    seen.view.forget(KEY)
    assert list(seen.view) == [KEY]
    seen.pods.gone(item("one"))
    seen.jobs.gone(item("job"))
    seen.view.forget(KEY)
    assert list(seen.view) == []


def test_job_that_is_made_while_a_list_is_read_is_kept(seen: Seen) -> None:
    seen.jobs.put(item("job"))
    seen.jobs.begin_list()
    seen.jobs.put(item("job"))
    seen.jobs.end_list()
    assert not seen.job_is_gone()
    seen.jobs.begin_list()
    seen.jobs.end_list()
    assert seen.job_is_gone()


def test_objects_of_others_are_nothing(seen: Seen) -> None:
    other = item("one")
    other["metadata"]["labels"]["app.kubernetes.io/instance"] = "another"
    seen.pods.put(other)
    seen.jobs.put({**other, "metadata": {**other["metadata"], "labels": None}})
    assert seen.changed == []

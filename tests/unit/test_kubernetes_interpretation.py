"""What pods and Jobs mean. The pods were recorded on a real node, Kubernetes 1.36."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lighten_service.executors.kubernetes.facts import JobFacts, PodFacts, Said, pod_facts
from lighten_service.executors.kubernetes.interpretation import (
    Seen,
    SeenPod,
    Verdict,
    carries_on,
    displaced,
    interpret,
)
from lighten_service.executors.kubernetes.options import Timeouts
from lighten_service.jobs.ports import LaunchEnd, LaunchState

SHAPES = Path(__file__).parents[1] / "golden" / "kubernetes"
TIMEOUTS = Timeouts(image_pull=300, container_start=60, lost_pod=30)
RUNS = JobFacts("job-uid", "name", False, False, False, False, None)
FAILED = replace(RUNS, ending=True, failed=Said("BackoffLimitExceeded", "the limit is reached"))
COMPLETE = replace(RUNS, ending=True, complete=True)
RUNNING = PodFacts(
    uid="uid",
    name="pod",
    created="2026-01-01T00:00:00Z",
    bound=True,
    over=False,
    deleting_grace=None,
    said=None,
    disruption=None,
    unscheduled=None,
    waiting=None,
    running=True,
    terminated=None,
    memory_bytes=1 << 30,
)


def recorded(name: str) -> PodFacts:
    return pod_facts(json.loads((SHAPES / f"{name}.json").read_text()))


def judge(
    job: JobFacts | None, pods: Sequence[SeenPod] = (), *, now: float = 0.0, **more: Any
) -> Verdict:
    return interpret(Seen(job, pods, **more), now, TIMEOUTS)


@pytest.mark.parametrize(
    ("shape", "end", "figures"),
    [
        ("oom_killed", LaunchEnd.OUT_OF_MEMORY, {"limit_bytes": str(128 << 20)}),
        ("over_scratch", LaunchEnd.OUT_OF_DISK, {"limit_bytes": str(64 << 20)}),
        ("start_error", LaunchEnd.CONFIG_INVALID, {}),
        ("exit_3", LaunchEnd.DISRUPTED, {"exit_code": "3"}),
        ("deleted", LaunchEnd.DELETED, {"exit_code": "143"}),
    ],
)
def test_pod_that_failed_ends_its_launch(
    shape: str, end: LaunchEnd, figures: dict[str, str]
) -> None:
    pod = SeenPod(recorded(shape))
    status = judge(FAILED, [pod]).status
    assert (status.state, status.end) == (LaunchState.ENDED, end)
    assert dict(status.metadata) == figures
    assert status.instance_id == pod.facts.uid
    assert status.detail


@pytest.mark.parametrize(
    ("code", "end", "figures"),
    [
        (0, LaunchEnd.EXITED, {"exit_code": "0"}),
        (1, LaunchEnd.EXITED, {"exit_code": "1"}),
        (139, LaunchEnd.CRASHED, {"signal": "SIGSEGV"}),
        (255, LaunchEnd.EXITED, {"exit_code": "255"}),
    ],
)
def test_exit_codes(code: int, end: LaunchEnd, figures: dict[str, str]) -> None:
    ended = recorded("exit_3")
    assert ended.terminated is not None
    pod = SeenPod(replace(ended, terminated=replace(ended.terminated, exit_code=code)))
    status = judge(COMPLETE if code == 0 else FAILED, [pod]).status
    assert (status.end, dict(status.metadata)) == (end, figures)


@pytest.mark.parametrize(
    ("shape", "job", "end"),
    [
        ("evicted_by_api", RUNS, LaunchEnd.EVICTED),
        ("suspended", replace(RUNS, suspended=True), LaunchEnd.SUSPENDED),
    ],
)
def test_pod_that_was_taken_away_leaves_its_launch(
    shape: str, job: JobFacts, end: LaunchEnd
) -> None:
    pod = SeenPod(recorded(shape))
    seen = Seen(job, [pod])
    assert carries_on(pod, seen)
    status = judge(job, [pod]).status
    assert status == displaced(pod, job)
    assert (status.state, status.end) == (LaunchState.WAITING, end)
    assert status.instance_id == pod.facts.uid
    # The next one counts.
    second = SeenPod(replace(RUNNING, uid="second"))
    status = judge(RUNS, [pod, second]).status
    assert (status.state, status.instance_id) == (LaunchState.PLACED, "second")


@pytest.mark.parametrize(
    ("reason", "message", "end"),
    [
        ("PreemptionByScheduler", "preempting", LaunchEnd.PREEMPTED),
        (
            "DeletionByTaintManager",
            "Taint manager: deleting",
            LaunchEnd.EVICTED,
        ),
        ("DeletionByPodGC", "node no longer exists", LaunchEnd.NODE_LOST),
        ("TerminationByKubelet", "node shutdown", LaunchEnd.EVICTED),
        ("SomethingNew", "", LaunchEnd.DISRUPTED),
    ],
)
def test_reasons_of_disruptions(reason: str, message: str, end: LaunchEnd) -> None:
    pod = SeenPod(replace(RUNNING, over=True, disruption=Said(reason, message)))
    status = judge(RUNS, [pod]).status
    assert (status.state, status.end) == (LaunchState.WAITING, end)
    assert ("cause", reason) in status.metadata


def test_node_pressure_is_no_fault_of_the_job() -> None:
    said = Said("Evicted", "The node was low on resource: ephemeral-storage. Threshold quantity")
    pod = replace(RUNNING, over=True, said=said, disruption=Said("TerminationByKubelet"))
    assert judge(RUNS, [SeenPod(pod)]).status.end is LaunchEnd.EVICTED


def test_deadline_of_the_pod() -> None:
    said = Said("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
    status = judge(FAILED, [SeenPod(replace(RUNNING, over=True, said=said))]).status
    assert status.end is LaunchEnd.OVERDUE


def test_node_that_refuses_a_pod() -> None:
    said = Said("UnexpectedAdmissionError", "Allocate failed due to no healthy devices")
    pod = SeenPod(replace(RUNNING, over=True, running=False, said=said))
    assert judge(FAILED, [pod]).status.end is LaunchEnd.DISRUPTED


@pytest.mark.parametrize(("shape", "first"), [("image_pull", False), ("invalid_image_name", True)])
def test_image_that_cannot_be_pulled(shape: str, first: bool) -> None:
    pod = SeenPod(recorded(shape), waiting_since=100.0)
    verdict = judge(RUNS, [pod], now=101.0)
    if not first:
        assert verdict.status.state is LaunchState.PLACED
        assert verdict.look_again == pytest.approx(299.0)
        verdict = judge(RUNS, [pod], now=400.0)
    assert verdict.remove
    assert (verdict.status.state, verdict.status.end) == (
        LaunchState.ENDED,
        LaunchEnd.IMAGE_FAILED,
    )


def test_container_that_cannot_be_made_is_tried_for_a_while() -> None:
    waiting = Said("CreateContainerConfigError", 'secret "x" not found')
    pod = SeenPod(replace(RUNNING, running=False, waiting=waiting), waiting_since=0.0)
    assert judge(RUNS, [pod], now=59.0).look_again == pytest.approx(1.0)
    verdict = judge(RUNS, [pod], now=60.0)
    assert verdict.status.end is LaunchEnd.CONFIG_INVALID
    assert verdict.remove


def test_why_a_pod_is_not_scheduled() -> None:
    why = Said("Unschedulable", "0/3 nodes are available: 1 Insufficient nvidia.com/gpu.")
    pod = SeenPod(replace(RUNNING, bound=False, running=False, unscheduled=why))
    status = judge(RUNS, [pod]).status
    assert (status.state, status.detail) == (LaunchState.WAITING, why.message)


def test_why_there_is_no_pod() -> None:
    quota = Said("FailedCreate", 'pods "x" is forbidden: exceeded quota: small')
    waits = judge(RUNS, refusal=quota)
    assert (waits.status.state, waits.status.detail) == (LaunchState.WAITING, quota.message)
    away = Said("FailedCreate", 'failed calling webhook "w": connection: permission denied')
    assert judge(RUNS, refusal=away).status.state is LaunchState.WAITING
    denied = Said("FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted"')
    refused = judge(RUNS, refusal=denied)
    assert refused.status.end is LaunchEnd.CONFIG_INVALID
    assert refused.remove
    queued = judge(replace(RUNS, suspended=True), queue="insufficient unused quota")
    assert queued.status.detail == "insufficient unused quota"


def test_job_that_was_suspended_and_carries_on() -> None:
    gone = SeenPod(recorded("suspended"), gone=True)
    told = {gone.facts.uid}
    queued = judge(replace(RUNS, suspended=True), [gone], told_gone=told, queue="no quota left")
    assert queued.status.detail == "no quota left"
    # Admitted again, its next pod is not there yet.
    status = judge(RUNS, [gone], told_gone=told).status
    assert (status.state, status.end, status.instance_id) == (LaunchState.WAITING, None, "")


def test_pod_of_a_lost_node_is_given_up_after_its_grace() -> None:
    leaving = SeenPod(replace(RUNNING, deleting_grace=20), deleting_since=100.0)
    verdict = judge(RUNS, [leaving], now=149.0)
    assert verdict.status.state is LaunchState.PLACED
    assert verdict.look_again == pytest.approx(1.0)
    verdict = judge(RUNS, [leaving], now=150.0)
    assert (verdict.status.state, verdict.status.end) == (LaunchState.ENDED, LaunchEnd.NODE_LOST)
    assert verdict.remove
    stopped = judge(replace(RUNS, deleting=True), [leaving], now=150.0, stopping=True)
    assert stopped.status.end is LaunchEnd.STOPPED


def test_stop_ends_with_the_job() -> None:
    deleting = replace(RUNS, deleting=True)
    gone = SeenPod(recorded("deleted"), gone=True)
    assert judge(deleting, [gone], stopping=True).status.state is LaunchState.PLACED
    assert judge(None, [gone], stopping=True, job_gone=True).status.end is LaunchEnd.STOPPED
    # Somebody else did it.
    assert judge(None, [gone], job_gone=True).status.end is LaunchEnd.DELETED
    assert judge(None).status.state is LaunchState.UNKNOWN


def test_pod_that_is_gone_before_its_job_says_how_it_ends() -> None:
    gone = SeenPod(recorded("deleted"), gone=True)
    assert not carries_on(gone, Seen(RUNS, [gone]))
    assert judge(RUNS, [gone]).status.state is LaunchState.PLACED


def test_job_that_is_over_waits_a_moment_for_its_pod() -> None:
    for pods in ([], [SeenPod(RUNNING)]):
        verdict = judge(FAILED, pods, now=101.0, over_since=100.0)
        assert verdict.status.state is LaunchState.PLACED
        assert verdict.look_again == pytest.approx(4.0)
        status = judge(FAILED, pods, now=105.0, over_since=100.0).status
        assert status.state is LaunchState.ENDED
    pod = SeenPod(recorded("oom_killed"))
    status = judge(FAILED, [pod], now=100.0, over_since=100.0).status
    assert status.end is LaunchEnd.OUT_OF_MEMORY

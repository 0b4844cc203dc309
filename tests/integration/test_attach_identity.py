"""Who may attach: tokens, identities and fencing, over the real WorkerService."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from lighten import v1 as pb
from lighten.v1.worker_service_pb2_grpc import WorkerServiceStub
from lighten_service.clock import SystemClock
from lighten_service.jobs.errors import Internal
from lighten_service.jobs.ports import (
    LaunchEnd,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)
from lighten_service.jobs.ticket import Ticket
from lighten_service.worker import stream
from tests.support.edge import Edge, Refusal, refused, running_edge


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path, slots=4) as edge:
        yield edge


class Instance:
    """One worker instance of a launch."""

    def __init__(self, edge: Edge, launch: LaunchRequest, instance: str = "one") -> None:
        self.stub = WorkerServiceStub(edge.channel)
        self.launch = launch
        self.instance = instance
        self.counter = 0

    async def attach(self, token: str | None = None, **fields: object) -> pb.AttachResponse:
        values = {
            "job": self.launch.name,
            "launch": self.launch.launch,
            "instance_id": self.instance,
            "protocol": 1,
            **fields,
        }
        metadata = (("authorization", f"Bearer {token or self.launch.token}"),)
        self.call = self.stub.Attach(metadata=metadata)
        await self.call.write(pb.AttachRequest(hello=pb.Hello(**values)))  # type: ignore[arg-type]
        first = await self.call.read()
        assert isinstance(first, pb.AttachResponse)
        return first

    async def say(self, *counters: int) -> pb.AttachResponse:
        for counter in counters:
            line = pb.LogLine(level=pb.LOG_LEVEL_INFO, message=f"{self.instance} {counter}")
            event = pb.WorkerEvent(counter=counter, event=pb.JobEvent(log=line))
            await self.call.write(pb.AttachRequest(event=event))
        return await self.read()

    async def read(self) -> pb.AttachResponse:
        response = await self.call.read()
        assert isinstance(response, pb.AttachResponse), response
        return response


async def refusal(call: object) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return Refusal(caught.value)


async def launched(edge: Edge) -> LaunchRequest:
    await edge.create()
    return await edge.executor.launches.get()


async def test_same_instance_continues_its_attempt(edge: Edge) -> None:
    launch = await launched(edge)
    worker = Instance(edge, launch)
    first = (await worker.attach()).welcome
    assert first.attempt == 1
    assert "model.artifact" in [item.field for item in first.inputs]
    assert (await worker.say(1, 2, 3)).HasField("ack")
    worker.call.cancel()
    again = Instance(edge, launch)
    welcome = (await again.attach()).welcome
    assert welcome.attempt == 1
    assert welcome.acked_event > 0
    assert welcome.inputs == first.inputs
    # The whole outbox once more: what is stored is acknowledged and not stored again.
    acked = 0
    await again.say(1, 2, 3)
    while acked < 4:
        acked = (await again.say(4)).ack.counter
    watch = edge.api.WatchJob(pb.WatchJobRequest(name=launch.name))
    # The snapshot, three states, four lines.
    events = [(await watch.read()).event for _ in range(1 + 3 + 4)]
    assert [event.log.message for event in events if event.HasField("log")] == [
        f"one {counter}" for counter in (1, 2, 3, 4)
    ]


async def test_new_instance_fences_the_one_before(edge: Edge) -> None:
    launch = await launched(edge)
    old, new = Instance(edge, launch, "old"), Instance(edge, launch, "new")
    await old.attach()
    assert (await new.attach()).welcome.attempt == 2
    assert (await old.read()).fenced.current_attempt == 2
    # It stays out: the two do not fence each other in turns.
    again = await Instance(edge, launch, "old").attach()
    assert again.fenced.current_attempt == 2
    assert (await new.say(1)).ack.counter == 1
    job = (await edge.api.GetJob(pb.GetJobRequest(name=launch.name))).job
    assert (job.attempt, job.crashes, job.disruptions) == (2, 0, 1)


async def test_instance_that_the_executor_does_not_hold_is_fenced(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def holds(ref: LaunchRef, instance_id: str) -> bool:
        return instance_id == "real"

    monkeypatch.setattr(edge.executor, "holds", holds)
    launch = await launched(edge)
    assert (await Instance(edge, launch, "stranger").attach()).HasField("fenced")
    assert (await Instance(edge, launch, "real").attach()).welcome.attempt == 1


async def test_instance_of_an_ended_launch_is_fenced(edge: Edge) -> None:
    launch = await launched(edge)
    worker = Instance(edge, launch)
    await worker.attach()
    ref = LaunchRef(launch.job_id, launch.launch, "scripted")
    listener = edge.executor._listener
    assert listener is not None
    await listener(ref, LaunchStatus(LaunchState.ENDED, LaunchEnd.CRASHED, "gone"))
    assert (await worker.read()).HasField("fenced")
    assert (await Instance(edge, launch, "late").attach()).HasField("fenced")


async def test_session_token_is_refused_once_the_attempt_is_fenced(edge: Edge) -> None:
    launch = await launched(edge)
    old = Instance(edge, launch, "old")
    token = (await old.attach()).welcome.session_token.token
    metadata = (("authorization", f"Bearer {token}"),)
    await old.stub.ListInputs(pb.ListInputsRequest(), metadata=metadata)
    await Instance(edge, launch, "new").attach()
    refusal = await refused(old.stub.ListInputs(pb.ListInputsRequest(), metadata=metadata))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "ATTEMPT_FENCED",
    )


async def test_wrong_tokens_are_refused(edge: Edge) -> None:
    launch, other = await launched(edge), await launched(edge)
    worker = Instance(edge, launch)
    for token, code, reason in (
        ("nonsense", grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN"),
        (launch.token[:-3] + "AAA", grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN"),
        (other.token, grpc.StatusCode.PERMISSION_DENIED, "WRONG_JOB"),
    ):
        answer = await refusal(worker.attach(token=token))
        assert (answer.code, answer.reason) == (code, reason)
    session = (await worker.attach()).welcome.session_token.token
    # Each token is good for its own calls alone.
    assert (await refusal(worker.attach(token=session))).reason == "INVALID_TOKEN"
    for token in ("", launch.token):
        call = worker.stub.SignUrls(
            pb.SignUrlsRequest(), metadata=(("authorization", f"Bearer {token}"),)
        )
        assert (await refused(call)).code == grpc.StatusCode.UNAUTHENTICATED


async def test_worker_of_another_release_fails_its_launch_with_a_reason(edge: Edge) -> None:
    spec = edge.spec()
    spec.resources.max_retries = 0
    await edge.create(spec=spec)
    launch = await edge.executor.launches.get()
    answer = await refusal(Instance(edge, launch).attach(protocol=99, build="9.9"))
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "UNSUPPORTED_PROTOCOL",
    )
    job = (await edge.api.GetJob(pb.GetJobRequest(name=launch.name))).job
    assert (job.state, job.crashes) == (pb.JOB_STATE_FAILED, 1)
    assert (job.error.reason, job.error.kind) == ("UNSUPPORTED_PROTOCOL", pb.ERROR_KIND_SYSTEM)
    assert "9.9" in job.error.message


async def test_stranger_of_another_release_harms_no_job(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = await launched(edge)
    worker = Instance(edge, launch)
    await worker.attach()

    async def holds(ref: LaunchRef, instance_id: str) -> bool:
        return False

    monkeypatch.setattr(edge.executor, "holds", holds)
    stranger = Instance(edge, launch, "stranger")
    assert (await stranger.attach(protocol=99)).HasField("fenced")
    assert (await worker.say(1)).ack.counter == 1


async def test_pod_that_attaches_twice_is_one_attempt(edge: Edge) -> None:
    launch = await launched(edge)
    first, second = Instance(edge, launch), Instance(edge, launch)
    assert (await first.attach()).welcome.attempt == 1
    assert (await second.attach()).welcome.attempt == 1
    assert (await first.say(1, 2)).ack.counter > 0
    acked = 0
    while acked < 3:
        acked = (await second.say(1, 2, 3)).ack.counter
    watch = edge.api.WatchJob(pb.WatchJobRequest(name=launch.name))
    # The snapshot, three states, three lines.
    events = [(await watch.read()).event for _ in range(1 + 3 + 3)]
    lines = [event.log.message for event in events if event.HasField("log")]
    assert lines == [f"one {counter}" for counter in (1, 2, 3)]
    job = (await edge.api.GetJob(pb.GetJobRequest(name=launch.name))).job
    assert (job.attempt, job.disruptions) == (1, 0)


async def test_replayed_token_of_an_earlier_launch_opens_nothing(edge: Edge) -> None:
    first = await launched(edge)
    await Instance(edge, first).attach()
    listener = edge.executor._listener
    assert listener is not None
    ref = LaunchRef(first.job_id, first.launch, "scripted")
    await listener(ref, LaunchStatus(LaunchState.ENDED, LaunchEnd.CRASHED, "gone"))
    second = await asyncio.wait_for(edge.executor.launches.get(), 20)
    worker = Instance(edge, second, "two")
    assert (await worker.attach()).welcome.attempt == 2
    assert (await Instance(edge, first, "thief").attach()).fenced.current_attempt == 2
    # Not even under the name of the pod that has the job, or for the launch that has it.
    assert (await Instance(edge, first, "two").attach()).HasField("fenced")
    stolen = await refusal(Instance(edge, second, "thief").attach(token=first.token))
    assert stolen.reason == "WRONG_JOB"
    assert (await worker.say(1)).ack.counter == 1


async def test_session_token_expires(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = await launched(edge)
    worker = Instance(edge, launch)
    token = (await worker.attach()).welcome.session_token
    later = token.expire_time.ToNanoseconds() / 1e9 + 1
    monkeypatch.setattr(SystemClock, "now", lambda _: later)
    metadata = (("authorization", f"Bearer {token.token}"),)
    answer = await refused(worker.stub.ListInputs(pb.ListInputsRequest(), metadata=metadata))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_gap_in_the_events_is_refused(edge: Edge) -> None:
    worker = Instance(edge, await launched(edge))
    await worker.attach()
    answer = await refusal(worker.say(2))
    assert answer.reason == "EVENT_GAP"


async def test_worker_reads_and_writes_only_what_is_its_own(edge: Edge) -> None:
    launch = await launched(edge)
    worker = Instance(edge, launch)
    welcome = (await worker.attach()).welcome
    metadata = (("authorization", f"Bearer {welcome.session_token.token}"),)

    async def sign(**target: object) -> pb.SignUrlsResponse:
        request = pb.SignUrlsRequest(requests=[pb.UrlRequest(**target)])  # type: ignore[arg-type]
        response = await worker.stub.SignUrls(request, metadata=metadata)
        assert isinstance(response, pb.SignUrlsResponse)
        return response

    field, path = "model.artifact", "model.onnx"
    assert (await sign(input=pb.InputTarget(field=field, path=path))).transfers[0].url
    unknown = await refusal(sign(input=pb.InputTarget(field=field, path="other")))
    assert unknown.reason == "INPUT_NOT_FOUND"
    for bad in ("../2/manifest.json", "/etc/passwd", "a//b", "..", ""):
        answer = await refusal(sign(output=pb.OutputTarget(path=bad, bytes=1)))
        assert answer.code == grpc.StatusCode.INVALID_ARGUMENT, bad
    large = (await sign(output=pb.OutputTarget(path="artifacts/large", bytes=130 << 20))).transfers
    assert (len(large[0].part_urls), large[0].part_bytes) == (3, 64 << 20)
    assert large[0].upload_id

    (edge.files / "model.onnx").write_bytes(b"something else now")
    changed = await refusal(sign(input=pb.InputTarget(field=field, path=path)))
    assert (changed.reason, changed.fields) == ("INPUT_CHANGED", [field])


@pytest.mark.parametrize("damage", ["digest", "missing", "size", "newer", "other"])
async def test_manifest_that_does_not_hold_is_no_success(edge: Edge, damage: str) -> None:
    spec = edge.spec()
    spec.resources.max_retries = 0
    await edge.create(spec=spec)
    launch = await edge.executor.launches.get()
    worker = Instance(edge, launch)
    welcome = (await worker.attach()).welcome
    folder = Path(welcome.attempt_uri.removeprefix("file://"))
    sha256 = _write_manifest(folder, launch.name, damage)
    await worker.call.write(pb.AttachRequest(finished=pb.Finished(manifest_sha256=sha256)))
    while await worker.call.read() is not grpc.aio.EOF:
        await asyncio.sleep(0)
    job = (await edge.api.GetJob(pb.GetJobRequest(name=launch.name))).job
    assert job.state == pb.JOB_STATE_FAILED
    assert job.error.kind == pb.ERROR_KIND_SYSTEM
    assert job.error.reason == {
        "missing": "MANIFEST_MISSING",
        "newer": "MANIFEST_TOO_NEW",
    }.get(damage, "MANIFEST_INVALID")


def _write_manifest(folder: Path, job: str, damage: str) -> str:
    artifact = {"name": "a.bin", "bytes": "3" if damage != "size" else "4"}
    manifest = {
        "format_version": 1 if damage != "newer" else 2,
        "job": job,
        "attempt": 1 if damage != "other" else 2,
        "result": {"artifacts": [artifact]},
    }
    content = json.dumps(manifest).encode()
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "a.bin").write_bytes(b"abc")
    if damage != "missing":
        (folder / "manifest.json").write_bytes(content)
    return "0" * 64 if damage == "digest" else hashlib.sha256(content).hexdigest()


async def test_worker_that_cannot_speak_ends(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would listen for ever, and its job with it."""

    def broken() -> pb.Heartbeat:
        raise AttributeError("half imported")

    launch = await launched(edge)
    monkeypatch.setattr(stream, "heartbeat", broken)
    ticket = Ticket(
        edge.plane.addresses.workers, launch.name, launch.launch, launch.token, scratch=""
    )
    worker = stream.AttachStream(ticket, stream.SessionOptions(), on_stop=lambda: None)
    with pytest.raises(Internal, match="half imported"):
        await asyncio.wait_for(worker.run(), 10)
    assert worker.stop_reason is not None
    await worker.close()


async def test_nodes_with_unlike_cpus_are_listed_side_by_side(edge: Edge) -> None:
    for saturates in (True, False, True):
        inventory = pb.WorkerInventory(devices=["cpu"], int8_saturates=saturates)
        worker = Instance(edge, await launched(edge))
        await worker.attach(build="1.0", inventory=inventory)
        worker.call.cancel()
    found = await edge.api.GetCapabilities(pb.GetCapabilitiesRequest())
    assert [worker.int8_saturates for worker in found.workers] == [True, False]

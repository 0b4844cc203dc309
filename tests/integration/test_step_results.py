"""What the server keeps of step results, and who may read them."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from lighten import transfer
from lighten import v1 as pb
from tests.support.edge import Edge, leave_result, refused, running_edge
from tests.support.scripted_workers import ScriptedWorker

CONTENT = b"a model after one step"


class Worker(ScriptedWorker):
    """A worker that keeps step results."""

    async def attach(self) -> pb.Welcome:
        self.welcome = await super().attach()
        return self.welcome

    def keep(self, result: pb.StepResultRef) -> None:
        """Write the files of a step result, and tell of it."""
        for file in result.files:
            path = self.folder / "steps" / result.step_id / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENT)
        self._requests.put_nowait(pb.AttachRequest(step_finished=result))

    async def settled(self) -> None:
        """Wait until what was said is stored: answers come in order."""
        self.tell(log=pb.LogLine(message="settled"))
        await self.settle()

    async def sign(self, path: str) -> pb.SignedTransfer:
        request = pb.SignUrlsRequest(requests=[pb.UrlRequest(step=pb.StepTarget(path=path))])
        token = self.welcome.session_token.token
        metadata = (("authorization", f"Bearer {token}"),)
        signed: pb.SignUrlsResponse = await self._stub.SignUrls(request, metadata=metadata)
        return signed.transfers[0]

    @property
    def folder(self) -> Path:
        return Path(self.welcome.attempt_uri.removeprefix("file://"))


def result_of(attempt: int, step_id: str = "calibrate", *paths: str) -> pb.StepResultRef:
    digest = sha256(CONTENT).hexdigest()
    files = [
        pb.StepFile(path=path, bytes=len(CONTENT), sha256=digest)
        for path in paths or ("decisions.json", "model.onnx")
    ]
    return pb.StepResultRef(attempt=attempt, step_id=step_id, files=files)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path, slots=4) as edge:
        yield edge


async def two_workers(edge: Edge) -> tuple[pb.Job, Worker, Worker]:
    """Return two instances of one launch, the first attached."""
    spec = edge.spec()
    spec.plan.steps.steps.insert(0, pb.Step(id="fold", fold_batch_norms=pb.FoldBatchNorms()))
    job = await edge.create(spec=spec)
    launch = await edge.executor.launches.get()
    first, second = (Worker(edge.channel, launch, name) for name in ("first", "second"))
    welcome = await first.attach()
    assert not welcome.HasField("resume_from")
    return job, first, second


async def test_the_next_attempt_goes_on_from_the_newest_step(edge: Edge, tmp_path: Path) -> None:
    _, first, second = await two_workers(edge)
    first.keep(result_of(1, "fold"))
    first.keep(result_of(1, "calibrate"))
    await first.settled()
    assert (await second.attach()).resume_from == result_of(1, "calibrate")

    signed = await second.sign("model.onnx")
    digest = await asyncio.to_thread(transfer.download, signed.url, tmp_path / "model.onnx")
    assert digest == sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    "path",
    ["model.onnx.data", "../../fold/model.onnx", "/etc/passwd", "", "../../../1/manifest.json"],
)
async def test_other_files_are_not_signed(edge: Edge, path: str) -> None:
    _, first, second = await two_workers(edge)
    assert (await refused(first.sign("model.onnx"))).reason == "STEP_FILE_NOT_FOUND"
    first.keep(result_of(1))
    await first.settled()
    await second.attach()

    refusal = await refused(second.sign(path))
    assert refusal.reason in ("STEP_FILE_NOT_FOUND", "INVALID_ARGUMENT")
    assert (await refused(first.sign("model.onnx"))).reason == "ATTEMPT_FENCED"


async def test_what_a_fenced_attempt_says_of_its_steps_is_not_kept(edge: Edge) -> None:
    job, first, second = await two_workers(edge)
    first.keep(result_of(1, "fold"))
    await first.settled()
    await second.attach()
    first.keep(result_of(1, "calibrate"))
    await first.until_fenced()

    third = Worker(edge.channel, first._launch, "third")
    assert (await third.attach()).resume_from == result_of(1, "fold")
    assert third.welcome.attempt == 3
    assert job.name in third.welcome.attempt_uri


@pytest.mark.parametrize(
    "result",
    [
        result_of(2),
        result_of(1, "no-such-step"),
        result_of(1, "calibrate", "../model.onnx"),
        pb.StepResultRef(attempt=1, step_id="calibrate"),
        pb.StepResultRef(attempt=1, step_id="calibrate", files=[pb.StepFile(path="a")]),
    ],
    ids=["attempt", "step", "path", "empty", "digest"],
)
async def test_a_step_result_that_cannot_be_is_refused(
    edge: Edge, result: pb.StepResultRef
) -> None:
    _, first, second = await two_workers(edge)
    first._requests.put_nowait(pb.AttachRequest(step_finished=result))
    refusal = await refused(first._call)
    assert refusal.reason in ("INVALID_STEP_RESULT", "INVALID_PATH")
    assert not (await second.attach()).HasField("resume_from")


async def test_step_results_go_when_their_job_is_over(tmp_path: Path) -> None:
    from tests.integration.test_api_retention import sweep

    async with running_edge(tmp_path, slots=4) as edge:
        _, live, _ = await two_workers(edge)
        live.keep(result_of(1))
        await live.settled()
        job, done, _ = await two_workers(edge)
        done.keep(result_of(1))
        await done.finish(leave_result(job.name, done.welcome))
        root, database = edge.settings.root_uri, edge.settings.database_url
    await sweep(root, database, days=0)

    assert (live.folder / "steps/calibrate/model.onnx").exists()
    assert not list(done.folder.glob("steps/**/*.*"))
    assert (done.folder / "artifacts/model.qdq.onnx").exists()
    assert (done.folder / "manifest.json").exists()

"""Worker processes that have their ticket in a file, as in a pod: real server, real processes."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from lighten_service.jobs.ports import LaunchRef, LaunchRequest
from lighten_service.jobs.ticket import EXIT_STOPPED, Ticket
from lighten_service.worker.machine import cpus
from tests.support.certificates import Authority
from tests.support.edge import Edge, running_edge
from tests.support.scripted_server import COMMAND

UID = "0b3d8c4e-9f70-4f8e-a3a5-5f1d0d0c7a11"
GRACE = 4.0
USAGE = 2


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path, slots=1) as edge:
        yield edge


class Pod:
    """One worker process with the files of a pod: a mounted Secret and a scratch folder."""

    def __init__(self, folder: Path, uid: str = UID) -> None:
        self.uid = uid
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        # As the kubelet mounts a Secret: a link into a folder that it swaps.
        (folder / "..data").mkdir()
        self.secret = folder / "..data" / "ticket.json"
        self.ticket = folder / "ticket.json"
        self.ticket.symlink_to("..data/ticket.json")

    async def start(
        self, *arguments: str | Path, stdin: int | None = asyncio.subprocess.DEVNULL
    ) -> None:
        inherited = ("PATH", "LD_LIBRARY_PATH")
        self.process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments or ("--ticket", self.ticket),
            env={
                "LIGHTEN_INSTANCE_ID": self.uid,
                **{name: os.environ[name] for name in inherited if name in os.environ},
            },
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was printed."""
        output, _ = await asyncio.wait_for(self.process.communicate(), 30)
        assert self.process.returncode is not None
        return self.process.returncode, output.decode()


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path / "pod")
    yield pod
    if hasattr(pod, "process") and pod.process.returncode is None:
        pod.process.kill()
        await pod.process.wait()


async def launched(edge: Edge, pod: Pod, script: str, **resources: int) -> LaunchRequest:
    """Submit a job, and write the ticket of its launch."""
    spec = edge.spec()
    spec.display_name = script
    spec.resources.MergeFrom(pb.Resources(**resources))
    await edge.create(spec=spec)
    launch = await edge.executor.launches.get()
    ticket = Ticket(
        server=edge.plane.addresses.grpc,
        job=launch.name,
        launch=launch.launch,
        token=launch.token,
        scratch=str(pod.scratch),
        grace_seconds=GRACE,
    )
    pod.secret.write_bytes(ticket.to_line())
    return launch


async def job_of(edge: Edge, launch: LaunchRequest) -> pb.Job:
    job: pb.Job = (await edge.api.GetJob(pb.GetJobRequest(name=launch.name))).job
    return job


async def until_said(edge: Edge, launch: LaunchRequest, line: str) -> None:
    async for response in edge.api.WatchJob(pb.WatchJobRequest(name=launch.name)):
        if response.event.log.message == line:
            return


async def test_it_attaches_under_its_own_name_and_keeps_to_its_scratch(
    edge: Edge, pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def holds(ref: LaunchRef, instance_id: str) -> bool:
        return instance_id == UID

    monkeypatch.setattr(edge.executor, "holds", holds)
    seen = tmp_path / "environment"
    launch = await launched(edge, pod, f"environment={seen} events=3")
    await pod.start()
    code, output = await pod.end()

    assert code == 0, output
    assert (await job_of(edge, launch)).state == pb.JOB_STATE_SUCCEEDED
    environment = json.loads(seen.read_text())
    folders = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    for name in folders:
        assert Path(environment[name]).is_relative_to(pod.scratch), name
    assert environment["OMP_NUM_THREADS"] == str(cpus())


async def test_sigterm_is_told_at_once_in_the_middle_of_native_code(edge: Edge, pod: Pod) -> None:
    launch = await launched(edge, pod, "events=1 native")
    await pod.start()
    await until_said(edge, launch, "line 1")
    asked = time.monotonic()
    pod.process.terminate()
    while (await job_of(edge, launch)).disruptions == 0:
        assert time.monotonic() - asked < GRACE / 2, "the server was not told"
        await asyncio.sleep(0.02)
    told = time.monotonic() - asked
    code, output = await pod.end()
    ended = time.monotonic() - asked

    assert code == EXIT_STOPPED, output
    assert told < 1.0
    assert GRACE / 2 <= ended < GRACE
    job = await job_of(edge, launch)
    assert (job.crashes, job.disruptions, job.attempt) == (0, 1, 1)


async def test_sigterm_stops_at_the_next_safe_point(edge: Edge, pod: Pod) -> None:
    launch = await launched(edge, pod, "events=1 sleep=60")
    await pod.start()
    await until_said(edge, launch, "line 1")
    asked = time.monotonic()
    pod.process.terminate()
    code, output = await pod.end()

    assert (code, time.monotonic() - asked < GRACE / 2) == (EXIT_STOPPED, True), output
    assert (await job_of(edge, launch)).disruptions == 1
    objects = Path(edge.settings.root_uri.removeprefix("file://"))
    assert [path for path in objects.rglob("*") if path.is_file()] == []


async def test_sigterm_ends_a_worker_that_has_no_job_yet(pod: Pod) -> None:
    await pod.start("--import", "json", stdin=asyncio.subprocess.PIPE)
    assert pod.process.stdout is not None
    await pod.process.stdout.readline()  # that it waits
    pod.process.send_signal(signal.SIGTERM)
    code, _ = await pod.end()
    assert code == EXIT_STOPPED


async def test_sigterm_ends_a_worker_that_finds_no_server(pod: Pod) -> None:
    nowhere = Ticket("127.0.0.1:1", "projects/p/jobs/j", 1, "token", str(pod.scratch))
    pod.secret.write_bytes(nowhere.to_line())
    await pod.start()
    assert pod.process.stdout is not None
    line = await asyncio.wait_for(pod.process.stdout.readline(), 20)
    assert b"127.0.0.1:1 cannot be reached" in line
    pod.process.terminate()
    code, _ = await pod.end()
    assert code == EXIT_STOPPED


async def test_a_second_pod_takes_over_and_the_first_ends(
    edge: Edge, pod: Pod, tmp_path: Path
) -> None:
    launch = await launched(edge, pod, "events=1 sleep=60@1")
    await pod.start()
    await until_said(edge, launch, "line 1")
    second = Pod(tmp_path / "second", uid="another")
    ticket = pod.secret.read_text().replace(str(pod.scratch), str(second.scratch))
    second.secret.write_text(ticket)
    await second.start()
    first, output = await pod.end()
    assert first == EXIT_STOPPED, output
    assert "attempt 2 has the job" in output
    code, output = await second.end()
    assert code == 0, output
    job = await job_of(edge, launch)
    assert (job.state, job.attempt, job.disruptions) == (pb.JOB_STATE_SUCCEEDED, 2, 1)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "Expecting value"),
        (b'{"server": "lighten:8470"}', "missing or of the wrong type: job, launch, token"),
    ],
    ids=["missing", "empty", "incomplete"],
)
async def test_a_bad_ticket_is_told_in_one_line(
    pod: Pod, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        pod.secret.write_bytes(content)
    await pod.start()
    code, output = await pod.end()
    assert code == USAGE
    last = output.strip().splitlines()[-1]
    assert f"no usable ticket in {pod.ticket}" in last
    assert complaint in last
    assert "Traceback" not in output


async def test_a_scratch_folder_that_is_missing_is_told(pod: Pod) -> None:
    ticket = Ticket("127.0.0.1:1", "projects/p/jobs/j", 1, "secret", "/nowhere/scratch")
    pod.secret.write_bytes(ticket.to_line())
    await pod.start()
    code, output = await pod.end()
    assert (code, "/nowhere/scratch" in output, "secret" in output) == (USAGE, True, False)


async def test_a_ticket_leaves_nothing_to_import_early(pod: Pod) -> None:
    await pod.start("--ticket", pod.ticket, "--import", "json")
    code, output = await pod.end()
    assert (code, "--import" in output) == (USAGE, True)


@asynccontextmanager
async def tls_edge(
    folder: Path, name: str, environment: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Edge, Authority]]:
    """Run a server of workers in pods; its certificate has one name."""
    environment.setenv("LIGHTEN_EXECUTOR__KIND", "kubernetes")
    authority = Authority(folder)
    cert, key = authority.sign("server", hosts=[name])
    settings = {
        "tls": {"cert": cert, "key": key, "ca": authority.ca},
        "kubernetes": {"namespace": "default", "image": "worker"},
    }
    async with running_edge(folder, slots=1, **settings) as edge:
        address = edge.plane.addresses.grpc.removeprefix("grpcs://")
        credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
        override = [("grpc.ssl_target_name_override", name)]
        async with grpc.aio.secure_channel(address, credentials, override) as channel:
            edge.api = OptimizationServiceStub(channel)
            yield edge, authority


async def launched_with_tls(
    edge: Edge, pod: Pod, authority: Authority, server_name: str = ""
) -> LaunchRequest:
    launch = await launched(edge, pod, "events=1", max_retries=0)
    ticket = Ticket.from_line(pod.secret.read_bytes())
    server = edge.plane.addresses.workers
    ticket = replace(ticket, server=server, ca=authority.ca.read_text(), server_name=server_name)
    pod.secret.write_bytes(ticket.to_line())
    return launch


async def test_a_private_certificate_is_trusted_for_grpc_and_signed_urls(
    tmp_path: Path, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_edge(tmp_path, "127.0.0.1", monkeypatch) as (edge, authority):
        launch = await launched_with_tls(edge, pod, authority)
        await pod.start()
        code, output = await pod.end()
        assert code == 0, output
        assert (await job_of(edge, launch)).state == pb.JOB_STATE_SUCCEEDED


async def test_the_servers_name_may_be_another_one(
    tmp_path: Path, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_edge(tmp_path, "lighten.example", monkeypatch) as (edge, authority):
        launch = await launched_with_tls(edge, pod, authority, "lighten.example")
        await pod.start()
        await pod.end()
        # It attached. What it holds of gRPC says nothing of the addresses of signed URLs.
        error = (await job_of(edge, launch)).error
        assert (error.reason, error.kind) == ("STORAGE_NOT_TRUSTED", pb.ERROR_KIND_SYSTEM)


async def test_a_server_that_is_not_trusted_gets_no_token(
    tmp_path: Path, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_edge(tmp_path, "127.0.0.1", monkeypatch) as (edge, _):
        launch = await launched_with_tls(edge, pod, Authority(tmp_path / "stranger"))
        await pod.start()
        assert pod.process.stdout is not None
        async with asyncio.timeout(20):
            while b"cannot be reached" not in (line := await pod.process.stdout.readline()):
                assert line, "it ended"
        assert b"certificate" in line
        assert (await job_of(edge, launch)).attempt == 0

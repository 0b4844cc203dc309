"""An executor whose workers are played by a test over the real WorkerService."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc

from lighten import v1 as pb
from lighten.v1.worker_service_pb2_grpc import WorkerServiceStub
from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.jobs.ports import (
    LaunchEnd,
    LaunchListener,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)

MEMORY_BYTES = 64 << 30


class ScriptedExecutor:
    """Starts nothing: a launch waits in ``launches`` for a test to play its worker.

    Args:
        slots: launches at once; 0: jobs stay QUEUED.
    """

    def __init__(self, slots: int = 0) -> None:
        self.launches: asyncio.Queue[LaunchRequest] = asyncio.Queue()
        self.stopped: list[LaunchRef] = []
        self._slots = slots
        self._live: dict[LaunchRef, None] = {}
        self._listener: LaunchListener | None = None

    async def open(self, listener: LaunchListener) -> None:
        self._listener = listener

    async def adopt(self, launches: Sequence[LaunchRef]) -> None:
        self._live.update(dict.fromkeys(launches))

    def admit(self, resources: pb.Resources) -> str | None:
        if resources.memory_bytes > MEMORY_BYTES or resources.gpus:
            raise ResourceExhausted(
                "RESOURCES_NOT_HERE", "this machine has 64 GiB of memory and no GPU"
            )
        return None if len(self._live) < self._slots else "waiting for a slot"

    @property
    def gpu_profiles(self) -> Sequence[pb.GpuProfile]:
        return ()

    @property
    def launches_at_once(self) -> int:
        return 1

    async def launch(self, request: LaunchRequest) -> str:
        self._live[LaunchRef(request.job_id, request.launch, "scripted")] = None
        self.launches.put_nowait(request)
        return "scripted"

    async def holds(self, ref: LaunchRef, instance_id: str) -> bool:
        return True

    async def status(self, ref: LaunchRef) -> LaunchStatus:
        if ref in self._live:
            return LaunchStatus(LaunchState.PLACED)
        return LaunchStatus(LaunchState.ENDED, LaunchEnd.EXITED)

    async def stop(self, ref: LaunchRef, *, grace_seconds: float) -> None:
        self.stopped.append(ref)
        self._live.pop(ref, None)
        if self._listener is not None:
            await self._listener(ref, LaunchStatus(LaunchState.ENDED, LaunchEnd.STOPPED))

    async def close(self) -> None:
        self._listener = None


class ScriptedWorker:
    """One worker that says what a test tells it to."""

    def __init__(
        self, channel: grpc.aio.Channel, launch: LaunchRequest, instance_id: str = "scripted"
    ) -> None:
        self._stub = WorkerServiceStub(channel)
        self._launch = launch
        self._instance_id = instance_id
        self._requests: asyncio.Queue[pb.AttachRequest | None] = asyncio.Queue()
        self._counter = 0
        self.acked = 0

    async def attach(self) -> pb.Welcome:
        hello = pb.Hello(
            job=self._launch.name,
            launch=self._launch.launch,
            instance_id=self._instance_id,
            protocol=1,
        )
        self._requests.put_nowait(pb.AttachRequest(hello=hello))
        self._call = self._stub.Attach(
            self._said(), metadata=(("authorization", f"Bearer {self._launch.token}"),)
        )
        first = await self._call.read()
        self.is_fenced: bool = first.HasField("fenced")
        return first.welcome

    def tell(self, **payload: object) -> None:
        """Send one event."""
        self._counter += 1
        event = pb.JobEvent(stage=pb.Stage(kind=pb.Stage.KIND_LOAD), **payload)  # type: ignore[arg-type]
        self._requests.put_nowait(
            pb.AttachRequest(event=pb.WorkerEvent(counter=self._counter, event=event))
        )

    async def settle(self) -> None:
        """Wait until every event is acknowledged."""
        while self.acked < self._counter:
            self.acked = (await self._call.read()).ack.counter

    async def finish(self, manifest_sha256: str) -> None:
        await self._last_word(
            pb.AttachRequest(finished=pb.Finished(manifest_sha256=manifest_sha256))
        )

    async def fail(self, error: pb.JobError) -> None:
        await self._last_word(pb.AttachRequest(failed=pb.Failed(error=error)))

    async def stop(self, why: pb.Stopped.Why.ValueType = pb.Stopped.WHY_DISRUPTED) -> None:
        await self._last_word(pb.AttachRequest(stopped=pb.Stopped(why=why)))

    async def until_fenced(self) -> None:
        """Read until the server says that another has the job."""
        while not (await self._call.read()).HasField("fenced"):
            pass

    async def _last_word(self, request: pb.AttachRequest) -> None:
        self._requests.put_nowait(request)
        while await self._call.read() is not grpc.aio.EOF:
            pass

    async def _said(self) -> AsyncIterator[pb.AttachRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

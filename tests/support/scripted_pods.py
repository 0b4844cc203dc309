"""An executor whose launches lose their workers and get others, as a test says."""

from collections.abc import Sequence

from lighten import v1 as pb
from lighten_service.jobs.errors import LightenError
from lighten_service.jobs.ports import (
    LaunchEnd,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)
from tests.support.scripted_workers import ScriptedExecutor

WAITING = LaunchStatus(LaunchState.WAITING, detail="1 Insufficient nvidia.com/gpu")


class ScriptedPods(ScriptedExecutor):
    """As a cluster does: it takes every launch, and tells what becomes of its pods.

    Attributes:
        refusals: errors of the launches to come, used up one by one.
        tried: launches asked for, those included that were refused.
        profiles: names of GPU profiles.
    """

    def __init__(self, profiles: Sequence[str] = ()) -> None:
        super().__init__(slots=1 << 30)
        self.refusals: list[LightenError] = []
        self.tried: list[LaunchRequest] = []
        self.profiles = profiles
        self._said: dict[tuple[str, int], LaunchStatus] = {}

    @property
    def gpu_profiles(self) -> Sequence[pb.GpuProfile]:
        return [pb.GpuProfile(name=name) for name in self.profiles]

    @property
    def launches_at_once(self) -> int:
        return 8

    async def launch(self, request: LaunchRequest) -> str:
        self.tried.append(request)
        if self.refusals:
            raise self.refusals.pop(0)
        self._said.setdefault((request.job_id, request.launch), WAITING)
        return await super().launch(request)

    async def status(self, ref: LaunchRef) -> LaunchStatus:
        return self._said.get((ref.job_id, ref.launch), LaunchStatus(LaunchState.UNKNOWN))

    async def stop(self, ref: LaunchRef, *, grace_seconds: float) -> None:
        key = (ref.job_id, ref.launch)
        self._said[key] = LaunchStatus(LaunchState.ENDED, LaunchEnd.STOPPED, "the Job was deleted")
        await super().stop(ref, grace_seconds=grace_seconds)

    async def tell(self, launch: LaunchRequest, status: LaunchStatus) -> None:
        """Tell of a launch, and answer so from now on."""
        self._said[launch.job_id, launch.launch] = status
        if self._listener is not None:
            await self._listener(LaunchRef(launch.job_id, launch.launch, "scripted"), status)

    async def place(self, launch: LaunchRequest, pod: str) -> None:
        await self.tell(launch, LaunchStatus(LaunchState.PLACED, instance_id=pod))

    async def evict(
        self, launch: LaunchRequest, pod: str, end: LaunchEnd = LaunchEnd.EVICTED, log: str = ""
    ) -> None:
        await self.tell(
            launch,
            LaunchStatus(
                LaunchState.WAITING, end, "the node ran out of disk", instance_id=pod, log=log
            ),
        )

    async def end(
        self, launch: LaunchRequest, end: LaunchEnd, pod: str = "", log: str = ""
    ) -> None:
        status = LaunchStatus(LaunchState.ENDED, end, "it is over", instance_id=pod, log=log)
        await self.tell(launch, status)

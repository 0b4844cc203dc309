"""Tells the domain what becomes of launches: in order, with the log of a worker that failed."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field, replace

from lighten_service.executors.kubernetes import naming
from lighten_service.executors.kubernetes.api import Api, ApiError, ApiUnreachable
from lighten_service.jobs.ports import LaunchListener, LaunchRef, LaunchStatus

_log = logging.getLogger(__name__)

_LINES = 100
_KEPT_BYTES = 16 << 10
# The API cuts from the front of the last lines, so more is read than is kept.
_READ_BYTES = 1 << 20
_NO_LOG = b"unable to retrieve container logs for "


@dataclass(slots=True)
class Teller:
    """One launch. ``said``: what the domain was told last."""

    ref: LaunchRef
    said: LaunchStatus | None = None
    # What is still to be told, each with the pod whose log goes with it.
    drafts: deque[tuple[LaunchStatus, str]] = field(default_factory=deque)
    # The newest log, by its pod: read at most once.
    logs: dict[str, str] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class Publisher:
    """Drafts of one launch are told one after another; launches do not wait for each other."""

    def __init__(self, api: Api, listener: LaunchListener) -> None:
        self._api = api
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, teller: Teller, status: LaunchStatus, pod: str = "") -> None:
        """Tell a status; ``pod``: name of the pod that failed, empty when its log is not wanted."""
        teller.drafts.append((status, pod))
        if teller.task is None:
            teller.task = asyncio.create_task(self._run(teller))
            self._tasks.add(teller.task)
            teller.task.add_done_callback(self._tasks.discard)

    async def read_log(self, teller: Teller, pod: str) -> str:
        """Return the last lines of a pod's worker; empty when they are gone already."""
        if pod not in teller.logs:
            teller.logs = {pod: await self._fetch(pod)}
        return teller.logs.get(pod, "")

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, teller: Teller) -> None:
        try:
            while teller.drafts:
                status, pod = teller.drafts[0]
                log = await self.read_log(teller, pod) if pod else ""
                teller.said = replace(status, log=log) if log else status
                teller.drafts.popleft()
                await self._tell(teller.ref, teller.said)
        finally:
            teller.task = None

    async def _tell(self, ref: LaunchRef, status: LaunchStatus) -> None:
        try:
            await self._listener(ref, status)
        except Exception:
            _log.exception("telling of launch %d of %s failed", ref.launch, ref.job_id)

    async def _fetch(self, pod: str) -> str:
        try:
            data = await self._api.log(pod, naming.WORKER, lines=_LINES, limit_bytes=_READ_BYTES)
        except (ApiError, ApiUnreachable) as error:
            _log.info("the log of pod %s cannot be read: %s", pod, error)
            return ""
        # With a status of success, where the container was removed already.
        if data.startswith(_NO_LOG):
            return ""
        return data[-_KEPT_BYTES:].decode(errors="replace")

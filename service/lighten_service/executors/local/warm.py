"""One worker process that has done its imports before a job arrives."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from lighten_service.executors.local.process import WorkerProcess


class WarmStart:
    """Starts worker processes; keeps ``idle`` ones ahead. One that belongs to nobody ends when
    its input closes, so none outlives a server that was killed.
    """

    def __init__(self, command: Sequence[str], workers: Path, idle: int) -> None:
        self._command = tuple(command)
        self._workers = workers
        self._idle = idle
        self._refilling = asyncio.Lock()
        self._waiting: list[tuple[dict[str, str], WorkerProcess, Path]] = []

    async def take(self, environment: Mapping[str, str], log: Path) -> WorkerProcess:
        """Return a process with this environment, warm if there is one, its output in ``log``.

        Raises:
            OSError: it cannot be started.
        """
        for entry in list(self._waiting):
            known, process, its_log = entry
            if not process.alive:
                self._discard(entry)
            elif known == environment:
                self._waiting.remove(entry)
                its_log.replace(log)
                return process
        return await self._spawn(environment, log)

    async def refill(self, environment: Mapping[str, str]) -> None:
        """Start what is missing, for launches like the last one. Raises OSError."""
        async with self._refilling:
            for entry in list(self._waiting):
                if entry[0] != environment or not entry[1].alive:
                    self._discard(entry)
            while len(self._waiting) < self._idle:
                log = self._workers / f"idle-{uuid4().hex}.log"
                process = await self._spawn(environment, log)
                self._waiting.append((dict(environment), process, log))

    def close(self) -> None:
        """Let the idle ones end."""
        for entry in list(self._waiting):
            self._discard(entry)

    async def _spawn(self, environment: Mapping[str, str], log: Path) -> WorkerProcess:
        return await asyncio.to_thread(
            WorkerProcess.spawn, self._command, environment, self._workers, log
        )

    def _discard(self, entry: tuple[dict[str, str], WorkerProcess, Path]) -> None:
        self._waiting.remove(entry)
        _, process, log = entry
        process.kill()
        process.release()
        log.unlink(missing_ok=True)

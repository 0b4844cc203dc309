"""Files that change while the server runs: certificates that are renewed, tokens that are added."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from lighten_service.telemetry.logs import get_logger
from lighten_service.telemetry.metrics import Metrics

LOOK_SECONDS = 2.0

T = TypeVar("T")
Stamp = tuple[int, int, int] | None

log = get_logger(__name__)


class Reloaded(Generic[T]):
    """What some files say, read again when they change. While they are broken, ``value`` stays
    what they said before.

    Args:
        what: for logs and metrics, for example ``tokens``.
        files: looked at for changes, links followed.
        read: returns what they say now, or raises what is wrong with it.

    Raises:
        Exception: of ``read``, at the first reading.
    """

    def __init__(
        self, what: str, files: Sequence[Path], read: Callable[[], T], metrics: Metrics
    ) -> None:
        self._what = what
        self._files = files
        self._read = read
        self._metrics = metrics
        # Taken before reading: a change on the way is seen by the next look.
        self._stamps = self._look()
        self.value = read()

    def refresh(self) -> None:
        """Read again if a file has changed."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self.value = self._read()
        except Exception as error:
            # Whatever is wrong with a file, the server goes on with what it has.
            self._metrics.reload_failed(self._what)
            log.error("cannot read again", what=self._what, kept="what it was", error=str(error))
        else:
            log.info("read again", what=self._what)

    def _look(self) -> list[Stamp]:
        return [_stamp(path) for path in self._files]


async def keep_fresh(files: Sequence[Reloaded[object]]) -> None:
    """Look for changes for ever, in a thread: a disk that hangs holds up no call."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for item in files:
            await asyncio.to_thread(item.refresh)


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

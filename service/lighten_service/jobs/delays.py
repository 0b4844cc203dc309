"""Jobs that the executor put off: who waits with them, and when it is asked again."""

from dataclasses import dataclass

from lighten import v1 as pb

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Delay:
    reason: str
    pause: float
    until: float


class Delays:
    """One delay for all jobs that ask for the same resources.

    Where one of them met a quota, or an executor that is out of reach, the others would too: so
    thousands of jobs cost one request for each pause, which doubles from 1 to 30 seconds.
    """

    def __init__(self) -> None:
        self._delays: dict[bytes, _Delay] = {}

    def reason(self, resources: pb.Resources, now: float) -> str | None:
        """Return why such a job has to wait at this time, None where it need not."""
        delay = self._delays.get(_shape(resources))
        return delay.reason if delay is not None and now < delay.until else None

    def put_off(self, resources: pb.Resources, reason: str, now: float) -> None:
        """The executor put such a job off."""
        shape = _shape(resources)
        before = self._delays.get(shape)
        if before is not None and now < before.until:
            return
        pause = min(before.pause * 2, _LONGEST_SECONDS) if before else _FIRST_SECONDS
        # A shape that nobody asks for any more is dropped.
        self._delays = {
            key: delay
            for key, delay in self._delays.items()
            if now < delay.until + 2 * _LONGEST_SECONDS
        }
        self._delays[shape] = _Delay(reason, pause, now + pause)

    def over(self, resources: pb.Resources) -> None:
        """The executor took such a job."""
        self._delays.pop(_shape(resources), None)


def _shape(resources: pb.Resources) -> bytes:
    """Return what an executor decides by: not how long a job may take, nor how urgent it is."""
    asked = pb.Resources(
        gpus=resources.gpus,
        gpu_profile=resources.gpu_profile,
        memory_bytes=resources.memory_bytes,
        scratch_bytes=resources.scratch_bytes,
    )
    return asked.SerializeToString(deterministic=True)

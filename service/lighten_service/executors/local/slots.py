"""What a machine can run at the same time."""

from dataclasses import dataclass

from lighten import v1 as pb
from lighten_service.jobs.errors import ResourceExhausted


@dataclass(frozen=True, slots=True)
class Slot:
    """What one launch holds: one CPU slot, or its GPUs."""

    gpus: tuple[int, ...] = ()


class Slots:
    """CPU slots for jobs without a GPU, and GPUs for the others."""

    def __init__(self, *, cpu_slots: int, gpus: int, memory_bytes: int) -> None:
        self._cpu_slots = cpu_slots
        self._gpus = gpus
        self._memory_bytes = memory_bytes
        self._held: list[Slot] = []

    def obstacle(self, resources: pb.Resources) -> str | None:
        """Return why a launch must wait, None when it need not.

        Raises:
            ResourceExhausted: it can never run here.
        """
        if resources.memory_bytes > self._memory_bytes:
            raise _never("memory_bytes", resources.memory_bytes, self._memory_bytes)
        if resources.gpus:
            if resources.gpus > self._gpus:
                raise _never("gpus", resources.gpus, self._gpus)
            free = len(self._free_gpus())
            return None if resources.gpus <= free else f"waiting for {resources.gpus} free GPU(s)"
        if self._cpu_slots == 0:
            raise ResourceExhausted(
                "NO_CPU_SLOTS", "this server runs GPU jobs alone", field="resources.gpus"
            )
        used = sum(not slot.gpus for slot in self._held)
        return None if used < self._cpu_slots else "waiting for a CPU slot"

    def take(self, resources: pb.Resources) -> Slot:
        """Hold a slot; a launch that was admitted before gets one even when all are held."""
        slot = Slot(self._free_gpus()[: resources.gpus])
        self._held.append(slot)
        return slot

    def hold(self, slot: Slot) -> None:
        """Hold again what an adopted launch has."""
        self._held.append(slot)

    def release(self, slot: Slot) -> None:
        """Give back what a launch held."""
        self._held.remove(slot)

    def _free_gpus(self) -> tuple[int, ...]:
        held = {gpu for slot in self._held for gpu in slot.gpus}
        return tuple(gpu for gpu in range(self._gpus) if gpu not in held)


def _never(field: str, asked: int, present: int) -> ResourceExhausted:
    return ResourceExhausted(
        "RESOURCES_UNAVAILABLE",
        f"the job asks for {asked} of resources.{field} and this machine has {present}; ask for "
        "less",
        field=f"resources.{field}",
        metadata={"asked": str(asked), "present": str(present)},
    )

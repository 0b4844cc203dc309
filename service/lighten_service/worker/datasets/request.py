"""What a reader gets to open a dataset."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.datasets.limits import Limits

# Names come from the data: of any length, and not always Unicode.
MAX_MESSAGE = 2000

# Takes (reason, message) of something that changes the result and is no error.
OnWarning = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """A dataset of the spec, where its bytes lie, and the model that it shall feed."""

    dataset: pb.Dataset
    # The fetched file or folder.
    path: Path
    # Inputs of the model, shapes without the batch dimension.
    inputs: tuple[pb.InputSpec, ...]
    class_names: tuple[str, ...]
    # Folder of this dataset alone, for what is unpacked.
    scratch: Path
    # Field of JobSpec that holds the dataset: "calibration" or "evaluation".
    field: str
    on_warning: OnWarning
    limits: Limits

    @property
    def wants_labels(self) -> bool:
        """Calibration ignores labels, so faulty ones do not fail it."""
        return self.field != "calibration"

    def refuse(self, reason: str, message: str, *, at: str = "data") -> InvalidArgument:
        """Return the error for a fault of the field ``at`` below the dataset's own field."""
        return InvalidArgument(
            reason, _printable(f"{self.field}: {message}"), field=f"{self.field}.{at}"
        )

    def warn(self, reason: str, message: str) -> None:
        """Report something that changes the result and is no error."""
        self.on_warning(reason, _printable(f"{self.field}: {message}"))

    def require_file(self) -> Path:
        """Return the path of a dataset that must be one file."""
        if self.path.is_dir():
            raise self.refuse(
                "WRONG_FORMAT",
                f"a dataset of format {self.format_name} is one file, but data.uri names a folder",
            )
        return self.path

    @property
    def format_name(self) -> str:
        """Format as the spec writes it, without its prefix, for example ``NPZ``."""
        return pb.DatasetFormat.Name(self.dataset.format).removeprefix("DATASET_FORMAT_")


def _printable(message: str) -> str:
    """Return a message that fits into an event, whatever names stand in it."""
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 1] + "…"
    return message.encode("utf-8", "backslashreplace").decode()

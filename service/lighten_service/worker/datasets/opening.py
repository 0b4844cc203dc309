"""Open a dataset of any format."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

from lighten import v1 as pb
from lighten_service.worker.data import Samples
from lighten_service.worker.datasets.arrays import open_arrays
from lighten_service.worker.datasets.image_folder import read_image_folder
from lighten_service.worker.datasets.image_samples import open_images
from lighten_service.worker.datasets.image_tar import read_image_tar
from lighten_service.worker.datasets.limits import Limits
from lighten_service.worker.datasets.npy import read_npy
from lighten_service.worker.datasets.npz import read_npz
from lighten_service.worker.datasets.request import OnWarning, Request
from lighten_service.worker.datasets.safetensors_file import read_safetensors

OPENERS: Mapping[pb.DatasetFormat.ValueType, Callable[[Request], Samples]] = {
    pb.DATASET_FORMAT_NPZ: lambda request: open_arrays(request, read_npz(request)),
    pb.DATASET_FORMAT_NPY: lambda request: open_arrays(request, read_npy(request)),
    pb.DATASET_FORMAT_SAFETENSORS: lambda request: open_arrays(request, read_safetensors(request)),
    pb.DATASET_FORMAT_IMAGE_FOLDER: lambda request: open_images(
        request, read_image_folder(request)
    ),
    pb.DATASET_FORMAT_IMAGE_TAR: lambda request: open_images(request, read_image_tar(request)),
}


def open_dataset(
    dataset: pb.Dataset,
    path: Path,
    *,
    inputs: Sequence[pb.InputSpec],
    class_names: Sequence[str],
    scratch: Path,
    field: str,
    on_warning: OnWarning,
    limits: Limits | None = None,
) -> Samples:
    """Check a dataset against the model's inputs and return it, ready to be read.

    Headers, names, shapes, types, labels and preprocessing are checked here; values and pictures
    while they are read. Archives are unpacked into ``scratch``, which must outlive the samples.

    Args:
        dataset: from the resolved spec, defaults filled in.
        path: the fetched file, or the folder of an image folder.
        inputs: the model's inputs, shapes without the batch dimension.
        class_names: ModelSource.class_names, to match textual labels.
        scratch: folder that exists; the dataset makes one of its own below it.
        field: field of JobSpec that holds it: "calibration" (labels are ignored) or "evaluation".
        on_warning: takes (reason, message): SAMPLES_SKIPPED after a pass that found images which
            cannot be decoded, FILES_IGNORED for files that are no images.
        limits: bounds on what the dataset may unpack to.

    Raises:
        InvalidArgument: the data, or the fields that describe them, are at fault. ``batches``
            raises it too, for values that are not finite and for pictures that do not fit.
        ResourceExhausted: the scratch folder is full.
    """
    request = Request(
        dataset=dataset,
        path=path,
        inputs=tuple(inputs),
        class_names=tuple(class_names),
        scratch=Path(mkdtemp(prefix=f"{field}-", dir=scratch)),
        field=field,
        on_warning=on_warning,
        limits=limits or Limits(),
    )
    opener = OPENERS.get(dataset.format)
    if opener is None:
        raise request.refuse("WRONG_FORMAT", "name one of the dataset formats", at="format")
    return opener(request)

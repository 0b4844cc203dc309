"""Rules of a spec, beyond the bounds of single fields, that need neither model nor data."""

from collections.abc import Collection, Iterator

from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation, invalid
from lighten_service.jobs.plan_rules import check_plan
from lighten_service.jobs.support import ARRAY_FORMATS, LABEL_METRICS, LABELLED_ARRAY_FORMATS

_LABEL_CHARACTERS = 63
_MAX_SECONDS = 366 * 86_400
_IMAGE_CHANNELS = {pb.COLOR_MODE_GRAY: 1}
_RGB_CHANNELS = 3


def check_spec(spec: pb.JobSpec, gpu_profiles: Collection[str]) -> None:
    """Check a spec whose single fields are within their bounds.

    Args:
        spec: as the caller sent it, without defaults.
        gpu_profiles: names that the operator offers.

    Raises:
        InvalidArgument: reason INVALID_SPEC, with a violation for everything that is wrong.
    """
    violations = [
        *_check_model(spec.model),
        *_check_datasets(spec),
        *check_plan(spec),
        *_check_outputs(spec.outputs),
        *_check_resources(spec.resources, gpu_profiles),
        *_check_labels(spec),
    ]
    if violations:
        # Two steps may miss the same thing.
        named = [
            Violation(f"spec.{item.field}", item.description) for item in dict.fromkeys(violations)
        ]
        raise invalid("INVALID_SPEC", named)


def _check_model(model: pb.ModelSource) -> Iterator[Violation]:
    yield from _check_reference(model.artifact, "model.artifact")
    if model.format == pb.MODEL_FORMAT_ONNX:
        if model.HasField("architecture"):
            yield Violation("model.architecture", "is in the file with ONNX; leave it out")
    else:
        yield from _check_architecture(model)
    names = [item.name for item in model.inputs]
    for index, item in enumerate(model.inputs):
        path = f"model.inputs[{index}]"
        if any(size < 1 for size in item.shape):
            yield Violation(f"{path}.shape", "every size must be at least 1; leave the batch out")
        if item.name in names[:index]:
            yield Violation(f"{path}.name", f'"{item.name}" is there twice')


def _check_architecture(model: pb.ModelSource) -> Iterator[Violation]:
    name = pb.ModelFormat.Name(model.format)
    if model.artifact.uri.endswith("/"):
        yield Violation("model.artifact.uri", f"must be one file for {name}, and is a folder")
    if not model.HasField("architecture"):
        yield Violation("model.architecture", f"is required: {name} holds weights alone")
    if not model.inputs:
        yield Violation("model.inputs", f"is required for {name}: name and shape of each input")
    architecture = model.architecture
    torchvision = architecture.library == pb.ARCHITECTURE_LIBRARY_TORCHVISION
    if torchvision and architecture.HasField("in_channels"):
        yield Violation("model.architecture.in_channels", "is for timm alone; leave it out")


def _check_reference(reference: pb.ObjectRef, path: str) -> Iterator[Violation]:
    folder = reference.uri.endswith("/")
    if folder and reference.sha256:
        yield Violation(f"{path}.sha256", "is for one file; for a folder use `files`")
    if not folder and reference.files:
        yield Violation(f"{path}.files", "is for a folder, whose uri ends with /; use `sha256`")
    paths = [item.path for item in reference.files]
    for index, item in enumerate(reference.files):
        if set(item.path.split("/")) & {"", ".", ".."}:
            yield Violation(f"{path}.files[{index}].path", "must be a path below the folder")
    if len(set(paths)) != len(paths):
        yield Violation(f"{path}.files", "names a path twice")


def _check_datasets(spec: pb.JobSpec) -> Iterator[Violation]:
    for name in ("calibration", "evaluation"):
        if spec.HasField(name):
            yield from _check_dataset(getattr(spec, name), name)
    if spec.HasField("evaluation"):
        mine, other = spec.evaluation.data, spec.calibration.data
        if mine.uri == other.uri or (mine.sha256 and mine.sha256 == other.sha256):
            yield Violation(
                "evaluation.data", "is what `calibration` reads: judge on samples it has not seen"
            )
    if spec.metric in LABEL_METRICS:
        name = pb.Metric.Name(spec.metric)
        if not spec.HasField("evaluation"):
            yield Violation("evaluation", f"is required, with labels, for {name}")
        elif spec.evaluation.format == pb.DATASET_FORMAT_NPY:
            yield Violation("evaluation.format", f"NPY has no labels, which {name} needs; use NPZ")


def _check_dataset(dataset: pb.Dataset, path: str) -> Iterator[Violation]:
    yield from _check_reference(dataset.data, f"{path}.data")
    format_name = pb.DatasetFormat.Name(dataset.format)
    is_folder = dataset.data.uri.endswith("/")
    if is_folder != (dataset.format == pb.DATASET_FORMAT_IMAGE_FOLDER):
        wanted = "one file, without / at the end" if is_folder else "a folder, with / at the end"
        yield Violation(f"{path}.data.uri", f"must be {wanted}, for {format_name}")
    if dataset.HasField("label_key") and dataset.format not in LABELLED_ARRAY_FORMATS:
        yield Violation(f"{path}.label_key", f"means nothing for {format_name}; leave it out")
    if dataset.format in ARRAY_FORMATS:
        yield from _check_array_preprocessing(dataset.preprocessing, f"{path}.preprocessing")
    else:
        if dataset.input_keys:
            yield Violation(f"{path}.input_keys", f"means nothing for {format_name}; leave it out")
        yield from _check_image_preprocessing(dataset.preprocessing, f"{path}.preprocessing")
    for index, value in enumerate(dataset.preprocessing.std):
        if value <= 0:
            yield Violation(
                f"{path}.preprocessing.std[{index}]", f"must be above 0, and is {value}"
            )


def _check_array_preprocessing(steps: pb.Preprocessing, path: str) -> Iterator[Violation]:
    present = {field.name for field, _ in steps.ListFields()}
    for name in sorted(present & {"color", "resize", "center_crop", "layout"}):
        yield Violation(f"{path}.{name}", "is for images; prepare arrays before the upload")


def _check_image_preprocessing(steps: pb.Preprocessing, path: str) -> Iterator[Violation]:
    if steps.HasField("resize"):
        resize = steps.resize
        sides = (resize.HasField("height"), resize.HasField("width"))
        if resize.HasField("shorter_side") == any(sides) or (any(sides) and not all(sides)):
            yield Violation(f"{path}.resize", "set shorter_side alone, or height and width")
    channels = _IMAGE_CHANNELS.get(steps.color, _RGB_CHANNELS)
    for name, values in (("mean", steps.mean), ("std", steps.std)):
        if values and len(values) not in (1, channels):
            yield Violation(
                f"{path}.{name}",
                f"has {len(values)} values; give 1, or {channels} for the channels",
            )


def _check_outputs(outputs: pb.Outputs) -> Iterator[Violation]:
    if len(set(outputs.encodings)) != len(outputs.encodings):
        yield Violation("outputs.encodings", "names a version twice")


def _check_resources(resources: pb.Resources, gpu_profiles: Collection[str]) -> Iterator[Violation]:
    if resources.gpu_profile and resources.gpu_profile not in gpu_profiles:
        known = ", ".join(sorted(gpu_profiles)) or "none"
        yield Violation(
            "resources.gpu_profile",
            f'"{resources.gpu_profile}" is not offered here; the operator defined: {known}',
        )
    if resources.gpu_profile and not resources.gpus:
        yield Violation(
            "resources.gpus",
            f'is 0, and the profile "{resources.gpu_profile}" is for GPUs; ask for at least 1, or '
            "leave the profile out",
        )
    for name in ("queue_timeout", "run_timeout"):
        if resources.HasField(name):
            yield from _check_duration(getattr(resources, name), f"resources.{name}")


def _check_duration(duration: Duration, path: str) -> Iterator[Violation]:
    if not 1 <= duration.seconds <= _MAX_SECONDS or not 0 <= duration.nanos < 1_000_000_000:
        yield Violation(path, "must be between 1 second and 366 days")


def _check_labels(spec: pb.JobSpec) -> Iterator[Violation]:
    for key, value in spec.labels.items():
        if not 1 <= len(key) <= _LABEL_CHARACTERS or len(value) > _LABEL_CHARACTERS:
            yield Violation(
                f"labels[{key[:_LABEL_CHARACTERS]}]",
                f"keys have 1 to {_LABEL_CHARACTERS} characters, values at most as many",
            )

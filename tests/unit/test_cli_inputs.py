"""Local files that a spec names."""

from pathlib import Path

import pytest

from lighten import errors
from lighten._files import Uploaded
from lighten.cli.inputs import file_roots, read_in_place, read_spec, upload_inputs

SPEC = """\
model: {artifact: {uri: ./model.onnx}, format: onnx}
calibration: {data: {uri: images}, format: image_folder}
evaluation: {data: {uri: "s3://bucket/eval.npz"}, format: npz}
"""


@pytest.fixture
def spec_path(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "images").mkdir()
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def test_paths_are_relative_to_the_spec_and_uris_are_left_alone(spec_path: Path) -> None:
    spec, inputs = read_spec(spec_path)

    assert [(item.field, item.path) for item in inputs] == [
        ("model.artifact", spec_path.parent / "model.onnx"),
        ("calibration.data", spec_path.parent / "images"),
    ]
    read_in_place(inputs)
    assert spec.model.artifact.uri == f"file://{spec_path.parent}/model.onnx"
    assert spec.calibration.data.uri == f"file://{spec_path.parent}/images/"
    assert spec.evaluation.data.uri == "s3://bucket/eval.npz"
    assert file_roots(spec) == [spec_path.parent, spec_path.parent / "images"]


def test_every_missing_file_is_named(spec_path: Path) -> None:
    (spec_path.parent / "model.onnx").unlink()
    (spec_path.parent / "images").rmdir()
    with pytest.raises(errors.InvalidSpec) as caught:
        read_spec(spec_path)

    assert [item.field for item in caught.value.violations] == [
        *("model.artifact.uri", "calibration.data.uri")
    ]


def test_one_path_is_uploaded_once_and_its_digest_is_pinned(spec_path: Path) -> None:
    spec_path.write_text(SPEC.replace("images", "./model.onnx"))
    spec, inputs = read_spec(spec_path)
    asked = []

    def upload(item) -> Uploaded:
        asked.append(item.path.name)
        return Uploaded("s3://u/model.onnx", "ab" * 32, 1, 5)

    upload_inputs(inputs, upload)
    assert asked == ["model.onnx"]
    assert spec.model.artifact.sha256 == spec.calibration.data.sha256 == "ab" * 32


def test_a_file_that_is_not_what_the_spec_says_is_refused(spec_path: Path) -> None:
    text = SPEC.replace("uri: ./model.onnx", f"uri: ./model.onnx, sha256: {'cd' * 32}")
    spec_path.write_text(text)
    _, inputs = read_spec(spec_path)
    with pytest.raises(errors.InvalidSpec) as caught:
        upload_inputs(inputs, lambda item: Uploaded("s3://u/x", "ab" * 32, 1, 5))
    assert caught.value.field == "model.artifact.sha256"

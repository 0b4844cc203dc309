"""Requests are checked against the rules in their descriptors."""

import math

import pytest

from lighten import v1 as pb
from lighten_service.api.validation import validate
from lighten_service.jobs.errors import InvalidArgument
from tests.support.specs import onnx_spec, torch_spec


def violations(spec: pb.JobSpec) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        validate(pb.CreateJobRequest(parent="projects/default", spec=spec))
    return {item.field: item.description for item in caught.value.violations}


@pytest.mark.parametrize("spec", [onnx_spec(), torch_spec()])
def test_a_good_request_passes(spec):
    validate(pb.CreateJobRequest(parent="projects/default", spec=spec))


def test_every_violation_is_named_with_its_path():
    spec = torch_spec()
    spec.seed = -1
    spec.model.artifact.uri = ""
    spec.model.artifact.sha256 = "abc"
    spec.model.inputs[0].name = ""
    spec.calibration.batch_size = 5000
    spec.calibration.preprocessing.center_crop.ClearField("width")
    spec.plan.steps.steps[2].calibrate.percentile = 101
    found = violations(spec)
    assert set(found) == {
        "spec.seed",
        "spec.model.artifact.uri",
        "spec.model.artifact.sha256",
        "spec.model.inputs[0].name",
        "spec.calibration.batch_size",
        "spec.calibration.preprocessing.center_crop.width",
        "spec.plan.steps.steps[2].calibrate.percentile",
    }
    assert found["spec.calibration.batch_size"] == "must be at most 4096, and is 5000"
    assert found["spec.model.artifact.uri"] == "is required"
    assert "[0-9a-f]{64}" in found["spec.model.artifact.sha256"]


def test_required_messages_lists_and_enums():
    assert set(violations(pb.JobSpec())) == {"spec.model", "spec.plan"}
    spec = onnx_spec()
    spec.model.format = pb.MODEL_FORMAT_UNSPECIFIED
    del spec.plan.steps.steps[:]
    assert set(violations(spec)) == {"spec.model.format", "spec.plan.steps.steps"}


def test_lengths_of_strings_lists_and_maps():
    spec = onnx_spec()
    spec.display_name = "x" * 257
    spec.outputs.encodings.extend([pb.ENCODINGS_VERSION_2_0_0] * 4)
    spec.labels.update({f"key{index}": "" for index in range(65)})
    assert violations(spec) == {
        "spec.display_name": "has 257 characters; at most 256 are allowed",
        "spec.outputs.encodings": "has 4 entries; at most 3 are allowed",
        "spec.labels": "has 65 entries; at most 64 are allowed",
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_finite(value):
    spec = torch_spec()
    spec.calibration.preprocessing.scale = value
    spec.calibration.preprocessing.mean[1] = value
    assert set(violations(spec)) == {
        "spec.calibration.preprocessing.scale",
        "spec.calibration.preprocessing.mean[1]",
    }


def test_a_field_of_a_newer_client_is_refused_at_any_depth():
    request = pb.CreateJobRequest(parent="projects/default", spec=onnx_spec())
    step = request.spec.plan.steps.steps[0]
    # Field 99, varint 1, in a message within a list within messages.
    step.MergeFromString(b"\x98\x06\x01")
    with pytest.raises(InvalidArgument) as caught:
        validate(request)
    assert caught.value.reason == "UNKNOWN_FIELD"
    assert caught.value.field == "spec.plan.steps.steps[0].99"
    assert "lighten.v1.Step" in caught.value.message


def test_an_enum_value_of_a_newer_client_is_refused():
    spec = onnx_spec()
    spec.model.format = 77  # type: ignore[assignment]
    spec.outputs.encodings.append(78)  # type: ignore[arg-type]
    assert set(violations(spec)) == {"spec.model.format", "spec.outputs.encodings[0]"}


def test_unspecified_entries_of_a_list_are_refused():
    spec = onnx_spec()
    spec.outputs.encodings.append(pb.ENCODINGS_VERSION_UNSPECIFIED)
    assert set(violations(spec)) == {"spec.outputs.encodings[0]"}


def test_a_number_without_presence_has_a_range_too():
    with pytest.raises(InvalidArgument, match="at least 0"):
        validate(pb.ListJobsRequest(parent="projects/default", page_size=-1))
    with pytest.raises(InvalidArgument, match="launch: must be at least 1, and is 0"):
        validate(pb.Hello(job="j", instance_id="i"))


@pytest.mark.parametrize("parent", ["", "default", "projects/", "projects/UP", "projects/a/jobs/b"])
def test_parents(parent):
    with pytest.raises(InvalidArgument) as caught:
        validate(pb.ListJobsRequest(parent=parent))
    assert caught.value.field == "parent"

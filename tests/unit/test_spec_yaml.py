"""Specs as people write them."""

import pytest

from lighten import errors
from lighten import v1 as pb
from lighten.spec import dump_spec, load_spec

SPEC = """\
model:
  artifact: {uri: ./model.safetensors, sha256: ""}
  format: safetensors
  architecture: {library: torchvision, name: mobilenet_v2}
  inputs:
    - {name: input, shape: [3, 224, 224], dtype: float32}
calibration:
  data: {uri: images/}
  format: image-folder
  max_samples: 100
  preprocessing:
    resize: {shorter_side: 256}
    mean: [0.485, 0.456, 0.406]
    scale: 1e-3
plan:
  quantization: {weights: int8, activations: DATA_TYPE_INT16}
  steps:
    - fold_batch_norms: {}
    - {id: ranges, calibrate: {scheme: Min_Max, percentile: 99.5}}
outputs: {encodings: [2.0.0, 0.6.1], qdq_onnx: false}
resources: {run_timeout: 90, queue_timeout: 1.5s, memory_bytes: 1073741824, max_retries: 0}
labels: {team: vision}
seed: 0
"""


def violations(source) -> dict[str, str]:
    with pytest.raises(errors.InvalidSpec) as caught:
        load_spec(source)
    return {item.field: item.description for item in caught.value.violations}


def test_reads_short_names_lists_and_durations() -> None:
    spec = load_spec(SPEC)

    assert spec.model.format == pb.MODEL_FORMAT_SAFETENSORS
    assert spec.calibration.format == pb.DATASET_FORMAT_IMAGE_FOLDER
    assert spec.calibration.preprocessing.scale == 1e-3
    assert spec.plan.quantization.weights == pb.DATA_TYPE_INT8
    assert spec.plan.quantization.activations == pb.DATA_TYPE_INT16
    fold, ranges = spec.plan.steps.steps
    assert fold.WhichOneof("technique") == "fold_batch_norms"
    assert ranges.calibrate.scheme == pb.RANGE_SCHEME_MIN_MAX
    assert list(spec.outputs.encodings) == [pb.ENCODINGS_VERSION_2_0_0, pb.ENCODINGS_VERSION_0_6_1]
    assert spec.resources.run_timeout.seconds == 90
    assert spec.resources.queue_timeout.nanos == 500_000_000
    assert spec.labels == {"team": "vision"}


def test_reads_a_goal_in_place_of_steps() -> None:
    spec = load_spec(
        "metric: sqnr\nplan:\n  goal: {value: 18, time_budget: 90, max_bops_ratio: 1.5}\n"
    )

    assert spec.plan.WhichOneof("how") == "goal"
    assert (spec.plan.goal.value, spec.plan.goal.max_bops_ratio) == (18.0, 1.5)
    assert spec.plan.goal.time_budget.seconds == 90
    assert not spec.plan.goal.HasField("max_trials")
    assert load_spec(dump_spec(spec)) == spec
    assert load_spec("plan:\n  goal: {}\n").plan.HasField("goal")
    found = violations("plan:\n  goal: {max_drop: 0.01, value: 3}\n  steps: []\n")
    assert "stands beside max_drop" in found["plan.goal.value"]
    assert "stands beside goal" in found["plan.steps"]


def test_reads_techniques_with_selectors() -> None:
    spec = load_spec(
        "plan:\n"
        "  quantization:\n"
        "    overrides: [{select: {op_types: [Softmax]}, leave_float: true}]\n"
        "  steps:\n"
        "    - calibrate: {}\n"
        "    - ada_round: {iterations: 100, layers: {layers: ['features.1*']}}\n"
        "    - bias_correction: {method: analytic}\n"
    )

    assert spec.plan.quantization.overrides[0].select.op_types == ["Softmax"]
    _, ada_round, correction = spec.plan.steps.steps
    assert ada_round.ada_round.layers.layers == ["features.1*"]
    assert correction.bias_correction.method == pb.BIAS_CORRECTION_METHOD_ANALYTIC
    assert load_spec(dump_spec(spec)) == spec


def test_keeps_the_presence_of_values_that_equal_the_proto_default() -> None:
    spec = load_spec(SPEC)

    assert spec.HasField("seed")
    assert spec.outputs.HasField("qdq_onnx")
    assert spec.resources.HasField("max_retries")


def test_dump_is_read_back_to_an_equal_message(tmp_path) -> None:
    spec = load_spec(SPEC)
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec))

    assert load_spec(path) == spec
    assert load_spec(str(path)) == spec
    assert "DATA_TYPE" not in path.read_text()
    assert "memory_bytes: 1073741824" in path.read_text()


def test_reads_mappings_json_text_and_camel_case() -> None:
    text = '{"model": {"format": "MODEL_FORMAT_ONNX"}, "skipNaive": true}'

    expected = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX), skip_naive=True)
    assert load_spec(text) == expected
    assert load_spec({"model": {"format": 1}, "skip_naive": True}) == expected


def test_names_every_mistake_with_path_line_and_fix() -> None:
    found = violations(
        "model: 3\n"
        "plan:\n"
        "  quantizaton: {}\n"
        "  steps:\n"
        "    - calibrate: {scheme: minmax, percentile: abc}\n"
        "      fold_batch_norms: {}\n"
        "labels: {version: 3}\n"
        "seed: 1.5\n"
        "skip_naive: maybe\n"
        "calibration:\n"
    )

    assert found["model"] == "expected keys and values, not 3 (line 1)"
    assert found["plan.quantizaton"] == "unknown key; did you mean quantization? (line 3)"
    step = "plan.steps.steps[0]"
    assert found[f"{step}.calibrate.scheme"] == (
        "'minmax' does not fit; expected one of MIN_MAX, SQNR, PERCENTILE, MEAN_MIN_MAX; "
        "did you mean MIN_MAX? (line 5)"
    )
    assert found[f"{step}.calibrate.percentile"].startswith("'abc' does not fit; expected a number")
    assert "stands beside calibrate" in found[f"{step}.fold_batch_norms"]
    assert found["labels.version"] == "3 does not fit; expected text; put it in quotes (line 7)"
    assert "expected a number" in found["seed"]
    assert "expected true or false" in found["skip_naive"]
    assert found["calibration"].startswith("has no value")
    assert len(found) == 9


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        ("model: {}\nplan: {}\nmodel: {}\n", "DUPLICATE_KEY", "line 3: the key model stands twice"),
        ("model: {format: onnx, format: npz}\n", "DUPLICATE_KEY", "model.format"),
        ("a: b: c\n", "SPEC_NOT_YAML", "line 1"),
        ("a: 1\n---\nb: 2\n", "SPEC_NOT_YAML", "line 2"),
        ("a: !!python/object/apply:os.system [ls]\n", "SPEC_NOT_YAML", "constructor"),
        ("&a [*a]\n", "SPEC_NOT_YAML", "not YAML"),
        ("- 1\n", "SPEC_NOT_A_MAPPING", "`model`"),
        ("\n", "SPEC_NOT_A_MAPPING", "`model`"),
        ("/no/such/file.yaml", "SPEC_UNREADABLE", "No such file"),
    ],
)
def test_refuses_what_is_no_spec(source: str, reason: str, words: str) -> None:
    with pytest.raises(errors.InvalidSpec) as caught:
        load_spec(source)

    assert caught.value.reason == reason
    assert words in str(caught.value)


def test_refuses_a_key_in_both_spellings() -> None:
    assert "skipNaive" in violations({"skip_naive": True, "skipNaive": False})


def test_a_wrong_item_of_a_list_is_named_by_its_position() -> None:
    found = violations({"model": {"inputs": [{"shape": [3, "x"]}]}, "outputs": {"encodings": "2"}})

    assert "expected a number" in found["model.inputs[0].shape[1]"]
    assert "expected a list" in found["outputs.encodings"]

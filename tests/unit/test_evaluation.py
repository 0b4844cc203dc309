"""Metrics against plain formulas over whole arrays; the reference on disk."""

from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, Internal, InvalidArgument
from lighten_service.worker.data import LabelledBatch
from lighten_service.worker.evaluation import (
    Evaluation,
    Reference,
    compare,
    evaluate,
    excess_noise,
)
from lighten_service.worker.metrics import sqnr_db


class Rows:
    """Samples that carry their own number, so that a model can look its outputs up."""

    def __init__(self, count: int, labels: np.ndarray | None = None, size: int = 7) -> None:
        self.count, self.labelled = count, labels is not None
        self._labels, self._size = labels, size

    def batches(self, batch_size: int | None = None) -> Iterator[LabelledBatch]:
        size = batch_size or self._size
        for start in range(0, self.count, size):
            index = np.arange(start, min(start + size, self.count))
            yield LabelledBatch(
                {"index": index}, None if self._labels is None else self._labels[index]
            )


def model(**outputs: np.ndarray):
    return lambda batch: {name: values[batch["index"]] for name, values in outputs.items()}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def noisy(values: np.ndarray, rng: np.random.Generator, share: float = 0.3) -> np.ndarray:
    return (values + share * rng.standard_normal(values.shape)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


def test_accuracy_is_that_of_the_plain_formulas(rng):
    scores = rng.standard_normal((100, 20)).astype(np.float32)
    labels = rng.integers(0, 20, 100)
    found = evaluate(model(logits=scores), Rows(100, labels))
    order = np.argsort(-scores, axis=1)
    top1 = (order[:, 0] == labels).mean()
    top5 = (order[:, :5] == labels[:, None]).any(axis=1).mean()
    assert found.value(pb.METRIC_TOP1) == pytest.approx(top1)
    assert found.value(pb.METRIC_TOP5) == pytest.approx(top5)
    values = {value.metric: value for value in found.metric_values()}
    assert values[pb.METRIC_TOP5].standard_error == pytest.approx(np.sqrt(top5 * (1 - top5) / 100))
    assert values[pb.METRIC_TOP1].samples == 100
    assert found.value(pb.METRIC_SQNR) is None


def test_equal_scores_rank_by_class_as_argmax_does():
    scores = np.ones((6, 6), np.float32)
    found = evaluate(model(y=scores), Rows(6, np.arange(6)))
    assert found.value(pb.METRIC_TOP1) == pytest.approx(1 / 6)
    assert found.value(pb.METRIC_TOP5) == pytest.approx(5 / 6)


def test_fidelity_is_that_of_the_plain_formulas(tmp_path, rng):
    a = rng.standard_normal((50, 10)).astype(np.float32)
    b = rng.standard_normal((50, 3, 4, 5)).astype(np.float32)
    qa, qb = noisy(a, rng, 0.2), noisy(b, rng, 0.5)
    samples = Rows(50)
    reference = Reference.record(model(a=a, b=b), samples, tmp_path)
    found = evaluate(model(a=qa, b=qb), samples, reference=reference)

    for fidelity, x, y in zip(found.output_fidelity(), (a, b), (qa, qb), strict=True):
        x, y = x.reshape(50, -1).astype(np.float64), y.reshape(50, -1).astype(np.float64)
        expected = 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert fidelity.sqnr_db == pytest.approx(expected)
        assert fidelity.cosine == pytest.approx(cosine.mean())
        assert fidelity.max_abs_error == pytest.approx(np.abs(x - y).max())
    assert [fidelity.output for fidelity in found.outputs] == ["a", "b"]
    p, q = softmax(a), softmax(qa)
    kl = (p * np.log(p / q)).sum(axis=1).mean()
    agreement = (a.argmax(1) == qa.argmax(1)).mean()
    assert found.value(pb.METRIC_KL_DIVERGENCE) == pytest.approx(kl)
    assert found.value(pb.METRIC_AGREEMENT) == pytest.approx(agreement)
    # The model's own figure is that of its worst output.
    assert found.value(pb.METRIC_SQNR) == found.outputs[1].sqnr_db
    assert found.value(pb.METRIC_COSINE) == found.outputs[1].cosine
    assert {value.samples for value in found.metric_values()} == {50}


def test_a_perfect_copy_reports_the_ends_of_the_scales(tmp_path, rng):
    scores = rng.standard_normal((10, 4)).astype(np.float32)
    samples = Rows(10, np.zeros(10, np.int64))
    reference = Reference.record(model(y=scores), samples, tmp_path)
    assert reference.evaluation.value(pb.METRIC_TOP1) is not None
    found = evaluate(model(y=scores), samples, reference=reference)
    assert found.value(pb.METRIC_SQNR) == 200
    assert found.value(pb.METRIC_COSINE) == pytest.approx(1)
    assert found.value(pb.METRIC_AGREEMENT) == 1
    assert found.value(pb.METRIC_KL_DIVERGENCE) == 0
    assert found.value(pb.METRIC_TOP1) == reference.evaluation.value(pb.METRIC_TOP1)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"), [(1, 0, 200), (0, 1, -200), (0, 0, 200), (100, 1, 20)]
)
def test_sqnr_stays_within_its_scale(signal, noise, expected):
    assert sqnr_db(signal, noise) == pytest.approx(expected)


def test_zero_vectors_have_a_cosine(tmp_path):
    zeros, ones = np.zeros((4, 3), np.float32), np.ones((4, 3), np.float32)
    half = np.concatenate([zeros[:2], ones[:2]])
    samples = Rows(4)
    reference = Reference.record(model(y=zeros), samples, tmp_path)
    found = evaluate(model(y=half), samples, reference=reference)
    assert found.value(pb.METRIC_COSINE) == 0.5


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 3, 2)])
def test_outputs_that_are_no_class_scores_have_fidelity_alone(tmp_path, rng, shape):
    values = rng.standard_normal(shape).astype(np.float32)
    samples = Rows(8, np.zeros(8, np.int64))
    reference = Reference.record(model(y=values), samples, tmp_path)
    found = evaluate(model(y=noisy(values, rng)), samples, reference=reference)
    assert [value.metric for value in found.metrics] == [pb.METRIC_SQNR, pb.METRIC_COSINE]


def test_large_scores_do_not_overflow(tmp_path):
    a = np.array([[1e5, 0.0], [0.0, 3e38]], np.float32)
    b = np.array([[9e4, 0.0], [0.0, 1e38]], np.float32)
    samples = Rows(2)
    found = evaluate(model(y=b), samples, reference=Reference.record(model(y=a), samples, tmp_path))
    assert all(np.isfinite(value.value) for value in found.metrics)


def test_labels_beyond_the_model_s_classes_are_refused():
    with pytest.raises(InvalidArgument, match=r"label 9.* 0 to 3") as caught:
        evaluate(model(y=np.zeros((2, 4), np.float32)), Rows(2, np.array([0, 9])))
    assert (caught.value.reason, caught.value.field) == ("LABEL_OUT_OF_RANGE", "evaluation.data")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused_with_their_sample(bad):
    values = np.zeros((10, 4), np.float32)
    values[8, 1] = bad
    with pytest.raises(FailedPrecondition, match=r"'y'.* sample 8") as caught:
        evaluate(model(y=values), Rows(10))
    assert caught.value.reason == "NON_FINITE_OUTPUT"


def test_outputs_without_a_batch_axis_are_refused():
    with pytest.raises(FailedPrecondition, match=r"\[3\] for a batch of 7") as caught:
        evaluate(lambda _: {"y": np.zeros(3, np.float32)}, Rows(10))
    assert caught.value.reason == "OUTPUT_NOT_BATCHED"


def test_outputs_whose_shape_varies_are_refused(tmp_path):
    def varying(batch):
        return {"y": np.zeros((len(batch["index"]), 1 + batch["index"][0]), np.float32)}

    with pytest.raises(FailedPrecondition) as caught:
        Reference.record(varying, Rows(10), tmp_path)
    assert caught.value.reason == "OUTPUT_SHAPE_VARIES"


def test_a_reference_of_something_else_is_a_fault_of_ours(tmp_path):
    values = np.zeros((10, 4), np.float32)
    reference = Reference.record(model(y=values), Rows(9), tmp_path)
    for predict in (model(y=values), model(z=values), model(y=values[:, :3])):
        with pytest.raises(Internal) as caught:
            evaluate(predict, Rows(10), reference=reference)
        assert caught.value.reason == "REFERENCE_MISMATCH"


def test_progress_counts_samples_and_can_stop_the_pass():
    seen: list[int] = []
    evaluate(model(y=np.zeros((10, 4), np.float32)), Rows(10, size=4), on_batch=seen.append)
    assert seen == [4, 8, 10]

    class Stop(BaseException):
        pass

    def stop(_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        evaluate(model(y=np.zeros((10, 4), np.float32)), Rows(10), on_batch=stop)


def test_the_reference_is_read_in_any_batches_and_lies_on_disk(tmp_path, rng):
    values = rng.standard_normal((40, 1 << 18)).astype(np.float32)  # 40 MiB
    reference = Reference.record(model(y=values), Rows(40, size=4), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == values.nbytes
    np.testing.assert_array_equal(reference.rows(3, 2)["y"], values[3:5])
    process = psutil.Process()
    before = process.memory_info().rss
    found = evaluate(model(y=values), Rows(40, size=3), reference=reference)
    assert found.value(pb.METRIC_SQNR) == 200
    assert process.memory_info().rss - before < 24 << 20
    reference.close()
    assert list(tmp_path.iterdir()) == []


def test_recorded_outputs_compare_as_live_ones_do(tmp_path, rng):
    # A sample of 2 MiB: more than what is turned into float64 at a time.
    values = rng.standard_normal((20, 1 << 19)).astype(np.float32)
    changed, samples = noisy(values, rng), Rows(20)
    reference = Reference.record(model(y=values), samples, tmp_path / "reference")
    recorded = Reference.record(model(y=changed), samples, tmp_path / "recorded")
    live = evaluate(model(y=changed), samples, reference=reference)
    assert compare(recorded, reference).value(pb.METRIC_SQNR) == pytest.approx(
        live.value(pb.METRIC_SQNR)
    )
    head = compare(recorded, reference, limit=3)
    x, y = values[:3].astype(np.float64), changed[:3].astype(np.float64)
    assert head.samples == 3
    assert head.value(pb.METRIC_SQNR) == pytest.approx(
        10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())
    )


def test_excess_noise_is_told_in_standard_errors(tmp_path, rng):
    ideal = rng.standard_normal((200, 5)).astype(np.float32)
    little, much = noisy(ideal, rng, 0.1), noisy(ideal, rng, 0.2)

    def recorded(name: str, values: np.ndarray, count: int = 200) -> Reference:
        return Reference.record(model(y=values), Rows(count), tmp_path / name)

    expected, one, two = recorded("ideal", ideal), recorded("one", little), recorded("two", much)
    difference = ((much - ideal) ** 2).sum(1, dtype=float) - 1.5 * ((little - ideal) ** 2).sum(1)
    errors = difference.mean() / (difference.std(ddof=1) / np.sqrt(200))
    assert excess_noise(two, one, expected, 1.5)["y"] == pytest.approx(errors, rel=1e-5)
    assert errors > 10
    assert excess_noise(one, two, expected, 1.5)["y"] < -10

    # One sample that went astray is no sign of more noise; a single sample tells nothing.
    astray = little.copy()
    astray[3] += 2
    assert 0 < excess_noise(recorded("astray", astray), one, expected, 1.0)["y"] < 2
    single = recorded("single", much, 1)
    assert excess_noise(single, one, expected, 1.0)["y"] == np.inf
    assert excess_noise(recorded("same", little), one, expected, 1.0)["y"] == 0


def test_an_evaluation_without_anything_to_measure_is_empty():
    found = evaluate(model(y=np.zeros((3, 4), np.float32)), Rows(3))
    assert found == Evaluation(3, ())

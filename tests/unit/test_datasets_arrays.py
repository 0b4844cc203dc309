"""NPZ, NPY and safetensors: what is read, and what is refused."""

import resource
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.datasets import Limits
from tests.support.datasets_kit import VECTOR_INPUT, Opener, labels, read, rows

NPZ = pb.DATASET_FORMAT_NPZ
NPY = pb.DATASET_FORMAT_NPY
SAFETENSORS = pb.DATASET_FORMAT_SAFETENSORS


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path / "scratch")


def vectors(count: int = 10, dtype: str = "float32") -> np.ndarray:
    return np.arange(count * 3).reshape(count, 3).astype(dtype)


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def refused(opener: Opener, path: Path, format=NPZ, **options) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        read(opener(format, path, **({"inputs": [VECTOR_INPUT]} | options)))
    assert caught.value.kind == pb.ERROR_KIND_USER
    return caught.value


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_gives_arrays_and_labels_in_order(tmp_path, opener, compressed):
    path = tmp_path / "data.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, x=vectors(), label=np.arange(10, dtype=np.uint8))
    samples = opener(NPZ, path, inputs=[VECTOR_INPUT])
    assert (samples.count, samples.labelled) == (10, True)
    assert [batch.size for batch in samples.batches()] == [4, 4, 2]
    assert [batch.size for batch in samples.batches(5)] == [5, 5]
    for _ in range(2):
        np.testing.assert_array_equal(rows(samples), vectors())
        assert labels(samples) == list(range(10))


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_read_in_any_order(tmp_path, opener, order):
    np.save(tmp_path / "a.npy", np.array(vectors(), order=order))
    samples = opener(NPY, tmp_path / "a.npy", inputs=[VECTOR_INPUT])
    assert not samples.labelled
    np.testing.assert_array_equal(rows(samples), vectors())
    assert rows(samples).flags.c_contiguous


def test_safetensors_feeds_several_inputs_by_name_and_by_key(tmp_path, opener):
    tokens = np.arange(20, dtype=np.int64).reshape(10, 2)
    save_file({"features": vectors(), "tokens": tokens, "label": np.arange(10)}, tmp_path / "a.st")
    inputs = [
        VECTOR_INPUT,
        pb.InputSpec(name="tokens", shape=[2], dtype=pb.ELEMENT_TYPE_INT32),
    ]
    samples = opener(SAFETENSORS, tmp_path / "a.st", inputs=inputs, input_keys={"x": "features"})
    np.testing.assert_array_equal(rows(samples, "x"), vectors())
    np.testing.assert_array_equal(rows(samples, "tokens"), tokens)
    assert rows(samples, "tokens").dtype == np.int32
    assert labels(samples) == list(range(10))


def test_the_only_array_feeds_the_only_input_whatever_its_name(tmp_path, opener):
    samples = opener(NPZ, npz(tmp_path, arr_0=vectors()), inputs=[VECTOR_INPUT])
    np.testing.assert_array_equal(rows(samples), vectors())


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "float16", "float64", ">f4", ">f8"]
)
def test_small_integers_and_floats_become_float32(tmp_path, opener, dtype):
    samples = opener(NPZ, npz(tmp_path, x=vectors(dtype=dtype)), inputs=[VECTOR_INPUT])
    assert rows(samples).dtype == np.float32
    np.testing.assert_array_equal(rows(samples), vectors())


@pytest.mark.parametrize(
    ("stored", "wanted", "word"),
    [
        ("int64", pb.ELEMENT_TYPE_FLOAT32, "float32"),
        ("bool", pb.ELEMENT_TYPE_FLOAT32, "float32"),
        ("complex64", pb.ELEMENT_TYPE_FLOAT32, "complex64"),
        ("U4", pb.ELEMENT_TYPE_FLOAT32, "float32"),
        ("float32", pb.ELEMENT_TYPE_INT64, "integers (int64)"),
        ("bool", pb.ELEMENT_TYPE_INT32, "integers (int32)"),
        ("uint8", pb.ELEMENT_TYPE_BOOL, "bool"),
    ],
)
def test_types_that_do_not_fit_are_refused(tmp_path, opener, stored, wanted, word):
    model_input = pb.InputSpec(name="x", shape=[3], dtype=wanted)
    error = refused(opener, npz(tmp_path, x=vectors(dtype=stored)), inputs=[model_input])
    assert (error.reason, error.field) == ("DTYPE_MISMATCH", "evaluation.data")
    assert word in error.message


def test_integers_beyond_the_input_type_are_refused(tmp_path, opener):
    big = vectors(dtype="int64")
    big[7, 1] = 2**31
    model_input = pb.InputSpec(name="x", shape=[3], dtype=pb.ELEMENT_TYPE_INT32)
    error = refused(opener, npz(tmp_path, x=big), inputs=[model_input])
    assert error.reason == "VALUE_OUT_OF_RANGE"
    assert "sample 7" in error.message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_with_their_sample(tmp_path, opener, bad):
    data = vectors(dtype="float64")
    data[6, 2] = bad
    error = refused(opener, npz(tmp_path, x=data), field="calibration")
    assert (error.reason, error.field) == ("NON_FINITE_DATA", "calibration.data")
    assert "sample 6" in error.message


def test_a_sample_is_named_by_its_stored_number_not_by_its_place_in_the_selection(tmp_path, opener):
    data = np.full((100, 3), np.nan, dtype=np.float32)
    data[:90] = 0
    path = npz(tmp_path, x=data)
    error = refused(opener, path, max_samples=10, batch_size=100)
    assert int(error.message.split("sample ")[1].split()[0]) >= 90


@pytest.mark.parametrize(
    ("arrays", "keys", "expected"),
    [
        ({"a": 1, "b": 1}, {}, ["'x'", "'a', 'b'"]),
        ({"x": 1}, {"y": "x"}, ["no input 'y'", "'x'"]),
        ({"x": 1}, {"x": "z"}, ["no array 'z'", "'x'"]),
        ({}, {}, ["nothing"]),
    ],
)
def test_names_that_do_not_match_are_refused_with_what_is_there(
    tmp_path, opener, arrays, keys, expected
):
    path = npz(tmp_path, **{name: vectors() for name in arrays})
    error = refused(opener, path, input_keys=keys)
    assert (error.reason, error.field) == ("INPUT_NOT_FOUND", "evaluation.input_keys")
    assert all(text in error.message for text in expected)


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path, opener):
    error = refused(opener, npz(tmp_path, x=np.zeros((10, 4), np.float32)))
    assert error.reason == "SHAPE_MISMATCH"
    assert "[10, 4]" in error.message
    assert "[samples, 3]" in error.message


def test_arrays_of_different_lengths_are_refused(tmp_path, opener):
    inputs = [VECTOR_INPUT, pb.InputSpec(name="y", shape=[3], dtype=pb.ELEMENT_TYPE_FLOAT32)]
    error = refused(opener, npz(tmp_path, x=vectors(10), y=vectors(9)), inputs=inputs)
    assert error.reason == "SAMPLE_COUNT_MISMATCH"
    assert "'x' has 10, 'y' has 9" in error.message


@pytest.mark.parametrize("format", [NPZ, NPY, SAFETENSORS])
def test_an_empty_set_is_refused(tmp_path, opener, format):
    path = tmp_path / "data.npz"
    if format == NPZ:
        np.savez(path, x=vectors(0))
    elif format == NPY:
        with path.open("wb") as file:
            np.save(file, vectors(0))
    else:
        save_file({"x": vectors(0)}, path)
    assert refused(opener, path, format).reason == "DATASET_EMPTY"


@pytest.mark.parametrize(
    ("stored", "classes", "reason", "text"),
    [
        (np.arange(10.0), (), "LABELS_NOT_INTEGER", "float64"),
        (np.arange(9), (), "SAMPLE_COUNT_MISMATCH", "[9]"),
        (np.arange(10)[:, None], (), "SAMPLE_COUNT_MISMATCH", "[10, 1]"),
        (np.arange(10) - 1, (), "LABEL_OUT_OF_RANGE", "sample 0 is -1"),
        (np.arange(10), "abcde", "LABEL_OUT_OF_RANGE", "sample 5 is 5; labels go from 0 to 4"),
    ],
)
def test_faulty_labels_are_refused_for_evaluation_and_ignored_for_calibration(
    tmp_path, opener, stored, classes, reason, text
):
    path = npz(tmp_path, x=vectors(), label=stored)
    error = refused(opener, path, classes=classes)
    assert error.reason == reason
    assert text in error.message
    other = Opener(tmp_path / "other")
    assert not other(NPZ, path, inputs=[VECTOR_INPUT], field="calibration").labelled


def test_a_label_key_that_was_asked_for_must_be_there(tmp_path, opener):
    error = refused(opener, npz(tmp_path, x=vectors()), label_key="target")
    assert (error.reason, error.field) == ("LABELS_MISSING", "evaluation.label_key")
    assert not opener(NPZ, npz(tmp_path, x=vectors()), inputs=[VECTOR_INPUT]).labelled


def test_scale_mean_and_std_apply_to_float_inputs_alone(tmp_path, opener):
    pictures = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    inputs = [
        pb.InputSpec(name="x", shape=[3, 2, 2], dtype=pb.ELEMENT_TYPE_FLOAT32),
        pb.InputSpec(name="ids", shape=[2], dtype=pb.ELEMENT_TYPE_INT64),
    ]
    path = npz(tmp_path, x=pictures, ids=np.ones((2, 2), np.int32))
    steps = pb.Preprocessing(scale=0.5, mean=[1, 2, 3], std=[2, 4, 8], layout=pb.LAYOUT_NCHW)
    samples = opener(NPZ, path, inputs=inputs, preprocessing=steps)
    channel = (1, 3, 1, 1)
    expected = (pictures * 0.5 - np.reshape([1, 2, 3], channel)) / np.reshape([2, 4, 8], channel)
    np.testing.assert_allclose(rows(samples), expected, rtol=1e-6)
    np.testing.assert_array_equal(rows(samples, "ids"), np.ones((2, 2)))


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (pb.Preprocessing(resize=pb.Resize(shorter_side=4)), "resize"),
        (pb.Preprocessing(center_crop=pb.CenterCrop(height=4, width=4)), "center_crop"),
        (pb.Preprocessing(color=pb.COLOR_MODE_GRAY), "color"),
        (pb.Preprocessing(mean=[1, 2]), "mean"),
        (pb.Preprocessing(mean=[float("nan")]), "mean"),
        (pb.Preprocessing(std=[0]), "std"),
        (pb.Preprocessing(std=[1, 1, -1]), "std"),
    ],
)
def test_preprocessing_that_cannot_work_is_refused(tmp_path, opener, steps, name):
    error = refused(opener, npz(tmp_path, x=vectors()), preprocessing=steps)
    assert error.reason == "INVALID_PREPROCESSING"
    assert error.field == f"evaluation.preprocessing.{name}"


def test_pickled_objects_are_never_loaded(tmp_path, opener):
    touched = tmp_path / "touched"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (touched,))

    objects = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "data.npz", x=objects)
    np.save(tmp_path / "a.npy", objects)
    for path, format in ((tmp_path / "data.npz", NPZ), (tmp_path / "a.npy", NPY)):
        assert refused(opener, path, format).reason == "PICKLED_DATA"
    assert not touched.exists()


@pytest.mark.parametrize("format", [NPZ, NPY, SAFETENSORS])
@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 100, b"\x93NUMPY", b"PK\x03\x04", b"\xff" * 64]
)
def test_files_of_another_kind_are_refused(tmp_path, opener, format, content):
    path = tmp_path / "data"
    path.write_bytes(content)
    assert refused(opener, path, format).reason == "CORRUPT_DATASET"


@pytest.mark.parametrize("format", [NPZ, NPY, SAFETENSORS])
def test_truncated_files_are_refused(tmp_path, opener, format):
    path = tmp_path / "data"
    with path.open("wb") as file:
        if format == NPZ:
            np.savez(file, x=vectors(1000))
        elif format == NPY:
            np.save(file, vectors(1000))
    if format == SAFETENSORS:
        save_file({"x": vectors(1000)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    assert refused(opener, path, format).reason == "CORRUPT_DATASET"


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path, opener):
    path = tmp_path / "a.npy"
    np.save(path, vectors())
    claimed = path.read_bytes().replace(b"(10, 3)", b"(1<<60,3)"[:7])
    path.write_bytes(claimed)
    assert refused(opener, path, NPY).reason == "CORRUPT_DATASET"
    np.save(path, vectors())
    path.write_bytes(path.read_bytes().replace(b"(10, 3), }   ", b"(10**9, 3), }"))
    assert refused(opener, path, NPY).reason == "CORRUPT_DATASET"


def test_a_flipped_byte_in_an_archive_is_refused(tmp_path, opener):
    path = npz(tmp_path, x=vectors(1000))
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(content)
    error = refused(opener, path)
    assert error.reason == "CORRUPT_DATASET"
    assert "'x'" in error.message


def test_an_archive_with_a_name_twice_is_refused(tmp_path, opener):
    path = npz(tmp_path, x=vectors())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", b"")
    assert refused(opener, path).reason == "UNSAFE_ARCHIVE"


def test_member_names_never_become_paths(tmp_path, opener):
    path = tmp_path / "data.npz"
    np.savez(tmp_path / "plain.npz", x=vectors())
    with zipfile.ZipFile(tmp_path / "plain.npz") as plain, zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.npy", plain.read("x.npy"))
    samples = opener(NPZ, path, inputs=[VECTOR_INPUT])
    np.testing.assert_array_equal(rows(samples), vectors())
    assert not list(tmp_path.parent.rglob("escaped*"))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(expansion=50, expansion_floor=1 << 20),
        Limits(unpacked_bytes=1 << 20),
    ],
)
def test_a_zip_bomb_is_refused_before_it_fills_the_disk(tmp_path, opener, limits):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.zeros((2_000_000, 3), np.float32))
    assert refused(opener, path, limits=limits).reason == "DECOMPRESSION_BOMB"
    assert sum(file.stat().st_size for file in opener.scratch.rglob("*.npy")) < 4 << 20


def test_too_many_members_are_refused(tmp_path, opener):
    path = npz(tmp_path, **{f"a{n}": vectors(1) for n in range(5)})
    assert refused(opener, path, limits=Limits(members=4)).reason == "DECOMPRESSION_BOMB"


def test_types_of_safetensors_that_numpy_lacks_are_refused(tmp_path, opener):
    header = b'{"x":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    path = tmp_path / "a.st"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    error = refused(opener, path, SAFETENSORS)
    assert error.reason == "DTYPE_MISMATCH"
    assert "BF16" in error.message


def test_a_folder_in_place_of_a_file_is_refused(tmp_path, opener):
    assert refused(opener, tmp_path, NPZ).reason == "WRONG_FORMAT"


def test_a_full_disk_is_told_as_such(tmp_path, opener):
    from lighten_service.jobs.errors import ResourceExhausted

    path = npz(tmp_path, x=vectors(1_000_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(ResourceExhausted) as caught:
            opener(NPZ, path, inputs=[VECTOR_INPUT])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.reason, caught.value.field) == ("SCRATCH_FULL", "resources.scratch_bytes")


def test_a_large_array_in_fortran_order_is_refused(tmp_path, opener):
    np.save(tmp_path / "a.npy", np.asfortranarray(vectors(1000)))
    error = refused(opener, tmp_path / "a.npy", NPY, limits=Limits(reordered_bytes=1000))
    assert error.reason == "FORTRAN_ORDER"
    assert "ascontiguousarray" in error.message


def test_a_large_archive_is_read_in_bounded_memory(tmp_path, opener):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((200, 1 << 18), np.float32))  # 200 MiB
    process = psutil.Process()
    before = process.memory_info().rss
    wide = pb.InputSpec(name="x", shape=[1 << 18], dtype=pb.ELEMENT_TYPE_FLOAT32)
    samples = opener(NPZ, path, inputs=[wide])
    peak = 0
    for _ in samples.batches():
        peak = max(peak, process.memory_info().rss)
    assert samples.count == 200
    assert peak - before < (48 << 20)

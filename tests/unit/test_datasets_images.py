"""Image folders and tars: layouts, labels, selection, and what is refused."""

import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.datasets import Limits
from tests.support.datasets_kit import (
    IMAGE_INPUT,
    Opener,
    labels,
    picture,
    read,
    rows,
    write_tar,
    write_tree,
)

FOLDER = pb.DATASET_FORMAT_IMAGE_FOLDER
TAR = pb.DATASET_FORMAT_IMAGE_TAR
SKIP = pb.BAD_SAMPLE_POLICY_SKIP_WITH_WARNING


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path / "scratch")


@pytest.fixture(params=["folder", "tar"])
def store(request, tmp_path):
    """Store files as a folder or as a tar, whose layouts are the same."""

    def put(files: dict[str, bytes]) -> tuple[pb.DatasetFormat.ValueType, Path]:
        if request.param == "folder":
            return FOLDER, write_tree(tmp_path / "data", files)
        return TAR, write_tar(tmp_path / "data.tar", files)

    return put


def values(samples) -> list[int]:
    """Gray value of each picture, before the default scale of 1/255."""
    return [round(float(sample.max()) * 255) for sample in rows(samples)]


def refused(opener: Opener, format, path: Path, **options) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        read(opener(format, path, **options))
    assert caught.value.kind == pb.ERROR_KIND_USER
    return caught.value


# --- layouts and labels -------------------------------------------------------------------------


def test_class_folders_by_number_and_by_name(store, opener):
    format, path = store(
        {"2/a.png": picture(1), "cat/a.JPG": picture(2, format="JPEG"), "cat/b.png": picture(3)}
    )
    samples = opener(format, path, classes=["dog", "cat", "owl"])
    assert (samples.count, samples.labelled) == (3, True)
    assert labels(samples) == [2, 1, 1]
    assert values(samples) == [1, 2, 3]


def test_folders_around_the_class_folders_do_not_matter(store, opener):
    format, path = store({"set/val/0/a.png": picture(), "set/val/1/b.png": picture()})
    assert labels(opener(format, path)) == [0, 1]


def test_labels_csv_labels_images_beside_each_other(store, opener):
    format, path = store(
        {
            "a.png": picture(),
            "b.png": picture(),
            "labels.csv": b"\xef\xbb\xbffile,label\r\nb.png,owl\r\n\r\n./a.png, 0\r\n",
        }
    )
    samples = opener(format, path, classes=["dog", "cat", "owl"])
    assert labels(samples) == [0, 2]
    assert opener.warnings == []


def test_images_beside_each_other_are_unlabelled(store, opener):
    format, path = store({"b.png": picture(2), "c.png": picture(3)})
    samples = opener(format, path)
    assert not samples.labelled
    assert values(samples) == [2, 3]


def test_files_that_are_no_images_are_named_in_one_warning(store, opener):
    format, path = store({"0/a.png": picture(), "0/notes.txt": b"x", "0/.DS_Store": b"x"})
    assert opener(format, path).count == 1
    ((reason, message),) = opener.warnings
    assert reason == "FILES_IGNORED"
    assert "0/notes.txt" in message
    assert "DS_Store" not in message


@pytest.mark.parametrize(
    ("files", "reason", "text"),
    [
        ({"cta/a.png": b""}, "UNKNOWN_CLASS", "did you mean 'cat'?"),
        ({"-1/a.png": b""}, "UNKNOWN_CLASS", "'-1'"),
        ({"1.5/a.png": b""}, "UNKNOWN_CLASS", "'1.5'"),
        ({"twin/a.png": b""}, "UNKNOWN_CLASS", "more than once"),
        ({"4/a.png": b""}, "LABEL_OUT_OF_RANGE", "labels go from 0 to 3"),
        ({"1/a.png": b"", "b.png": b""}, "LABELS_MISSING", "b.png"),
        ({"notes.txt": b""}, "DATASET_EMPTY", "no image"),
        ({"a.png": b"", "labels.csv": b""}, "LABELS_MISSING", "a.png"),
        ({"a.png": b"", "labels.csv": b"a.png,1\nb.png,1"}, "CORRUPT_DATASET", "b.png"),
        ({"a.png": b"", "labels.csv": b"a.png,1\na.png,1"}, "CORRUPT_DATASET", "line 2"),
        ({"a.png": b"", "labels.csv": b"a.png"}, "CORRUPT_DATASET", "line 1"),
        ({"a.png": b"", "labels.csv": b'a.png,"1'}, "CORRUPT_DATASET", "CSV"),
        ({"a.png": b"", "labels.csv": b"\xff\xfe"}, "CORRUPT_DATASET", "UTF-8"),
        ({"a.png": b"", "labels.csv": b"a.png,cta"}, "UNKNOWN_CLASS", "line 1"),
        ({"a.png": b"", "labels.csv": b"", "x/labels.csv": b""}, "CORRUPT_DATASET", "more than"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(store, opener, files, reason, text):
    format, path = store(files)
    error = refused(opener, format, path, classes=["dog", "cat", "twin", "twin"])
    assert (error.reason, error.field) == (reason, "evaluation.data")
    assert text in error.message


def test_textual_classes_need_class_names_for_evaluation_but_not_for_calibration(store, opener):
    format, path = store({"cat/a.png": picture()})
    assert "model.class_names" in refused(opener, format, path).message
    assert not opener(format, path, field="calibration").labelled


def test_webdataset_pairs_images_with_their_cls(tmp_path, opener):
    files = {
        "train/002.jpg": picture(5, format="JPEG"),
        "train/002.cls": b"7\n",
        "train/000.cls": b"owl",
        "train/000.seg.png": picture(6),
        "train/000.json": b"{}",
    }
    samples = opener(TAR, write_tar(tmp_path / "a.tar", files), classes=["x"] * 9 + ["owl"])
    assert labels(samples) == [7, 9]
    assert values(samples) == [5, 6]
    assert opener.warnings[0][0] == "FILES_IGNORED"


@pytest.mark.parametrize(
    ("files", "reason", "text"),
    [
        ({"a.png": b"", "b.png": b"", "b.cls": b"1"}, "LABELS_MISSING", "a"),
        ({"a.png": b"", "a.jpg": b"", "a.cls": b"1"}, "CORRUPT_DATASET", "two images"),
        ({"a.png": b"", "a.cls": b"one"}, "UNKNOWN_CLASS", "'a.cls'"),
        ({"a.png": b"", "a.cls": b"1" * 2000}, "CORRUPT_DATASET", "2000 bytes"),
        ({"a.cls": b"1"}, "DATASET_EMPTY", "no image"),
    ],
)
def test_webdataset_faults_are_refused(tmp_path, opener, files, reason, text):
    error = refused(opener, TAR, write_tar(tmp_path / "a.tar", files))
    assert error.reason == reason
    assert text in error.message


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_tars_are_read(tmp_path, opener, compression):
    path = write_tar(tmp_path / "a.tar", {"3/a.png": picture(9)}, f"w:{compression}")
    samples = opener(TAR, path)
    assert (labels(samples), values(samples)) == ([3], [9])


# --- hostile archives ---------------------------------------------------------------------------


def tar_with(tmp_path: Path, *members: tuple[str, bytes, dict[str, object]]) -> Path:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content, attributes in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("../a.png", {}),
        ("x/../../a.png", {}),
        ("/etc/a.png", {}),
        ("x\\..\\a.png", {}),
        ("a.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("a.png", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("a.png", {"type": tarfile.CHRTYPE}),
        ("a.png", {"type": tarfile.BLKTYPE}),
        ("a.png", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_members_that_leave_the_archive_or_are_no_files_are_refused(
    tmp_path, opener, name, attributes
):
    path = tar_with(tmp_path, ("0/ok.png", picture(), {}), (name, b"", attributes))
    error = refused(opener, TAR, path)
    assert error.reason == "UNSAFE_ARCHIVE"
    assert name in error.message


@pytest.mark.parametrize("name", ["caf\udce9/a.png", "n" * 50_000 + "/a.png"])
def test_names_of_any_kind_fit_into_an_error(tmp_path, opener, name):
    path = tar_with(tmp_path, (name, picture(), {}))
    error = refused(opener, TAR, path)
    assert error.reason == "UNKNOWN_CLASS"
    assert 0 < error.to_job_error().ByteSize() < 4096


def test_the_same_name_twice_is_refused(tmp_path, opener):
    path = tar_with(tmp_path, ("0/a.png", picture(), {}), ("./0/a.png", picture(), {}))
    assert refused(opener, TAR, path).reason == "UNSAFE_ARCHIVE"


@pytest.mark.parametrize("cut", [100, 700, 1300])
def test_a_cut_tar_is_refused(tmp_path, opener, cut):
    path = write_tar(tmp_path / "a.tar", {f"0/{n}.png": bytes(900) for n in range(3)})
    content = path.read_bytes()
    path.write_bytes(content[: 3 * 1536 - cut])
    assert refused(opener, TAR, path).reason == "CORRUPT_DATASET"


def test_a_damaged_header_does_not_pass_for_the_end(tmp_path, opener):
    path = write_tar(tmp_path / "a.tar", {f"0/{n}.png": picture() for n in range(3)})
    content = bytearray(path.read_bytes())
    content[1024] ^= 0xFF  # the second header
    path.write_bytes(content)
    assert refused(opener, TAR, path).reason == "CORRUPT_DATASET"


def test_a_huge_header_is_not_read_into_memory(tmp_path, opener):
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 64 << 20
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(64 << 20))
    before = psutil.Process().memory_info().rss
    assert refused(opener, TAR, path).reason == "CORRUPT_DATASET"
    assert psutil.Process().memory_info().rss - before < 16 << 20


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"\x1f\x8bgarbage", b"BZhgarbage"])
def test_files_that_are_no_tar_are_refused(tmp_path, opener, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert refused(opener, TAR, path).reason in ("CORRUPT_DATASET", "DATASET_EMPTY")


def test_a_tar_bomb_is_refused_before_it_fills_the_disk(tmp_path, opener):
    path = write_tar(tmp_path / "a.tgz", {"0/a.png": bytes(32 << 20)}, "w:gz")
    limits = Limits(expansion=50, expansion_floor=1 << 20)
    assert refused(opener, TAR, path, limits=limits).reason == "DECOMPRESSION_BOMB"
    assert sum(file.stat().st_size for file in opener.scratch.rglob("*.tar")) < 4 << 20


def test_too_many_and_too_large_files_are_refused(store, opener):
    format, path = store({f"0/{n}.png": picture() for n in range(5)})
    for limits in (Limits(members=4), Limits(image_bytes=10)):
        assert refused(opener, format, path, limits=limits).reason == "DECOMPRESSION_BOMB"


def test_links_in_a_folder_are_refused(tmp_path, opener):
    write_tree(tmp_path / "data", {"0/a.png": picture()})
    (tmp_path / "data" / "1").symlink_to("/etc")
    error = refused(opener, FOLDER, tmp_path / "data")
    assert error.reason == "UNSAFE_ARCHIVE"
    assert "'1'" in error.message


def test_file_and_folder_are_told_apart(tmp_path, opener):
    path = write_tar(tmp_path / "a.tar", {"0/a.png": picture()})
    assert "IMAGE_TAR" in refused(opener, FOLDER, path).message
    assert refused(opener, TAR, tmp_path).reason == "WRONG_FORMAT"


# --- bad pictures -------------------------------------------------------------------------------


def some_bad(count: int = 12) -> dict[str, bytes]:
    files = {f"{n % 3}/{n:02}.png": picture(n) for n in range(count)}
    files["1/04.png"] = files["1/04.png"][:-30]
    files["2/05.png"] = b"not an image"
    files["0/06.png"] = b""
    return files


@pytest.mark.parametrize("name", ["1/04.png", "2/05.png", "0/06.png"])
def test_an_undecodable_image_fails_with_its_name(store, opener, name):
    format, path = store({"0/a.png": picture(), name: some_bad()[name]})
    error = refused(opener, format, path)
    assert error.reason == "UNDECODABLE_IMAGE"
    assert name in error.message
    assert "evaluation.bad_samples" in error.message


def test_undecodable_images_are_left_out_with_one_warning(store, opener):
    format, path = store(some_bad())
    samples = opener(format, path, bad_samples=SKIP)
    assert samples.count == 12
    first = read(samples)
    assert samples.count == 9
    assert [batch.size for batch in first] == [4, 4, 1]
    second = read(samples)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.inputs["x"], two.inputs["x"])
        np.testing.assert_array_equal(one.labels, two.labels)
    assert sorted(values(samples)) == [0, 1, 2, 3, 7, 8, 9, 10, 11]
    assert [value % 3 for value in values(samples)] == labels(samples)
    ((reason, message),) = opener.warnings
    assert reason == "SAMPLES_SKIPPED"
    assert "3 of 12" in message
    assert all(name in message for name in ("1/04.png", "2/05.png", "0/06.png"))


def test_a_set_of_bad_images_alone_is_an_error_under_any_policy(store, opener):
    format, path = store({"0/a.png": b"x", "0/b.png": b"y"})
    error = refused(opener, format, path, bad_samples=SKIP)
    assert error.reason == "DATASET_EMPTY"
    assert "0/a.png" in error.message


def test_a_picture_with_too_many_pixels_is_refused_under_any_policy(store, opener):
    format, path = store({"0/a.png": picture(size=(100, 100))})
    error = refused(opener, format, path, bad_samples=SKIP, limits=Limits(image_pixels=9999))
    assert error.reason == "DECOMPRESSION_BOMB"
    assert "100x100" in error.message


# --- passes -------------------------------------------------------------------------------------


def test_the_selection_is_spread_ordered_and_follows_the_seed(tmp_path, opener):
    path = write_tree(tmp_path / "data", {f"{n // 10}/{n:03}.png": picture(n) for n in range(100)})
    one = values(opener(FOLDER, path, max_samples=10, seed=1))
    assert one == values(opener(FOLDER, path, max_samples=10, seed=1))
    assert one != values(opener(FOLDER, path, max_samples=10, seed=2))
    assert [value // 10 for value in one] == list(range(10))
    assert opener(FOLDER, path, max_samples=1000).count == 100


def dataset_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dataset")]


def test_an_iterator_that_is_closed_early_leaves_no_thread(store, opener):
    format, path = store({f"0/{n}.png": picture(n) for n in range(50)})
    samples = opener(format, path)
    iterator = samples.batches()
    assert dataset_threads() == []
    next(iterator)
    assert dataset_threads()
    iterator.close()
    assert dataset_threads() == []
    assert sum(batch.size for batch in samples.batches()) == 50
    assert dataset_threads() == []


def test_a_large_tar_is_read_in_bounded_memory(tmp_path, opener):
    noise = np.random.default_rng(0).integers(0, 256, 2 << 20, np.uint8).tobytes()
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(100):
            # 2 MiB each: a picture with bytes behind it, which decoders ignore.
            content = picture(number) + noise
            member = tarfile.TarInfo(f"0/{number}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    process = psutil.Process()
    before = process.memory_info().rss
    samples = opener(TAR, path)
    peak = 0
    for _ in samples.batches():
        peak = max(peak, process.memory_info().rss)
    assert samples.count == 100
    assert peak - before < 48 << 20


def test_images_need_a_model_with_one_float_input_of_three_dimensions(store, opener):
    format, path = store({"0/a.png": picture()})
    for inputs, reason in (
        ([IMAGE_INPUT, IMAGE_INPUT], "INPUT_NOT_FOUND"),
        ([pb.InputSpec(name="x", shape=[64])], "SHAPE_MISMATCH"),
        ([pb.InputSpec(name="x", shape=[3, 8, 8], dtype=pb.ELEMENT_TYPE_INT64)], "DTYPE_MISMATCH"),
    ):
        assert refused(opener, format, path, inputs=inputs).reason == reason

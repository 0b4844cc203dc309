"""From pictures to model inputs, against Pillow and torchvision's documented arithmetic."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.worker.datasets import Limits
from tests.support.datasets_kit import Opener, encode, picture, read, rows, write_tree

FOLDER = pb.DATASET_FORMAT_IMAGE_FOLDER


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path / "scratch")


def model(*shape: int) -> pb.InputSpec:
    return pb.InputSpec(name="x", shape=shape, dtype=pb.ELEMENT_TYPE_FLOAT32)


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def through(
    tmp_path: Path,
    opener: Opener,
    content: bytes,
    shape: tuple[int, ...],
    steps: pb.Preprocessing | None = None,
    limits: Limits | None = None,
) -> np.ndarray:
    path = write_tree(tmp_path / "data", {"a.png": content})
    samples = opener(
        FOLDER,
        path,
        inputs=[model(*shape)],
        preprocessing=steps,
        field="calibration",
        limits=limits,
    )
    (sample,) = rows(samples)
    assert sample.dtype == np.float32
    assert sample.flags.c_contiguous
    return sample


def test_without_steps_pixels_are_scaled_to_one_and_channels_come_first(tmp_path, opener):
    image = gradient(6, 4)
    found = through(tmp_path, opener, encode(image), (3, 4, 6))
    np.testing.assert_allclose(found, np.asarray(image).transpose(2, 0, 1) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "resample"),
    [
        (pb.INTERPOLATION_BILINEAR, Image.Resampling.BILINEAR),
        (pb.INTERPOLATION_BICUBIC, Image.Resampling.BICUBIC),
        (pb.INTERPOLATION_NEAREST, Image.Resampling.NEAREST),
    ],
)
def test_the_usual_imagenet_steps(tmp_path, opener, name, resample):
    image = gradient(50, 31)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = pb.Preprocessing(
        resize=pb.Resize(shorter_side=20, interpolation=name),
        center_crop=pb.CenterCrop(height=16, width=17),
        mean=mean,
        std=std,
    )
    found = through(tmp_path, opener, encode(image), (3, 16, 17), steps)
    # 50 x 31 -> 32 x 20; the margins (32 - 17) / 2 = 7.5 and (20 - 16) / 2 round to 8 and 2.
    resized = np.asarray(image.resize((32, 20), resample))
    expected = (resized[2:18, 8:25] / 255 - mean) / std
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [((50, 31), (32, 20)), ((31, 50), (20, 32))])
def test_the_shorter_side_keeps_the_ratio(tmp_path, opener, size, expected):
    steps = pb.Preprocessing(resize=pb.Resize(shorter_side=20))
    width, height = expected
    through(tmp_path, opener, picture(size=size), (3, height, width), steps)


def test_a_small_image_is_padded_with_black_around_its_centre(tmp_path, opener):
    steps = pb.Preprocessing(
        center_crop=pb.CenterCrop(height=6, width=4), scale=1, mean=[10], std=[2]
    )
    found = through(tmp_path, opener, picture(200, (2, 8)), (3, 6, 4), steps)
    expected = np.zeros((6, 4))
    expected[:, 1:3] = 200
    np.testing.assert_allclose(found, np.stack([(expected - 10) / 2] * 3))


def test_bgr_swaps_channels_and_mean_follows_them(tmp_path, opener):
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    steps = pb.Preprocessing(color=pb.COLOR_MODE_BGR, scale=1, mean=[1, 2, 3])
    found = through(tmp_path, opener, encode(image), (3, 2, 2), steps)
    assert found[:, 0, 0].tolist() == [29, 18, 7]


def test_gray_and_nhwc(tmp_path, opener):
    steps = pb.Preprocessing(color=pb.COLOR_MODE_GRAY, layout=pb.LAYOUT_NHWC, scale=1)
    found = through(tmp_path, opener, picture(77, (3, 2)), (2, 3, 1), steps)
    np.testing.assert_array_equal(found, np.full((2, 3, 1), 77))


def sixteen_bit() -> bytes:
    return encode(Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)))


def animated() -> bytes:
    frames = [Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 200)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def palette_with_transparency() -> bytes:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 100, 100, 100])
    return encode(image, transparency=b"\x00\x80")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encode(Image.new("L", (2, 2), 100)), id="gray"),
        pytest.param(encode(Image.new("RGBA", (2, 2), (100, 100, 100, 7))), id="alpha"),
        pytest.param(encode(Image.new("LA", (2, 2), (100, 7))), id="gray-alpha"),
        pytest.param(encode(Image.new("RGB", (2, 2), (100,) * 3), "TIFF"), id="tiff"),
        pytest.param(encode(Image.new("CMYK", (2, 2), (155,) * 3 + (0,)), "TIFF"), id="cmyk"),
        pytest.param(sixteen_bit(), id="16-bit"),
        pytest.param(animated(), id="animated"),
        pytest.param(palette_with_transparency(), id="palette"),
    ],
)
def test_every_kind_of_picture_becomes_8_bit_rgb(tmp_path, opener, content):
    found = through(tmp_path, opener, content, (3, 2, 2), pb.Preprocessing(scale=1))
    np.testing.assert_array_equal(found, np.full((3, 2, 2), 100))


def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path, opener):
    image = gradient(16, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    content = encode(image, exif=exif)
    found = through(tmp_path, opener, content, (3, 16, 8), pb.Preprocessing(scale=1))
    expected = np.rot90(np.asarray(image), k=-1)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))


def test_32_bit_pixels_are_refused(tmp_path, opener):
    content = encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(InvalidArgument, match="8 or 16 bits") as caught:
        through(tmp_path, opener, content, (3, 2, 2))
    assert caught.value.reason == "UNDECODABLE_IMAGE"


def test_formats_outside_the_list_are_refused(tmp_path, opener):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "EPS")
    with pytest.raises(InvalidArgument) as caught:
        through(tmp_path, opener, buffer.getvalue(), (3, 2, 2))
    assert caught.value.reason == "UNDECODABLE_IMAGE"


@pytest.mark.parametrize(
    ("steps", "shape", "reason", "name", "text"),
    [
        (
            pb.Preprocessing(resize=pb.Resize()),
            (3, 8, 8),
            "INVALID_PREPROCESSING",
            ".resize",
            "set",
        ),
        (
            pb.Preprocessing(resize=pb.Resize(height=8)),
            (3, 8, 8),
            "INVALID_PREPROCESSING",
            ".resize",
            "height and width",
        ),
        (
            pb.Preprocessing(resize=pb.Resize(shorter_side=8, height=8, width=8)),
            (3, 8, 8),
            "INVALID_PREPROCESSING",
            ".resize",
            "alone",
        ),
        (
            pb.Preprocessing(resize=pb.Resize(height=8, width=9)),
            (3, 8, 8),
            "SHAPE_MISMATCH",
            ".resize",
            "8x9",
        ),
        (
            pb.Preprocessing(center_crop=pb.CenterCrop(height=9, width=8)),
            (3, 8, 8),
            "SHAPE_MISMATCH",
            ".center_crop",
            "9x8",
        ),
        (pb.Preprocessing(), (3, 9, 8), "SHAPE_MISMATCH", "", "'a.png' becomes 8x8"),
        (
            pb.Preprocessing(color=pb.COLOR_MODE_GRAY),
            (3, 8, 8),
            "INVALID_PREPROCESSING",
            ".color",
            "takes 3",
        ),
        (pb.Preprocessing(), (8, 8, 3), "INVALID_PREPROCESSING", ".layout", "NHWC"),
        (pb.Preprocessing(mean=[1, 2]), (3, 8, 8), "INVALID_PREPROCESSING", ".mean", "1 or 3"),
        (pb.Preprocessing(std=[0]), (3, 8, 8), "INVALID_PREPROCESSING", ".std", "above 0"),
    ],
)
def test_steps_that_cannot_make_the_input_are_refused(
    tmp_path, opener, steps, shape, reason, name, text
):
    with pytest.raises(InvalidArgument) as caught:
        through(tmp_path, opener, picture(), shape, steps)
    assert caught.value.reason == reason
    assert caught.value.field == f"calibration.preprocessing{name}"
    assert text in caught.value.message


def test_a_resize_cannot_blow_a_thin_picture_up(tmp_path, opener):
    steps = pb.Preprocessing(resize=pb.Resize(shorter_side=1000))
    with pytest.raises(InvalidArgument) as caught:
        through(tmp_path, opener, picture(size=(1, 60_000)), (3, 8, 8), steps)
    assert caught.value.reason == "DECOMPRESSION_BOMB"


def test_batches_hold_the_model_s_input_by_name(tmp_path, opener):
    path = write_tree(tmp_path / "data", {f"{n}.png": picture(n) for n in range(5)})
    batches = read(opener(FOLDER, path, inputs=[model(3, 8, 8)]))
    assert [batch.inputs["x"].shape for batch in batches] == [(4, 3, 8, 8), (1, 3, 8, 8)]

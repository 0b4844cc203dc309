"""One S3 server and one Lighten server over it, shared by the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from minio import Minio

import lighten
from tests.support.lighten_server import LightenServer, s3_settings
from tests.support.models import convnet, write_samples, write_state_dict
from tests.support.seaweedfs import SeaweedFS

BUCKET = "e2e"


def fill_bucket(storage: SeaweedFS, folder: Path) -> str:
    """Make a bucket with a model and data of each kind; return its URI without a slash."""
    client = Minio(
        storage.endpoint.removeprefix("http://"),
        access_key=storage.access_key,
        secret_key=storage.secret_key,
        secure=False,
    )
    client.make_bucket(BUCKET)
    onnx.save(convnet(), folder / "convnet.onnx")
    files = [
        write_state_dict(folder / "mobilenet.pth"),
        folder / "convnet.onnx",
        write_samples(folder / "calibration.npz", 32, seed=1),
        write_samples(folder / "evaluation.npz", 48, seed=2),
    ]
    for file in files:
        client.fput_object(BUCKET, file.name, str(file))
    return f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def bucket(seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fill_bucket(seaweedfs, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def server(
    seaweedfs: SeaweedFS, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LightenServer]:
    data = tmp_path_factory.mktemp("server")
    with LightenServer(data, s3_settings(seaweedfs, f"{bucket}/lighten")) as running:
        yield running


@pytest.fixture
def client(server: LightenServer) -> Iterator[lighten.Client]:
    with lighten.Client(server.target) as connected:
        yield connected


@pytest.fixture
def torch_spec(bucket: str) -> dict[str, object]:
    """MobileNetV2 with random weights: fold, equalize, calibrate."""
    return {
        "model": {
            "artifact": {"uri": f"{bucket}/mobilenet.pth"},
            "format": "STATE_DICT",
            "architecture": {"library": "TORCHVISION", "name": "mobilenet_v2", "num_classes": 10},
            "inputs": [{"name": "image", "shape": [3, 32, 32]}],
        },
        **_data(bucket),
        "plan": {
            "steps": {
                "steps": [
                    {"fold_batch_norms": {}},
                    {"cross_layer_equalization": {}},
                    {"calibrate": {"scheme": "SQNR"}},
                ]
            }
        },
        "outputs": {"encodings": ["0_6_1", "1_0_0", "2_0_0"]},
    }


@pytest.fixture
def onnx_spec(bucket: str) -> dict[str, object]:
    """An ONNX classifier: fold, calibrate."""
    return {
        "model": {"artifact": {"uri": f"{bucket}/convnet.onnx"}, "format": "ONNX"},
        **_data(bucket),
        "plan": {"steps": {"steps": [{"fold_batch_norms": {}}, {"calibrate": {}}]}},
    }


def _data(bucket: str) -> dict[str, object]:
    return {
        "calibration": {"data": {"uri": f"{bucket}/calibration.npz"}, "format": "NPZ"},
        "evaluation": {"data": {"uri": f"{bucket}/evaluation.npz"}, "format": "NPZ"},
    }


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"

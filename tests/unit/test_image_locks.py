"""What the images are made of: lock files that fit each other and the one that tests run with."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCKS = ("build", "server", "worker-cuda", "worker-gpu")
# What makes a worker, and must not be in the control plane.
HEAVY = {"torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "aimet-torch", "aimet-onnx"}


def locked(name: str) -> dict[str, str]:
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", text, re.M))


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_digests_and_no_address(name: str) -> None:
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
    assert len(entries) == len(locked(name)) > 5
    assert all("--hash=sha256:" in entry for entry in entries)


def test_control_plane_image_is_light() -> None:
    server = locked("server")
    assert not HEAVY & server.keys()
    assert not [name for name in server if name.startswith("nvidia-")]
    assert {"grpcio", "sqlalchemy", "kubernetes-asyncio"} <= server.keys()


def test_worker_image_has_one_onnxruntime_with_its_cuda() -> None:
    worker = locked("worker-gpu")
    assert "onnxruntime-gpu" in worker
    assert "onnxruntime" not in worker
    # torch brings the other libraries that ONNX Runtime loads.
    assert {"nvidia-curand", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cufft"} <= worker.keys()


def test_images_have_the_versions_that_tests_run_with() -> None:
    tested = locked("dev")
    # onnxruntime-gpu is the same release as the onnxruntime of the tests.
    tested["onnxruntime-gpu"] = tested["onnxruntime"]
    for name in ("server", "worker-gpu"):
        image = locked(name)
        assert image.keys() - tested.keys() <= {"nvidia-curand"}
        assert {k: v for k, v in image.items() if tested.get(k, v) != v} == {}


def test_cuda_layer_is_a_part_of_the_worker() -> None:
    layer, worker = locked("worker-cuda"), locked("worker-gpu")
    assert layer.items() <= worker.items()
    assert not {"aimet-torch", "grpcio"} & layer.keys()


def test_dockerfile_installs_from_locks_alone() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    installs = re.findall(r"^ +/opt/tools/install (.*?)(?: \\)?$", text, re.M)
    named = {"wheel/*.whl", *(f"locks/{name}.txt" for name in LOCKS[1:])}
    assert {line.removeprefix("--require-hashes -r ") for line in installs} == {
        f"/opt/lighten/{name}" for name in named
    }
    assert all("--require-hashes" in line for line in installs if "locks/" in line)
    assert set(re.findall(r"requirements/([a-z-]+)\.txt", text)) == set(LOCKS)
    assert re.findall(r"^USER (.*)$", text, re.M) == ["65532:65532"] * 3

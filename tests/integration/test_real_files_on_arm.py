"""Real models with weights that suit every CPU: the same integers on x86 and on ARM."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from lighten import v1 as pb
from lighten_service.worker.engines import open_model
from lighten_service.worker.graphs.coverage import GRID_PRESERVING
from lighten_service.worker.graphs.walk import producers
from lighten_service.worker.integers.proof import is_proven, prove
from tests.support.emulation.cpu import Cpu
from tools.demo_data import ROOT, weights_and_photos
from tools.packages import unpack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Feeds = Mapping[str, NDArray[np.float32]]
Found = Mapping[str, NDArray[Any]]
# Samples that are run on each CPU; others choose ranges.
RUN = 3


def orientation(_: Path) -> tuple[pb.JobSpec, Path, Feeds]:
    """The orientation classifier of rapidocr-onnxruntime."""
    packages = unpack(ROOT / "requirements/models.txt", ROOT / ".cache/models", lambda: None)
    spec = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX))
    spec.model.inputs.add(name="x", shape=[3, 48, 192])
    file = packages / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    return spec, file, {"x": smooth(3, 48, 192)}


def fashion(_: Path) -> tuple[pb.JobSpec, Path, Feeds]:
    """The depthwise network of the benchmarks, trained on Fashion-MNIST."""
    spec = pb.JobSpec(model=pb.ModelSource(format=pb.MODEL_FORMAT_ONNX))
    return spec, ROOT / "tests/benchmarks/fashion/network.onnx", {"image": smooth(1, 28, 28)}


def mobile_net(scratch: Path) -> tuple[pb.JobSpec, Path, Feeds]:
    """MobileNetV2 with its ImageNet weights, on photos."""
    weights, photos = weights_and_photos(ROOT / ".cache/demo", lambda _: None)
    architecture = pb.Architecture(library=pb.ARCHITECTURE_LIBRARY_TORCHVISION, name="mobilenet_v2")
    spec = pb.JobSpec(
        model=pb.ModelSource(format=pb.MODEL_FORMAT_STATE_DICT, architecture=architecture)
    )
    spec.model.inputs.add(name="image", shape=[3, 224, 224])
    pixels = np.stack([np.asarray(Image.open(photo).resize((224, 224))) for photo in photos])
    normal = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return spec, weights, {"image": normal.transpose(0, 3, 1, 2).astype(np.float32)}


def smooth(channels: int, height: int, width: int) -> NDArray[np.float32]:
    coarse = np.random.default_rng(0).normal(size=(16, channels, height // 4, width // 4))
    return coarse.repeat(4, axis=2).repeat(4, axis=3).astype(np.float32)


MODELS: dict[str, Callable[[Path], tuple[pb.JobSpec, Path, Feeds]]] = {
    "orientation": orientation,
    "fashion": fashion,
    "mobile_net": mobile_net,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Feeds]]:
    """Proven INT8 files, and the samples to run."""
    found = {}
    for name, make in MODELS.items():
        scratch = tmp_path_factory.mktemp(name)
        spec, artifact, feeds = make(scratch)
        model = open_model(spec, artifact, scratch=scratch, device="cpu", seed=0)
        model.fold_batch_norms()
        quantization = pb.QuantizationConfig(
            fuse_activations=True, weight_range=pb.WEIGHT_RANGE_EVERY_CPU
        )
        rest = {key: values[RUN:] for key, values in feeds.items()}
        model.calibrate(quantization, pb.Calibrate(), lambda r=rest: [r], on_batch=lambda _: None)
        path = scratch / f"{name}.onnx"
        model.export_qdq(path)
        model.close()
        proof = prove(path)
        assert is_proven(proof), proof
        found[name] = path, {key: values[:RUN] for key, values in feeds.items()}
    return found


def exposed(path: Path) -> onnx.ModelProto:
    """Return the file with every quantized activation as an output."""
    model = onnx.load(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored:
            value = helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None)
            model.graph.output.append(value)
    return model


def differing_products(model: onnx.ModelProto, here: Found, there: Found) -> dict[str, bool]:
    """Return the convolutions and matrix products that read the same integers on both, and whether
    they gave others."""
    writers, found = producers(model.graph), {}
    for node in model.graph.node:
        product = writers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        while product is not None and product.op_type in ("Relu", "Clip"):
            product = writers.get(product.input[0])
        if product is None or product.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        read = next((n for n in read_from(product.input[0], writers) if n in here), None)
        if read is None or not np.array_equal(here[read], there[read]):
            continue
        equal = np.array_equal(here[node.output[0]], there[node.output[0]])
        found[product.name] = not equal
    return found


def read_from(name: str, writers: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """Yield a tensor and what it was made from by moving and dequantizing alone."""
    while True:
        yield name
        node = writers.get(name)
        if node is None or node.op_type not in GRID_PRESERVING:
            return
        name = node.input[0]


def test_products_give_the_same_integers_as_on_x86(
    files: dict[str, tuple[Path, Feeds]], arm_cpu: Cpu, tmp_path: Path
) -> None:
    """Whole networks of convolutions and residual sums are equal bit for bit. Where activations
    are multiplied too, such sums and products are requantized in float, and may round one step
    apart: no convolution or matrix product does that by itself."""
    models = {name: (exposed(path), feeds) for name, (path, feeds) in files.items()}
    there = arm_cpu.run(models, tmp_path)
    for name, (model, feeds) in models.items():
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        outputs = [output.name for output in session.get_outputs()]
        here = dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))
        products = differing_products(model, here, there[name])
        assert len(products) > 10
        assert not any(products.values()), (name, products)
        if name != "orientation":
            for output in outputs:
                np.testing.assert_array_equal(there[name][output], here[output], err_msg=name)

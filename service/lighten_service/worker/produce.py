"""Writes the files of a finished model."""

import json
from collections.abc import Mapping
from pathlib import Path

from lighten import v1 as pb
from lighten_service.worker.context import StepContext
from lighten_service.worker.graphs.save import data_file
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.publish import Product
from lighten_service.worker.verify import Exported

_ONNX = "application/vnd.onnx"
_NAMES = {
    pb.ENCODINGS_VERSION_0_6_1: "model.encodings-0.6.1.json",
    pb.ENCODINGS_VERSION_1_0_0: "model.encodings-1.0.0.json",
    pb.ENCODINGS_VERSION_2_0_0: "model.encodings",
}


def write_outputs(
    context: StepContext, model: WorkingModel, outputs: pb.Outputs, folder: Path
) -> tuple[list[Product], Exported]:
    """Write what was asked for, and what verification needs beside it."""
    folder.mkdir(parents=True)
    products: list[Product] = []
    versions = list(outputs.encodings)
    total = len(versions) + outputs.float_onnx + outputs.qdq_onnx
    for version in versions:
        context.progress(len(products), total, "files")
        path = folder / _NAMES[version]
        model.export_encodings(path, version)
        products.append(Product(path, pb.ARTIFACT_KIND_ENCODINGS, "application/json"))
    float_onnx = folder / "model.onnx"
    context.progress(len(products), total, "files")
    model.export_float(float_onnx)
    if outputs.float_onnx:
        products += _with_data(Product(float_onnx, pb.ARTIFACT_KIND_FLOAT_ONNX, _ONNX))
    qdq = folder / "model.qdq.onnx" if outputs.qdq_onnx else None
    if qdq is not None:
        context.progress(len(products), total, "files")
        model.export_qdq(qdq)
        products += _with_data(Product(qdq, pb.ARTIFACT_KIND_QDQ_ONNX, _ONNX))
    encodings = folder / _NAMES[pb.ENCODINGS_VERSION_2_0_0]
    if not encodings.exists():
        model.export_encodings(encodings, pb.ENCODINGS_VERSION_2_0_0)
    return products, Exported(float_onnx, encodings, qdq)


def write_analyses(analyses: Mapping[str, Mapping[str, object]], folder: Path) -> list[Product]:
    """Write what steps found in detail, ``<step id>.json`` each."""
    products = []
    for step_id, data in analyses.items():
        path = folder / f"{step_id}.json"
        path.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")
        products.append(Product(path, pb.ARTIFACT_KIND_ANALYSIS, "application/json"))
    return products


def write_report(page: str, folder: Path) -> Product:
    """Write the report for a person."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return Product(path, pb.ARTIFACT_KIND_REPORT, "text/html")


def _with_data(product: Product) -> list[Product]:
    """Return a graph, and beside it the file of its weights where it is too large for one."""
    data = data_file(product.path)
    extra = [Product(data, product.kind, "application/octet-stream")] if data.exists() else []
    return [product, *extra]

"""The main job on a real model, as a user would start it: ``make demo``.

Starts a real S3 server and ``lighten-server`` on loopback, uploads MobileNetV2 and photos, submits
the job through the CLI, and stops what it started.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from minio import Minio
from rich.console import Console

from tests.support.lighten_server import LightenServer, s3_settings
from tests.support.seaweedfs import SeaweedFS
from tools.demo_data import ROOT, DemoData, prepare

CACHE = ROOT / ".cache" / "demo"
OUTPUT = ROOT / "out" / "demo"
LOG = CACHE / "server.log"
BUCKET = "lighten-demo"

SPEC = """\
# What `make demo` submits. Techniques and fields: protos/lighten/v1/spec.proto.
display_name: MobileNetV2, ImageNet weights, W8A8
model:
  artifact: {{uri: "s3://{bucket}/models/mobilenet_v2.pth"}}
  format: STATE_DICT
  architecture: {{library: TORCHVISION, name: mobilenet_v2}}
  inputs: [{{name: image, shape: [3, 224, 224]}}]
calibration: &photos
  data: {{uri: "s3://{bucket}/data/calibration.tar"}}
  format: IMAGE_TAR
  preprocessing: &imagenet
    resize: {{shorter_side: 256}}
    center_crop: {{height: 224, width: 224}}
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
evaluation:
  data: {{uri: "s3://{bucket}/data/evaluation.tar"}}
  format: IMAGE_TAR
  preprocessing: *imagenet
plan:
  quantization: {{weights: INT8, activations: INT8}}
  steps:
    steps:
      - fold_batch_norms: {{}}
      - cross_layer_equalization: {{}}
      - calibrate: {{scheme: SQNR}}
"""

Completed = subprocess.CompletedProcess[str]

console = Console(highlight=False)


def main() -> int:
    """Run the demo; return the exit status of the CLI."""
    signal.signal(signal.SIGTERM, _interrupt)
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        _headline("Data")
        data = prepare(CACHE, _say)
        _say(f"{data.calibration_count} photos to calibrate, {data.evaluation_count} labelled ones")
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighten-demo-")))
            _headline("Servers on loopback")
            storage = stack.enter_context(
                SeaweedFS(scratch / "s3", access_key="demo", secret_key=secrets.token_hex(16))
            )
            _say(f"S3 (SeaweedFS) at {storage.endpoint}")
            _upload(storage, data)
            server = LightenServer(
                scratch / "lighten", s3_settings(storage, f"s3://{BUCKET}/lighten"), LOG
            )
            LOG.unlink(missing_ok=True)
            stack.enter_context(server)
            _say(f"lighten-server at {server.target} (log: {LOG.relative_to(ROOT)})")
            return _job(server.target)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        return 130


def _job(target: str) -> int:
    spec = CACHE / "mobilenet_v2.yaml"
    spec.write_text(SPEC.format(bucket=BUCKET))
    shutil.rmtree(OUTPUT, ignore_errors=True)
    began = time.monotonic()
    submitted = _lighten(target, "submit", spec, "--output", "json", capture=True)
    if submitted.returncode != 0:
        return submitted.returncode
    job = json.loads(submitted.stdout)["name"].rsplit("/", 1)[1]
    _headline(f"lighten submit {spec.relative_to(ROOT)}; lighten watch {job}")
    try:
        watched = _lighten(target, "watch", job)
    except KeyboardInterrupt:
        # Workers outlive their server, so the job is stopped first.
        _lighten(target, "cancel", job, capture=True)
        _lighten(target, "wait", job, capture=True)
        raise
    if watched.returncode != 0:
        return watched.returncode
    _headline(f"lighten download {job} --to {OUTPUT.relative_to(ROOT)}")
    downloaded = _lighten(target, "download", job, "--to", OUTPUT)
    _headline(f"Done in {time.monotonic() - began:.0f} s. Try next:")
    _say(f"edit {spec.relative_to(ROOT)}: weight_granularity: PER_TENSOR, weights: INT4, ...")
    _say("lighten run SPEC: the same for your own model, no server needed (README)")
    return downloaded.returncode


def _lighten(target: str, *arguments: str | Path, capture: bool = False) -> Completed:
    """Run the CLI as a user would, on this terminal unless its output is wanted."""
    return subprocess.run(
        [Path(sys.executable).with_name("lighten"), *arguments],
        env={**os.environ, "LIGHTEN_TARGET": target},
        stdout=subprocess.PIPE if capture else None,
        text=True,
    )


def _upload(storage: SeaweedFS, data: DemoData) -> None:
    client = Minio(
        storage.endpoint.removeprefix("http://"),
        access_key=storage.access_key,
        secret_key=storage.secret_key,
        secure=False,
    )
    client.make_bucket(BUCKET)
    for key, path in {
        "models/mobilenet_v2.pth": data.weights,
        "data/calibration.tar": data.calibration,
        "data/evaluation.tar": data.evaluation,
    }.items():
        client.fput_object(BUCKET, key, str(path))
        _say(f"uploaded s3://{BUCKET}/{key}  {path.stat().st_size / 1e6:.1f} MB")


def _headline(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def _say(text: str) -> None:
    console.print(f"  {text}", soft_wrap=True)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

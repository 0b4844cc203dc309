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
# Where each file of DemoData lies in the bucket.
KEYS = {
    "weights": "models/mobilenet_v2.pth",
    "calibration": "data/calibration.tar",
    "evaluation": "data/evaluation.tar",
}
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SPEC = """\
# What `make demo` submits. Techniques and fields: protos/lighten/v1/spec.proto.
display_name: MobileNetV2, ImageNet weights, W8A8
model:
  artifact: {{uri: "{weights}"}}
  format: STATE_DICT
  architecture: {{library: TORCHVISION, name: mobilenet_v2}}
  inputs: [{{name: image, shape: [3, 224, 224]}}]
calibration: &photos
  data: {{uri: "{calibration}"}}
  format: IMAGE_TAR
  preprocessing: &imagenet
    resize: {{shorter_side: 256}}
    center_crop: {{height: 224, width: 224}}
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
evaluation:
  data: {{uri: "{evaluation}"}}
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
    for number in _INTERRUPTS:
        signal.signal(number, _interrupt)
    CACHE.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
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
            upload(storage, data)
            server = LightenServer(
                scratch / "lighten", s3_settings(storage, f"s3://{BUCKET}/lighten"), LOG
            )
            LOG.unlink(missing_ok=True)
            stack.enter_context(server)
            _say(f"lighten-server at {server.target} (log: {_short(LOG)})")
            status = _job(server.target)
    except KeyboardInterrupt:
        console.show_cursor()
        console.print("\nStopped; nothing is left running.")
        return 130
    if status == 0:
        _what_next(data, time.monotonic() - began)
    return status


def _job(target: str) -> int:
    spec = CACHE / "mobilenet_v2.yaml"
    spec.write_text(SPEC.format_map({name: f"s3://{BUCKET}/{key}" for name, key in KEYS.items()}))
    shutil.rmtree(OUTPUT, ignore_errors=True)
    _headline(f"$ lighten submit {_short(spec)}")
    submitted = _lighten(target, "submit", spec, "--output", "json", capture=True)
    if submitted.returncode != 0:
        return submitted.returncode
    name = json.loads(submitted.stdout)["name"]
    _say(name)
    job = name.rsplit("/", 1)[1]
    _headline(f"$ lighten watch {job}")
    watched = _lighten(target, "watch", job)
    if watched.returncode != 0:
        return watched.returncode
    _headline(f"$ lighten download {job} --to {_short(OUTPUT)}")
    return _lighten(target, "download", job, "--to", _short(OUTPUT)).returncode


def _what_next(data: DemoData, seconds: float) -> None:
    local = CACHE / "local.yaml"
    local.write_text(SPEC.format_map({name: getattr(data, name) for name in KEYS}))
    _headline(f"Done in {seconds:.0f} s; the servers are stopped. Try next:")
    _say(f".venv/bin/lighten run {_short(local)} --to out/local")
    _say("the same job from local files, without a server; change it first, for example to")
    _say("`quantization: {weights: INT4, activations: INT16}`, or name your own model")


def _lighten(target: str, *arguments: str | Path, capture: bool = False) -> Completed:
    """Run the CLI as a user would, on this terminal unless its output is wanted."""
    return subprocess.run(
        [Path(sys.executable).with_name("lighten"), *arguments],
        cwd=ROOT,
        env={**os.environ, "LIGHTEN_TARGET": target},
        stdout=subprocess.PIPE if capture else None,
        text=True,
    )


def upload(storage: SeaweedFS, data: DemoData) -> None:
    """Make the bucket, with the files that ``SPEC`` names."""
    client = Minio(
        storage.endpoint.removeprefix("http://"),
        access_key=storage.access_key,
        secret_key=storage.secret_key,
        secure=False,
    )
    client.make_bucket(BUCKET)
    for name, key in KEYS.items():
        path: Path = getattr(data, name)
        client.fput_object(BUCKET, key, str(path))
        _say(f"uploaded s3://{BUCKET}/{key}  {path.stat().st_size / 1e6:.1f} MB")


def _headline(text: str) -> None:
    console.print(f"\n{text}", style="bold", markup=False, soft_wrap=True)


def _say(text: str) -> None:
    console.print(f"  {text}", markup=False, soft_wrap=True)


def _short(path: Path) -> Path:
    return path.relative_to(ROOT)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # Once is enough; what follows is the cleaning up.
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

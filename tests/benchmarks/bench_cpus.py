"""Real models in INT8 on CPUs with and without VNNI: ``python -m tests.benchmarks.bench_cpus``.

Of each model ONNX Runtime's ``quantize_static``, NNCF for OpenVINO and Lighten get the same ONNX
file and the same samples to calibrate on; others judge. SQNR and agreement are to FP32 in ONNX
Runtime. The CPU without VNNI, whose kernels saturate, is this machine's, or one that qemu emulates:
there fewer samples are judged. CPU time is this machine's alone, of one sample and one thread, in
turns with FP32 (NNCF's file with FP32 in OpenVINO).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

from lighten import v1 as pb
from lighten_service.worker.cpu import this_cpu
from tests.benchmarks.cpus import models
from tests.benchmarks.cpus.files import version_command
from tests.benchmarks.cpus.measuring import CALIBRATION, Measuring, Settings
from tests.benchmarks.cpus.models import MODELS, Model
from tests.benchmarks.cpus.packages import CACHE
from tests.benchmarks.cpus.table import print_details, print_summary, rows_of
from tests.benchmarks.cpus.targets import print_targets
from tests.benchmarks.peers import environment
from tests.support.emulation.debian import Unavailable
from tests.support.emulation.x86 import x86_without_vnni
from tools.demo_data import ROOT


def main() -> int:
    options = _options()
    chosen = [model for model in MODELS if not options.models or model.name in options.models]
    try:
        without = x86_without_vnni(ROOT / ".cache" / "emulation")
    except Unavailable as error:
        sys.exit(str(error))
    if not without.is_there():
        sys.exit(f"{without.name} has other kernels than CPUs without VNNI")
    settings = Settings(
        folder=options.folder,
        peers=environment.python(ROOT / ".cache" / "peers" / ".venv"),
        without=without,
        judged=options.samples,
        emulated=options.emulated_samples,
        seconds=options.seconds,
    )
    cpu = this_cpu(1)
    print(_conditions(settings, cpu), flush=True)
    models.fetch()
    measured, failures = _measure(chosen, settings)
    found = {
        one.result.model.name: (one.result, rows_of(one.result, saturating=cpu.int8_saturates))
        for one in measured
    }
    for result, rows in found.values():
        print_details(result, rows)
    print_summary(found)
    print_targets(found)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [model.name for model in MODELS]
    parser.add_argument("--models", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    parser.add_argument("--samples", type=int, default=500, help="to judge, at most")
    parser.add_argument("--emulated-samples", type=int, help="of them where qemu runs the models")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing, a model and runtime")
    parser.add_argument("--folder", type=Path, default=CACHE)
    return parser.parse_args()


def _measure(chosen: Sequence[Model], settings: Settings) -> tuple[list[Measuring], list[str]]:
    """Return the models that got through, and what failed. As many at a time as there are CPUs;
    then each alone, for its time."""
    started = [Measuring(model, settings) for model in chosen]
    failures: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {pool.submit(one.make_and_judge): one for one in started}
        for future in as_completed(futures):
            one = futures[future]
            try:
                failures += future.result().failures
            except subprocess.CalledProcessError as error:
                started.remove(one)
                failures.append(f"{one.result.model.name}: {error}")
                continue
            print(f"{one.result.model.name}: made and judged", flush=True)
    for one in started:
        one.measure_time()
    return started, failures


def _conditions(settings: Settings, cpu: pb.AttemptCpu) -> str:
    """Return what the figures depend on."""
    peers = subprocess.check_output(version_command(settings.peers, "nncf", "openvino"), text=True)
    versions = {name: version(name) for name in ("onnxruntime", "aimet-onnx")} | json.loads(peers)
    return (
        f"cpus: {CALIBRATION} samples to calibrate on, {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.1f}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f"\nthis machine: {cpu.model}, {'saturates' if cpu.int8_saturates else 'exact'}; "
        + ", ".join(cpu.instruction_sets)
        + f"\nwithout VNNI: {settings.without.name} {' '.join(settings.without.prefix[1:])}; "
        "kernels of Conv, Gemm and MatMul saturate"
    )


if __name__ == "__main__":
    sys.exit(main())

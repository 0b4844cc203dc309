"""Lighten and its peers on MobileNetV2, W8A8: ``python -m tests.benchmarks.bench_peers``.

All get the same ONNX file and the same photos to calibrate on; other photos judge, which nobody has
seen. Each runs in a process of its own, NNCF and ONNX Runtime's tools in an environment of their
own, each as its documentation recommends. Seconds and memory are of whole processes, from a start
to a file; Lighten's seconds hold all that ``lighten run`` does: FP32 and naive to compare with,
timings, checks and a report.

Latencies are measured in turns, ONNX files in one process with ONNX Runtime, the OpenVINO model in
another with OpenVINO and against OpenVINO's own FP32.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import environment, measured

CACHE = measured.ROOT / ".cache" / "peers"
TARGET_SQNR = 18.0
TARGET_LATENCY = 1.05
GUIDED = "Lighten guided"
FASTEST_PEERS = ("ONNX Runtime min-max", "ONNX Runtime percentile")
FP32 = "fp32"

Command = Sequence[str | Path]
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Contender:
    """``command`` writes ``output``."""

    title: str
    command: Command
    output: Path

    @property
    def on_openvino(self) -> bool:
        return self.output.suffix == ".xml"

    @property
    def log(self) -> Path:
        return self.output.parent / "log.txt"

    def size(self) -> int:
        """Return the bytes of the model, with the file beside it that holds its weights."""
        weights = self.output.with_suffix(".bin")
        return sum(path.stat().st_size for path in (self.output, weights) if path.exists())


def contenders(folder: Path, peers: Path, trials: int, seconds: int) -> list[Contender]:
    def program(title: str, python: Path, module: str, variant: str) -> Contender:
        place = _place(folder, title)
        suffix = "xml" if variant == "openvino" else "onnx"
        output = place / f"model.{suffix}"
        module = f"tests.benchmarks.peers.{module}"
        return Contender(title, [python, "-m", module, folder, output, variant], output)

    def job(title: str, plan: Mapping[str, object]) -> Contender:
        place = _place(folder, title)
        spec = place / "job.yaml"
        spec.write_text(json.dumps(_spec(folder, plan)))  # which is YAML, too
        lighten = Path(sys.executable).with_name("lighten")
        command = [lighten, "run", spec, "--to", place, "--output", "json"]
        return Contender(title, command, place / "model.qdq.onnx")

    own = Path(sys.executable)
    naive = {"steps": {"steps": [{"fold_batch_norms": {}}, {"calibrate": {"scheme": "MIN_MAX"}}]}}
    return [
        program("ONNX Runtime min-max", peers, "onnx_runtime", "min-max"),
        program("ONNX Runtime percentile", peers, "onnx_runtime", "percentile"),
        program("NNCF on ONNX", peers, "nncf_ptq", "onnx"),
        program("NNCF on OpenVINO", peers, "nncf_ptq", "openvino"),
        program("aimet-onnx min-max", own, "aimet_by_hand", "min_max"),
        program("aimet-onnx tf_enhanced", own, "aimet_by_hand", "tf_enhanced"),
        job("Lighten naive", naive),
        job(GUIDED, {"goal": {"max_trials": trials, "time_budget": seconds}}),
    ]


def _place(folder: Path, title: str) -> Path:
    place = folder / title.lower().replace(" ", "-")
    place.mkdir(exist_ok=True)
    return place


def _spec(folder: Path, plan: Mapping[str, object]) -> dict[str, object]:
    """Return a job on the files of all, whose choices see the calibration photos alone."""
    return {
        "model": {"artifact": {"uri": str(folder / "model.onnx")}, "format": "ONNX"},
        "calibration": {"data": {"uri": str(folder / "calibration.npz")}, "format": "NPZ"},
        "metric": "SQNR",
        "plan": {"quantization": {"weights": "INT8", "activations": "INT8"}, **plan},
    }


def judge(
    folder: Path, made: Sequence[Contender], peers: Path, threads: int, seconds: float
) -> dict[str, Figures]:
    """Return the figures of FP32 and of every contender, by title."""
    budget = [str(threads), str(seconds)]
    files = {one.title: one.output for one in made}
    on_openvino = {}
    for one in made:
        if one.on_openvino:
            program = [peers, "-m", "tests.benchmarks.peers.openvino_judge"]
            on_openvino[one.title] = _answer([*program, folder, one.output, *budget])
            files[one.title] = one.output.with_suffix(".npy")
    named = [f"{title}={path}" for title, path in files.items()]
    program = [sys.executable, "-m", "tests.benchmarks.peers.judge"]
    figures: dict[str, Figures] = _answer([*program, folder, *budget, *named])
    for title in figures.keys() - on_openvino.keys():
        figures[title]["latency"] = figures[title]["seconds"] / figures[FP32]["seconds"]
    for title, found in on_openvino.items():
        took = found.pop("seconds")
        figures[title] |= found | {"latency": took["quantized"] / took["fp32"]}
        own = took["fp32"] / took["onnxruntime"]
        print(f"{title}: FP32 takes {own:.2f} of the time there that it takes in ONNX Runtime")
    return figures


def _answer(command: Command) -> Any:
    result = subprocess.run(
        command, cwd=measured.ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def print_table(
    made: Sequence[Contender],
    figures: Mapping[str, Figures],
    costs: Mapping[str, measured.Cost],
    fp32_bytes: int,
) -> None:
    fp32 = figures[FP32]
    print(
        f"\n{fp32['photos']} photos judge, {fp32['labelled']} of them labelled; FP32: top-1 "
        f"{fp32['top1']:.3f}, {fp32_bytes / 1e6:.1f} MB, {fp32['seconds'] * 1e3:.1f} ms\n\n"
        "| | SQNR dB | agreement | top-1 | seconds | CPU s | peak GB | file / FP32 "
        f"| latency / FP32 | integer operators |\n|{' --- |' * 10}"
    )
    for one in made:
        found, cost = figures[one.title], costs[one.title]
        print(
            f"| {one.title} | {found['sqnr']:.1f} | {found['agreement']:.3f} | {found['top1']:.3f} "
            f"| {cost.seconds:.0f} | {cost.cpu_seconds:.0f} | {cost.peak / 1e9:.2f} "
            f"| {one.size() / fp32_bytes:.3f} | {found['latency']:.2f} "
            f"| {found['integer']} of {found['heavy']} |"
        )


def print_guided(log: Path, figures: Mapping[str, Figures]) -> None:
    """Print how the guide came to its choice, and the targets."""
    lines = (line for line in log.read_text().splitlines() if line.startswith('{"job"'))
    goal = json.loads(next(lines))["job"]["result"]["goal"]
    print(f"\n{GUIDED}: {len(goal['trials'])} trials, {goal['winner']} kept")
    for sentence in goal["explanation"]:
        print(f"  {sentence}")
    found = figures[GUIDED]
    peers = {title: one["sqnr"] for title, one in figures.items() if _is_peer(title)}
    best = max(peers, key=lambda title: peers[title], default=None)
    against = f"; the best peer here, {best}: {peers[best]:.1f} dB" if best else ""
    print(f"{GUIDED}: {found['sqnr']:.1f} dB (target: ahead of {TARGET_SQNR:.0f} dB){against}")
    for title in FASTEST_PEERS:
        if title in figures:
            ratio = found["latency"] / figures[title]["latency"]
            print(f"latency, {GUIDED} / {title}: {ratio:.2f} (target {TARGET_LATENCY})")


def _is_peer(title: str) -> bool:
    return title != FP32 and not title.startswith("Lighten")


def compare(options: argparse.Namespace, folder: Path) -> bool:
    """Run all that was asked for; return whether all got through."""
    peers = environment.python(CACHE / ".venv")
    numbers = [str(options.calibration), str(options.judged)]
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.peers.prepare", folder, *numbers],
        cwd=measured.ROOT,
        check=True,
    )
    costs: dict[str, measured.Cost] = {}
    made: list[Contender] = []
    wanted = [
        one
        for one in contenders(folder, peers, options.trials, options.goal_seconds)
        if not options.only or any(word in one.title for word in options.only)
    ]
    for one in wanted:
        try:
            costs[one.title] = measured.run(one.command, one.log)
        except subprocess.CalledProcessError as error:
            print(f"{one.title}: failed with {error.returncode}, see {one.log}", flush=True)
            continue
        made.append(one)
        print(f"{one.title}: {costs[one.title].seconds:.0f} s", flush=True)
    figures = judge(folder, made, peers, options.threads, options.latency_seconds)
    print_table(made, figures, costs, (folder / "model.onnx").stat().st_size)
    for one in made:
        if one.title == GUIDED:
            print_guided(one.log, figures)
    return len(made) == len(wanted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="WORD", help="those whose title has one of them")
    parser.add_argument("--calibration", type=int, default=64, help="photos to calibrate on")
    parser.add_argument("--judged", type=int, default=220, help="photos to judge on")
    parser.add_argument("--trials", type=int, default=24, help="of the guide, at most")
    parser.add_argument("--goal-seconds", type=int, default=900, help="of the guide, at most")
    parser.add_argument("--latency-seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1, help="of the runtimes that are timed")
    options = parser.parse_args()
    print(
        f"peers: MobileNetV2 W8A8, {options.calibration} photos to calibrate on, latency with "
        f"{options.threads} thread(s), {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    folder = CACHE / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return 0 if compare(options, folder) else 1


if __name__ == "__main__":
    sys.exit(main())

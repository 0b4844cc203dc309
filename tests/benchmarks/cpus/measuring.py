"""Makes the files of one model, judges them on both kinds of CPU, and times them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from lighten_service.worker.integers.twin import unsigned_twin
from tests.benchmarks.cpus import files
from tests.benchmarks.cpus.files import FILES, NNCF, SAFE, File
from tests.benchmarks.cpus.judged import Found
from tests.benchmarks.cpus.models import Model
from tests.support.emulation.cpu import Cpu
from tools.demo_data import ROOT

CALIBRATION = 64
FP32 = "model.onnx"
_ALL = 1 << 30

Command = Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Settings:
    """``without``: the CPU without VNNI; ``peers``: the interpreter of the peers' environment.
    ``judged``: samples to judge, at most; ``emulated``: of them on the CPU without VNNI, absent for
    each model's own number."""

    folder: Path
    peers: Path
    without: Cpu
    judged: int
    emulated: int | None
    seconds: float


@dataclass
class Result:
    """What was found on this machine's CPU and on one without VNNI, by path, twins included; and
    the CPU seconds of each round in ONNX Runtime and in OpenVINO, by path."""

    model: Model
    here: dict[str, Found] = field(default_factory=dict)
    without: dict[str, Found] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    openvino_seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Measuring:
    """The steps for one model, each in processes of its own."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.result = Result(model)
        self._settings = settings
        self._folder = settings.folder / model.name
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def make_and_judge(self) -> Result:
        """Do all that a busy machine does not disturb.

        Raises:
            subprocess.CalledProcessError: the float model, or ONNX Runtime's files, failed.
        """
        model, settings = self.result.model, self._settings
        numbers = [str(CALIBRATION), str(settings.judged)]
        prepare = [sys.executable, "-m", "tests.benchmarks.cpus.prepare", self._folder]
        self._run([*prepare, model.name, *numbers], "prepare")
        self._run(files.runtime_command(self._folder), "onnxruntime")
        nncf = files.nncf_command(self._folder, settings.peers, transformer=model.transformer)
        self._try(NNCF, lambda: self._run(nncf, NNCF.key))
        for file in files.LIGHTEN:
            command = files.lighten_command(self._folder, file)
            self._try(file, lambda command=command, key=file.key: self._run(command, key))
        self._write_twin()
        self.result.here = self._judge("here", (), _ALL)
        emulated = settings.emulated or model.emulated
        self.result.without = self._judge("without-vnni", settings.without.prefix, emulated)
        return self.result

    def measure_time(self) -> None:
        """Time all files; when nothing else runs."""
        seconds = str(self._settings.seconds)
        program = ["-m", "tests.benchmarks.cpus.timing", self._folder]
        paths = [file.path for file in self._made() if not file.on_openvino]
        command = [sys.executable, *program, "onnxruntime", seconds, FP32, *paths]
        self.result.seconds = self._answer(command, "timing")
        if NNCF in self._made():
            command = [self._settings.peers, *program, "openvino", seconds, FP32, NNCF.path]
            self.result.openvino_seconds = self._answer(command, "timing-openvino")

    def _try(self, file: File, make: Callable[[], object]) -> None:
        """Make a file; one that fails is missing in the table."""
        try:
            make()
        except subprocess.CalledProcessError:
            log = self._log(file.key)
            self.result.failures.append(f"{self.result.model.name}: no '{file.title}', see {log}")

    def _write_twin(self) -> None:
        if SAFE in self._made():
            twin = unsigned_twin(onnx.load(self._folder / SAFE.path))
            onnx.save(twin, self._folder / str(SAFE.twin))

    def _made(self) -> list[File]:
        return [file for file in FILES if (self._folder / file.path).exists()]

    def _judge(self, name: str, prefix: Sequence[str], count: int) -> dict[str, Found]:
        """Return what was found by path, on the first samples; ``prefix`` chooses the CPU."""
        paths = {
            path
            for file in self._made()
            for path in (file.path, file.twin)
            if path is not None and (self._folder / path).exists()
        }
        found: Mapping[str, Any] = {}
        for runtime, python in (
            ("onnxruntime", sys.executable),
            ("openvino", self._settings.peers),
        ):
            own = sorted(path for path in paths if path.endswith(".xml") == (runtime == "openvino"))
            program = [python, "-m", "tests.benchmarks.cpus.judge", self._folder, str(count)]
            command = [*prefix, *program, runtime, *own]
            found = {**found, **self._answer(command, f"judge-{name}-{runtime}")}
        return {path: Found.of(each) for path, each in found.items()}

    def _run(self, command: Command, name: str) -> str:
        with self._log(name).open("w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "NNCF_CI": "1", "CI": "true"}
            result = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
            log.write(result.stdout)
        result.check_returncode()
        return result.stdout

    def _answer(self, command: Command, name: str) -> Any:
        return json.loads(self._run(command, name).splitlines()[-1])

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

"""How to run programs on a CPU, and models in ONNX Runtime."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.support import kernel_forms as kf

_GUEST = Path(__file__).with_name("guest.py")

Arrays = Mapping[str, NDArray[Any]]
# A model, or its file without external data, and its inputs.
Run = tuple[onnx.ModelProto | Path, Arrays]

_PROBE = "probe"
_PROBED = ("conv_2d", "gemm", "matmul")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a Python there says of its CPU.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        dot_product: whether an ARM has these instructions.
        saturating: forms whose kernels gave wrong sums of weights of 127, of three.
    """

    machine: str
    dot_product: bool = False
    saturating: frozenset[str] = frozenset()


X86_WITHOUT_VNNI = Facts("x86_64", saturating=frozenset(_PROBED))


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU that this machine has or emulates.

    Args:
        facts: what every run must find.
        prefix: goes before a program and its arguments. What that program starts in turn runs on
            this machine's CPU, unless the prefix stands before it too.
        python: an interpreter for it, with numpy and ONNX Runtime.
        environment: variables that this interpreter needs.
    """

    name: str
    facts: Facts
    prefix: tuple[str, ...] = ()
    python: tuple[str, ...] = (sys.executable,)
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a command that runs Python there."""
        return [*self.prefix, *self.python, *map(str, arguments)]

    def run(self, runs: Mapping[str, Run], folder: Path) -> dict[str, dict[str, NDArray[Any]]]:
        """Run models in ONNX Runtime there, in one process, and return their outputs by name.

        Args:
            folder: for files; empty.

        Raises:
            AssertionError: it is another CPU than was asked for, or the process failed.
        """
        facts, found = self._run(runs, folder)
        assert facts == self.facts, f"{self.name} is {facts}, where {self.facts} was asked for"
        return found

    def is_there(self) -> bool:
        """Whether a run finds what was asked for."""
        with tempfile.TemporaryDirectory() as folder:
            return self._run({}, Path(folder))[0] == self.facts

    def _run(
        self, runs: Mapping[str, Run], folder: Path
    ) -> tuple[Facts, dict[str, dict[str, NDArray[Any]]]]:
        probe = _probe()
        for name, (model, feeds) in {_PROBE: (probe.model, probe.feeds), **runs}.items():
            _write(model, folder / f"{name}.onnx")
            np.savez(folder / f"{name}.inputs.npz", **feeds)
        done = subprocess.run(
            self.command(_GUEST, folder),
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{self.name}: {done.stdout}{done.stderr}"
        found = {name: dict(np.load(folder / f"{name}.outputs.npz")) for name in (_PROBE, *runs)}
        saturating = kf.wrong(probe, found.pop(_PROBE))
        return Facts(**json.loads(done.stdout), saturating=frozenset(saturating)), found


def _write(model: onnx.ModelProto | Path, file: Path) -> None:
    if isinstance(model, Path):
        file.symlink_to(model.resolve())
    else:
        onnx.save(model, file)


def _probe() -> kf.Case:
    """Return three forms whose every sum saturates where kernels can."""
    return kf.case_of(
        [
            kf.Layer(
                form,
                codes=np.full(form.data_shape, 255),
                weight=form.stored(np.full(form.rows_shape, 127)),
            )
            for form in kf.FORMS
            if form.name in _PROBED
        ]
    )

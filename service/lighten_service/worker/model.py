"""The model that a job works on, behind one face for both engines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lighten import v1 as pb

# Arrays by input or output name; first axis: samples of the batch.
Batch = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Figures of one sample through the model as it is now."""

    # Number of weights and biases.
    parameters: int
    # Multiply-accumulate operations (convolutions, matrix products).
    macs: int
    # MACs x weight bits x activation bits, 32 where nothing is quantized.
    bops: int
    # Bytes of weights and biases at their widths.
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """The grid of one quantized tensor, as it stands in the encodings file.

    ``scales`` and ``offsets`` have one entry, or one for each channel. A value x is stored as
    ``clip(round(x / scale) - offset)``; ``offset`` is 0 for symmetric signed grids.
    """

    tensor: str
    bits: int
    signed: bool
    symmetric: bool
    scales: tuple[float, ...]
    offsets: tuple[int, ...]
    is_weight: bool


class WorkingModel(ABC):
    """A model during a job: float at first, with a quantization simulation after calibration.

    One thread uses it (AIMET is not thread-safe). Everything is in place unless it says otherwise.
    """

    engine: pb.Engine.ValueType

    @property
    @abstractmethod
    def inputs(self) -> tuple[pb.InputSpec, ...]:
        """Inputs in graph order; shapes without the batch dimension, all dimensions known."""

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Outputs in graph order, as the exported graphs name them."""

    @property
    @abstractmethod
    def device(self) -> str:
        """Device that really runs it, for example ``cpu`` or ``cuda:0 NVIDIA A10``."""

    @property
    @abstractmethod
    def quantized(self) -> bool:
        """Whether there is a calibrated quantization simulation."""

    @abstractmethod
    def copy(self) -> Self:
        """Return an independent copy. Only while the model is float."""

    @abstractmethod
    def predict(self, batch: Batch) -> Outputs:
        """Run a batch of any size through the model as it is now (simulated when quantized)."""

    @abstractmethod
    def statistics(self) -> ModelStatistics: ...

    @abstractmethod
    def fold_batch_norms(self) -> int:
        """Fold every batch norm that can be; return how many."""

    @abstractmethod
    def equalize(self, *, replace_relu6: bool) -> Mapping[str, float]:
        """Equalize consecutive layers (folds batch norms first); return counts.

        Keys: ``equalized_layers``, ``folded_batch_norms``, ``replaced_relu6``.
        """

    @abstractmethod
    def calibrate(
        self,
        quantization: pb.QuantizationConfig,
        parameters: pb.Calibrate,
        batches: Callable[[], Iterable[Batch]],
        *,
        on_batch: Callable[[int], None],
    ) -> Mapping[str, float]:
        """Insert quantizers, choose ranges from ``batches``, and check that every one has a range.

        ``on_batch(n)`` is called after each batch, may be called with 0 before the first one while
        ranges of weights are chosen, and may raise to stop. Returns counts:
        ``weight_quantizers``, ``activation_quantizers``.

        Raises:
            FailedPrecondition: NO_QUANTIZERS, or UNCALIBRATED_QUANTIZERS with their names.
        """

    @abstractmethod
    def export_float(self, path: Path) -> None:
        """Write the float model with the present weights as one ONNX file, byte for byte the same
        for the same model. Tensor names are those of the encodings."""

    @abstractmethod
    def export_encodings(self, path: Path, version: pb.EncodingsVersion.ValueType) -> None:
        """Write AIMET's encodings of the quantized model as JSON."""

    @abstractmethod
    def export_qdq(self, path: Path) -> None:
        """Write the quantized model as one QDQ ONNX file with integer weights, byte for byte the
        same for the same model."""

    @abstractmethod
    def encodings(self) -> tuple[Encoding, ...]:
        """Return every grid of the quantized model."""

    @abstractmethod
    def close(self) -> None:
        """Free memory and files. The model cannot be used any more."""

"""The model that a job works on, behind one face for both engines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from lighten import v1 as pb
from lighten_service.worker.checkpoints.reading import Facts

if TYPE_CHECKING:
    from lighten_service.worker.quantized import QuantizedModel
    from lighten_service.worker.rescale import ChannelScales

# Arrays by input or output name; first axis: samples of the batch.
Batch = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[np.float32]]

_LARGEST_E4M3 = 448.0


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

    ``scales`` and ``offsets`` have one entry, or one for each channel, or for each block of each
    channel. A value x is stored as ``clip(round(x / scale) - offset)``; ``offset`` is 0 for
    symmetric signed grids. With ``is_float``, x / scale is rounded to a float of that width.
    """

    tensor: str
    bits: int
    signed: bool
    symmetric: bool
    scales: tuple[float, ...]
    offsets: tuple[int, ...]
    is_weight: bool
    is_float: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value on the grid, over all channels."""
        if self.is_float:
            return -_LARGEST_E4M3 * max(self.scales), _LARGEST_E4M3 * max(self.scales)
        first = -(2 ** (self.bits - 1)) if self.signed else 0
        last = first + 2**self.bits - 1
        pairs = [*zip(self.scales, self.offsets, strict=True)]
        return (
            min((first + offset) * scale for scale, offset in pairs),
            max((last + offset) * scale for scale, offset in pairs),
        )


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
    def replace_relu6(self) -> int:
        """Turn every ReLU6 into a ReLU; return how many. Changes the float function."""

    @abstractmethod
    def equalize(self) -> int:
        """Scale the channels of consecutive layers; return how many layers were scaled.

        Folds batch norms first. Leaves the float function of a ReLU network as it is.
        """

    @abstractmethod
    def absorb_high_biases(self) -> int:
        """Move high biases of the equalized pairs into the next layer; return how many layers
        changed. Uses what the folded batch norms saw; 0 without any, or before `equalize`."""

    @abstractmethod
    def rescale(self, scales: Mapping[str, "ChannelScales"]) -> None:
        """Scale channels of layers; what batch norms saw follows.

        That the function stays is the caller's to see to: what a layer writes on other scales, all
        that read it must read on them. Only while the model is float.

        Args:
            scales: by `Layer.name`; no two of the layers share a weight.
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

        ``parameters`` has the percentile or the reach that its scheme needs. ``on_batch(n)`` is
        called after each batch, may be called with 0 before the first one while ranges of weights
        are chosen, and may raise to stop. Returns counts: ``weight_quantizers``,
        ``activation_quantizers``.

        Raises:
            FailedPrecondition: NO_QUANTIZERS, or UNCALIBRATED_QUANTIZERS with their names.
        """

    @abstractmethod
    def quantized_model(self) -> "QuantizedModel":
        """Return the simulation, opened for algorithms.

        Raises:
            FailedPrecondition: NOT_QUANTIZED before calibration.
        """

    @abstractmethod
    def graph(self) -> onnx.ModelProto:
        """Return the float graph with the present weights; not to be changed. Tensor names are
        those of the encodings."""

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
    def save_state(self, folder: Path) -> Facts:
        """Write what the model has become into an empty folder; the rest is returned."""

    @abstractmethod
    def load_state(self, folder: Path, facts: Facts) -> None:
        """Make a model that was just opened what another one was when it saved its state, so that
        whatever follows gives the same bytes. It is of no use after an error.

        Raises:
            InvalidStepResult: the files are damaged, or another model's.
        """

    @abstractmethod
    def close(self) -> None:
        """Free memory and files. The model cannot be used any more."""

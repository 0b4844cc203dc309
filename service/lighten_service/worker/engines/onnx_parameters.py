"""The weights and biases of a float graph and of its simulation, changed together."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from lighten_service.worker.graphs.walk import array

Values = NDArray[np.generic]


class Parameters:
    """Initializers by name. Arrays that it takes or returns are never written to."""

    def __init__(self, models: Iterable[onnx.ModelProto]) -> None:
        """Args: models: graphs that hold the same initializers; the first one is read."""
        self._models = tuple(models)
        self._changed: dict[str, Values] = {}
        self._originals: dict[str, Values] = {}

    def get(self, name: str) -> Values:
        """Return the values as they are."""
        changed = self._changed.get(name)
        return array(self._tensor(name)) if changed is None else changed

    @property
    def originals(self) -> Mapping[str, Values]:
        """Values at calibration of everything that was ever changed."""
        return self._originals

    def original(self, name: str) -> Values:
        """Return the values at calibration."""
        return self._originals[name] if name in self._originals else self.get(name)

    def set(self, name: str, values: Values) -> None:
        """Replace the values; type and shape stay."""
        tensor = self._tensor(name)
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        values = np.array(values.reshape(tuple(tensor.dims)), kind, order="C")
        self._originals.setdefault(name, array(tensor))
        self._write(name, values)
        self._changed[name] = values

    def added(self, names: Iterable[str], models: Iterable[onnx.ModelProto]) -> None:
        """Go on with graphs that have got more initializers since calibration, of zeros."""
        self._models = tuple(models)
        for name in names:
            self._originals[name] = self._changed[name] = array(self._tensor(name))

    def snapshot(self) -> Mapping[str, Values]:
        """Return what `restore` takes."""
        return dict(self._changed)

    def restore(self, snapshot: Mapping[str, Values]) -> None:
        for name in list(self._changed):
            values = snapshot.get(name, self._originals[name])
            if values is not self._changed[name]:
                self._write(name, values)
                self._changed[name] = values

    def resume(self, originals: Mapping[str, Values]) -> None:
        """Take the values that models were opened with for changes of these originals."""
        self._originals = dict(originals)
        self._changed = {name: array(self._tensor(name)) for name in originals}

    def _write(self, name: str, values: Values) -> None:
        for model in self._models:
            _find(model, name).raw_data = values.tobytes()

    def _tensor(self, name: str) -> onnx.TensorProto:
        return _find(self._models[0], name)


def _find(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)

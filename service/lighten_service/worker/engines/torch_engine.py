"""The working model on aimet-torch: an architecture of a library, with weights of the caller."""

import copy
import gc
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import onnx
import torch
from aimet_torch.common.utils import AimetLogger
from aimet_torch.quantsim import QuantizationSimModel

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument
from lighten_service.worker.checkpoints.moments import moment_tensors, moments_of
from lighten_service.worker.checkpoints.reading import Facts, plain, take, take_message
from lighten_service.worker.checkpoints.tensors import load_tensors, save_tensors
from lighten_service.worker.engines import (
    torch_equalize,
    torch_export,
    torch_operators,
    torch_rescale,
    torch_simulation,
    torch_state,
)
from lighten_service.worker.engines.torch_layers import layer_tensors
from lighten_service.worker.engines.torch_prepare import (
    Inputs,
    example_inputs,
    flatten_outputs,
    prepare,
    run,
    torch_dtype,
)
from lighten_service.worker.engines.torch_quantized import Surroundings, TorchQuantizedModel
from lighten_service.worker.engines.torch_quantizer_state import (
    quantizer_state,
    restore_quantizers,
)
from lighten_service.worker.formats.architecture import load_architecture_model
from lighten_service.worker.graphs.clean import clean_qdq
from lighten_service.worker.graphs.qdq import read_encodings
from lighten_service.worker.graphs.save import save_single_file
from lighten_service.worker.graphs.statistics import graph_statistics
from lighten_service.worker.integers.twin import unsigned_twin
from lighten_service.worker.kernels import use_exact_float32
from lighten_service.worker.model import Batch, Encoding, ModelStatistics, Outputs, WorkingModel
from lighten_service.worker.rescale import ChannelScales

_INPUT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_OUTPUT: Final = "output"
# Of a step result.
_STATE_FILE: Final = "model.safetensors"
_CHANGED: Final = "changed."
# Older opsets quantize to 8 bits alone.
_WIDTHS_OPSET: Final = 21


def open_torch_model(
    spec: pb.JobSpec, artifact: Path, *, scratch: Path, device: str, seed: int
) -> "TorchModel":
    """Build, load and prepare the model of a resolved spec; see `open_model`.

    Raises:
        InvalidArgument: what `load_architecture_model` and `prepare` raise, or INVALID_INPUT_NAME.
        FailedPrecondition: DEVICE_UNAVAILABLE.
    """
    AimetLogger.set_level_for_all_areas(logging.WARNING)
    _set_up_device(device)
    specs = tuple(spec.model.inputs)
    _check_inputs(specs)
    module = load_architecture_model(spec.model, artifact, seed=seed)
    inputs = example_inputs(specs, seed=seed)
    prepared = prepare(module, inputs)
    outputs = flatten_outputs(run(prepared, inputs))
    names = [_OUTPUT] if len(outputs) == 1 else [f"{_OUTPUT}_{i}" for i in range(len(outputs))]
    signature = torch_export.Signature(
        inputs=tuple(entry.name for entry in specs),
        outputs=tuple(names),
        opset=spec.outputs.opset or _WIDTHS_OPSET,
    )
    return TorchModel(
        prepared.to(device), specs, signature, scratch=scratch, device=device, seed=seed
    )


class TorchModel(WorkingModel):
    """A prepared torch module, and after calibration its simulation in the module's place."""

    engine = pb.ENGINE_TORCH

    def __init__(
        self,
        module: torch.fx.GraphModule,
        inputs: tuple[pb.InputSpec, ...],
        signature: torch_export.Signature,
        *,
        scratch: Path,
        device: str,
        seed: int,
    ) -> None:
        self._module = module
        self._specs = inputs
        self._signature = signature
        self._scratch = scratch
        self._device = device
        self._seed = seed
        self._moments: torch_equalize.MomentsByLayer = {}
        self._scaled: tuple[torch_equalize.Pair, ...] = ()
        self._opened: TorchQuantizedModel | None = None
        # What the simulation was made with.
        self._calibrated_with: tuple[pb.QuantizationConfig, pb.Calibrate] | None = None
        # The float graph of the simulation and its encodings, until the simulation changes.
        self._exported: tuple[onnx.ModelProto, dict[str, Any]] | None = None

    @property
    def inputs(self) -> tuple[pb.InputSpec, ...]:
        return self._specs

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._signature.outputs

    @property
    def device(self) -> str:
        if self._device == "cpu":
            return self._device
        return f"{self._device} {torch.cuda.get_device_name(self._device)}"

    @property
    def quantized(self) -> bool:
        return self._opened is not None

    def copy(self) -> Self:
        self._check_float()
        other = copy.copy(self)
        other._module = copy.deepcopy(self._module)
        return other

    def predict(self, batch: Batch) -> Outputs:
        outputs = flatten_outputs(run(self._module, self._tensors(batch)))
        arrays = (output.float().cpu().numpy() for output in outputs)
        return dict(zip(self.output_names, arrays, strict=True))

    def statistics(self) -> ModelStatistics:
        return graph_statistics(self.graph(), self.encodings() if self.quantized else ())

    def fold_batch_norms(self) -> int:
        self._check_float()
        folded, moments = torch_equalize.fold(self._module, self._example())
        self._moments = {**self._moments, **moments}
        return folded

    def replace_relu6(self) -> int:
        self._check_float()
        return torch_equalize.replace_relu6(self._module)

    def equalize(self) -> int:
        self.fold_batch_norms()
        pairs, self._moments = torch_equalize.scale(self._module, self._example(), self._moments)
        self._scaled = pairs
        return len({name for pair in pairs for name in (pair.first, pair.second)})

    def absorb_high_biases(self) -> int:
        self._check_float()
        changed, self._moments = torch_equalize.absorb_high_biases(
            self._module, self._scaled, self._moments
        )
        return changed

    def rescale(self, scales: Mapping[str, ChannelScales]) -> None:
        self._check_float()
        self._moments = torch_rescale.rescale(self._module, scales, self._moments)

    def calibrate(
        self,
        quantization: pb.QuantizationConfig,
        parameters: pb.Calibrate,
        batches: Callable[[], Iterable[Batch]],
        *,
        on_batch: Callable[[int], None],
    ) -> Mapping[str, float]:
        self._check_float()
        sim, surroundings = self._simulate(quantization, parameters)
        torch_simulation.calibrate(
            sim, lambda: (self._tensors(batch) for batch in batches()), on_batch
        )
        self._open(sim, surroundings).bound_weights()
        return torch_simulation.count_quantizers(sim)

    def quantized_model(self) -> TorchQuantizedModel:
        if self._opened is None:
            raise FailedPrecondition(
                "NOT_QUANTIZED",
                "the model is not quantized; add a calibrate step to the plan",
                field="plan.steps",
            )
        return self._opened

    def graph(self) -> onnx.ModelProto:
        if self.quantized:
            return self._export()[0]
        return torch_export.float_graph(
            self._module, self._example(), self._signature, self._scratch
        )

    def export_float(self, path: Path) -> None:
        save_single_file(self.graph(), path)

    def export_encodings(self, path: Path, version: pb.EncodingsVersion.ValueType) -> None:
        if version == pb.ENCODINGS_VERSION_2_0_0:
            document = self._export()[1]
        else:
            _, document = torch_export.simulated_graph(
                self._simulation(), self._example(), self._signature, self._scratch, version
            )
        path.write_text(json.dumps(document, indent=2) + "\n")

    def export_qdq(self, path: Path) -> None:
        sim = self._simulation()
        self._check_opset(sim)
        model = torch_export.qdq_graph(
            sim, self._example(), self._signature, self._scratch, self._export()[1]
        )
        clean_qdq(model)
        if names := self._unsigned_weights():
            model = unsigned_twin(model, names)
        save_single_file(model, path)

    def encodings(self) -> tuple[Encoding, ...]:
        graph, document = self._export()
        return read_encodings(document, {tensor.name for tensor in graph.graph.initializer})

    def save_state(self, folder: Path) -> Facts:
        module = self._module if self._opened is None else self._opened.float_module
        tensors = {
            **torch_state.module_tensors(module),
            **dict(moment_tensors(self._moments)),
        }
        facts = dict(torch_state.module_facts(module))
        if self._opened is not None and self._calibrated_with is not None:
            quantization, parameters = self._calibrated_with
            quantizers, ranges = quantizer_state(self._opened.simulation)
            changed = self._opened.changed_parameters()
            tensors |= ranges | {f"{_CHANGED}{name}": tensor for name, tensor in changed.items()}
            facts["simulation"] = {
                "quantization": plain(quantization),
                "calibrate": plain(parameters),
                **quantizers,
            }
        save_tensors(tensors, folder / _STATE_FILE)
        return facts

    def load_state(self, folder: Path, facts: Facts) -> None:
        self._check_float()
        tensors = load_tensors(folder / _STATE_FILE)
        torch_state.restore_module(self._module, facts, tensors, self._device)
        self._moments = moments_of(tensors, self._device)
        if "simulation" in facts:
            self._load_simulation(take(facts, "simulation", dict), tensors)

    def _load_simulation(self, facts: Facts, tensors: Mapping[str, torch.Tensor]) -> None:
        sim, surroundings = self._simulate(
            take_message(facts, "quantization", pb.QuantizationConfig()),
            take_message(facts, "calibrate", pb.Calibrate()),
        )
        restore_quantizers(sim, facts, tensors)
        self._open(sim, surroundings).restore_parameters(
            {n.removeprefix(_CHANGED): t for n, t in tensors.items() if n.startswith(_CHANGED)}
        )

    def close(self) -> None:
        self._opened = self._exported = None
        self._module = torch.fx.GraphModule({}, torch.fx.Graph())
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def _simulate(
        self, quantization: pb.QuantizationConfig, parameters: pb.Calibrate
    ) -> tuple[QuantizationSimModel, Surroundings]:
        """Turn the module into a simulation without ranges."""
        example = self._example()
        operators = torch_operators.operators(self._module, example, self._signature.inputs)
        float_module = _sharing_copy(self._module)
        sim = torch_simulation.simulate(
            self._module, operators, example, quantization, parameters, self._scratch
        )
        self._calibrated_with = quantization, parameters
        return sim, Surroundings(
            float_module,
            operators,
            self._moments,
            self._tensors,
            self._tensor_names,
            quantization,
            self._forget_exports,
        )

    def _open(self, sim: QuantizationSimModel, surroundings: Surroundings) -> TorchQuantizedModel:
        self._module = sim.model
        self._opened = TorchQuantizedModel(sim, surroundings)
        return self._opened

    def _export(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        if self._exported is None:
            self._exported = torch_export.simulated_graph(
                self._simulation(),
                self._example(),
                self._signature,
                self._scratch,
                pb.ENCODINGS_VERSION_2_0_0,
            )
        return self._exported

    def _forget_exports(self) -> None:
        self._exported = None

    def _tensor_names(self) -> dict[str, tuple[str, str]]:
        return layer_tensors(self.graph().graph)

    def _unsigned_weights(self) -> set[str]:
        """Return the tensors that the QDQ graph stores as UINT8."""
        layers = self.quantized_model().unsigned
        return {weight for name, (weight, _) in self._tensor_names().items() if name in layers}

    def _simulation(self) -> QuantizationSimModel:
        return self.quantized_model().simulation

    def _check_opset(self, sim: QuantizationSimModel) -> None:
        if self._signature.opset >= _WIDTHS_OPSET:
            return
        if any(quantizer.bitwidth != 8 for quantizer in sim.quantizers()):
            raise InvalidArgument(
                "OPSET_TOO_LOW",
                f"INT4 and INT16 need opset {_WIDTHS_OPSET} or newer, not {self._signature.opset}",
                field="outputs.opset",
            )

    def _check_float(self) -> None:
        if self.quantized:
            raise FailedPrecondition(
                "ALREADY_QUANTIZED",
                "the step needs the float model; put it before calibrate",
                field="plan.steps",
            )

    def _example(self) -> Inputs:
        return example_inputs(self._specs, seed=self._seed, device=self._device)

    def _tensors(self, batch: Batch) -> Inputs:
        return tuple(
            torch.as_tensor(batch[spec.name], dtype=torch_dtype(spec), device=self._device)
            for spec in self._specs
        )


def _sharing_copy(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return a copy with modules of its own and the same tensors."""
    tensors: dict[int, Any] = {
        id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())
    }
    return copy.deepcopy(module, tensors)


def _set_up_device(device: str) -> None:
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise FailedPrecondition(
            "DEVICE_UNAVAILABLE",
            f"{device} was asked for and this worker has no usable GPU",
            field="resources.gpus",
        )
    use_exact_float32()


def _check_inputs(specs: tuple[pb.InputSpec, ...]) -> None:
    if not specs:
        raise InvalidArgument(
            "MISSING_INPUTS",
            "an architecture needs its inputs: a name and the shape of one sample for each",
            field="model.inputs",
        )
    names = [spec.name for spec in specs]
    for index, name in enumerate(names):
        if not _INPUT_NAME.fullmatch(name) or name.startswith(_OUTPUT) or name in names[:index]:
            raise InvalidArgument(
                "INVALID_INPUT_NAME",
                f"{name!r} cannot name an input: use letters, digits and _ . -, begin with a "
                f"letter, not with {_OUTPUT!r}, and use each name once",
                field=f"model.inputs[{index}].name",
            )

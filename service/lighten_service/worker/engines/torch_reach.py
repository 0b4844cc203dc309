"""Which quantizers a forward pass reaches.

AIMET puts quantizers on modules that never run (the unused parts of an attention layer) and on
arguments that are no float tensors (shape arithmetic). They stay without a range for ever. Any
other quantizer without a range after calibration is a fault, and this tells the two apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from aimet_torch.nn import BaseQuantizationMixin
from aimet_torch.quantization.base import QuantizerBase
from aimet_torch.quantsim import QuantizationSimModel

from lighten_service.worker.engines.torch_prepare import flatten_outputs


@contextmanager
def reached_quantizers(sim: QuantizationSimModel) -> Iterator[set[QuantizerBase]]:
    """Collect the quantizers that float tensors pass while the block runs the model."""
    reached: set[QuantizerBase] = set()

    def note(module: BaseQuantizationMixin, arguments: tuple[object, ...], result: object) -> None:
        reached.update(q for q in module.param_quantizers.values() if q is not None)
        outputs = flatten_outputs(result)
        for quantizers, values in (
            (module.input_quantizers, arguments),
            (module.output_quantizers, outputs),
        ):
            pairs = zip(quantizers, values, strict=False)
            reached.update(q for q, value in pairs if q is not None and _is_float(value))

    hooks = [module.register_forward_hook(note) for module in sim.qmodules()]
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()


def drop_unreached(sim: QuantizationSimModel, reached: set[QuantizerBase]) -> int:
    """Remove the quantizers that have no range because nothing reaches them; return how many."""
    dropped = 0
    for module in sim.qmodules():
        for container in (module.input_quantizers, module.output_quantizers):
            for index, quantizer in enumerate(container):
                if _idle(quantizer, reached):
                    container[index] = None
                    dropped += 1
        for name, quantizer in module.param_quantizers.items():
            if _idle(quantizer, reached):
                module.param_quantizers[name] = None
                dropped += 1
    return dropped


def _idle(quantizer: QuantizerBase | None, reached: set[QuantizerBase]) -> bool:
    return quantizer is not None and quantizer not in reached and not quantizer.is_initialized()


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()

"""Whether ONNX Runtime's kernels for INT8 weights saturate on this CPU, by experiment.

Instruction sets alone do not tell: which kernel runs is ONNX Runtime's choice.
"""

from functools import cache
from typing import Final

import numpy as np
import onnx.parser
import onnxruntime

# Each operator adds up 255 * 127 eight times; two of them pass 16 bits.
_PROBE: Final = """
<ir_version: 9, opset_import: ["": 17]>
probe (float[1,8,2,2] image, float[4,8] rows)
  => (float[1,1,2,2] Conv, float[4,1] Gemm, float[4,1] MatMul)
<
  float x_scale = {0.00392156862745098}, uint8 x_zero = {0},
  float w_scale = {0.01}, int8 w_zero = {0},
  float y_scale = {0.1}, uint8 y_zero = {0},
  int8[1,8,1,1] kernel = {127,127,127,127,127,127,127,127},
  int8[1,8] across = {127,127,127,127,127,127,127,127},
  int8[8,1] down = {127,127,127,127,127,127,127,127}
>
{
  image_codes = QuantizeLinear(image, x_scale, x_zero)
  rows_codes = QuantizeLinear(rows, x_scale, x_zero)
  image_values = DequantizeLinear(image_codes, x_scale, x_zero)
  rows_values = DequantizeLinear(rows_codes, x_scale, x_zero)
  kernel_values = DequantizeLinear(kernel, w_scale, w_zero)
  across_values = DequantizeLinear(across, w_scale, w_zero)
  down_values = DequantizeLinear(down, w_scale, w_zero)
  conv = Conv(image_values, kernel_values)
  gemm = Gemm <transB = 1> (rows_values, across_values)
  matmul = MatMul(rows_values, down_values)
  conv_codes = QuantizeLinear(conv, y_scale, y_zero)
  gemm_codes = QuantizeLinear(gemm, y_scale, y_zero)
  matmul_codes = QuantizeLinear(matmul, y_scale, y_zero)
  Conv = DequantizeLinear(conv_codes, y_scale, y_zero)
  Gemm = DequantizeLinear(gemm_codes, y_scale, y_zero)
  MatMul = DequantizeLinear(matmul_codes, y_scale, y_zero)
}
"""
# 8 * 1.27, where every input is 1; kernels that saturate return half of it.
_EXACT: Final = 10.16
_INPUTS: Final = {"image": (1, 8, 2, 2), "rows": (4, 8)}


def saturates() -> bool:
    """Return whether any kernel does. Tried once a process, in milliseconds."""
    return bool(saturating())


@cache
def saturating() -> frozenset[str]:
    """Return the operators whose kernels saturate, of Conv, Gemm and MatMul."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    model = onnx.parser.parse_model(_PROBE).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    ones = {name: np.ones(shape, np.float32) for name, shape in _INPUTS.items()}
    names = [output.name for output in session.get_outputs()]
    found = zip(names, session.run(names, ones), strict=True)
    return frozenset(name for name, sums in found if sums.min() < 0.9 * _EXACT)

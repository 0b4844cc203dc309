"""The types that AIMET's quantizers take on."""

from collections.abc import Mapping
from typing import Final

from aimet_onnx.common.defs import qtype
from aimet_onnx.qc_quantize_op import QcQuantizeOp

from lighten import v1 as pb

_TYPES: Final[Mapping[pb.DataType.ValueType, qtype]] = {
    pb.DATA_TYPE_INT4: qtype.int(4),
    pb.DATA_TYPE_INT8: qtype.int(8),
    pb.DATA_TYPE_INT16: qtype.int(16),
    pb.DATA_TYPE_FLOAT16: qtype.from_string("float16"),
    pb.DATA_TYPE_FLOAT8_E4M3: qtype.from_string("float8e4m3fn"),
}


def aimet_type(data_type: pb.DataType.ValueType) -> qtype:
    """Return AIMET's name of a type, INT8 for none."""
    return _TYPES[data_type or pb.DATA_TYPE_INT8]


def set_type(quantizer: QcQuantizeOp, type_: qtype) -> None:
    """Give a quantizer another type; its range is to be chosen anew.

    Outputs between 0 and 1 lie on the fixed grid 1/2**bits, which follows the width.
    """
    before, fixed = 1 - 2.0**-quantizer.bitwidth, quantizer._encoding_min_max_fixed_vals
    quantizer.set_precision(type_)
    if fixed and fixed[1] == before and is_integer(quantizer):
        end = 1 - 2.0**-quantizer.bitwidth
        quantizer.set_fixed_encoding_range((-end if fixed[0] else 0.0, end))


def is_integer(quantizer: QcQuantizeOp) -> bool:
    """Say whether a quantizer puts values on an integer grid."""
    return bool(quantizer.quant_info.isIntDataType)


def is_half(quantizer: QcQuantizeOp) -> bool:
    """Say whether a quantizer rounds to IEEE half precision, which has no scale."""
    return not is_integer(quantizer) and bool(quantizer.bitwidth == 16)

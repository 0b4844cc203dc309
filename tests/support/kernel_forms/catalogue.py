"""The forms, and random ones of the same kinds."""

from dataclasses import replace
from typing import Final

from tests.support.kernel_forms.convolutions import (
    Convolution,
    IntegerConvolution,
    TransposedConvolution,
)
from tests.support.kernel_forms.form import Form, Grid
from tests.support.kernel_forms.products import (
    GemmProduct,
    IntegerProduct,
    Product,
    ProductBehindReshape,
    ProductBehindTranspose,
    ProductOfData,
    ProductWithVector,
    WeightFirst,
)

_CHANNELS, _FLOAT = Grid(per_channel=True), Grid(quantized_output=False)
_FLOAT_CHANNELS = Grid(per_channel=True, quantized_output=False)
_UNSIGNED, _SIGNED_DATA = Grid(unsigned_weight=True), Grid(signed_data=True)

FORMS: Final[tuple[Form, ...]] = (
    Convolution("conv_1d", 5, 4, (3,), pad=1, size=40),
    Convolution("conv_2d", 3, 4, (3, 3), pad=1),
    Convolution("conv_2d_channels", 3, 4, (3, 3), pad=1, biased=True, grid=_CHANNELS),
    Convolution("conv_stride", 4, 4, (3, 3), stride=2, pad=1, size=9),
    Convolution("conv_dilation", 3, 4, (3, 2), dilation=2, size=8, grid=_CHANNELS),
    Convolution("conv_point", 7, 4, (1, 1), grid=_CHANNELS),
    Convolution("conv_3d", 3, 4, (2, 3, 2), pad=1, size=4, batch=4),
    Convolution("conv_two_groups", 6, 4, (3, 3), groups=2, grid=_CHANNELS),
    Convolution("conv_four_groups", 12, 8, (1, 3), groups=4),
    Convolution("conv_grey", 1, 4, (3, 3), pad=1, grid=_CHANNELS),
    Convolution("conv_relu", 3, 4, (3, 3), slope=0, biased=True, grid=Grid(output_zero=0)),
    Convolution("conv_leaky", 3, 4, (3, 3), slope=2, grid=_CHANNELS),
    Convolution("conv_float", 3, 4, (3, 3), grid=_FLOAT),
    Convolution("conv_signed_data", 3, 4, (3, 3), grid=_SIGNED_DATA),
    Convolution("conv_unsigned_weight", 3, 4, (3, 3), grid=_UNSIGNED),
    Convolution("depthwise", 4, 4, (3, 3), groups=4, pad=1),
    Convolution("depthwise_channels", 4, 4, (3, 3), groups=4, pad=1, grid=_CHANNELS),
    Convolution("depthwise_many", 16, 16, (3, 3), groups=16, pad=1),
    Convolution("depthwise_large", 32, 32, (5, 5), groups=32, pad=2),
    Convolution("depthwise_signed_data", 16, 16, (3, 3), groups=16, pad=1, grid=_SIGNED_DATA),
    Convolution("depthwise_1d", 16, 16, (3,), groups=16, pad=1),
    Convolution("depthwise_twice", 4, 8, (3, 3), groups=4, grid=_CHANNELS),
    TransposedConvolution("conv_transpose", 3, 4, (3, 3), stride=2, pad=1),
    TransposedConvolution("conv_transpose_groups", 4, 6, (2, 3), groups=2, dilation=2),
    IntegerConvolution("conv_integer", 3, 4, (3, 3), grid=_FLOAT),
    Product("matmul", 16),
    Product("matmul_channels", 17, grid=_CHANNELS),
    Product("matmul_float", 15, grid=_FLOAT),
    Product("matmul_float_channels", 16, grid=_FLOAT_CHANNELS),
    Product("matmul_batch", 9, batch=(2, 3), grid=_CHANNELS),
    Product("matmul_stacked", 8, batch=(3,), stacked=(3,)),
    Product("matmul_stacked_float", 9, batch=(3,), stacked=(3,), grid=_FLOAT),
    Product("matmul_signed_data", 16, grid=replace(_CHANNELS, signed_data=True)),
    Product("matmul_unsigned_weight", 16, grid=replace(_FLOAT, unsigned_weight=True)),
    ProductWithVector("matmul_vector", 16, n=1),
    ProductWithVector("matmul_vector_float", 15, n=1, grid=_FLOAT),
    ProductBehindTranspose("matmul_transpose", 13, grid=_CHANNELS),
    ProductBehindTranspose("matmul_transpose_float", 14, grid=_FLOAT),
    ProductBehindReshape("matmul_reshape", 16),
    WeightFirst("matmul_weight_first", 16, grid=_CHANNELS),
    ProductOfData("matmul_of_data", 16),
    IntegerProduct("matmul_integer", 16, grid=_FLOAT),
    IntegerProduct("matmul_integer_channels", 11, grid=_FLOAT_CHANNELS),
    GemmProduct("gemm", 16),
    GemmProduct("gemm_channels", 19, biased=True, grid=_CHANNELS),
    GemmProduct("gemm_plain_weight", 9, transposed_weight=False, grid=_CHANNELS),
    GemmProduct("gemm_transposed_data", 12, transposed_data=True),
    GemmProduct("gemm_both", 7, transposed_data=True, transposed_weight=False),
    GemmProduct("gemm_float", 15, biased=True, grid=_FLOAT),
    GemmProduct("gemm_float_channels", 16, grid=_FLOAT_CHANNELS),
    GemmProduct("gemm_alpha", 16, alpha=2),
    GemmProduct("gemm_alpha_biased", 16, alpha=2, biased=True),
    GemmProduct("gemm_alpha_float", 16, alpha=2, grid=_FLOAT),
    GemmProduct("gemm_relu", 16, biased=True, slope=0, grid=Grid(output_zero=0)),
    GemmProduct("gemm_signed_data", 15, grid=_SIGNED_DATA),
    GemmProduct("gemm_unsigned_weight", 15, grid=_UNSIGNED),
)

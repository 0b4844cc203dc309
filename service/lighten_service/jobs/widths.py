"""Integer types by their width."""

from collections.abc import Mapping
from typing import Final

from lighten import v1 as pb

INTEGER_BITS: Final[Mapping[pb.DataType.ValueType, int]] = {
    pb.DATA_TYPE_INT4: 4,
    pb.DATA_TYPE_INT8: 8,
    pb.DATA_TYPE_INT16: 16,
}


def next_wider(data_type: pb.DataType.ValueType) -> pb.DataType.ValueType | None:
    """Return the next wider integer type; None for the widest, and for types of floats."""
    wider = [item for item, bits in INTEGER_BITS.items() if bits > INTEGER_BITS.get(data_type, 16)]
    return wider[0] if wider else None

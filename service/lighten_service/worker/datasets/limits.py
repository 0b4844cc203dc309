"""What a dataset may cost before it is refused."""

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds that keep a hostile dataset from filling memory or disk."""

    # Files of a folder, members of an archive.
    members: int = 2_000_000
    # One array in Fortran order: it is rewritten in memory, because its samples lie scattered over
    # the whole file.
    reordered_bytes: int = 256 * MIB
    # One image file as it is stored.
    image_bytes: int = 64 * MIB
    # Pixels of one picture, before or after resizing.
    image_pixels: int = 64_000_000
    # One file of labels.
    label_bytes: int = 64 * MIB
    # Everything that one archive unpacks to.
    unpacked_bytes: int = 256 * GIB
    # Unpacked bytes for each packed byte, once more than `expansion_floor` bytes are unpacked.
    expansion: float = 200.0
    expansion_floor: int = 512 * MIB

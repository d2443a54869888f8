"""The launch table: which regime and tile serve a call, and how many bytes each moves."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import triton


class Setting(NamedTuple):
    """A tile of `planes` x `elements`, and in how many pieces a plane is cut (0: resident, 1: looped over)."""

    planes: int
    elements: int
    splits: int
    num_warps: int


# The most elements of a tile, and how many of them a thread takes. Bounded by registers: a padded gradient is
# gathered, the double backward keeps four values for each element, and channels_last computes an address for every
# row. `aot` shows that none of these spills, and how many warps stay resident. These constants are what
# `benchmarks/sweep_instance_norm.py --table` prints. operator -> NCHW, NCHW gathered, channels_last, gathered:
RESIDENT = {
    "forward": ((16384, 16), (8192, 8), (8192, 16), (8192, 16)),
    "backward": ((16384, 16), (4096, 8), (8192, 16), (4096, 8)),
    "double_backward": ((8192, 16), (2048, 8), (4096, 8), (2048, 4)),
}
# operator -> plain, gathered:
SPLIT = {
    "forward": ((4096, 16), (4096, 16)),
    "backward": ((2048, 8), (1024, 4)),
    "double_backward": ((2048, 8), (1024, 4)),
}

# Elements of a thread, of 1024: where 128 bits are read at a time, and where one element is.
LOOPED = {
    "forward": (8, 8),
    "backward": (8, 2),
    "double_backward": (8, 2),
}


@lru_cache(maxsize=1024)
def setting(
    operator: str,
    planes: int,
    channels: int,
    elements: int,
    itemsize: int,
    channels_last: bool,
    padded: bool,
    volume: bool,
    processors: int,
    strided: bool = False,
) -> Setting:
    """The regime and tile for `planes` planes of `elements` elements on a device with `processors` multiprocessors.

    A plane (in channels_last: a 32-byte row of channels of every element) that fits in a program's registers stays
    there. Small ones are grouped, as far as two waves of programs remain. Larger ones are cut so that four programs
    exist for each multiprocessor, but into at most sqrt(elements) / 2 pieces: every program of the second launch reads
    the sums of all pieces of its planes, which must stay few against its own elements. Where that leaves one piece,
    one large program for each plane loops over it twice; a multiprocessor holds one or two, so that the planes in
    flight fit in the L2.

    Planes that are no multiple of 16 bytes and, in NCHW, padding and a residual that is a strided view are read element
    by element: each has an address and a mask of its own, which take registers, and so do the numbers of each plane of
    a group.
    """
    gathered = padded or strided
    most_resident, per_thread = RESIDENT[operator][2 * channels_last + gathered]
    odd = (channels if channels_last else elements) % (16 // itemsize) > 0
    single = odd or (gathered and not channels_last)
    if odd and (channels_last or not gathered):
        most_resident //= 2
    if volume and padded and operator != "forward":  # gathered by 27 loads
        most_resident //= 2
    most_grouped = 4096 if operator == "forward" else 2048
    width = triton.next_power_of_2(elements)
    least = min(triton.next_power_of_2(channels), 32 // itemsize) if channels_last else 1
    if least * width <= most_resident:
        most = triton.next_power_of_2(channels) if channels_last else planes
        group = least
        while group * 2 <= most and 2 * group * width <= most_grouped and planes >= 2 * group * 2 * processors:
            group *= 2
        if operator != "forward":
            tile = group * width
            per_thread = min(per_thread, max(4, tile // 512) if single else 8 if tile <= 2048 else 16)
        return Setting(group, width, 0, _warps(group * width, per_thread))
    group = min(triton.next_power_of_2(channels), 128 // itemsize) if channels_last else 1
    tile, per_thread = SPLIT[operator][gathered]
    if odd and (channels_last or not gathered):
        per_thread //= 2
    elif channels_last and operator != "double_backward":
        per_thread = max(per_thread, 16 // itemsize)  # 128 bits
    width = min(width, tile // group)
    blocks = -(-channels // group) * (planes // channels) if channels_last else planes
    # A program of a derivative's second launch holds the sums of all pieces of its planes in registers.
    pieces = 256 if operator == "forward" else 8192 // group
    most = min(triton.next_power_of_2(int(elements**0.5)) // 2, -(-elements // width), min(pieces, 256))
    splits = 1
    while splits * 2 <= most and splits * blocks < 4 * processors:
        splits *= 2
    if splits == 1 and not channels_last:
        tile = min(triton.next_power_of_2(elements), 1024 * LOOPED[operator][single])
        # Of 16 bits, 8 elements of a thread are too few bytes in flight; two programs' planes fit where one's of 32 do.
        return Setting(1, tile, 1, 16 if operator == "forward" and itemsize == 2 and not single else 32)
    return Setting(group, width, splits, _warps(group * width, per_thread))


def _warps(tile: int, per_thread: int) -> int:
    """With 32 warps a thread has 64 registers: they hold no 16 elements beside their addresses."""
    return min(max(tile // (32 * per_thread), 1), 32 if per_thread <= 8 else 16)


def traffic(operator: str, B: int, B_out: int, *, residual: bool = False, gradient: bool = False) -> tuple[int, int]:
    """Bytes that the reducing launch of the split regime moves, and the only launch of the resident one (or the last).

    Args:
        operator: ``forward``, ``backward`` or ``double_backward``.
        B, B_out: bytes of x and of the padded tensor.
        residual: whether there is one (for the derivatives: and an activation).
        gradient: whether the residual's gradient is written (backward), or its cotangent read (double backward).
    """
    extra, more = B * residual, B * gradient
    if operator == "forward":
        return B, B + B_out + extra
    if operator == "backward":
        return B + B_out + extra, 2 * B + B_out + extra + more
    return 2 * B + B_out + extra, 3 * B + 2 * B_out + extra + more

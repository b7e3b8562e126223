"""The memory of weights that are packed for a CPU's kernels, beside those in the file."""

from __future__ import annotations

from .weights import FRAGMENTATION

# Of all main memory: for other programs, for the file's pages, and for work of unknown size.
PACKING_MARGIN = 1 / 4


def room_for_packing(free: int, total: int, required: int) -> int:
    """Bytes for packed weights in main memory, when the work needs `required`; 0 where there is none."""
    return max(0, free - int((1 + FRAGMENTATION) * required) - int(PACKING_MARGIN * total))

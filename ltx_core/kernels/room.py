"""How much of main memory packed weights leave."""

from __future__ import annotations

# Of all main memory: for other programs, for the file's pages, and for work of unknown size.
PACKING_MARGIN = 1 / 4

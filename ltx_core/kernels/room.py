"""Main memory, and how much of it packed weights leave."""

from __future__ import annotations

# Of all main memory: for other programs, for the file's pages, and for work of unknown size.
PACKING_MARGIN = 1 / 4


def main_memory() -> tuple[int, int] | None:
    """(available, all) bytes; None where the system does not report them."""
    try:
        import psutil

        main = psutil.virtual_memory()
    # Not on every system does psutil find what it reads, such as in a container without /proc.
    except (ImportError, OSError, RuntimeError, ValueError):
        return None
    return main.available, main.total

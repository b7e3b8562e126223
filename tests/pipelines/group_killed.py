"""`ltxkit` in a process of several that ends itself with -9 in the middle of decoding.

    group_killed.py RANK NUMBER ARGUMENTS...

Process RANK dies where it would exchange rows for the NUMBER-th time while the folder holds a file that is being
written; before that it says so. `test_group.py` starts these.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from torch import Tensor

from ltxkit import cli
from ltxkit.ltx_core.config import PaddingMode
from ltxkit.ltx_core.models.rows import RowShare


def main(rank: int, number: int, arguments: list[str]) -> int:
    bordered, left = RowShare.bordered, [number]

    def dying(self: RowShare, x: Tensor, padding: PaddingMode) -> Tensor:
        if self.processes.rank == rank and any(Path().iterdir()):
            left[0] -= 1
            if left[0] == 0:
                sys.stderr.write("dies while it decodes\n")
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return bordered(self, x, padding)

    RowShare.bordered = dying
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))

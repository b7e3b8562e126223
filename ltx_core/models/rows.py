"""One picture in several processes: each decodes a run of its rows, from the latent to the pixels.

Everything in the decoder but its convolutions works on each cell by itself. A convolution reads one row above its first
and one below its last, which the neighbouring processes send; beyond the borders of the picture there is the usual
padding. The result is that of the whole picture, however many rows each process has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import PaddingMode
from .sharing import Sharing, parts_of


@dataclass(frozen=True)
class RowShare:
    """How the rows of a picture are divided. rows: of its latent, in all processes together.

    Of more processes than rows, those that are left over compute the last row once more: all of them take part in every
    exchange.
    """

    processes: Sharing
    rows: int

    @property
    def counts(self) -> list[int]:
        """How many rows of the latent each part has; part i is that of process i."""
        return parts_of(self.rows, min(self.rows, self.processes.size))

    @property
    def part(self) -> int:
        """The part of this process."""
        return min(self.processes.rank, len(self.counts) - 1)

    @property
    def sends(self) -> bool:
        """Whether this process speaks for its part, which another one may have too."""
        return self.processes.rank == self.part

    def span(self, part: int) -> range:
        """The rows of a part."""
        counts = self.counts
        start = sum(counts[:part])
        return range(start, start + counts[part])

    def bordered(self, x: Tensor, padding: PaddingMode) -> Tensor:
        """Own rows (b f h w c) -> with a row above and one below (b f h+2 w c): those of the neighbours, and at the
        borders of the picture those of `padding`.

        Raises:
            UnsupportedError: another process has ended.
        """
        above, below = self._neighbours(x)
        if above is None:
            above = _padding(padding, nearest=x[:, :, :1], next_row=x[:, :, 1:2] if x.shape[2] > 1 else below)
        if below is None:
            below = _padding(padding, nearest=x[:, :, -1:], next_row=x[:, :, -2:-1] if x.shape[2] > 1 else above)
        return torch.cat([above, x, below], dim=2)

    def _neighbours(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The rows above and below (b f 1 w c), of the parts that there are."""
        size, last, part = self.processes.size, len(self.counts) - 1, self.part
        first_row, last_row = x[:, :, :1], x[:, :, -1:]
        length = first_row.numel()
        to, sent = [0] * size, []
        for other in range(size):
            row = {part - 1: first_row, part + 1: last_row}.get(min(other, last))
            if row is not None and self.sends:
                to[other] = length
                sent.append(row.flatten())
        coming = [length if abs(other - part) == 1 and other <= last else 0 for other in range(size)]
        joined = torch.cat(sent) if sent else x.new_empty(0)
        received = self.processes.exchange(joined, to, coming)
        rows = iter(received.view(-1, *first_row.shape))
        return (next(rows) if part > 0 else None), (next(rows) if part < last else None)


def _padding(padding: PaddingMode, nearest: Tensor, next_row: Tensor | None) -> Tensor:
    """The row beyond a border. nearest: the row at the border; next_row: the one after it."""
    if padding == "zeros":
        return torch.zeros_like(nearest)
    if padding == "replicate" or next_row is None:
        return nearest
    return next_row

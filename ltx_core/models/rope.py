"""Rotary position embedding over (seconds, pixels down, pixels right).

Lightricks/LTX-Video transformer3d.py, `precompute_freqs_cis` with "exp" spacing. The table spans the full width and is
applied before the split into heads: every head has frequencies of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.rotation import Form, form_of, rotation_table
from .sharing import TokenShare


@dataclass(frozen=True, eq=False)
class RotaryTable:
    """One rotation per pair of neighbouring channels.

    rotation: a table of one of the forms of `kernels.rotation`; (b | 1, n, width / 2) complex64 unless the model is on
        a card. One table per set of positions serves all blocks, branches and steps.
    weights: (m) float32, of the first m tokens in self-attention, see `attention.attend_weighted`; None: all 1.
    share: how the tokens are divided among processes, of which the table has this one's; None: not at all.
    """

    rotation: Tensor
    weights: Tensor | None = None
    share: TokenShare | None = None

    def shared(self, share: TokenShare) -> RotaryTable:
        """The table of this process's tokens."""
        tokens = 2 if form_of(self.rotation) == "planes" else 1
        return replace(self, rotation=share.own(self.rotation, tokens), share=share)


def rotary_table(
    positions: Tensor, width: int, theta: float, max_positions: tuple[int, int, int], form: Form = "complex"
) -> RotaryTable:
    """Rotations for tokens at `positions` (b, 3, n), float32: seconds, pixels, pixels.

    width: hidden size, even. theta: ratio of the highest frequency to the lowest. max_positions: the upper end of the
    range, from 0, that is mapped to [-1, 1]. form: of the table.

    The top frequency is 15708 rad per half range, where even the rounding of a position matters: the operations are in
    the official order, all in float32.
    """
    scale = torch.tensor(max_positions, dtype=torch.float32, device=positions.device)
    centred = (positions.transpose(1, 2) / scale) * 2 - 1  # (b n 3)
    exponents = torch.linspace(0.0, 1.0, width // 6, dtype=torch.float32, device=positions.device)
    frequencies = theta**exponents * math.pi / 2
    angles = (centred.unsqueeze(-2) * frequencies.unsqueeze(-1)).flatten(-2)  # channel = frequency * 3 + axis
    # The width // 6 frequencies of three axes leave width % 6 channels; these come first and are not rotated.
    angles = torch.nn.functional.pad(angles, (width // 2 - angles.shape[-1], 0))
    return RotaryTable(rotation_table(angles, form))

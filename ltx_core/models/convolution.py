"""Convolutions in the dtype of their input, on CPUs by the form that was chosen there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.convolution import Steps, convolution
from ..kernels.directly import DIRECTLY_PACKED


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, in the dtype of its input (b, c, f, h, w); fastest with channels-last memory."""

    active = DIRECTLY_PACKED

    def forward(self, input: Tensor, *, bordered: bool = False) -> Tensor:
        """bordered: the input has its padding above and below already, see `rows`."""
        t, h, w = padding = tuple(int(side) for side in self.padding)
        if bordered:
            h, padding = 0, (t, 0, w)
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, (w, w, h, h, t, t), mode=self.padding_mode), (0, 0, 0)
        steps = Steps(padding, self.stride, self.dilation, self.groups)
        return convolution(input, self.weight, self.bias, steps, self.active)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, in the dtype of its input (b, c, h, w)."""

    active = DIRECTLY_PACKED

    def forward(self, input: Tensor) -> Tensor:
        steps = Steps(tuple(int(side) for side in self.padding), self.stride, self.dilation, self.groups)
        return convolution(input, self.weight, self.bias, steps, self.active)

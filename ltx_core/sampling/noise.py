"""Where randomness comes from: CPU generators, one per sample, drawn in [b, c, f, h, w] order.

So one seed means one clip on every device, and sample i of a batch is the clip of `seed + i` on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Noise = Callable[[Sequence[int]], Tensor]
"""Draws standard normal noise of the given shape, batch first, float32 on the CPU. Every call goes on from the last."""


class SeededNoise:
    """`Noise` from a seed. Sample i has its own generator, seeded with `seed + i` (modulo 2**64).

    The initial noise of sample 0 equals ComfyUI's for the same seed (`torch.randn` of a CPU generator).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: list[torch.Generator] = []

    def __call__(self, shape: Sequence[int]) -> Tensor:
        batch, *rest = shape
        while len(self._generators) < batch:
            generator = torch.Generator("cpu")
            generator.manual_seed((self.seed + len(self._generators)) % 2**64)
            self._generators.append(generator)
        return torch.stack([torch.randn(rest, generator=generator) for generator in self._generators[:batch]])


def token_noise(noise: Noise, like: Tensor) -> Tensor:
    """Noise for tokens `like` (b n c), drawn channels first, float32 on the device of `like`."""
    b, n, c = like.shape
    return noise((b, c, n)).transpose(1, 2).to(like.device)

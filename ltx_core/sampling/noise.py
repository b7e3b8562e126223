"""Where randomness comes from: one clip's noise, and a named stream for every other draw.

The clip's noise comes from CPU generators, one per sample, drawn in [b, c, f, h, w] order: one seed means one clip on
every device, and sample i of a batch equals the single clip of `seed + i`.

torch's CPU generator keeps only 32 bits of a seed: seeds are equal modulo 2**32, and setting higher bits gives the same
noise again. Therefore every other draw has a generator whose seed is a hash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

SEEDS = 2**32  # number of different seeds of torch's CPU generator

StreamName = Literal[
    "decode",  # noise mixed into the latent, and noise that the decoder of 0.9.1 injects
    "film grain",
    "preview",  # the latent that a preview's colours are fitted to
    # The trainer's. The weights of new modules:
    "new vae",
    "new discriminator",
    "new upscaler",
    "new transformer",
    "new text encoder",
    "new lora",
    # its samples:
    "digits",
    "validation digits",
    "enlarged",
    "order",
    "size",
    "window",
    "hold-out",
    "moving mnist",
    "crop",
    # and its noise:
    "start",
    "vae",
    "inject",
    "validation",
    "flow",
    "flow noise",
    "conditions",
    "validation conditions",
    "flow validation",
    "flow validation noise",
    "rounding",
]
# Streams that had numbers before they had names: the numbers keep the samples of a run what they were.
_NUMBERS: dict[StreamName, int] = {"digits": 0, "validation digits": 1, "enlarged": 2, "order": 3, "size": 4}

Noise = Callable[[Sequence[int]], Tensor]
"""shape -> standard normal noise, batch first, float32 on the CPU. Every call continues where the last one stopped."""


class SeededNoise:
    """`Noise` of a clip. Sample i has its own generator, seeded with `seed + i` (modulo 2**32).

    The initial noise of sample 0 equals ComfyUI's for the same seed (`torch.randn` of a CPU generator).

    drawn: how many numbers per sample each call has drawn so far. Initialised with those of an earlier pass, noise
        continues after them: a second pass has the same noise in its own node as in one node with the first. Their sum
        does not suffice: torch draws in blocks, and the state of its generator depends on the portions.
    """

    def __init__(self, seed: int, drawn: Sequence[int] = ()) -> None:
        self.seed = seed
        self.drawn = tuple(drawn)
        self._generators: list[torch.Generator] = []

    def __call__(self, shape: Sequence[int]) -> Tensor:
        batch, *rest = shape
        while len(self._generators) < batch:
            generator = torch.Generator("cpu").manual_seed((self.seed + len(self._generators)) % SEEDS)
            for count in self.drawn:
                torch.randn(count, generator=generator)
            self._generators.append(generator)
        self.drawn = (*self.drawn, math.prod(rest))
        return torch.stack([torch.randn(rest, generator=generator) for generator in self._generators[:batch]])


def token_noise(noise: Noise, like: Tensor) -> Tensor:
    """Noise for tokens `like` (b n c), drawn channels first, float32 on the device of `like`."""
    b, n, c = like.shape
    return noise((b, c, n)).transpose(1, 2).to(like.device)


def seed_sequence(seed: int, name: StreamName, index: int = 0) -> np.random.SeedSequence:
    """The seed of `stream`, in the form that numpy's generators take."""
    number = _NUMBERS.get(name, int.from_bytes(name.encode(), "little"))
    return np.random.SeedSequence([seed % SEEDS, number, index])


def stream(seed: int, name: StreamName, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A separate generator for every seed (modulo 2**32), purpose and index (0 or more)."""
    high, low = seed_sequence(seed, name, index).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(high) << 32 | int(low))


@contextmanager
def initialised(seed: int, name: StreamName) -> Generator[None]:
    """Inside, new modules on the CPU get their weights from a stream: torch.nn draws them from torch's global
    generator, whose state is restored afterwards."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(stream(seed, name).initial_seed())
        yield

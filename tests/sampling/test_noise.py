"""Streams: no two are equal, none equals the clip's noise, and noise continues where the previous pass stopped."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from ltxkit.ltx_core.sampling.noise import SEEDS, SeededNoise, StreamName, initialised, seed_sequence, stream

NAMES = get_args(StreamName)
RUNS = (0, 1, 2, 7, 1234, 2**31, SEEDS - 1)


def test_no_two_streams_are_equal_nor_is_any_the_noise_of_a_clip():
    """Compares the drawn numbers: streams depend on the bits that torch keeps of a seed, not on the whole seed."""
    shape = (16,)
    clips = {tuple(SeededNoise(seed + i)((1, *shape))[0].tolist()) for seed in RUNS for i in range(8)}
    streams = [
        tuple(torch.randn(shape, generator=stream(seed, name, index)).tolist())
        for seed in RUNS
        for name in NAMES
        for index in (0, 1, 1000)
    ]
    assert len(set(streams)) == len(RUNS) * len(NAMES) * 3
    assert not clips & set(streams)
    words = {tuple(seed_sequence(seed, name).generate_state(4)) for seed in RUNS for name in NAMES}
    assert len(words) == len(RUNS) * len(NAMES)


def test_high_bits_of_a_seed_do_not_count():
    """Torch's CPU generator ignores them, so every stream must: seeds with the same clip have the same decoding."""
    for draw in (
        lambda seed: SeededNoise(seed)((1, 20)),
        lambda seed: torch.randn(20, generator=stream(seed, "decode")),
    ):
        assert torch.equal(draw(5), draw(5 + SEEDS))
        assert torch.equal(draw(SEEDS - 1), draw(-1))
        assert not torch.equal(draw(5), draw(6))


@pytest.mark.parametrize("shapes", [((4, 2, 3, 5), (4, 7)), ((3, 1, 1, 1), (5,), (4, 10)), ((17,),)])
def test_noise_goes_on_after_what_was_drawn(shapes):
    """Even after draws whose size is below 16 or not a multiple of 16, for which torch uses another method."""
    whole = SeededNoise(3)
    for shape in shapes:
        whole((2, *shape))
    rest = SeededNoise(3, whole.drawn)
    for _ in range(2):
        assert torch.equal(rest((2, 30)), whole((2, 30)))
    assert rest.drawn == whole.drawn


def test_new_modules_have_their_weights_from_their_stream_and_leave_no_trace():
    before = torch.random.get_rng_state()
    layers = []
    for seed, name in ((1, "new vae"), (1, "new vae"), (2, "new vae"), (1, "new lora")):
        with initialised(seed, name):
            layers.append(torch.nn.Linear(4, 4).weight)
        torch.rand(3)  # draws of other code do not matter
    torch.random.set_rng_state(before)
    with initialised(1, "new vae"):
        torch.rand(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(layers[0], layers[1])
    assert not torch.equal(layers[0], layers[2])
    assert not torch.equal(layers[0], layers[3])

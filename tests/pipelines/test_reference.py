"""Reference videos of IC-LoRAs: the positions of their tokens, and how videos that do not fit the clip are adapted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.errors import ConfigError, ShapeError
from ltxkit.ltx_core.media import resize
from ltxkit.ltx_core.pipelines.clip_statistics import motion_settings
from ltxkit.ltx_core.pipelines.condition import Condition, Reference
from ltxkit.ltx_core.pipelines.long_video import LongSettings, _share_out, plan_windows
from ltxkit.ltx_core.sampling.conditioning import LatentCondition, LatentReference, apply_conditions, initial_state
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.patchify import Coordinates, patchify
from ltxkit.ltx_core.sampling.state import LatentState
from ltxkit.ltx_core.shapes import LatentShape, PixelShape, ScaleFactors

SCALE = ScaleFactors(8, 32, 32)
GRID = LatentShape(3, 2, 4)
SIZE = PixelShape(17, 64, 128)


def latent(seed: int, frames: int = 3, batch: int = 1) -> Tensor:
    return torch.randn(batch, 6, frames, 2, 4, generator=torch.Generator().manual_seed(seed))


def state(causal: bool = True, batch: int = 1) -> tuple[LatentState, Coordinates]:
    coordinates = Coordinates(SCALE, 25.0, causal)
    return initial_state(
        torch.zeros_like(latent(0, batch=batch)), latent(1, batch=batch), 1.0, coordinates
    ), coordinates


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("frames", [3, 2, 1])
def test_tokens_stand_at_the_places_of_the_clip(frames: int, causal: bool) -> None:
    before, coordinates = state(causal, batch=2)
    after = apply_conditions(before, [LatentReference(latent(2, frames))], coordinates, SeededNoise(0))
    n = frames * GRID.height * GRID.width
    assert (after.num_extra, after.latent.shape) == (n, (2, n + GRID.tokens, 6))
    assert torch.equal(after.positions[..., :n], before.positions[..., :n])  # the same values, bit for bit
    assert torch.equal(after.latent[:, :n], patchify(latent(2, frames)).expand(2, -1, -1))
    assert (after.denoise_mask[:, :n] == 0).all()  # the model sees level 0, and these tokens are never stepped
    for name in ("latent", "denoise_mask", "clean_latent"):
        assert torch.equal(getattr(after, name)[:, n:], getattr(before, name))


def test_beside_conditions_and_other_references() -> None:
    """References come first, in their order, wherever the caller listed them; frame 0 still takes its condition."""
    before, coordinates = state()
    items = [LatentCondition(latent(3, 1), 0), LatentReference(latent(4)), LatentCondition(latent(5, 1), 9, 0.5)]
    items.append(LatentReference(latent(6, 2)))
    after = apply_conditions(before, items, coordinates, SeededNoise(0))
    cells = GRID.height * GRID.width
    assert after.num_extra == (3 + 2 + 1) * cells
    assert torch.equal(after.latent[:, : 3 * cells], patchify(latent(4)))
    assert torch.equal(after.latent[:, 3 * cells : 5 * cells], patchify(latent(6, 2)))
    assert (after.denoise_mask[:, 5 * cells : 6 * cells] == 0.5).all()
    assert torch.equal(after.grid(after.latent)[:, :, :1], latent(3, 1))


def test_below_strength_1_it_carries_noise() -> None:
    before, coordinates = state()
    after = apply_conditions(before, [LatentReference(latent(2), 0.75)], coordinates, SeededNoise(7))
    noise = SeededNoise(7)(latent(2).shape)
    torch.testing.assert_close(after.latent[:, : GRID.tokens], patchify(torch.lerp(noise, latent(2), 0.75)))
    assert (after.denoise_mask[:, : GRID.tokens] == 0.25).all()


def test_at_strength_1_no_noise_is_drawn() -> None:
    """A clip with one seed starts from the same noise with and without a reference."""

    def refuse(shape: object) -> Tensor:
        raise AssertionError(shape)

    before, coordinates = state()
    apply_conditions(before, [LatentReference(latent(2))], coordinates, refuse)


def test_latents_that_do_not_fit() -> None:
    before, coordinates = state()
    for wrong, error, words in (
        (LatentReference(latent(2, 4)), ConfigError, "frames 0 to 24; expected it to lie within frames 0 to 16"),
        (LatentReference(latent(2)[..., :3]), ShapeError, "2x3 cells; expected 6 channels and 2x4 cells"),
        (LatentReference(latent(2), 1.5), ConfigError, "strength 1.5; expected 0 to 1"),
    ):
        with pytest.raises(error, match=words):
            apply_conditions(before, [wrong], coordinates, SeededNoise(0))


# --- frames -----------------------------------------------------------------------------------------------------------


def numbered(count: int, height: int = 64, width: int = 128) -> Tensor:
    """Frame i is i / 1000 everywhere."""
    return (torch.arange(count) / 1000).view(-1, 1, 1, 1).expand(-1, height, width, 3)


def numbers(frames: Tensor) -> list[int]:
    return (frames[:, 0, 0, 0] * 1000).round().int().tolist()


@pytest.mark.parametrize(
    ("given", "kept", "said"),
    [
        (17, 17, []),
        (40, 17, ["trimmed from 40 to 17 frames"]),
        (16, 9, ["trimmed from 16 to 9 frames", "ends before the clip: frames 9 to 16 are made without it"]),
        (9, 9, ["ends before the clip: frames 9 to 16 are made without it; make a clip of 9 frames"]),
        (1, 1, ["ends before the clip: frames 1 to 16"]),
    ],
)
def test_length(given: int, kept: int, said: list[str]) -> None:
    notes: list[str] = []
    placed = Reference(numbered(given)).placed(SIZE, 8, 25.0, notes.append)
    assert numbers(placed.frames) == list(range(kept))
    assert len(notes) == len(said)
    assert all(words in note for words, note in zip(said, notes, strict=True))


@pytest.mark.parametrize(
    ("fps", "given", "expected"),
    [
        (25.0, 17, list(range(17))),
        (50.0, 34, list(range(0, 34, 2))),
        (12.5, 9, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 8]),  # halves go to the even frame
        (30.0, 21, [round(i * 1.2) for i in range(17)]),
    ],
)
def test_another_frame_rate(fps: float, given: int, expected: list[int]) -> None:
    notes: list[str] = []
    placed = Reference(numbered(given), fps=fps).placed(SIZE, 8, 25.0, notes.append)
    assert numbers(placed.frames) == expected
    assert (notes == []) == (fps == 25.0)
    if notes:
        assert f"has {fps:g} frames per second and the clip 25" in notes[0]


def test_size() -> None:
    notes: list[str] = []
    reference = Reference(torch.rand(9, 60, 80, 3), resize="pad")
    placed = reference.on_canvas(PixelShape(17, 60, 120), PixelShape(17, 64, 128), notes.append)
    assert isinstance(placed, Reference)
    assert placed.frames.shape == (9, 64, 128, 3)
    assert notes == ["The reference of 80x60 pixels was resized to 120x60 (pad)."]
    assert torch.equal(placed.frames[:, 2:62, 4:124], resize(reference.frames, 60, 120, "pad"))
    notes.clear()
    Reference(numbered(9)).on_canvas(SIZE, SIZE, notes.append)
    Condition(torch.rand(1, 9, 9, 3)).on_canvas(SIZE, SIZE, notes.append)
    assert notes == []


def test_frames_that_are_none() -> None:
    with pytest.raises(ShapeError, match=r"\(9, 64, 128, 4\); expected \(frames, height, width, 3\)"):
        Reference(torch.rand(9, 64, 128, 4)).placed(SIZE, 8, 25.0, print)


def test_it_says_nothing_about_motion() -> None:
    assert motion_settings([Reference(numbered(9))], 0.15) == ""
    assert motion_settings([Reference(numbered(9)), Condition(numbered(1), strength=0.9)], 0.15).startswith(
        "condition strength 0.9,"
    )


def test_every_window_of_a_long_video_gets_its_part() -> None:
    settings = LongSettings(PixelShape(41, 64, 128), 25.0, seed=0, window_frames=17, overlap_frames=9)
    windows = plan_windows(settings, 8)
    shares = _share_out([Reference(numbered(33)), Condition(numbered(1))], windows, 41, 8)
    starts = [window.start * 8 for window in windows]
    assert starts == [0, 8, 16, 24]
    for start, share in zip(starts, shares, strict=True):
        references = [one for one in share if isinstance(one, Reference)]
        assert numbers(references[0].frames) == list(range(start, min(start + 17, 33)))
    assert len(shares[0]) == 2  # the reference, and the picture once

"""Data that ComfyUI's own nodes attach to LATENT and CONDITIONING: noise masks, and guides with `keyframe_idxs`."""

from __future__ import annotations

import pytest
import torch

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ShapeError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.condition import Conditions
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling.conditioning import LatentCondition
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.sampling.schedules import explicit, linear_quadratic
from ltxkit.ltx_core.shapes import ScaleFactors
from ltxkit.nodes.guides import denoise_mask, guides_of, sample_guided

CHANNELS, TEXT, FRAMES, HEIGHT, WIDTH = 16, 24, 4, 2, 3
CELLS = HEIGHT * WIDTH
SCALE = ScaleFactors(8, 32, 32)


@pytest.fixture(scope="module")
def transformer():
    config = TransformerConfig.of_size(layers=2, heads=2, head_dim=16, channels=CHANNELS, captions=TEXT)
    torch.manual_seed(0)
    return LTXTransformer(config).eval()


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def own_noise(shape) -> torch.Tensor:
    """The same noise for the clip's own frames, however many guides follow them."""
    return random(4, 1, CHANNELS, 9, HEIGHT, WIDTH)[:, :, : shape[2]]


def run(
    transformer,
    latent,
    *,
    sigmas=None,
    noise=own_noise,
    noise_mask=None,
    keyframe_idxs=None,
    entries=None,
    conditions=(),
):
    """The result of Sample for a LATENT and a CONDITIONING with these."""
    guides = guides_of({"keyframe_idxs": keyframe_idxs, "guide_attention_entries": entries}, latent)
    mask = None if noise_mask is None else denoise_mask(noise_mask, latent, SCALE.frames)
    one = Pass(transformer, linear_quadratic(4) if sigmas is None else sigmas, NO_GUIDANCE, EULER)
    result, _ = sample_guided(
        one,
        LatentClip(latent, SCALE, 25.0, mask),
        Prompts(EncodedPrompt(random(1, 1, 3, TEXT))),
        noise,
        Conditions(conditions),
        guides=guides,
        host=Host(DevicePlacement("cpu")),
    )
    return result


def keyframes(frame: int, latent_frames: int = 1, corners: bool = False) -> torch.Tensor:
    """`keyframe_idxs` of LTXVAddGuide: pixel coordinates, the causal fix at frame 0 only; or both corners."""
    axes = torch.arange(latent_frames) * 8, torch.arange(HEIGHT) * 32, torch.arange(WIDTH) * 32
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(1, 3, -1)
    if frame == 0:
        grid[:, 0] = (grid[:, 0] - 7).clamp(min=0)
    grid[:, 0] += frame
    if not corners:
        return grid
    return torch.stack([grid, grid + torch.tensor([8, 32, 32])[None, :, None]], dim=-1)


@pytest.mark.parametrize("corners", [False, True])
def test_a_native_guide_is_a_keyframe_of_ours(transformer, corners):
    """An image at frame 11, appended to the latent, acts as our condition of strength 1 and comes back unchanged."""
    guide = random(2, 1, CHANNELS, 1, HEIGHT, WIDTH)
    empty = torch.zeros(1, CHANNELS, FRAMES, HEIGHT, WIDTH)
    mask = torch.ones(1, 1, FRAMES + 1, 1, 1)
    mask[:, :, -1] = 0
    native = run(
        transformer,
        torch.cat([empty, guide], dim=2),
        noise_mask=mask,
        keyframe_idxs=keyframes(11, corners=corners),
    )
    expected = run(transformer, empty, conditions=[LatentCondition(guide, 11)])
    torch.testing.assert_close(native[:, :, :FRAMES], expected)
    assert torch.equal(native[:, :, FRAMES:], guide)
    assert not torch.allclose(expected, run(transformer, empty), atol=1e-3)  # the guide has an effect


def test_two_guides_and_a_soft_one_stand_at_their_levels(transformer):
    """The newer of the two layouts of a clip, with every guide frame appended; strengths 1 and 0.6."""
    latent = random(3, 1, CHANNELS, FRAMES + 3, HEIGHT, WIDTH)
    mask = torch.ones(1, 1, FRAMES + 3, 1, 1)
    mask[:, :, FRAMES] = 0
    mask[:, :, FRAMES + 1 :] = 0.4
    seen = []
    forward = transformer.forward

    def recording(x, sigma, rotary, branches):
        seen.append((x.clone(), sigma.clone()))
        return forward(x, sigma, rotary, branches)

    transformer.forward = recording
    try:
        idxs = torch.cat([keyframes(0), keyframes(9, 2)], dim=2)
        run(transformer, latent, noise_mask=mask, keyframe_idxs=idxs, sigmas=explicit([1.0, 0.5]))
    finally:
        del transformer.forward
    x, sigma = seen[1]
    assert x.shape[1] == (FRAMES + 3) * CELLS
    assert sigma[0, :CELLS].unique().tolist() == [0]
    assert sigma[0, CELLS : 3 * CELLS].unique().tolist() == pytest.approx([0.4])
    assert sigma[0, 3 * CELLS :].unique().tolist() == [0.5]


def test_cells_of_a_guide_below_zero_are_left_out(transformer):
    """A guide with its own mask: ComfyUI marks the cells that must stay hidden with values below 0."""
    latent = random(3, 1, CHANNELS, FRAMES + 1, HEIGHT, WIDTH)
    mask = torch.ones(1, 1, FRAMES + 1, HEIGHT, WIDTH)
    mask[:, :, -1] = 0
    mask[:, :, -1, :, 0] = -1
    tokens = []
    forward = transformer.forward

    def recording(x, sigma, rotary, branches):
        tokens.append(x.shape[1])
        return forward(x, sigma, rotary, branches)

    transformer.forward = recording
    try:
        result = run(transformer, latent, noise_mask=mask, keyframe_idxs=keyframes(11))
    finally:
        del transformer.forward
    assert set(tokens) == {FRAMES * CELLS + CELLS - HEIGHT}
    assert torch.equal(result[:, :, FRAMES:], latent[:, :, FRAMES:])


def test_covered_frames_stay(transformer):
    """A temporal mask, (b, 1, f, 1, 1), as ComfyUI's image-to-video node sets it."""
    latent = random(3, 1, CHANNELS, FRAMES, HEIGHT, WIDTH)
    mask = torch.ones(1, 1, FRAMES, 1, 1)
    mask[:, :, 1] = 0
    result = run(transformer, latent, noise_mask=mask)
    assert torch.equal(result[:, :, 1], latent[:, :, 1])
    assert not torch.isclose(result[:, :, 0], latent[:, :, 0]).all()


def test_covered_places_stay(transformer):
    """A spatial mask, a picture: the left half of every frame is repainted."""
    latent = random(3, 1, CHANNELS, FRAMES, HEIGHT, 4)
    mask = torch.zeros(1, 64, 128)
    mask[..., :64] = 1
    result = run(transformer, latent, noise_mask=mask, noise=lambda shape: random(5, *shape))
    assert torch.equal(result[..., 2:], latent[..., 2:])
    assert not torch.isclose(result[..., :2], latent[..., :2]).any()


def test_masks_per_frame():
    latent = torch.zeros(1, CHANNELS, 3, HEIGHT, WIDTH)
    per_latent_frame = denoise_mask(torch.arange(3.0)[:, None, None].expand(3, 8, 8), latent, 8)
    assert per_latent_frame[0, 0, :, 0, 0].tolist() == [0, 1, 2]
    clip = torch.zeros(17, 64, 96)
    clip[5] = 1  # one of the eight frames of the second latent frame
    assert denoise_mask(clip, latent, 8)[0, 0, :, 0, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_mask": torch.ones(5, 8, 8)}, r"one per latent frame \(4\) or one per frame \(25\)"),
        ({"noise_mask": torch.ones(1, 1, 3, 1, 1)}, r"got a noise mask of shape \(1, 1, 3, 1, 1\)"),
        ({"keyframe_idxs": torch.zeros(1, 3, 5)}, "crop the guides before the latent is resized"),
        ({"keyframe_idxs": torch.zeros(1, 3, FRAMES * CELLS)}, "crop the guides"),
        ({"keyframe_idxs": torch.zeros(3, CELLS)}, "crop the guides"),
    ],
)
def test_what_does_not_fit_is_refused(transformer, settings, message):
    with pytest.raises(ShapeError, match=message):
        run(transformer, torch.zeros(1, CHANNELS, FRAMES, HEIGHT, WIDTH), **settings)

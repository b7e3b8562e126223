"""Values that ComfyUI's nodes write into CONDITIONING, LATENT and SIGMAS, without ComfyUI; `tests/host` has the same
values beside its samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.errors import ConfigError, ShapeError, UnsupportedError
from ltxkit.ltx_core.sampling.samplers import SAMPLERS
from ltxkit.nodes import sockets
from ltxkit.nodes.condition import AddCondition, AddReference
from ltxkit.nodes.latent import DecodeVideo, EmptyLatent, UpscaleLatent
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder, LoadUpscaler
from ltxkit.nodes.sample import GenerateTwoStage, SampleVideo
from ltxkit.nodes.steps import CreateGuidance
from ltxkit.nodes.text import EncodePrompt

pytestmark = pytest.mark.usefixtures("host")
LEVELS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])


@pytest.fixture(scope="module")
def loaded(host: Any) -> tuple[Any, Any]:
    """Model and VAE, loaded as a release that is not distilled: all samplers, and guidance."""
    return LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.5")


@pytest.fixture(scope="module")
def guidance(host: Any) -> Any:
    return CreateGuidance().run(3.0, 0.0, 0.0, "", "attention_values", 1.0, False)[0]


@pytest.fixture
def sampled(loaded: Any, prompts: Any, guidance: Any) -> Any:
    """sampled(latent, **inputs): the LATENT that Sample makes."""

    def sample(latent: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
        given = {
            "positive": prompts[0],
            "negative": prompts[1],
            "latent": canvas() if latent is None else latent,
            "seed": 7,
            "sampler": "euler",
            "condition_noise": 0.0,
            "schedule": LEVELS,
            "guidance": guidance,
            **inputs,
        }
        return SampleVideo().run(loaded[0], **given)[0]

    return sample


def canvas(count: int = 17) -> dict[str, Any]:
    return EmptyLatent().run(64, 64, count, 0.0, 24.0, 1)[0]


def picture(seed: int = 0, count: int = 1) -> Tensor:
    return torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


def with_values(conditioning: Any, **values: Any) -> Any:
    """As core's `conditioning_set_values`."""
    return [[embeddings, {**old, **values}] for embeddings, old in conditioning]


def halves(sampled: Any, latent: Any = None, second: Any = (), **inputs: Any) -> dict[str, Any]:
    """Two Samples in a row, with the halves that SplitSigmas makes of a schedule."""
    high = sampled(latent, **inputs, schedule=LEVELS[:3])
    return sampled(high, **{**inputs, **dict(second)}, schedule=LEVELS[2:])


# ------------------------------------------------------------------------------------------------ two in a row


@pytest.mark.parametrize("levels", ["own", "official", "comfyui"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "stochastic"])
def test_two_samples_in_a_row_are_one(sampled: Any, sampler: str, levels: str, said: list[str]):
    """Samplers without a memory for earlier steps give the same numbers."""
    whole = sampled(sampler=sampler, levels=levels)
    twice = halves(sampled, sampler=sampler, levels=levels)
    assert torch.equal(whole["samples"], twice["samples"])
    assert any("Left at level 0.7, for a second Sample" in text for text in said)
    assert sockets.LEFT not in twice


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("levels", ["own", "official", "comfyui"])
def test_conditions_go_on_too(sampled: Any, loaded: Any, levels: str, again: bool):
    """Mixed in, as tokens of their own, a reference; connected to the second Sample again or not; noise on them."""
    chain: Any = ()
    for seed, (frame, strength) in enumerate([(0, 1.0), (9, 0.6), (-1, 1.0)]):
        (chain,) = AddCondition().run(picture(seed), frame, strength, "crop", chain, 0)
    (chain,) = AddReference().run(picture(5, 17), 0.0, 0.8, "crop", chain)
    inputs = {"conditions": chain, "vae": loaded[1], "levels": levels, "condition_noise": 0.1}
    whole = sampled(**inputs)["samples"]
    twice = halves(sampled, **inputs, second={} if again else {"conditions": (), "vae": None})["samples"]
    torch.testing.assert_close(twice, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("levels", ["own", "official", "comfyui"])
def test_masks_and_guides_go_on_too(sampled: Any, prompts: Any, levels: str):
    latent, values = guided(strength=0.6)
    latent["noise_mask"][:, :, 0] = 0.3
    latent["samples"][:, :, 0] = 0.5
    inputs = {
        "positive": with_values(prompts[0], **values), "negative": with_values(prompts[1], **values), "levels": levels
    }  # fmt: skip
    whole, twice = sampled(latent, **inputs)["samples"], halves(sampled, latent, **inputs)["samples"]
    torch.testing.assert_close(twice[:, :, :3], whole[:, :, :3], atol=1e-6, rtol=1e-5)


def test_three_in_a_row(sampled: Any):
    first = sampled(schedule=LEVELS[:2])
    second = sampled(first, schedule=LEVELS[1:4])
    assert torch.equal(sampled(second, schedule=LEVELS[3:])["samples"], sampled()["samples"])


def test_a_latent_from_elsewhere_can_have_its_noise(sampled: Any):
    """What a native sampler leaves is x / (1 - level), and no record."""
    high = sampled(schedule=LEVELS[:3])
    as_native = {"samples": high["samples"].clone()}
    low = sampled(as_native, schedule=LEVELS[2:], add_noise=False)["samples"]
    torch.testing.assert_close(low, sampled()["samples"], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(sampled(as_native, schedule=LEVELS[2:])["samples"], low, atol=0.1)


def test_what_is_kept_is_itself_in_a_half_way_latent(sampled: Any):
    latent = {"samples": torch.randn(1, 128, 3, 2, 2), "noise_mask": torch.tensor([0.0, 1, 1]).view(1, 1, 3, 1, 1)}
    for levels in ("own", "comfyui"):
        high = sampled(latent, schedule=LEVELS[:3], levels=levels)["samples"]
        assert torch.equal(high[:, :, 0], latent["samples"][:, :, 0])
        assert high[:, :, 1:].std() > 1.5  # x / 0.3, of which 0.7 is noise


def test_another_level_is_refused_and_a_changed_latent_starts_anew(sampled: Any, said: list[str]):
    high = sampled(schedule=LEVELS[:3])
    with pytest.raises(ConfigError, match=r"starts at level 0\.9 for a latent that was left at level 0\.7.*low_sigmas"):
        sampled(high, schedule=LEVELS[1:])
    moved = {**high, "samples": high["samples"].clone()}
    assert torch.equal(sampled(moved, schedule=LEVELS[2:])["samples"], sampled(high, schedule=LEVELS[2:])["samples"])
    changed = {**high, "samples": high["samples"] * 0.5}
    said.clear()
    result = sampled(changed, schedule=LEVELS[2:])["samples"]
    assert any("was left at level 0.7 and has changed since" in text for text in said)
    alone = {"samples": changed["samples"], sockets.NOISE: high[sockets.NOISE]}
    assert torch.equal(result, sampled(alone, schedule=LEVELS[2:])["samples"])
    sampled(changed, schedule=LEVELS[3:])  # a finished one, for all that the latent says


def test_the_noise_of_a_half_way_latent_is_said_or_refused(sampled: Any, loaded: Any, models: Path, said: list[str]):
    high = sampled(schedule=LEVELS[:3])
    DecodeVideo().run(high, loaded[1], 0.05, 0.025, 0)
    assert any("left at level 0.7: its noise is in the picture" in text for text in said)
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "fp32")
    with pytest.raises(ConfigError, match=r"left at level 0\.7; expected a finished one for Upscale Latent"):
        UpscaleLatent().run(high, upscaler, loaded[1], 1.0)
    with pytest.raises(ConfigError, match=r"ends at level 0\.7; expected 0 at its end.*SplitSigmas"):
        GenerateTwoStage().run(
            *loaded, upscaler, *EMPTY, 64, 64, 9, 0, 1.0, 0.0, schedule=LEVELS[:3]
        )  # fmt: skip


EMPTY = ([[torch.zeros(1, 2, 32), {}]],) * 2


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_stops_where_the_schedule_does(sampled: Any, sampler: str):
    high = sampled(schedule=LEVELS[:3], sampler=sampler)
    assert high[sockets.LEFT].left.level == pytest.approx(0.7)
    assert sampled(high, schedule=LEVELS[2:], sampler=sampler)["samples"].isfinite().all()


# ------------------------------------------------------------------------------------------------ masks


def test_a_partial_mask_says_whose_meaning_it_has(sampled: Any, said: list[str]):
    latent = {"samples": torch.randn(1, 128, 3, 2, 2), "noise_mask": torch.full((1, 40, 70), 0.3)}
    results = {levels: sampled(latent, levels=levels)["samples"] for levels in ("own", "official", "comfyui")}
    assert len([text for text in said if "choose comfyui for their result" in text]) == 2
    assert not torch.allclose(results["own"], results["comfyui"], atol=0.1)
    said.clear()
    sampled({**latent, "noise_mask": torch.ones(1, 40, 70)})
    assert not any("comfyui" in text for text in said)


def test_comfyui_takes_masks_of_any_length(sampled: Any):
    latent = {"samples": torch.randn(1, 128, 3, 2, 2)}
    for shape in ((5, 8, 8), (2, 1, 8, 8), (8, 8), (1, 1, 5, 9, 9), (4, 1, 3, 1, 1)):
        assert sampled({**latent, "noise_mask": torch.rand(shape)}, levels="comfyui")["samples"].isfinite().all()
    with pytest.raises(ShapeError, match=r"noise mask of shape \(1, 3, 3, 8, 8\)"):
        sampled({**latent, "noise_mask": torch.rand(1, 3, 3, 8, 8)}, levels="comfyui")


# ------------------------------------------------------------------------------------------------ guides


def guided(**entry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The LATENT and the values of CONDITIONING behind LTXVAddGuide, one picture at frame 8."""
    strength = entry.get("strength", 1.0)
    samples = torch.cat([torch.zeros(1, 128, 3, 2, 2), torch.full((1, 128, 1, 2, 2), 0.7)], dim=2)
    mask = torch.ones(1, 1, 4, 1, 1)
    mask[:, :, 3] = max(0.0, 1 - strength)
    corners = torch.tensor([[8, 8, 8, 8], [0, 0, 32, 32], [0, 32, 0, 32]])[None]
    corners = torch.stack([corners, corners + torch.tensor([1, 32, 32])[None, :, None]], dim=-1)
    made = {"pre_filter_count": 4, "strength": 1.0, "pixel_mask": None, "latent_shape": [1, 2, 2], **entry}
    return {"samples": samples, "noise_mask": mask}, {"keyframe_idxs": corners, "guide_attention_entries": [made]}


def sample_guided(sampled: Any, prompts: Any, **entry: Any) -> Tensor:
    latent, values = guided(**entry)
    return sampled(latent, positive=with_values(prompts[0], **values), negative=with_values(prompts[1], **values))[
        "samples"
    ]


def test_the_strength_of_a_guide_is_that_of_attention_too(sampled: Any, prompts: Any):
    """Above 1 it is attention alone; 0 hides the guide, and so does a black mask."""
    plain, strong = sample_guided(sampled, prompts), sample_guided(sampled, prompts, strength=2.0)
    assert not torch.allclose(plain, strong, atol=1e-3)
    black = sample_guided(sampled, prompts, pixel_mask=torch.zeros(1, 1, 1, 64, 64))
    white = sample_guided(sampled, prompts, pixel_mask=torch.ones(1, 1, 1, 64, 64))
    half = sample_guided(sampled, prompts, pixel_mask=torch.full((1, 1, 1, 64, 64), 0.5))
    assert torch.equal(white, plain)
    latent, values = guided()
    latent["noise_mask"][:, :, 3] = -1  # as ComfyUI leaves cells out
    positive, negative = (with_values(prompt, **values) for prompt in prompts)
    without = sampled(latent, positive=positive, negative=negative)["samples"]
    torch.testing.assert_close(black[:, :, :3], without[:, :, :3], atol=1e-4, rtol=1e-4)
    assert all(not torch.allclose(half, other, atol=1e-4) for other in (black, white))


def test_guides_that_do_not_fit_are_refused(sampled: Any, prompts: Any):
    with pytest.raises(ShapeError, match="for 8 cells of guides; expected 4; crop"):
        sample_guided(sampled, prompts, pre_filter_count=8)
    with pytest.raises(ShapeError, match="attention mask for 8 cells of a guide that has 4"):
        sample_guided(sampled, prompts, pixel_mask=torch.zeros(1, 1, 9, 64, 64), latent_shape=[2, 2, 2])
    with pytest.raises(ShapeError, match=r"attention mask of shape \(1, 1, 64, 64\)"):
        sample_guided(sampled, prompts, pixel_mask=torch.zeros(1, 1, 64, 64))
    latent, values = guided()
    with pytest.raises(UnsupportedError, match="differ between `positive` and `negative`"):
        sampled(latent, positive=with_values(prompts[0], **values))
    other = with_values(prompts[1], **guided(strength=2.0)[1])
    with pytest.raises(UnsupportedError, match="differ between `positive` and `negative`"):
        sampled(latent, positive=with_values(prompts[0], **values), negative=other)
    with pytest.raises(UnsupportedError, match="frame rates 24 and 30 on `positive` and `negative`"):
        sampled(negative=with_values(prompts[1], frame_rate=30))


def test_two_stage_has_no_place_for_them(loaded: Any, prompts: Any, models: Path):
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "fp32")
    positive = with_values(prompts[0], **guided()[1])
    with pytest.raises(UnsupportedError, match=r"guides of LTXVAddGuide .*connect Condition \(LTXKit\)"):
        GenerateTwoStage().run(*loaded, upscaler, positive, prompts[1], 64, 64, 9, 0, 1.0, 0.0)


# ------------------------------------------------------------------------------------------------ prompts


@pytest.fixture(scope="module")
def other(host: Any) -> Any:
    """A second prompt."""
    (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", False)
    return EncodePrompt().run(encoder, "a blue cube on a table", "", 24.0)[0]


def test_prompts_take_turns_at_their_levels(sampled: Any, prompts: Any, other: Any):
    """0.9 is behind the middle of ComfyUI's schedule (level 0.914), 1 is before it."""
    in_turn = with_values(prompts[0], end_percent=0.5) + with_values(other, start_percent=0.5)
    result = sampled(positive=in_turn)["samples"]
    first = sampled(positive=prompts[0], schedule=LEVELS[:2])
    assert torch.equal(result, sampled(first, positive=other, schedule=LEVELS[1:])["samples"])
    whole = with_values(prompts[0], start_percent=0.0, end_percent=1.0)
    assert torch.equal(sampled(positive=whole)["samples"], sampled()["samples"])


def test_combined_prompts_are_averaged_by_their_strengths(sampled: Any, prompts: Any, other: Any):
    same = sampled(positive=prompts[0] * 2)["samples"]
    torch.testing.assert_close(same, sampled()["samples"], atol=1e-5, rtol=1e-5)
    mixed = sampled(positive=prompts[0] + other)["samples"]
    assert not torch.allclose(mixed, same, atol=1e-3)
    unequal = sampled(positive=with_values(prompts[0], strength=0.0) + other)["samples"]
    torch.testing.assert_close(unequal, sampled(positive=other)["samples"])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"area": (2, 2, 0, 0), "strength": 1.0}, r"Conditioning \(Set Area\)"),
        ({"area": ("percentage", 0.5, 0.5, 0, 0)}, r"Conditioning \(Set Area\)"),
        ({"mask": torch.ones(1, 64, 64), "mask_strength": 1.0}, r"Conditioning \(Set Mask\)"),
        ({"hooks": object()}, "hooks"),
        ({"control": object()}, "Apply ControlNet"),
        ({"gligen": ("position", object(), [])}, "GLIGEN"),
        ({"default": True}, "Default Combine"),
        ({"concat_mask": torch.ones(1, 1, 8, 8)}, "InpaintModelConditioning"),
    ],
)
@pytest.mark.parametrize("place", ["positive", "negative"])
def test_values_that_we_do_not_have_are_refused_by_name(
    sampled: Any, prompts: Any, place: str, values: Any, named: str
):
    index = 0 if place == "positive" else 1
    with pytest.raises(UnsupportedError, match=f"on `{place}`.*{named}"):
        sampled(**{place: with_values(prompts[index], **values)})
    sampled(**{place: with_values(prompts[index], **dict.fromkeys(values))})  # None is no value
    if place == "positive":
        with pytest.raises(UnsupportedError, match=named):  # also in the second of two
            sampled(positive=prompts[0] + with_values(prompts[0], **values))


def test_prompts_that_cannot_be_combined_or_read_are_refused(sampled: Any, prompts: Any):
    with pytest.raises(UnsupportedError, match="different frame_rate combined on `positive`"):
        sampled(positive=prompts[0] + with_values(prompts[0], frame_rate=30.0))
    (embeddings, values), (others, _) = prompts[0][0], prompts[1][0]
    concatenated = [[torch.cat([embeddings, others], dim=1), values]]
    with pytest.raises(UnsupportedError, match=r"256 tokens .* mask for 128, as Conditioning \(Concat\)"):
        sampled(positive=concatenated)
    with pytest.raises(ConfigError, match="CONDITIONING without a text on `negative`"):
        sampled(negative=[[None, {}]])


def test_values_without_effect_in_comfyui_have_none_here(sampled: Any, prompts: Any):
    """FluxGuidance, pooled outputs, a strength alone, and what other packs may write."""
    values = {"guidance": 3.5, "pooled_output": torch.ones(1, 8), "strength": 0.5, "reference_latents": [1], "x": "y"}
    result = sampled(positive=with_values(prompts[0], **values))["samples"]
    torch.testing.assert_close(result, sampled()["samples"])

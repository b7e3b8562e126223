"""Features of the nodes beyond a single pass: conditions, guidance per step, motion and grain, upscaling in time."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.budget.plan import Card, format_plan
from ltxkit.ltx_core.config import UpsamplerConfig
from ltxkit.ltx_core.errors import ConfigError, ShapeError
from ltxkit.ltx_core.media import compress
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines import sample as one_pass
from ltxkit.ltx_core.pipelines.dry_run import outline, plan
from ltxkit.ltx_core.pipelines.passes import Pass, sigmas_for
from ltxkit.ltx_core.pipelines.recipe import guidance_for, recipe_for
from ltxkit.ltx_core.pipelines.settings import Settings
from ltxkit.ltx_core.placing import compiling, placement
from ltxkit.ltx_core.placing.streaming import streamed
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.sampling.conditioning import LatentReference
from ltxkit.ltx_core.sampling.state import LatentState
from ltxkit.ltx_core.shapes import LatentShape, PixelShape
from ltxkit.ltx_core.weights.metadata import format_upscaler_config
from ltxkit.ltx_core.weights.save import write_safetensors
from ltxkit.nodes import sockets
from ltxkit.nodes.condition import AddCondition, AddReference
from ltxkit.nodes.host import use_host
from ltxkit.nodes.latent import SLOW_MOTION, DecodeVideo, EmptyLatent, EncodeVideo, UpscaleLatent
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder, LoadUpscaler
from ltxkit.nodes.plan import PlanMemory
from ltxkit.nodes.sample import GenerateTwoStage, SampleVideo
from ltxkit.nodes.steps import CreateGuidance, CreateSchedule, CreateStepGuidance
from ltxkit.nodes.text import EncodePrompt

SHORT = torch.tensor([1.0, 0.5, 0.0])
pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(scope="module")
def models(models: Path) -> Path:
    """The tiny set and a temporal upscaler of the same family."""
    config = UpsamplerConfig(
        in_channels=128,
        mid_channels=32,
        num_blocks_per_stage=1,
        dims=3,
        spatial_upsample=False,
        temporal_upsample=True,
    )
    torch.manual_seed(0)
    path = models / "latent_upscale_models/temporal.safetensors"
    write_safetensors(path, LatentUpsampler(config).state_dict(), {"config": format_upscaler_config(config)})
    return models


def frames(count: int = 1, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def conditions(*entries: tuple[Tensor, int], **options: Any) -> Any:
    chain: Any = ()
    for images, frame in entries:
        (chain,) = AddCondition().run(images, frame, 1.0, "crop", chain, **{"crf": 0, **options})
    return chain


def sampled(loaded: Any, prompts: Any, latent: Any, **more: Any) -> dict[str, Any]:
    inputs = {"seed": 1, "sampler": "preset", "condition_noise": 0.0, "schedule": SHORT, "vae": loaded[1]}
    return SampleVideo().run(loaded[0], *prompts, latent, **{**inputs, **more})[0]


def canvas(count: int = 33, width: int = 64, height: int = 64) -> dict[str, Any]:
    return EmptyLatent().run(width, height, count, 0.0, 24.0, 1)[0]


# ------------------------------------------------------------------------------------------------ conditions


def test_compression_and_a_part_of_the_clip_are_taken_by_the_condition():
    clip = frames(30)
    (one,) = conditions((clip, 8), take=9)
    assert torch.equal(one.frames, clip[:9])
    (one,) = conditions((clip, 8), take=-9)
    assert torch.equal(one.frames, clip[-9:])
    ((one,),) = AddCondition().run(clip[:1], 0, 1.0, "crop")
    assert one.crf == 29  # the official value
    _, height, width, _ = clip.shape
    assert torch.equal(one.compressed(PixelShape(1, height, width)).frames, compress(clip[:1], 29))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([(1, 0), (1, 16), (1, -1)], [0]),  # keyframes: all but the first get tokens outside the clip
        ([(17, 0)], [0, 1, 2]),  # continue a clip
        ([(25, -25)], [3, 4]),  # end with a clip: its first two latent frames get tokens outside the clip
        ([(17, 8)], [3]),  # a clip in the middle
        ([(9, 0), (9, -9)], [0, 1]),  # from clip to clip
    ],
)
def test_pictures_and_clips_stand_where_they_are_put(loaded: Any, prompts: Any, entries: Any, kept: list[int]):
    """The kept frames equal the encoded clip; all others depend on it, and the length is the requested length."""
    shown = conditions(*((frames(count, seed=index), frame) for index, (count, frame) in enumerate(entries)))
    result = sampled(loaded, prompts, canvas(), conditions=shown)["samples"]
    again = sampled(loaded, prompts, canvas(), conditions=shown, schedule=torch.tensor([1.0, 0.8, 0.0]))["samples"]
    free = sampled(loaded, prompts, canvas())["samples"]
    same = [index for index in range(5) if torch.equal(result[:, :, index], again[:, :, index])]
    assert same == kept
    assert result.shape == free.shape == (1, 128, 5, 2, 2)
    assert all(not torch.allclose(result[:, :, index], free[:, :, index], atol=1e-3) for index in range(5))


def test_video_to_video_keeps_more_the_later_it_starts(loaded: Any, prompts: Any):
    (latent,) = EncodeVideo().run(frames(9), loaded[1], 24.0)
    (late,) = CreateSchedule().run("linear-quadratic", 10, "", 0.2)
    (early,) = CreateSchedule().run("linear-quadratic", 10, "", 0.8)
    changes = [
        (sampled(loaded, prompts, latent, schedule=schedule)["samples"] - latent["samples"]).abs().mean()
        for schedule in (late, early)
    ]
    assert 0 < changes[0] < changes[1]


def test_a_mask_of_the_clip_fits_its_grid(loaded: Any, prompts: Any):
    """15 frames of 44x64 are sampled as 17 of 64x64, with the clip in the middle: column 36 becomes 46, and the second
    cell takes the value of column 47. If 44 columns were stretched to two cells, it would take that of column 33."""
    (latent,) = EncodeVideo().run(frames(15, width=44), loaded[1], 24.0)
    mask = torch.zeros(15, 64, 44)
    mask[9:, :, 36:] = 1
    result = sampled(loaded, prompts, {**latent, "noise_mask": mask[:, None]})["samples"]
    changed = (result != latent["samples"]).any(dim=1)[0]
    assert changed.shape == (3, 2, 2)
    assert changed.nonzero().tolist() == [[2, 0, 1], [2, 1, 1]]
    by_hand = torch.zeros(1, 1, 3, 2, 2)
    by_hand[:, :, 2, :, 1] = 1
    assert torch.equal(sampled(loaded, prompts, {**latent, "noise_mask": by_hand})["samples"], result)


def test_levels_of_the_official_script_are_an_option(loaded: Any, prompts: Any):
    (shown,) = AddCondition().run(frames(), 0, 0.7, "crop", crf=0)
    own, official = (
        sampled(loaded, prompts, canvas(9), conditions=shown, levels=levels)["samples"]
        for levels in ("own", "official")
    )
    assert not torch.allclose(own[:, :, 0], official[:, :, 0], atol=1e-2)  # the official levels leave noise there


def test_what_a_condition_cannot_be(loaded: Any, prompts: Any, said: list[str]):
    for entries, message in (
        ([(frames(), 33)], "got a condition at frame 33; expected -33 to 32"),
        ([(frames(), 8), (frames(seed=1), 8)], "got two conditions on frame 8"),
        ([(frames(), 32), (frames(seed=1), -1)], "got two conditions on frame 32"),
        ([(frames(9), 12)], "expected a multiple of 8 .*; use frame 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            sampled(loaded, prompts, canvas(), conditions=conditions(*entries))
    sampled(loaded, prompts, canvas(), conditions=conditions((frames(21), 0)))
    assert "trimmed from 21 to 17 frames" in "\n".join(said)
    with pytest.raises(ShapeError, match="expected one mask for all frames, one per latent frame"):
        sampled(loaded, prompts, {**canvas(), "noise_mask": torch.ones(3, 64, 64)})
    with pytest.raises(ConfigError, match="got crf 64"):
        sampled(loaded, prompts, canvas(), conditions=conditions((frames(), 0), crf=64))


# ------------------------------------------------------------------------------------------------ steps


def test_lists_as_they_stand_in_the_official_yaml(said: list[str]):
    """The defaults equal the first pass of 13B dev, with or without brackets."""
    recipe = RELEASES["13b-0.9.8-dev"].recipe
    declared = CreateStepGuidance.INPUT_TYPES()["required"]
    values = {name: spec[1].get("default", "attention_values") for name, spec in declared.items()}
    (guidance,) = CreateStepGuidance().run(**values)
    assert guidance == guidance_for(recipe.one_pass, recipe)
    bracketed = {
        name: f"[{value}]" if isinstance(value, str) and "," in value else value for name, value in values.items()
    }
    assert CreateStepGuidance().run(**bracketed) == (guidance,)
    assert "positive down to level 0.996; then negative + positive + perturbed" in "\n".join(said)
    assert "positive + perturbed." in "\n".join(said)


def lists(**changed: str) -> Any:
    values: dict[str, Any] = {
        "guidance_timesteps": "1, 0.9",
        "guidance_scale": "1, 3",
        "stg_scale": "1",
        "stg_rescale": "1",
        "stg_blocks": "[], [19]",
        "stg_mode": "attention_values",
        "cfg_star": False,
        "guidance_rescale": 0.0,
    }
    return CreateStepGuidance().run(**{**values, **changed})[0]


def test_what_lists_cannot_be(loaded: Any, prompts: Any):
    for changed, message in (
        ({"guidance_scale": "1, 2, 3"}, "got guidance_scale with 3; expected 1 or 2 entries"),
        ({"guidance_scale": "1, two"}, "got '1, two' as guidance_scale"),
        ({"stg_blocks": "19, [20]"}, "put every number into brackets"),
        ({"stg_blocks": "[a], [20]"}, "expected block numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            lists(**changed)
    with pytest.raises(ConfigError, match=r"got STG blocks \[28\]; expected numbers from 0 to 27"):
        sampled(loaded, prompts, canvas(9), guidance=lists(stg_blocks="28"))


def test_what_will_run_is_said(loaded: Any, prompts: Any, said: list[str]):
    guidance = lists()
    assert said[-1].endswith("Forwards of a step: positive down to level 1; then negative + positive + perturbed.")
    lists_shown = {"model": loaded[0], "schedule": torch.tensor([1.0, 0.9, 0.5, 0.0])}
    CreateGuidance().run(3.0, 0.0, 1.0, "14", "attention_values", 1.0, False, **lists_shown)
    assert "3 steps (steps x branches: 3 x 3), 9 forwards, of which sharing saves 1.5." in said[-1]
    said.clear()
    sampled(loaded, prompts, canvas(9), guidance=guidance)
    assert "2 steps (steps x branches: 1 x 1, 1 x 3), 4 forwards, of which sharing saves 0.7." in "\n".join(said)
    assert "use STG scale 0" in "\n".join(said)  # the checkpoint is distilled


def test_a_schedule_without_its_ends_is_drawn(said: list[str]):
    (sigmas,) = CreateSchedule().run("linear-quadratic", 30, "", 1.0, skip_initial_steps=17)
    assert len(sigmas) == 14
    assert sigmas[0].item() == pytest.approx(0.9548, abs=1e-4)  # the second pass of 13B dev
    assert "13 steps ██▇▇▇▆▆▅▅▄▃▃▂: 0.9548, 0.932" in said[-1]
    (sigmas,) = CreateSchedule().run("linear-quadratic", 30, "", 1.0, skip_final_steps=3)
    assert sigmas[-2].item() == pytest.approx(0.4458, abs=1e-4)
    CreateSchedule().run("linear-quadratic", 1000, "", 1.0)
    assert len(said[-1]) < 200
    with pytest.raises(ConfigError, match="got 5 initial and 5 final steps to skip"):
        CreateSchedule().run("linear-quadratic", 10, "", 1.0, skip_initial_steps=5, skip_final_steps=5)


# ------------------------------------------------------------------------------------------------ results


def test_motion_is_shown_with_what_governs_it(loaded: Any, prompts: Any, said: list[str]):
    result = sampled(loaded, prompts, canvas(9), conditions=conditions((frames(), 0), crf=29), condition_noise=0.15)
    said.clear()
    (images,) = DecodeVideo().run(result, loaded[1], 0.05, 0.025, 0)
    difference = (images[1:] - images[:-1]).abs().mean() / images.std(dim=(1, 2, 3)).mean()
    assert float(re.findall(r"Motion (\d+\.\d+)", "\n".join(said))[-1]) == pytest.approx(float(difference), rel=0.02)
    assert "with condition strength 1, CRF 29, condition noise 0.15" in "\n".join(said)


def test_grain_and_tone_mapping_are_options_of_decoding(loaded: Any, prompts: Any):
    result = sampled(loaded, prompts, canvas(9))
    (plain,) = DecodeVideo().run(result, loaded[1], 0.05, 0.025, 3)
    (mapped,) = DecodeVideo().run(result, loaded[1], 0.05, 0.025, 3, tone_map=0.6)
    (grained,) = DecodeVideo().run(result, loaded[1], 0.05, 0.025, 3, film_grain=0.05, grain_saturation=0.0)
    assert not torch.allclose(plain, mapped, atol=1e-3)
    inside = ((plain > 0.3) & (plain < 0.7)).all(dim=-1)
    assert (grained - plain)[inside].std().item() == pytest.approx(0.05, rel=0.1)


def test_random_sizes_come_out_as_asked(loaded: Any):
    """Requests through the canvas of the nodes; tests/pipelines sends a thousand through the pipeline itself."""
    draw = random.Random(0)
    for _ in range(8):
        width, height, count = draw.randint(16, 90), draw.randint(16, 90), draw.randint(1, 18)
        rate = draw.choice([23.976, 24.0, 30.0])
        latent, fps = EmptyLatent().run(width, height, 1, count / rate, rate, 1)
        (images,) = DecodeVideo().run(latent, loaded[1], 0.05, 0.025, 0)
        assert images.shape == (count, height, width, 3)
        assert fps == rate


# ------------------------------------------------------------------------------------------------ upscaling


def test_a_temporal_upscaler_doubles_the_rate_or_slows_down(loaded: Any, said: list[str]):
    (upscaler,) = LoadUpscaler().run("temporal.safetensors", "auto")
    latent = canvas(15, width=60)
    latent = {**latent, "samples": torch.randn(latent["samples"].shape)}
    faster, rate = UpscaleLatent().run(latent, upscaler, loaded[1], 0.0)
    assert rate == 48.0
    assert "33 frames instead of 17, at 48 a second instead of 24: the same speed." in said[-1]
    assert faster["samples"].shape == (1, 128, 5, 2, 2)
    assert faster["ltxkit_canvas"] == sockets.Canvas(PixelShape(29, 64, 60), 48.0, LatentShape(5, 2, 2))
    slower, rate = UpscaleLatent().run(latent, upscaler, loaded[1], 0.0, SLOW_MOTION)
    assert rate == 24.0
    assert "at the same rate: half the speed" in said[-1]
    assert slower["ltxkit_canvas"].fps == 24.0
    (images,) = DecodeVideo().run(slower, loaded[1], 0.05, 0.025, 0)
    assert images.shape == (29, 64, 60, 3)


@pytest.mark.slow
def test_two_checkpoints_make_the_two_passes(
    loaded: Any, prompts: Any, tiny_models: Callable[..., Path], said: list[str]
):
    """13B dev for the small pass and 2B distilled for the refining pass, each with its own recipe."""
    with use_host(PlainHost(tiny_models("13b"), Path(), Path())):
        large, _ = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "13b-0.9.8-dev")
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    images, latent = GenerateTwoStage().run(
        large, loaded[1], upscaler, *prompts, 70, 100, 2, 1, 1.0, 0.0, second_model=loaded[0]
    )
    assert images.shape == (2, 100, 70, 3)
    assert latent["samples"].shape == (1, 128, 2, 4, 2)
    assert "Sampling as 13b-0.9.8-dev." in "\n".join(said)
    assert "Sampling as 2b-0.9.8-distilled." in "\n".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("condition_noise", [0.0, 0.15])
def test_sample_upscale_sample_makes_the_clip_of_two_stage(loaded: Any, prompts: Any, condition_noise: float):
    """One seed, one clip: the second Sample continues the noise stream where the first stopped."""
    model, vae = loaded
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    shown = conditions((frames(height=100, width=100), 0))
    _, expected = GenerateTwoStage().run(
        model, vae, upscaler, *prompts, 100, 100, 9, 5, 1.0, condition_noise, conditions=shown
    )
    recipe, _ = recipe_for(model.info.versions)
    entries = [Settings(recipe).entry(which) for which in ("first", "second")]

    def one_pass(latent: Any, number: int, seed: int = 5) -> Any:
        schedule = sigmas_for(entries[number], model.info.scheduler, 0)
        guidance = guidance_for(entries[number], recipe)
        more = {"seed": seed, "condition_noise": condition_noise, "conditions": shown}
        return sampled(loaded, prompts, latent, schedule=schedule, guidance=guidance, **more)

    small = one_pass(canvas(9), 0)
    large, _ = UpscaleLatent().run(small, upscaler, vae, 1.0)
    refined = one_pass(large, 1)
    assert torch.equal(refined["samples"], expected["samples"])
    assert refined[sockets.NOISE] == expected[sockets.NOISE]  # a third pass continues the same way after either

    other = one_pass(large, 1, seed=6)
    known_of_nothing = {key: value for key, value in large.items() if key != sockets.NOISE}
    assert torch.equal(other["samples"], one_pass(known_of_nothing, 1, seed=6)["samples"])  # a new seed
    assert not torch.equal(one_pass(known_of_nothing, 1)["samples"], refined["samples"])


def test_a_temporal_upscaler_cannot_make_two_passes(loaded: Any, prompts: Any):
    (upscaler,) = LoadUpscaler().run("temporal.safetensors", "auto")
    with pytest.raises(ConfigError, match="got a temporal upscaler; expected a spatial one"):
        GenerateTwoStage().run(*loaded, upscaler, *prompts, 64, 96, 2, 1, 1.0, 0.0)


def test_a_latent_with_native_guides_is_not_upscaled(loaded: Any, prompts: Any, said: list[str]):
    latent = {"samples": torch.zeros(1, 128, 3, 2, 2), "noise_mask": torch.tensor([1.0, 1, 0]).view(1, 1, 3, 1, 1)}
    corners = torch.tensor([[0, 0, 0, 0], [0, 0, 32, 32], [0, 32, 0, 32]])[None]
    guided = tuple([[one[0][0], {**one[0][1], "keyframe_idxs": corners}]] for one in prompts)
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    result = sampled(loaded, guided, latent)
    with pytest.raises(ConfigError, match=r"whose last 1 frames are guides of native nodes; .* LTXVCropGuides"):
        UpscaleLatent().run(result, upscaler, loaded[1], 1.0)
    UpscaleLatent().run(latent, upscaler, loaded[1], 0.0)  # not from Sample: its guides can only be guessed
    assert "crop them first: LTXVCropGuides" in said[-1]
    cropped = {"samples": result["samples"][:, :, :2], "noise_mask": torch.ones(1, 1, 2, 1, 1)}  # a new dictionary
    UpscaleLatent().run(cropped, upscaler, loaded[1], 0.0)


def test_shifted_presets_count_the_tokens_of_the_clip_alone(
    tiny_models: Callable[..., Path], prompts: Any, monkeypatch: pytest.MonkeyPatch, said: list[str]
):
    """0.9.0: guides of native nodes behind the clip do not change the levels."""
    folder = tiny_models(vae="0.9.0")
    with use_host(PlainHost(folder, folder, folder, notes=said.append)):
        model, _ = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.0")
    levels: list[Tensor] = []
    corners = torch.tensor([[0, 0, 0, 0], [0, 0, 32, 32], [0, 32, 0, 32]])[None]
    guided = tuple([[one[0][0], {**one[0][1], "keyframe_idxs": corners}]] for one in prompts)
    clip = {"samples": torch.zeros(1, 128, 2, 2, 2)}
    longer = {"samples": torch.zeros(1, 128, 3, 2, 2), "noise_mask": torch.tensor([1.0, 1, 0]).view(1, 1, 3, 1, 1)}

    sample_state = one_pass.sample_state

    def record(one: Pass, *rest: Any, **more: Any) -> LatentState:
        levels.append(one.sigmas)
        return sample_state(one, *rest, **more)

    monkeypatch.setattr("ltxkit.nodes.guides.sample_state", record)
    for conditioning, latent in ((prompts, clip), (guided, longer)):
        SampleVideo().run(model, *conditioning, latent, 0, "preset", 0.0)
    assert torch.equal(*levels)


# ------------------------------------------------------------------------------------------------ references


def test_a_reference_is_followed_and_what_did_not_fit_is_said(loaded: Any, prompts: Any, said: list[str]):
    """A wide clip at 48 frames per second, one frame too short for a canvas of 33 frames at 24."""
    clip = frames(64, 64, 96)
    (chain,) = AddReference().run(clip, 48.0, 1.0, "crop")
    without = sampled(loaded, prompts, canvas())["samples"]
    made = sampled(loaded, prompts, canvas(), conditions=chain)
    assert made["samples"].shape == without.shape
    assert not torch.equal(made["samples"], without)
    for sentence in (
        "The reference of 96x64 pixels was resized to 64x64 (crop).",
        "The reference has 48 frames per second and the clip 24: of its 64 frames",
        "The reference was trimmed from 32 to 25 frames: 8k+1",
        "The reference ends before the clip: frames 25 to 32 are made without it",
        "There is a reference video but no LoRA",
    ):
        assert sentence in "\n".join(said)
    assert made[sockets.MOTION] == ""
    # A clip that fits is used unchanged: the same frames, selected by hand, give the same video without a message.
    said.clear()
    (by_hand,) = AddReference().run(clip[0:50:2, :, 16:80], 0.0, 1.0, "stretch")
    again = sampled(loaded, prompts, canvas(), conditions=by_hand)["samples"]
    assert torch.equal(again, made["samples"])
    assert not any("brought" in sentence or "trimmed" in sentence or "per second" in sentence for sentence in said)


def test_a_reference_stands_beside_conditions(loaded: Any, prompts: Any):
    first = frames(1, seed=4)
    chain = conditions((first, 0))
    (chain,) = AddReference().run(frames(33), 24.0, 1.0, "crop", chain)
    assert [type(one).__name__ for one in chain] == ["Condition", "Reference"]
    latent = sampled(loaded, prompts, canvas(), conditions=chain)["samples"]
    alone = sampled(loaded, prompts, canvas(), conditions=conditions((first, 0)))["samples"]
    kept = (latent - alone).flatten(3).abs().amax(dim=(0, 1, 3))
    assert kept[0] < 1e-6  # the first frame is unchanged
    assert kept[1:].min() > 1e-3


def test_a_reference_is_encoded_for_both_passes(loaded: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, ...]] = []
    apply_to = LatentReference.apply_to

    def spying(self: LatentReference, *arguments: Any) -> Any:
        seen.append(tuple(self.latent.shape[2:]))
        return apply_to(self, *arguments)

    monkeypatch.setattr(LatentReference, "apply_to", spying)
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    (chain,) = AddReference().run(frames(9, 96, 96), 24.0, 1.0, "crop")
    GenerateTwoStage().run(*loaded, upscaler, *prompts, 96, 96, 9, 1, 1.0, 0.0, conditions=chain)
    assert seen == [(2, 1, 1), (2, 2, 2)]


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.slow
def test_the_plan_says_what_will_be_where(models: Path, said: list[str]):
    files = ("ltxv-tiny.safetensors", "in the model file", "t5-tiny", "ltxv-tiny-spatial-upscaler.safetensors")
    size = ("auto", "2b-0.9.8-distilled", 192, 192, 9, 0)
    (text,) = PlanMemory().run(*files, *size, 8.0)
    assert "\n".join(said).endswith(text)
    found = outline(
        models / "checkpoints/ltxv-tiny.safetensors",
        models / "text_encoders/t5-tiny",
        upscaler=models / f"latent_upscale_models/{files[3]}",
        version="2b-0.9.8-distilled",
    )
    assert text == format_plan(plan(found, PixelShape(9, 192, 192), Card.of_size(8 * 2**30)))
    assert "transformer whole" in text
    assert "tiles" not in text
    (text,) = PlanMemory().run(*files, *size, 8.0, resident_blocks=3, tile_size=64)
    assert "transformer 3 of 28 blocks stay, 25 are streamed" in text
    assert re.search(r"decode .* 9 tiles, 4 frames at once", text)  # the second pass has 6 cells per side, 2 per tile
    (text,) = PlanMemory().run(*files, *size, 0.0)
    assert "on main memory" in text
    with pytest.raises(ConfigError, match=r"got 0\.1 GiB card"):
        PlanMemory().run(*files, *size, 0.1)


def test_what_the_planner_chooses_can_be_set(loaded: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch):
    resident: list[int] = []

    def watched(module: Any, device: torch.device, blocks: int) -> Any:
        resident.append(blocks)
        return streamed(module, device, blocks)

    monkeypatch.setattr(placement, "streamed", watched)
    name = "ltxv-tiny.safetensors"
    (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", False, resident_blocks=1)
    again = EncodePrompt().run(encoder, "a temple", "blurry", 24.0)
    assert torch.equal(again[0][0][0], prompts[0][0][0])
    chosen = LoadModel().run(name, "in the model file", "fp32", "2b-0.9.8-distilled", resident_blocks=0)
    result, expected = (sampled(one, prompts, canvas(9)) for one in (chosen, loaded))
    assert resident == [1, 0]
    assert torch.equal(result["samples"], expected["samples"])

    tiles: list[int] = []
    monkeypatch.setattr(VideoVAE, "stream_decode", counted(VideoVAE.stream_decode, tiles))
    latent = EmptyLatent().run(128, 64, 1, 0.0, 24.0, 1)[0]
    (whole,), (cut,) = (DecodeVideo().run(latent, loaded[1], 0.05, 0.0, 0, tile_size=size) for size in (0, 64))
    assert len(tiles) == 1 + 2
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)  # the halo spans this whole picture


def test_a_model_is_compiled_where_there_is_a_compiler(
    loaded: Any, prompts: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiling, "no_compiler", lambda device: "there is no compiler")
    file = ("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.8-distilled")
    result, expected = (sampled(one, prompts, canvas(9)) for one in (LoadModel().run(*file, compile=True), loaded))
    assert said.count(": The model is not compiled: there is no compiler.") == 1
    assert torch.equal(result["samples"], expected["samples"])
    with pytest.raises(ConfigError, match=r"got compile and resident_blocks 0; .*turn compile off"):
        LoadModel().run(*file, resident_blocks=0, compile=True)


def test_a_model_is_recorded_where_there_are_cuda_graphs(
    loaded: Any, prompts: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiling, "no_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "_function_of", lambda kind, backend, **_: kind.forward)
    file = ("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.8-distilled")
    result, expected = (sampled(one, prompts, canvas(9)) for one in (LoadModel().run(*file, cuda_graphs=True), loaded))
    assert said.count(": CUDA graphs are left out: they are NVIDIA's, and this is cpu.") == 1
    assert torch.equal(result["samples"], expected["samples"])
    steps: list[int] = []
    monkeypatch.setattr(compiling, "no_graphs", lambda device: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    result = sampled(LoadModel().run(*file, cuda_graphs=True), prompts, canvas(9))
    assert torch.equal(result["samples"], expected["samples"])
    assert steps
    with pytest.raises(ConfigError, match=r"got cuda_graphs and resident_blocks 0; .*turn cuda_graphs off"):
        LoadModel().run(*file, resident_blocks=0, cuda_graphs=True)


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return function(*args, **options)

    return call

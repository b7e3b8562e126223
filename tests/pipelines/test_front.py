"""`import ltxkit` as people write it: what they pass, what they get back, and what a wrong name is answered with."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

import ltxkit
from ltxkit.cli import main
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import CancelledError, CheckpointError, ConfigError, LTXKitError, ShapeError
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.places import find_file
from ltxkit.ltx_core.pipelines.presets import PASS, Knobs, Recipe
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.releases import RELEASES

CHECKPOINT = "checkpoints/ltxv-tiny.safetensors"
UPSCALER = "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"
T5 = "text_encoders/t5-tiny"
SMALL: dict[str, Any] = {"width": 64, "height": 32, "frames": 9, "fps": 8, "steps": 2, "guidance_scale": 1, "crf": 0}
HEIGHT, WIDTH = 32, 64


@pytest.fixture(scope="module")
def folder(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models()


@pytest.fixture(scope="module")
def ltx(folder: Path) -> Components:
    return ltxkit.load(folder / CHECKPOINT, folder / T5, device="cpu", notes=lambda _: None)


@pytest.fixture(scope="module")
def clip(ltx: Components) -> ltxkit.Clip:
    return ltx.generate("fox", **SMALL)


@pytest.fixture(scope="module")
def tiny_lora(ltx: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 2 for one Linear of every block."""
    generator, tensors = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for number in range(ltx.transformer.config.num_layers):
        name = f"transformer_blocks.{number}.attn1.to_q"
        width = ltx.transformer.get_submodule(name).weight.shape
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(2, width[1], generator=generator)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(width[0], 2, generator=generator)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "remedy"),
    [
        ({"num_frames": 9}, "write frames="),
        ({"frame_rate": 24}, "write fps="),
        ({"image": "a.png"}, r"conditions=ltxkit\.Condition\(image\)"),
        ({"generator": None}, "write seed="),
        ({"num_inference_steps": 3}, "write steps="),
        ({"latents": None}, "write start="),
        ({"output_type": "pil"}, r"clip\.to_pil\(\)"),
        ({"framse": 9}, "did you mean frames"),
        ({"qqqq": 9}, "there are .*prompt.*guidance_rescale"),
    ],
)
def test_a_wrong_keyword_is_answered_with_the_right_one(ltx: Components, keywords: dict[str, Any], remedy: str) -> None:
    with pytest.raises(TypeError, match=remedy) as caught:
        ltx.generate("fox", **keywords)
    assert isinstance(caught.value, LTXKitError)


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda ltx: ltx("fox"), r"ltx\.generate\(prompt\)"),
        (lambda ltx: ltx.to("cuda"), "device="),
        (lambda ltx: ltx.load_lora_weights("a"), r"ltx\.loras = "),
        (lambda ltx: ltx.enable_model_cpu_offload(), "nothing"),
        (lambda ltx: ltx.generate(), r"ltx\.generate\(prompt, \.\.\.\)"),
        (lambda ltx: ltx.generate("fox", 64), "does not fit"),
        (lambda ltx: setattr(ltx, "vae", None), "loras, which alone"),
        (lambda _: ltxkit.load("a", "b", torch_dtype=torch.bfloat16), "write dtype="),
        (lambda _: ltxkit.Condition(torch.zeros(8, 8, 3), frame_index=3), "write frame="),
        (lambda _: ltxkit.Condition(image=3), "first argument"),
        (lambda _: ltxkit.Recipe(num_inference_steps=3), "write steps="),
        (lambda _: ltxkit.Recipe(second={"step": 3}), "names of a pass"),
        (lambda _: ltxkit.plan("a", device_map="cpu"), "write device="),
    ],
)
def test_a_wrong_call_is_one_sentence(ltx: Components, call: Callable[[Components], Any], remedy: str) -> None:
    with pytest.raises(LTXKitError, match=remedy):
        call(ltx)


def test_a_missing_attribute_stays_one(ltx: Components, clip: ltxkit.Clip) -> None:
    for value in (ltx, clip):
        assert not hasattr(value, "no_such_thing")
        assert not hasattr(value, "__array__")
    with pytest.raises(AttributeError, match=r"clip\.to_tensor\(\)"):
        clip.videos  # noqa: B018
    with pytest.raises(AttributeError, match=r"there are .*load"):
        ltxkit.lode  # noqa: B018


def test_reprs_are_one_line(ltx: Components, clip: ltxkit.Clip, folder: Path) -> None:
    assert len(repr(ltx)) < 200
    assert "ltxv-tiny.safetensors" in repr(ltx)
    assert "on cpu" in repr(ltx)
    assert repr(clip) == "<Clip: 9 frames of 64x32, 1.12 s at 8 fps, 'fox', seed 0>"
    assert repr(ltxkit.Condition(torch.zeros(3, 8, 16, 3), frame=4)) == "Condition(3 x 16x8, frame=4)"
    assert repr(ltxkit.Recipe(steps=3, second={"steps": 2})) == "Recipe(steps=3, second={'steps': 2})"


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_a_picture_may_be_anything_that_people_have(ltx: Components, picture: np.ndarray, tmp_path: Path) -> None:
    PIL.Image.fromarray(picture).save(tmp_path / "in.png")
    exact = torch.from_numpy(picture).float() / 255
    expected = ltx.generate("fox", **SMALL, conditions=[ltxkit.Condition(exact[None])]).latent
    kinds = [
        PIL.Image.fromarray(picture),
        tmp_path / "in.png",
        str(tmp_path / "in.png"),
        picture,
        picture[None],
        picture.astype(np.float64) / 255,
        torch.from_numpy(picture),
        exact,
        [PIL.Image.fromarray(picture)],
        np.asarray(PIL.Image.fromarray(picture)),  # which is read-only
        (picture / 255).astype(">f4"),
        picture[::-1][::-1],
        picture.astype(np.uint16) * np.uint16(257),
    ]
    frames = [ltxkit.Condition(given).prepared(0).frames for given in kinds]
    assert [each.shape for each in frames] == [(1, HEIGHT, WIDTH, 3)] * len(kinds)
    assert max(float((each - exact).abs().max()) for each in frames) < 1e-6
    for conditions in (ltxkit.Condition(kinds[0]), kinds[0], kinds[1], [picture]):
        assert torch.allclose(ltx.generate("fox", **SMALL, conditions=conditions).latent, expected, atol=1e-5)


def test_grey_and_transparent_pictures_have_three_channels(picture: np.ndarray) -> None:
    for mode in ("L", "RGBA", "P", "1", "I;16", "CMYK"):
        image = PIL.Image.fromarray(picture).convert("L" if mode == "I;16" else mode)
        image = image.convert("I").convert("I;16") if mode == "I;16" else image
        assert ltxkit.Condition(image).prepared(0).frames.shape == (1, HEIGHT, WIDTH, 3), mode
    assert ltxkit.Condition(picture[..., 0]).prepared(0).frames.shape == (1, HEIGHT, WIDTH, 3)


def test_a_clip_may_be_a_list_or_a_file(clip: ltxkit.Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "a.mp4")
    assert ltxkit.Condition(tmp_path / "a.mp4").frames.shape == (9, HEIGHT, WIDTH, 3)
    assert ltxkit.Condition(str(tmp_path / "a.mp4"), limit=5).frames.shape == (5, HEIGHT, WIDTH, 3)
    assert ltxkit.Condition(clip.to_pil()).frames.shape == (9, HEIGHT, WIDTH, 3)
    assert ltxkit.Condition(clip.to_pil(), limit=3).frames.shape == (3, HEIGHT, WIDTH, 3)
    assert ltxkit.Reference(clip.to_numpy()).frames.shape == (9, HEIGHT, WIDTH, 3)
    mixed = [clip.to_numpy()[0], clip.to_tensor()[0]]
    assert float((ltxkit.Condition(mixed).frames[0] - ltxkit.Condition(mixed).frames[1]).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.zeros(3, 32, 64), ShapeError, "channels first.*movedim"),
        (torch.zeros(9, 3, 32, 64), ShapeError, "channels first.*movedim"),
        (np.zeros((3, 32, 64), np.uint8), ShapeError, "channels first"),
        ("no-such-file.png", ConfigError, "does not exist"),
        ("https://example.com/a.png", ConfigError, "download it first"),
        (5, ConfigError, "expected a path, a Pillow image"),
        (None, ConfigError, "expected a path, a Pillow image"),
        ([], ShapeError, "no frames"),
        ([np.zeros((8, 8, 3)), np.zeros((8, 9, 3))], ShapeError, "expected one size"),
        (np.array(["a"]), ConfigError, "expected numbers"),
    ],
)
def test_what_is_no_picture_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ltxkit.Condition(given)


def test_values_beyond_the_range_are_refused(ltx: Components, picture: np.ndarray) -> None:
    for wrong in (picture.astype(np.float32), picture / 127.5 - 1):
        with pytest.raises(ConfigError, match="expected 0 to 1"):
            ltx.generate("fox", **SMALL, conditions=wrong)


def test_pictures_without_a_place_are_refused(ltx: Components, picture: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"frame=.* for each"):
        ltx.generate("fox", **SMALL, conditions=[picture, picture])


def test_sizes_come_from_the_recipe_and_may_be_whole_floats(ltx: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    small = replace(ltx, recipe=replace(ltx.recipe, width=64, height=32, num_frames=9))
    made = small.generate("fox", steps=1, guidance_scale=1)
    assert tuple(made.size) == (9, 32, 64)
    assert (made.settings["width"], made.settings["height"], made.settings["frames"]) == (64, 32, 9)
    assert tuple(small.generate("fox", width=32.0, frames=np.int64(1), steps=1, guidance_scale=1).size) == (1, 32, 32)
    with pytest.raises(ShapeError, match="whole numbers"):
        small.generate("fox", width=32.5)


def test_a_drawn_seed_is_recorded_and_makes_the_clip_again(ltx: Components) -> None:
    drawn = [ltx.generate("fox", **SMALL, seed=None) for _ in range(2)]
    seeds = [each.settings["seed"] for each in drawn]
    assert seeds[0] != seeds[1]
    again = ltx.generate("fox", **SMALL, seed=seeds[0])
    assert torch.equal(again.latent, drawn[0].latent)
    assert torch.equal(again.to_tensor(), drawn[0].to_tensor())


# --- several clips ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_prompts_and_seeds_are_each_as_alone(ltx: Components) -> None:
    prompts, seeds = ["fox", "a house by the sea"], [3, 4]
    settings = SMALL | {"guidance_scale": 3}
    both = ltx.generate(prompts, seed=seeds, negative_prompt=["blurry", "dark"], **settings)
    for made, prompt, seed, negative in zip(both, prompts, seeds, ["blurry", "dark"], strict=True):
        alone = ltx.generate(prompt, seed=seed, negative_prompt=negative, **settings)
        assert float((made.latent - alone.latent).abs().max()) <= 1e-5
        assert made.settings == alone.settings
    assert [each.settings["seed"] for each in ltx.generate("fox", seed=range(2), **SMALL)] == [0, 1]
    assert [each.settings["prompt"] for each in ltx.generate(("a", "b"), **SMALL)] == ["a", "b"]
    assert len({each.settings["seed"] for each in ltx.generate(["a", "b"], seed=None, **SMALL)}) == 2


def test_lists_of_different_lengths_are_refused(ltx: Components) -> None:
    for wrong in (
        {"prompt": ["a", "b"], "seed": [1]},
        {"prompt": []},
        {"prompt": ["a", 3]},
        {"prompt": "a", "seed": []},
    ):
        with pytest.raises(ConfigError, match=r"^got .*; expected .*; "):
            ltx.generate(**{**SMALL, **wrong})


def test_an_encoded_prompt_is_taken_in_place_of_text(ltx: Components, clip: ltxkit.Clip) -> None:
    text = ltx.encode("fox")
    assert torch.equal(ltx.generate(text, **SMALL).latent, clip.latent)
    assert torch.equal(ltx.generate(text.embeddings[0], **SMALL).latent, clip.latent)
    assert ltx.generate(text, **SMALL).settings["prompt"] is None
    with pytest.raises(ShapeError, match="one prompt"):
        ltx.generate(torch.zeros(2, 3, 4), **SMALL)


# --- a clip is a value ------------------------------------------------------------------------------------------------


def test_a_clip_is_read_in_every_form(clip: ltxkit.Clip) -> None:
    frames = torch.cat(list(clip.frames()))
    assert len(clip) == 9
    assert torch.equal(clip.to_tensor(), frames)
    assert torch.equal(torch.stack(list(clip)), frames)
    array = clip.to_numpy()
    assert array.dtype == np.uint8
    assert array.shape == (9, HEIGHT, WIDTH, 3)
    assert float((torch.from_numpy(array) / 255 - frames).abs().max()) <= 0.5 / 255 + 1e-6
    images = clip.to_pil()
    assert len(images) == 9
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), array)


def test_a_clip_shows_itself_in_a_notebook(clip: ltxkit.Clip) -> None:
    import base64
    import re

    html = clip._repr_html_()
    kind, data = re.search(r"data:image/(\w+);base64,([^\"]+)\"", html).groups()
    image = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format.lower() == kind
    assert image.n_frames == 9
    assert image.size == (WIDTH, HEIGHT)
    assert len(html) < 100_000


def test_a_pickled_clip_has_no_weights_and_decodes_elsewhere(clip: ltxkit.Clip, tmp_path: Path) -> None:
    data = pickle.dumps(clip)
    assert len(data) < clip.latent.numel() * 4 + 10_000
    back = pickle.loads(data)  # noqa: S301
    assert torch.equal(back.latent, clip.latent)
    assert back.settings == clip.settings
    assert torch.equal(back.to_tensor(), clip.to_tensor())
    assert len(pickle.dumps(back)) < len(data) + 100


@pytest.mark.slow
def test_a_pickled_clip_is_saved_by_another_process(clip: ltxkit.Clip, tmp_path: Path) -> None:
    (tmp_path / "clip.pickle").write_bytes(pickle.dumps(clip))
    code = "import pickle; pickle.load(open('clip.pickle', 'rb')).save('other.mp4')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    clip.save(tmp_path / "own.mp4")
    own, other = (media.read_video(tmp_path / name) for name in ("own.mp4", "other.mp4"))
    assert torch.equal(own.frames, other.frames)


def test_a_clip_without_its_vae_says_which_file_it_needs(clip: ltxkit.Clip, folder: Path, tmp_path: Path) -> None:
    moved = clip.with_vae(tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"vae\.safetensors, which is not here.*with_vae"):
        moved.to_tensor()
    assert torch.equal(moved.with_vae(folder / CHECKPOINT).to_tensor(), clip.to_tensor())


def test_the_suffix_is_the_format(clip: ltxkit.Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "o.mp4", fps=12)
    assert media.read_video(tmp_path / "o.mp4").fps == 12
    clip.save(tmp_path / "o.gif")
    assert PIL.Image.open(tmp_path / "o.gif").format == "GIF"
    with pytest.raises(ConfigError, match="expected a name that ends in"):
        clip.save(tmp_path / "o")
    with pytest.raises(ConfigError, match="expected a name that ends in"):
        clip.save(tmp_path / "o.xyz")


# --- video to video ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clip_starts_from_a_clip(ltx: Components, clip: ltxkit.Clip) -> None:
    settings = SMALL | {"steps": 10, "denoise_strength": 0.3, "seed": 5}
    sizes = ("width", "height", "frames")
    unsized = {name: value for name, value in settings.items() if name not in sizes}
    from_clip = ltx.generate("fox", start=clip, **unsized)
    assert from_clip.size == clip.size
    assert torch.equal(ltx.generate("fox", start=clip.latent, **settings).latent, from_clip.latent)
    from_frames = ltx.generate("fox", start=clip.to_pil(), **unsized)
    assert from_frames.size == clip.size
    fresh = ltx.generate("fox", **SMALL | {"steps": 10, "seed": 5})
    assert (from_clip.latent - clip.latent).abs().mean() < (fresh.latent - clip.latent).abs().mean()
    assert from_frames.settings["start"] == {"kind": "frames", "mask": False}


def test_a_mask_says_what_is_made_anew(ltx: Components, clip: ltxkit.Clip) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[:, WIDTH // 2 :] = 1  # the right latent cell
    for given in (mask, mask[None].repeat(9, 0), PIL.Image.fromarray((mask * 255).astype(np.uint8))):
        made = ltx.generate("fox", start=clip, mask=given, seed=5, **SMALL).latent
        assert torch.allclose(made[..., 0], clip.latent[..., 0], atol=1e-5)
        assert not torch.allclose(made[..., 1], clip.latent[..., 1], atol=0.1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"mask": np.ones((32, 64))}, "mask without start"),
        ({"start": torch.zeros(9, 32, 64, 3)}, "nothing of it remains"),
        ({"start": torch.zeros(5, 32, 64, 3), "denoise_strength": 0.5}, "start of 5 frames for a clip of 9"),
        ({"start": torch.zeros(1, 128, 5, 5, 5), "denoise_strength": 0.5}, "latent of shape"),
        ({"denoise_strength": 0.5}, "without a clip to begin from"),
    ],
)
def test_a_start_that_cannot_be_is_refused(ltx: Components, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(LTXKitError, match=message):
        ltx.generate("fox", **SMALL, **keywords)


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_fields_of_a_recipe_are_keywords_too(ltx: Components) -> None:
    knobs: dict[str, Any] = {"steps": 3, "guidance_scale": 2, "condition_noise": 0.1, "decode_timestep": 0.02}
    sizes = {name: SMALL[name] for name in ("width", "height", "frames", "fps")}
    direct = ltx.generate("fox", **sizes, **knobs)
    assert ltx.generate("fox", **sizes, recipe=Recipe(**knobs)).settings == direct.settings
    assert ltx.generate("fox", **sizes, recipe=Recipe(steps=9).but(**knobs)).settings == direct.settings
    assert ltx.generate("fox", **sizes, recipe=Recipe(**knobs | {"steps": 9}), steps=3).settings == direct.settings
    assert (direct.settings["decode_timestep"], len(direct.settings["passes"][0]["sigmas"])) == (0.02, 4)
    json.dumps(direct.settings)


@pytest.mark.slow
def test_every_release_is_a_recipe(ltx: Components) -> None:
    recipes = ltxkit.presets()
    assert list(recipes) == list(RELEASES)
    distilled = recipes["2b-0.9.8-distilled"]
    assert distilled.official is RELEASES["2b-0.9.8-distilled"].recipe
    sizes = {name: SMALL[name] for name in ("width", "height", "frames", "fps")}
    made = ltx.generate("fox", **sizes, recipe=distilled)
    assert made.settings["release"] == "2b-0.9.8-distilled"
    assert len(made.settings["passes"][0]["sigmas"]) == 9
    assert ltx.generate("fox", **sizes, recipe="2b-0.9.8-distilled").settings == made.settings
    with pytest.raises(ConfigError, match=r"expected one of 2b-0.9.0"):
        ltx.generate("fox", recipe="2b-0.9.8")


def test_knobs_and_fields_have_the_same_names() -> None:
    from dataclasses import fields

    from ltxkit.ltx_core.pipelines.settings import Overrides, PassSettings

    names = {each.name for each in fields(Recipe)} - {"release"}
    assert names == set(Knobs.__annotations__)
    assert set(PASS) - {"timesteps"} == {each.name for each in fields(PassSettings)} - {"guidance", "unfinished"}
    assert names - {*PASS} == {each.name for each in fields(Overrides)} - {"first"}


def test_timesteps_are_thousandths() -> None:
    timesteps = [1000, 993, 987, 981, 975, 909, 725, 0.03]
    sigmas = Recipe(timesteps=timesteps).overrides().first.sigmas
    assert sigmas == pytest.approx([value / 1000 for value in timesteps])
    assert Recipe(timesteps=torch.tensor([1000.0, 500.0])).overrides().first.sigmas == (1.0, 0.5)
    for wrong in ([1.0, 0.5], [], "1000", [1000, "500"]):
        with pytest.raises(ConfigError, match="got timesteps"):
            Recipe(timesteps=wrong)
    with pytest.raises(ConfigError, match="timesteps and sigmas"):
        Recipe(timesteps=[1000], sigmas=[1])


def test_lists_say_the_guidance_of_each_step(ltx: Components) -> None:
    sizes = {name: SMALL[name] for name in ("width", "height", "frames", "fps")}

    def guidance(**knobs: Any) -> list[dict[str, Any]]:
        (entry,) = ltx.generate("fox", **sizes, **knobs).settings["passes"]
        return entry

    entry = guidance(steps=3, guidance_scale=[1, 4, 2], stg_scale=[0, 1, 1], stg_blocks=[[0], [1, 2], [3]])
    assert entry["guidance"]["scale"] == (1, 4, 2)
    assert entry["guidance"]["skip_blocks"] == ((0,), (1, 2), (3,))
    assert entry["guidance"]["guidance_timesteps"] == pytest.approx(entry["sigmas"][:-1])
    by_level = guidance(steps=3, guidance_scale=[1, 4], guidance_timesteps=[1.0, 0.9])
    assert by_level["guidance"]["guidance_timesteps"] == (1.0, 0.9)
    with pytest.raises(ConfigError, match="scale with 2 entries for 3 steps"):
        guidance(steps=3, guidance_scale=[1, 4])


@pytest.mark.slow
def test_the_size_of_the_first_pass_can_be_said(folder: Path) -> None:
    two = ltxkit.load(folder / CHECKPOINT, folder / T5, upscaler=folder / UPSCALER, device="cpu", notes=lambda _: None)
    settings: dict[str, Any] = {
        "frames": 1,
        "steps": 1,
        "guidance_scale": 1,
        "second": {"steps": 2, "denoise_strength": 0.5},
    }
    half = two.generate("fox", width=128, height=128, downscale_factor=0.5, **settings)
    assert half.latent.shape[-2:] == (4, 4)
    whole = two.generate("fox", width=128, height=128, downscale_factor=1, **settings)
    assert whole.latent.shape[-2:] == (8, 8)
    assert len(half.settings["passes"][1]["sigmas"]) == 2
    assert half.to_tensor().shape == whole.to_tensor().shape == (1, 128, 128, 3)


# --- notes, progress, cancelling --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_may_be_worthless_is_a_warning_at_the_users_line(ltx: Components) -> None:
    sizes = {name: SMALL[name] for name in ("width", "height", "frames", "fps")}
    with pytest.warns(UserWarning, match="distilled checkpoint") as caught:
        ltx.generate("fox", **sizes, recipe="2b-0.9.8-distilled", guidance_scale=3)
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.warns(UserWarning, match="negative prompt has no effect"):
        ltx.generate("fox", **SMALL, negative_prompt="blurry")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ltx.generate("fox", **SMALL)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_nobody_else(ltx: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, unseen, unwanted = Terminal(), io.StringIO(), Terminal()
    for stream, keywords in ((seen, {}), (unseen, {}), (unwanted, {"progress": False})):
        monkeypatch.setattr(sys, "stderr", stream)
        ltx.generate("fox", **SMALL, **keywords)
    monkeypatch.undo()
    assert "sample" in seen.getvalue()
    assert "2/2" in seen.getvalue()
    assert unseen.getvalue() == unwanted.getvalue() == ""
    with pytest.raises(ConfigError, match="expected a function"):
        ltx.generate("fox", **SMALL, progress="yes")


def test_another_thread_cancels(ltx: Components) -> None:
    started, errors = threading.Event(), list[BaseException]()

    def wait(event: ProgressEvent) -> None:
        if event.stage == "sample":
            started.set()
            cancelled.wait(60)

    def work() -> None:
        try:
            ltx.generate("fox", **SMALL | {"steps": 50}, progress=wait)
        except CancelledError as error:
            errors.append(error)

    cancelled = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    ltx.cancel()
    cancelled.set()
    thread.join(60)
    assert not thread.is_alive()
    assert "cancelled during 'sample'" in str(errors[0])
    assert ltx.generate("fox", **SMALL).latent.isfinite().all()  # what begins afterwards is not concerned


def test_decoding_is_cancelled_too(ltx: Components, clip: ltxkit.Clip) -> None:
    with pytest.raises(CancelledError):
        for _ in clip.frames(lambda event: ltx.cancel()):
            pass
    assert len(clip.to_pil()) == 9


# --- LoRAs and places -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_loras_go_on_and_off(ltx: Components, clip: ltxkit.Clip, tiny_lora: Path) -> None:
    try:
        ltx.loras = [ltxkit.LoRA(tiny_lora, 0.8)]
        assert repr(ltx.loras[0]) == f"LoRA({tiny_lora.name!r}, 0.8)"
        on = ltx.generate("fox", **SMALL)
        assert not torch.equal(on.latent, clip.latent)
        (applied,) = on.settings["loras"]
        assert (applied["file"], applied["strength"]) == (tiny_lora.name, 0.8)
        for mode in ("merged", "beside"):
            said: list[str] = []
            other = replace(ltx, lora_mode=mode).generate("fox", **{**SMALL, "notes": said.append})
            assert other.settings["lora_mode"] == mode
            assert any(f"LoRAs are {'merged into' if mode == 'merged' else 'added beside'}" in line for line in said)
            assert (other.latent - on.latent).norm() < 0.1 * on.latent.norm()  # bfloat16 through 28 layers
        ltx.loras = tiny_lora
        assert ltx.loras[0].strength == 1
        ltx.loras = [ltxkit.LoRA(tiny_lora, 0)]
        assert torch.equal(ltx.generate("fox", **SMALL).latent, clip.latent)
        for wrong in (3, [3], "no-such-file.safetensors"):
            with pytest.raises(LTXKitError):
                ltx.loras = wrong
    finally:
        ltx.loras = []
    assert torch.equal(ltx.generate("fox", **SMALL).latent, clip.latent)


@pytest.mark.slow
def test_one_argument_may_be_a_folder_or_a_release(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: ltxkit.Clip, released_t5: Path
) -> None:
    assert torch.equal(
        ltxkit.load(folder, device="cpu", notes=lambda _: None).generate("fox", **SMALL).latent, clip.latent
    )
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "model.safetensors").symlink_to(folder / CHECKPOINT)
    (flat / "t5xxl_fp16.safetensors").symlink_to(released_t5)
    assert ltxkit.load(flat, device="cpu", notes=lambda _: None).sources == {
        "model": "model.safetensors",
        "text_encoder": "t5xxl_fp16.safetensors",
    }
    (flat / "other.safetensors").symlink_to(folder / CHECKPOINT)
    with pytest.raises(ConfigError, match=r"several models: model\.safetensors, other\.safetensors"):
        ltxkit.load(flat)
    models = tmp_path / "models"
    for path, target in (
        ("checkpoints/ltxv-2b-0.9.8-distilled.safetensors", folder / CHECKPOINT),
        ("text_encoders/t5xxl_fp16.safetensors", released_t5),
    ):
        (models / path).parent.mkdir(parents=True)
        (models / path).symlink_to(target)
    monkeypatch.setenv("LTXKIT_MODELS", str(models))
    assert ltxkit.load("2b-0.9.8-distilled", device="cpu", notes=lambda _: None).info.path.name.startswith("ltxv-2b")
    with pytest.raises(ConfigError, match=r"run `ltxkit fetch 13b-0.9.8-dev`"):
        ltxkit.load("13b-0.9.8-dev")
    with pytest.raises(ConfigError, match=r"did you mean 13b-0\.9\.8-d"):
        ltxkit.load("13b-0.9.8")
    with pytest.raises(ConfigError, match="got no text encoder"):
        ltxkit.load(folder / CHECKPOINT, progress=lambda _: pytest.fail("it is loaded"))


def test_the_name_of_a_file_is_enough_where_fetch_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    for kind in ("checkpoints", "diffusion_models", "text_encoders"):
        (models / kind).mkdir(parents=True)
        (models / kind / "same.safetensors").touch()
    for kind, name in (("checkpoints", "a"), ("diffusion_models", "b"), ("text_encoders", "t"), ("loras", "l")):
        (models / kind).mkdir(exist_ok=True)
        (models / kind / f"{name}.safetensors").touch()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("LTXKIT_MODELS", str(models))
    for name, kind, folder in (
        ("a", "checkpoints", "checkpoints"),
        ("b", "checkpoints", "diffusion_models"),  # a transformer alone
        ("t", "text_encoders", "text_encoders"),
        ("same", "checkpoints", "checkpoints"),
        ("same", "text_encoders", "text_encoders"),
    ):
        assert find_file(f"{name}.safetensors", kind) == models / folder / f"{name}.safetensors"
    for name, kind in (
        ("l.safetensors", "checkpoints"),
        ("t.safetensors", "checkpoints"),
        ("sub/a.safetensors", "checkpoints"),
    ):
        assert find_file(name, kind) == Path(name)  # no such file: the loaders say so
    (here / "a.safetensors").touch()
    assert find_file("a.safetensors", "checkpoints") == Path("a.safetensors"), "what lies here comes first"
    assert main(["plan", "b.safetensors"]) == 2
    assert str(models / "diffusion_models" / "b.safetensors") in capsys.readouterr().err


def test_the_bundled_model_needs_one_name_and_no_size() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ltx = ltxkit.load("ltxkit-digits", device="cpu")
    assert (ltx.recipe.width, ltx.recipe.height, ltx.recipe.num_frames) == (64, 64, 25)
    assert ltx.sources == {"model": "model.safetensors", "text_encoder": "text_encoder"}


def test_a_plan_reads_like_the_commands(folder: Path) -> None:
    plan = ltxkit.plan(folder, width=64, height=32, frames=9, device="cpu")
    assert plan.size.frames == 9
    assert str(plan).startswith("64x32, 9 frames")

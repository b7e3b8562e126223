"""Every number and name that the library takes: what it cannot be is refused by name, before a model is opened."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltxkit.ltx_core.budget.plan import Card
from ltxkit.ltx_core.budget.tiling import Tiling
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, LTXKitError, ShapeError, UnsupportedError
from ltxkit.ltx_core.pipelines import dry_run
from ltxkit.ltx_core.pipelines.condition import Condition, Reference
from ltxkit.ltx_core.pipelines.dry_run import Choices
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.long_video import LongSettings
from ltxkit.ltx_core.pipelines.presets import Recipe
from ltxkit.ltx_core.pipelines.settings import Decoding, Overrides, PassSettings
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, first_pass_size, upscale_latent
from ltxkit.ltx_core.placing.devices import Memory, chosen_device, clear_of_memory
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.sampling.filters import adain
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.samplers import SamplerSettings
from ltxkit.ltx_core.shapes import PixelShape, ScaleFactors
from ltxkit.ltx_core.training.generate import ClipSettings
from ltxkit.ltx_core.values import check_number, check_seed, check_whole
from ltxkit.ltx_core.weights.build import load_upsampler, load_vae
from ltxkit.ltx_core.weights.lora import WeightedLoRA

NO_NUMBER = (math.nan, math.inf, -math.inf, "3", True, [], 10**400, -(10**400), 1j)
SIZE = PixelShape(9, 64, 64)
PICTURE = torch.rand(1, 8, 8, 3)

# Every value of settings with the numbers in it, by name.
VALUES: tuple[tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]], ...] = (
    (
        PassSettings,
        {},
        ("steps", "skip_initial_steps", "skip_final_steps", "denoise_strength", "guidance_scale", "guidance_rescale",
         "stg_scale", "stg_rescale"),
    ),
    (
        Overrides,
        {},
        ("condition_noise", "adain", "downscale_factor", "decode_timestep", "decode_noise_scale", "tone_map"),
    ),
    (Decoding, {"timestep": 0.05, "noise_scale": 0.025}, ("timestep", "noise_scale", "tone_map")),
    (Guidance, {}, ("guidance_rescale",)),
    (SamplerSettings, {}, ("condition_noise",)),
    (Condition, {"frames": PICTURE}, ("frame", "strength", "crf", "limit")),
    (Reference, {"frames": PICTURE}, ("strength", "fps")),
    (WeightedLoRA, {"lora": None, "strength": 1}, ("strength",)),
    (
        LongSettings,
        {"size": SIZE, "fps": 24, "seed": 0, "window_frames": 9, "overlap_frames": 1},
        ("fps", "seed", "window_frames", "overlap_frames", "strength", "adain_factor"),
    ),
    (ClipSettings, {"size": SIZE, "fps": 24}, ("fps", "seed", "batch_size")),
    (Upscaling, {"upsampler": None, "vae": None}, ("adain_factor",)),
    (Tiling, {}, ("frames", "height", "width", "halo")),
    (Choices, {}, ("branches", "processes", "resident", "text_tokens")),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "names"), VALUES, ids=lambda value: getattr(value, "__name__", ""))
def test_settings_refuse_what_is_no_finite_number(kind: Any, values: dict[str, Any], names: tuple[str, ...]):
    kind(**values)
    numeric = {each.name for each in fields(kind) if str(each.type).split(" |")[0] in ("int", "float", "Each")}
    assert numeric == set(names)  # a new number is checked here too
    for name in names:
        for value in (*NO_NUMBER, -1e9):
            with pytest.raises(ConfigError, match=r"^got .*; expected .*; ") as caught:
                kind(**{**values, name: value})
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["scale", "stg_scale", "rescaling_scale", "guidance_timesteps"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e6, "1"])
def test_lists_of_guidance_refuse_it_too(name: str, value: Any):
    with pytest.raises(ConfigError, match="; expected"):
        Guidance(**{name: (value,)})
    own = {"scale": "guidance_scale", "rescaling_scale": "stg_rescale"}.get(name, name)
    with pytest.raises(ConfigError, match="; expected"):
        PassSettings(**{own: (1.0, value)})
    with pytest.raises(ConfigError, match="; expected"):
        PassSettings(sigmas=(1.0, value) if value != -1.0 else (value,))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Condition, {"frames": PICTURE, "resize": "contain"}),
        (Condition, {"frames": PICTURE, "resize": None}),
        (Condition, {"frames": "a.png"}),
        (Reference, {"frames": PICTURE, "resize": ["crop"]}),
        (Guidance, {"stg_mode": "layer"}),
        (Guidance, {"skip_blocks": ((-1,),)}),
        (Guidance, {"skip_blocks": ((1.5,),)}),
        (SamplerSettings, {"name": "euler_a"}),
        (SamplerSettings, {"levels": "mine"}),
        (Overrides, {"sampler": "fast"}),
        (Overrides, {"sampler": ""}),
        (Overrides, {"levels": "mine"}),
        (Overrides, {"first": {"steps": 3}}),
        (PassSettings, {"stg_mode": "layer"}),
        (PassSettings, {"guidance": 3.0}),
        (PassSettings, {"sigmas": ()}),
        (Card.of_size, {"total": 0}),
        (Card.of_size, {"total": math.nan}),
        (PixelShape.asked, {"frames": 9, "height": 64, "width": 20000}),
        (PixelShape, {"frames": 9.0, "height": 64, "width": 64}),
        (PixelShape, {"frames": math.nan, "height": 64, "width": 64}),
        (PixelShape, {"frames": True, "height": 64, "width": 64}),
    ],
)
def test_unknown_choices_are_refused(kind: Any, values: dict[str, Any]):
    with pytest.raises(LTXKitError, match=r"^got .*; expected .*; "):
        kind(**values)


def test_numbers_of_numpy_are_numbers():
    check_number("a", np.float32(0.5), 0, 1, advice="")
    check_whole("a", np.int64(3), 1, advice="")
    check_seed(np.uint64(2**64 - 1))
    assert PixelShape(np.int64(9), 64, 64) == SIZE


# ------------------------------------------------------------------------------------------------------------- library


@pytest.mark.parametrize(
    "change",
    [
        *({"device": name} for name in ("nope", "cuda:77", "meta", "", "cuda:0,cuda:1", ["cpu", "nope"], [], 5)),
        *({"dtype": value} for value in (torch.int8, torch.float8_e4m3fn, "bf16", "float16", 16)),
        *({"resident_blocks": value} for value in (-5, 1.5, math.nan, "2")),
        *({"tile": value} for value in (0, -1, 2.5, math.inf)),
        {"quantization": "int4"},
        {"text_quantization": "int4"},
        {"version": "3b"},
        {"settings": "3b"},
        *({"kernels": value} for value in (5, [], "fast", b"plain")),
        *({"cache": value} for value in (5, "off")),
    ],
    ids=str,
)
def test_loading_refuses_it_before_a_file_is_opened(change: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"^got .*; expected") as caught:
        Components.load("nowhere.safetensors", "nowhere", **change)
    assert "nowhere" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 5000, "/x" * 5000, 5, None, b"x", ["x"]])
@pytest.mark.parametrize("which", ["model", "text_encoder"])
def test_a_name_that_no_file_can_have_is_refused(name: Any, which: str):
    if name is None and which == "text_encoder":
        return  # not given
    given = {"model": "nowhere.safetensors", "text_encoder": "nowhere"} | {which: name}
    with pytest.raises(ConfigError, match=rf"^got (an empty {which}|{which}=.*); expected"):
        Components.load(**given, device="cpu")


def test_a_model_that_is_not_there_is_missed_before_its_text_encoder():
    with pytest.raises(CheckpointError, match=r"^got 'nowhere.safetensors'; expected a file or a folder that exists"):
        Components.load("nowhere.safetensors", device="cpu")


@pytest.fixture(scope="module")
def ltx(tiny_models: Callable[..., Path]) -> Components:
    folder = tiny_models()
    return Components.load(
        folder / "checkpoints/ltxv-tiny.safetensors",
        folder / "text_encoders/t5-tiny",
        device="cpu",
        notes=lambda _: None,
    )


REQUEST = {"prompt": "a fox", "width": 64, "height": 64, "frames": 9, "steps": 1}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (math.nan, math.inf, 0, -64, 64.5, "64", 10**400, True)) for name in ("width", "height", "frames")),
        ("fps", (math.nan, math.inf, 0, -24, "24", 1e300, 1e-9)),
        ("seed", (-1, 2**64, 1.0, math.nan, "1", [1.5], [])),
        ("crf", (-1, 64, math.nan, 29.5, None)),
        ("steps", (0, -1, 2.5, math.nan, 10**6)),
        ("guidance_scale", (-1, math.nan, math.inf, 1e9, "3")),
        ("prompt", (None, 5, [5], [])),
        ("negative_prompt", (5, [5])),
        ("conditions", (["a.png"], [5], 5, "a.png", "x" * 5000, "a\0.png", "\ud800.png", "")),
        ("settings", (None, {"sampler": "euler"})),
    ],
)
def test_generating_refuses_it_before_anything_runs(
    ltx: Components, monkeypatch: pytest.MonkeyPatch, name: str, values: tuple[Any, ...]
):
    monkeypatch.setattr("ltxkit.ltx_core.pipelines.library.encode_prompts", lambda *_, **__: pytest.fail("it ran"))
    for value in values:
        with pytest.raises(LTXKitError, match=r"^got .*; expected .*; "):
            ltx.generate(**{**REQUEST, name: value})


def test_a_clip_is_not_decoded_for_a_name_that_cannot_be_written(ltx: Components, tmp_path: Path):
    clip = ltx.generate(**REQUEST, guidance_scale=1)
    object.__setattr__(clip, "decoder", lambda *_: pytest.fail("it was decoded"))
    (tmp_path / "taken").touch()
    for path, sheet in (
        (tmp_path / "taken/a.mp4", None),
        (tmp_path / "a.avi", None),
        (tmp_path, None),
        ("", None),
        ("a\0.mp4", None),
        (f"{tmp_path}/a.mp4/", None),
        (tmp_path / "a.mp4", tmp_path / "sheet.xyz"),
        (tmp_path / "a.mp4", tmp_path / "taken/sheet.png"),
    ):
        with pytest.raises(ConfigError, match="got the output"):
            clip.save(path, contact_sheet=sheet)
    with pytest.raises(ConfigError, match="got the output"):
        clip.save_latent(tmp_path / "taken/a.latent")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_device_is_tried(monkeypatch: pytest.MonkeyPatch):
    assert chosen_device("cpu") == chosen_device(torch.device("cpu")) == torch.device("cpu")
    assert chosen_device(None).type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ConfigError) as caught:
        chosen_device("vulkan")
    assert len(str(caught.value)) < 400  # torch lists all of its backends


# -------------------------------------------------------------------------------------------------------------- memory


def test_a_clip_beyond_the_memory_is_refused_in_words(ltx: Components, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        UnsupportedError, match=r"takes .* GB; expected at most the .* GB of main memory; make the clip"
    ):
        ltx.generate("a fox", width=16384, height=16384, frames=1001)
    # What fits into all the memory is left to the run, whatever is free now.
    monkeypatch.setattr(dry_run, "memory", lambda device: Memory(0, 2**50))
    assert ltx.generate(**REQUEST, guidance_scale=1).latent.shape[2:] == (2, 2, 2)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Storage size calculation overflowed with sizes=[1, 2]"),
    ],
)
def test_an_allocators_error_becomes_a_sentence(error: Exception):
    message = r"got too little memory for this clip .*; expected enough"
    with pytest.raises(UnsupportedError, match=message) as caught, clear_of_memory("this clip"):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), clear_of_memory("this clip"):
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError) as caught, clear_of_memory("this clip"):
        torch.empty(2**62)
    assert isinstance(caught.value, UnsupportedError)


# ------------------------------------------------------------------------------------------------------ smallest clips


@pytest.mark.parametrize("scale", [ScaleFactors(8, 32, 32), ScaleFactors(4, 16, 16), ScaleFactors(4, 8, 8)])
def test_two_passes_name_the_smallest_size_that_they_take(scale: ScaleFactors):
    least = next(side for side in range(1, 99) if int(side * 0.6666666) >= scale.width)
    assert first_pass_size(PixelShape(1, least, least), scale) == PixelShape(1, scale.height, scale.width)
    with pytest.raises(ShapeError, match=f"expected sides of at least {least}x{least}"):
        first_pass_size(PixelShape(1, least - 1, least + 32), scale)


def test_statistics_of_one_cell_move_the_mean_alone():
    one, many = torch.randn(2, 4, 1, 1, 1), torch.randn(2, 4, 2, 3, 3) * 3 + 1
    torch.testing.assert_close(adain(one, many), many.mean(dim=(2, 3, 4), keepdim=True))
    moved = adain(many, one, 0.5)
    expected = many + 0.5 * (one - many.mean(dim=(2, 3, 4), keepdim=True))
    torch.testing.assert_close(moved, expected)
    even = torch.full((2, 4, 1, 2, 2), 0.5)
    torch.testing.assert_close(adain(even, many), many.mean(dim=(2, 3, 4), keepdim=True).expand(2, 4, 1, 2, 2))
    assert bool(adain(even, even).isfinite().all())


def test_one_cell_is_too_little_for_an_upscaler_with_a_channel_in_each_group(tiny_models: Callable[..., Path]):
    folder = tiny_models()
    upscaler = load_upsampler(folder / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors")
    upscaling = Upscaling(upscaler, load_vae(folder / "checkpoints/ltxv-tiny.safetensors"), 1.0)
    channels, host = upscaler.config.in_channels, host_on(DevicePlacement("cpu"))
    with pytest.raises(ShapeError, match="got a latent of one cell for an upscaler"):
        upscale_latent(upscaling, torch.randn(1, channels, 1, 1, 1), host=host)
    large = upscale_latent(upscaling, torch.randn(1, channels, 1, 1, 2), host=host)
    assert large.shape[2:] == (1, 2, 4)
    assert bool(large.isfinite().all())


HOSTILE: tuple[Any, ...] = (
    *(0, -1, 0.5, True, "x", "", b"x", None, math.nan, math.inf, 2**70, 10**400, 1j, object()),
    *([], [[]], [[[]]], [None], ["a"], [{}], [1, [2]], [[1], 2], [[1, 2], [3]], [math.nan], [10**400], ["euler"]),
    *({}, {"a": 1}, {1: 2}, {"steps": {}}, {"sigmas": 5}, {"timesteps": 5}, {"stg_blocks": 5}),
    *(set(), range(3), np.zeros(3), np.zeros(0), torch.zeros(2), torch.zeros(())),
)


@pytest.mark.parametrize("name", [each.name for each in fields(Recipe)])
def test_a_field_of_a_recipe_takes_a_value_or_refuses_it(name: str):
    """Numbers for lists and lists for numbers too: a request to `ltxkit serve` may have any value of JSON."""
    beside = {} if name == "guidance_timesteps" else {"guidance_timesteps": [1, 0.5]}
    said: list[str] = []
    for value in HOSTILE:
        for values in ({name: value}, {name: value, **beside}, {"second": {name: value}}):
            try:
                Recipe(**values)
            except LTXKitError as error:
                said.append(str(error))
    assert [text for text in said if "got " not in text or "expected " not in text] == []
    assert said

"""The library as users first see it: the example in the README, arbitrary sizes, one seed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, ShapeError
from ltxkit.ltx_core.pipelines import clip
from ltxkit.ltx_core.pipelines.condition import Condition
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

CHECKPOINT = "checkpoints/ltxv-tiny.safetensors"
UPSCALER = "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"
T5 = "text_encoders/t5-tiny"
SMALL = {"width": 64, "height": 32, "frames": 9, "fps": 8, "steps": 2}


@pytest.fixture(scope="module")
def folder(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models()


@pytest.fixture(scope="module")
def ltx(folder: Path) -> Components:
    return Components.load(folder / CHECKPOINT, folder / T5, device="cpu")


@pytest.fixture(scope="module")
def two_pass(folder: Path) -> Components:
    return Components.load(folder / CHECKPOINT, folder / T5, upscaler=folder / UPSCALER, device="cpu")


def picture(repository: Path) -> torch.Tensor:
    return media.read_image(repository / "assets" / "examples" / "temple.jpg")


def frames_of(clip) -> torch.Tensor:
    return torch.cat(list(clip.frames()))


@pytest.mark.slow
def test_the_three_lines_of_the_readme(
    folder: Path, released_t5: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run verbatim, but with tiny files under the names of the two real files and with a smaller clip."""
    blocks = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if ".load(" in block and ".generate(" in block)
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    Path("ltxv-2b-0.9.8-distilled.safetensors").symlink_to(folder / CHECKPOINT)
    Path("t5xxl_fp16.safetensors").symlink_to(released_t5)
    small = code.replace("768", "96").replace("512", "64").replace("121", "9")
    assert small != code
    exec(small, {})  # noqa: S102

    back = media.read_video(tmp_path / "lighthouse.mp4")
    assert back.fps == 24
    assert back.frames.shape == (9, 64, 96, 3)
    stored = media.read_metadata(tmp_path / "lighthouse.mp4")["ltxkit"]
    assert stored["prompt"] == "A lighthouse in a storm"
    assert stored["model"] == "ltxv-2b-0.9.8-distilled.safetensors"
    assert stored["seed"] == 1


@pytest.mark.parametrize("size", [(64, 64, 9), (70, 100, 12), (33, 32, 1), (32, 31, 2)])
def test_any_size_comes_out_as_asked(ltx: Components, size: tuple[int, int, int]) -> None:
    width, height, frames = size
    said: list[str] = []
    clip = ltx.generate("fox", width=width, height=height, frames=frames, steps=1, notes=said.append)
    decoded = frames_of(clip)
    assert decoded.shape == (frames, height, width, 3)
    assert (decoded.min() >= 0) & (decoded.max() <= 1)
    assert clip.fps == ltx.recipe.frame_rate
    assert any("cropped to your size" in note for note in said) == (size != (64, 64, 9))


@pytest.mark.slow
def test_two_passes_come_out_as_asked(two_pass: Components, repository: Path) -> None:
    events: list[ProgressEvent] = []
    clip = two_pass.generate(
        "fox",
        width=150,
        height=100,
        frames=10,
        steps=2,
        conditions=[Condition(picture(repository))],
        progress=events.append,
    )
    assert clip.latent.shape[2:] == (3, 4, 6)  # 96x64, doubled
    assert frames_of(clip).shape == (10, 100, 150, 3)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["encode text", "encode", "sample", "upscale", "refine"]
    assert len(clip.settings["passes"]) == 2


def test_one_seed_is_one_clip(ltx: Components) -> None:
    clips = [ltx.generate("fox", **SMALL, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(clips[0].latent, clips[1].latent)
    assert torch.equal(frames_of(clips[0]), frames_of(clips[1]))
    assert torch.equal(frames_of(clips[0]), frames_of(clips[0]))
    assert not torch.allclose(clips[0].latent, clips[2].latent, atol=0.1)


def test_prompt_and_condition_matter(ltx: Components, repository: Path) -> None:
    base = ltx.generate("fox", **SMALL).latent
    assert not torch.equal(ltx.generate("a house by the sea", **SMALL).latent, base)
    shown = ltx.generate("fox", **SMALL, conditions=[Condition(picture(repository))], crf=0).latent
    assert not torch.equal(shown, base)
    # A hard condition at frame 0 is the latent of the picture itself, whatever the seed.
    posterior_noise = ltx.generate("fox", **SMALL, seed=9, conditions=[Condition(picture(repository))], crf=0).latent
    assert (shown[:, :, 0] - posterior_noise[:, :, 0]).abs().mean() < (shown - posterior_noise)[
        :, :, 1
    ].abs().mean() / 3


def test_condition_is_compressed_unless_told_not_to(ltx: Components, repository: Path) -> None:
    latents = [
        ltx.generate("fox", **SMALL, conditions=[Condition(picture(repository))], crf=crf).latent[:, :, 0]
        for crf in (0, 29, 50)
    ]
    differences = [float((latent - latents[0]).abs().mean()) for latent in latents]
    assert 0 < differences[1] < differences[2]


def test_saved_latent_reads_as_comfyui_reads_it(ltx: Components, tmp_path: Path) -> None:
    clip = ltx.generate("fox", **SMALL)
    clip.save_latent(tmp_path / "clip.latent")
    stored = load_file(tmp_path / "clip.latent")
    assert torch.equal(stored["latent_tensor"], clip.latent)
    assert "latent_format_version_0" in stored  # without this, ComfyUI divides by 0.18215
    with safe_open(tmp_path / "clip.latent", "pt") as file:
        assert json.loads(file.metadata()["ltxkit"])["prompt"] == "fox"


def test_a_clip_is_saved_with_a_sound_or_with_that_of_a_video(ltx: Components, tmp_path: Path) -> None:
    clip = ltx.generate("fox", **SMALL)
    seconds = clip.size.frames / clip.fps
    tone = media.Sound((torch.arange(20000) * 0.3).sin()[None].mul(2**15).round() / 2**16, 8000)
    clip.save(tmp_path / "a.mp4", sound=tone, codec="+flac")
    first = media.read_sound(tmp_path / "a.mp4")
    assert first is not None
    assert torch.equal(first.waveform, tone.lasting(seconds).waveform)
    clip.save(tmp_path / "b.mp4", sound=tmp_path / "a.mp4", codec="+flac")
    second = media.read_sound(tmp_path / "b.mp4")
    assert second is not None
    assert torch.equal(second.waveform, first.waveform)
    clip.save(tmp_path / "c.mp4")
    assert media.read_sound(tmp_path / "c.mp4") is None


def test_a_sound_that_cannot_be_is_refused_before_decoding(ltx: Components, tmp_path: Path) -> None:
    clip = replace(ltx.generate("fox", **SMALL), decoder=lambda *_: pytest.fail("decoded"))
    for wrong, message in (
        ({"sound": tmp_path / "no.mp4"}, r"no\.mp4"),
        ({"sound": torch.zeros(1, 8)}, "expected Sound"),
        ({"codec": "+mp3"}, "got sound_codec"),
    ):
        with pytest.raises(ConfigError, match=message):
            clip.save(tmp_path / "a.mp4", **wrong)


def test_contact_sheet_holds_frames_of_the_whole_clip(ltx: Components, tmp_path: Path) -> None:
    clip = ltx.generate("fox", width=64, height=32, frames=17, steps=1)
    clip.save(tmp_path / "a.mp4", contact_sheet=tmp_path / "a.png")
    sheet = media.read_image(tmp_path / "a.png")
    frames = frames_of(clip)
    expected = media.contact_sheet(frames[[0, 2, 5, 7, 9, 11, 14, 16]])
    assert (sheet - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_steps_and_guidance_replace_the_recipe(ltx: Components) -> None:
    clip = ltx.generate("fox", **SMALL | {"steps": 3}, guidance_scale=1.0)
    (entry,) = clip.settings["passes"]
    assert len(entry["sigmas"]) == 4
    assert entry["guidance"]["scale"] == (1.0,)
    assert clip.settings["negative_prompt"] is None
    guided = ltx.generate("fox", **SMALL, guidance_scale=4.0)
    assert guided.settings["negative_prompt"] == ltx.recipe.negative_prompt


def test_a_negative_prompt_without_guidance_is_remarked(ltx: Components) -> None:
    said: list[str] = []
    ltx.generate("fox", **SMALL, guidance_scale=1.0, negative_prompt="blurry", notes=said.append)
    assert any("negative prompt has no effect" in note for note in said)


@pytest.mark.slow
def test_guidance_on_a_distilled_checkpoint_is_remarked(folder: Path) -> None:
    ltx = Components.load(folder / CHECKPOINT, folder / T5, version="2b-0.9.8-distilled", device="cpu")
    said: list[str] = []
    ltx.generate("fox", **SMALL, notes=said.append)
    assert said == []
    ltx.generate("fox", **SMALL, guidance_scale=3.0, notes=said.append)
    assert any("distilled" in note for note in said)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"width": 0}, ShapeError, "positive width, height and length"),
        ({"frames": 0}, ShapeError, "positive width, height and length"),
        ({"fps": float("nan")}, ConfigError, "positive rate"),
        ({"fps": float("inf")}, ConfigError, "positive rate"),
        ({"fps": 0}, ConfigError, "positive rate"),
        ({"fps": -Fraction(24)}, ConfigError, "positive rate"),
        ({"steps": 0}, ConfigError, "got steps=0; expected a whole number from 1"),
        ({"crf": 64, "conditions": [Condition(torch.rand(1, 8, 8, 3))]}, ConfigError, "got crf=64"),
        ({"conditions": [Condition(torch.rand(0, 8, 8, 3))]}, ShapeError, "not empty"),
        ({"conditions": [Condition(torch.rand(1, 8, 8, 3), frame=9)]}, ConfigError, "frame 9"),
        (
            {"frames": 10, "conditions": [Condition(torch.rand(1, 8, 8, 3), frame=10)]},
            ConfigError,
            "-10 to 9 for a clip",
        ),
    ],
)
def test_settings_that_cannot_work(
    ltx: Components, change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ltx.generate("fox", **SMALL | change)


@pytest.mark.slow
def test_parts_that_do_not_belong_together(tiny_models: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    other = tiny_models(compression="16x4")
    with pytest.raises(ConfigError, match="got a VAE with 16 latent channels; expected 128"):
        Components.load(folder / CHECKPOINT, folder / T5, vae=other / CHECKPOINT)
    with pytest.raises(ConfigError, match="got an upscaler for 16 latent channels"):
        Components.load(folder / CHECKPOINT, folder / T5, upscaler=other / UPSCALER)

    import transformers

    encoder = load_text_encoder(folder / T5)
    config = transformers.T5Config(
        vocab_size=encoder.config.vocab_size, d_model=48, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = "gated-gelu", True, "gelu_new"
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="got a text encoder of width 48; expected 32"):
        Components.load(folder / CHECKPOINT, tmp_path, tokenizer=folder / T5)


def test_files_in_the_wrong_place_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a T5 text encoder; expected an LTX-Video transformer"):
        Components.load(folder / T5, folder / T5)
    with pytest.raises(CheckpointError, match=r"expected a T5 v1\.1 text encoder"):
        Components.load(folder / CHECKPOINT, folder / UPSCALER)
    with pytest.raises(CheckpointError, match="expected an LTX-Video latent upscaler"):
        Components.load(folder / CHECKPOINT, folder / T5, upscaler=folder / CHECKPOINT)
    with pytest.raises(CheckpointError, match="expected an LTX-Video VAE"):
        Components.load(folder / CHECKPOINT, folder / T5, vae=folder / UPSCALER)


class Stop(BaseException):
    """The exception with which a host stops a run."""


@pytest.mark.parametrize("stage", ["load transformer", "load vae"])
def test_an_interrupted_load_can_be_repeated(folder: Path, stage: str) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.stage == stage:
            raise Stop

    with pytest.raises(Stop):
        Components.load(folder / CHECKPOINT, folder / T5, progress=stop)
    Components.load(folder / CHECKPOINT, folder / T5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["encode text", "sample", "upscale", "refine"])
def test_an_interrupted_run_leaves_everything_as_it_was(two_pass: Components, stage: str) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.stage == stage and event.step:
            raise Stop

    size = SMALL | {"width": 96, "height": 64}
    expected = two_pass.generate("fox", **size).latent
    with pytest.raises(Stop):
        two_pass.generate("fox", **size, progress=stop)
    assert torch.equal(two_pass.generate("fox", **size).latent, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames/%02d.png", "a.mov", "frames/%02d.exr"])
def test_frames_for_a_file_of_eight_bits_are_decoded_to_bytes(
    ltx: Components, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is that of float32 frames, byte by byte; what has more bits gets floats."""
    made = ltx.generate("fox", width=32, height=32, frames=9, fps=8, steps=1)
    exact = made.to_tensor()
    replace(made, decoder=lambda *_: iter([exact])).save(tmp_path / "exact" / name)
    asked = []
    decode = clip.decode_frames
    monkeypatch.setattr(
        clip, "decode_frames", lambda *given, **how: asked.append(how["dtype"]) or decode(*given, **how)
    )
    made.save(tmp_path / "bytes" / name)
    assert asked == [torch.float32 if name.endswith((".mov", ".exr")) else torch.uint8]
    files = [sorted(path for path in (tmp_path / kind).rglob("*") if path.is_file()) for kind in ("exact", "bytes")]
    assert files[0]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


@pytest.mark.slow
def test_bytes_of_a_clip_are_its_rounded_frames(ltx: Components, two_pass: Components) -> None:
    for components in (ltx, two_pass):  # with two passes, frames are resized after decoding
        made = components.generate("fox", width=64, height=64, frames=9, fps=8, steps=1)
        assert torch.equal(torch.from_numpy(made.to_numpy()), (made.to_tensor() * 255).round().byte())

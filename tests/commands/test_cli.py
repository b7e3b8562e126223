"""The command line: its results, its messages, and the files that an interrupted command leaves."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit import cli
from ltxkit.commands.arguments import frame_rate
from ltxkit.commands.console import Console
from ltxkit.commands.settings import overrides
from ltxkit.ltx_core import media
from ltxkit.ltx_core.config import SAMPLER_NAMES
from ltxkit.ltx_core.pipelines.library import Clip, Components
from ltxkit.ltx_core.pipelines.settings import NO_OVERRIDES, Overrides, PassSettings
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.sampling.samplers import SAMPLERS


@pytest.fixture(scope="module")
def files(tiny_models: Callable[..., Path]) -> dict[str, str]:
    folder = tiny_models()
    return {
        "--model": str(folder / "checkpoints/ltxv-tiny.safetensors"),
        "--text-encoder": str(folder / "text_encoders/t5-tiny"),
        "--upscaler": str(folder / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"),
    }


def arguments(files: dict[str, str], output: Path, **changes: object) -> list[str]:
    """A small `generate`; changes: values by option name, where None omits the option."""
    options: dict[str, object] = {name: path for name, path in files.items() if name != "--upscaler"}
    options |= {"--prompt": "a fox in the snow", "--size": "64x32", "--frames": 9, "--fps": 8, "--steps": 2}
    options |= {"--device": "cpu", "-o": output}
    options |= {"-o" if name == "o" else f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [
        "generate",
        "--overwrite",
        *(str(part) for name, value in options.items() if value is not None for part in (name, value)),
    ]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        status = cli.main(arguments)
    except SystemExit as exit:  # argparse
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# ----------------------------------------------------------------------------------------------------------- generate


@pytest.mark.slow
def test_generate_from_a_picture_in_two_passes(
    files: dict[str, str], tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, latent, sheet = tmp_path / "out" / "fox.mp4", tmp_path / "fox.latent", tmp_path / "fox.png"
    status, out, err = run(
        arguments(
            files,
            output,
            upscaler=files["--upscaler"],
            image=repository / "assets" / "examples" / "temple.jpg",
            size="150x100",
            frames=10,
            fps="24000/1001",
            seed=5,
            save_latent=latent,
            contact_sheet=sheet,
        ),
        capsys,
    )
    assert status == 0, err
    assert out.split() == [str(latent), str(sheet), str(output)]
    clip = media.read_video(output)
    assert clip.frames.shape == (10, 100, 150, 3)
    assert (clip.fps.numerator, clip.fps.denominator) == (24000, 1001)
    assert load_file(latent)["latent_tensor"].shape[2:] == (3, 4, 6)
    assert media.read_image(sheet).shape[0] == 1
    settings = media.read_metadata(output)["ltxkit"]
    assert (settings["seed"], settings["prompt"], len(settings["passes"])) == (5, "a fox in the snow", 2)
    for stage in ("load transformer", "load text encoder", "encode text", "sample", "upscale", "refine", "decode"):
        assert f"{stage}: 100%" in err
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["fox.latent", "fox.mp4", "fox.png"]


@pytest.mark.slow
def test_the_command_of_the_readme_needs_the_two_files_that_it_names(
    files: dict[str, str],
    released_t5: Path,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As written, with tiny files under the names of the real ones and a smaller clip."""
    blocks = re.findall(r"```\n(ltxkit generate .*?)```", (repository / "README.md").read_text(), re.DOTALL)
    (command,) = (block for block in blocks if "t5xxl_fp16.safetensors" in block)
    monkeypatch.chdir(tmp_path)
    Path("ltxv-2b-0.9.8-distilled.safetensors").symlink_to(files["--model"])
    Path("t5xxl_fp16.safetensors").symlink_to(released_t5)
    small = command.replace("\\\n", " ").replace("768x512", "96x64").replace("--frames 121", "--frames 9")
    status, out, err = run(shlex.split(small)[1:], capsys)
    assert status == 0, err
    assert media.read_video(tmp_path / out.strip()).frames.shape == (9, 64, 96, 3)


@pytest.mark.slow
def test_generate_says_what_of_a_prompt_is_not_read(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An argument that is no UTF-8 reaches Python with lone surrogates; the clip's metadata has them too."""
    prompt = "a fox \udcff 一只猫"
    status, out, err = run(arguments(files, tmp_path / "out.mp4", steps=1, prompt=prompt), capsys)
    assert status == 0, err
    assert 'ltxkit: The text encoder does not know these characters of the prompt: 一 只 猫 (in "一只猫")' in err
    assert "ltxkit: The prompt has characters that are no text and were left out: U+DCFF" in err
    assert media.read_metadata(Path(out.strip()))["ltxkit"]["prompt"] == prompt


@pytest.mark.slow
def test_generate_with_everything_that_changes_the_model(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRAs, quantization, the recipe of another release, and a reference, which sets the clip's frame rate."""
    torch.manual_seed(0)
    stem = "diffusion_model.transformer_blocks.3.attn1.to_v"
    pair = {f"{stem}.lora_A.weight": torch.randn(4, 64), f"{stem}.lora_B.weight": torch.randn(64, 4)}
    save_file(pair, tmp_path / "one=fits.safetensors")
    missing = {key.replace("blocks.3", "blocks.90"): tensor.clone() for key, tensor in pair.items()}
    save_file(pair | missing, tmp_path / "deeper.safetensors")
    (tmp_path / "trainer").mkdir()
    lokr = {f"base_model.model.{stem[16:]}.lokr_w{n}": torch.randn(side, side) for n, side in ((1, 4), (2, 16))}
    save_file(lokr, tmp_path / "trainer/adapter_model.safetensors")
    (tmp_path / "trainer/adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 16, "alpha": 8}))
    media.write_video(tmp_path / "depth.mp4", [torch.rand(12, 32, 64, 3)], fps=Fraction(12))
    output = tmp_path / "out.mp4"
    changes: dict[str, object] = {"quantization": "fp8", "text_quantization": "int8", "fps": None, "steps": None}
    changes |= {"settings": "2b-0.9.8-distilled", "reference": tmp_path / "depth.mp4", "version": "2b-0.9.5"}
    loras = ["--lora", str(tmp_path / "one=fits.safetensors"), "--lora", f"{tmp_path / 'deeper.safetensors'}=-0.5"]
    loras += ["--lora", str(tmp_path / "trainer")]
    status, _, err = run([*arguments(files, output, **changes), *loras, "--allow-partial", "--fp8-matmul"], capsys)
    assert status == 0, err
    assert "one=fits.safetensors: 1 of 1 transformer targets matched." in err
    assert (
        f"deeper.safetensors: 1 of 2 transformer targets matched, not in the model: {stem.replace('3', '90')}." in err
    )
    assert "adapter_model.safetensors: 1 of 1 transformer targets matched." in err
    assert "Sampling as 2b-0.9.8-distilled." in err
    assert media.video_fps(output) == 12
    settings = media.read_metadata(output)["ltxkit"]
    assert [(one["file"], one["strength"]) for one in settings["loras"]] == [
        ("one=fits.safetensors", 1.0),
        ("deeper.safetensors", -0.5),
        ("adapter_model.safetensors", 1.0),
    ]
    assert settings["lora_mode"] == "beside"  # the weights are quantized
    assert ["--lora-mode", "beside"] in settings["arguments"]
    assert len(settings["passes"][0]["sigmas"]) == 9  # of the distilled recipe
    assert [one["kind"] for one in settings["conditions"]] == ["reference"]

    output.unlink()
    high = {f"{stem}.lora_A.weight": torch.randn(128, 64), f"{stem}.lora_B.weight": torch.randn(64, 128)}
    save_file(high, tmp_path / "distilled.safetensors")
    distilled = ["--lora", str(tmp_path / "distilled.safetensors")]
    status, _, err = run([*arguments(files, output, version="2b-0.9.6-dev", steps=None), *distilled], capsys)
    assert status == 0, err
    assert "distilled.safetensors is a distilled LoRA by name and rank" in err
    assert "Sampling as 2b-0.9.6-distilled." in err
    assert len(media.read_metadata(output)["ltxkit"]["passes"][0]["sigmas"]) == 9

    output.unlink()
    status, _, err = run([*arguments(files, output), *loras], capsys)
    assert status == 2
    assert "1 of 2 transformer targets matched" in err
    assert not output.exists()
    status, _, err = run(arguments(files, output, settings="2b-0.9.9"), capsys)
    assert status == 2
    assert "got settings '2b-0.9.9'; expected one of 2b-0.9.0" in err


@pytest.mark.slow
def test_generate_keeps_the_sound_of_its_video(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At another frame rate too, the clip has the samples of its first seconds; then it is silent."""
    tone = (0.4 * torch.sin(torch.arange(8000) * 0.3)).mul(2**15).round() / 2**15
    source = media.Sound(torch.stack([tone, -tone]), 8000)
    clip, guide, silent = (tmp_path / name for name in ("clip.mp4", "guide.mp4", "silent.mp4"))
    pictures = torch.rand(12, 32, 64, 3)
    media.write_video(clip, [pictures], fps=Fraction(24), sound=source, sound_codec="flac")  # half a second
    media.write_video(guide, [pictures], fps=Fraction(24), sound=media.Sound(source.waveform[:1], 8000))
    media.write_video(silent, [pictures], fps=Fraction(24))

    def made(**changes: object) -> media.Sound | None:
        status, _, error = run(arguments(files, tmp_path / "out.mp4", **changes), capsys)
        assert status == 0, error
        return media.read_sound(tmp_path / "out.mp4")

    for fps, frames, heard in ((24, 9, 3000), (24, 17, 4000), (12, 9, 4000), (None, 17, 4000)):
        sound = made(video=clip, fps=fps, frames=frames, sound_codec="flac")
        assert sound is not None
        assert sound.rate == 8000
        assert sound.waveform.shape == (2, round(frames / (fps or 24) * 8000))
        assert torch.equal(sound.waveform[:, :heard], source.waveform[:, :heard])
        assert not sound.waveform[:, heard:].any()
    assert made(video=silent) is None
    with_aac = made(video=clip, fps=24)
    assert with_aac is not None
    assert (with_aac.waveform - source.waveform[:, :3000]).abs().max() < 0.05
    first = made(video=silent, reference=guide)
    assert first is not None
    assert first.channels == 1
    status, _, _ = run([*arguments(files, tmp_path / "out.mp4", video=clip), "--no-sound"], capsys)
    assert status == 0
    assert media.read_sound(tmp_path / "out.mp4") is None


def test_generate_equals_the_library(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(files, tmp_path / "a.mp4", save_latent=tmp_path / "a.latent", seed=3), capsys)[0] == 0
    ltx = Components.load(files["--model"], files["--text-encoder"], device="cpu")
    clip = ltx.generate("a fox in the snow", width=64, height=32, frames=9, fps=8, steps=2, seed=3)
    assert torch.equal(load_file(tmp_path / "a.latent")["latent_tensor"], clip.latent)
    clip.save(tmp_path / "b.mp4")
    assert torch.equal(media.read_video(tmp_path / "a.mp4").frames, media.read_video(tmp_path / "b.mp4").frames)


@pytest.mark.slow
def test_a_clip_to_start_from_is_trimmed_with_a_message(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media.write_video(tmp_path / "in.mp4", [torch.rand(21, 32, 64, 3)], fps=Fraction(12))
    command = arguments(files, tmp_path / "out.mp4", video=tmp_path / "in.mp4", frames=25, fps=None)
    status, _, err = run(command, capsys)
    assert status == 0, err
    assert "trimmed from 21 to 17 frames" in err
    assert media.video_fps(tmp_path / "out.mp4") == 12  # the clip's own


@pytest.mark.slow
def test_words_that_do_not_fit_are_shown(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = " ".join(f"word{i}" for i in range(400))
    status, _, err = run(arguments(files, tmp_path / "out.mp4", prompt=prompt, steps=1), capsys)
    assert status == 0
    assert "it does not see the end" in err
    assert "word398 word399" in err


# ------------------------------------------------------------------------------------------------------------ settings

SAID = {  # every option of a pass, its typed value, and the resulting field and value
    "steps": ("3", "steps", 3),
    "guidance": ("1.5", "guidance_scale", 1.5),
    "guidance-rescale": ("0.7", "guidance_rescale", 0.7),
    "skip-initial-steps": ("1", "skip_initial_steps", 1),
    "skip-final-steps": ("0", "skip_final_steps", 0),
    "denoise-strength": ("0.5", "denoise_strength", 0.5),
    "stg-scale": ("0", "stg_scale", 0.0),
    "stg-blocks": ("1, 2", "stg_blocks", (1, 2)),
    "stg-mode": ("transformer_block", "stg_mode", "transformer_block"),
    "stg-rescale": ("0.5", "stg_rescale", 0.5),
    "step-cache": ("Careful", "step_cache", "careful"),
}
RUN = {  # likewise for the whole run
    "sampler": ("dpmpp_2m", "dpmpp_2m"),
    "levels": ("official", "official"),
    "condition-noise": ("0", 0.0),
    "adain": ("0", 0.0),
    "decode-timestep": ("0", 0.0),
    "decode-noise-scale": ("0.01", 0.01),
    "tone-map": ("0.6", 0.6),
}


def said_by(files: dict[str, str], *said: str) -> Overrides:
    command = arguments(files, Path("out.mp4"), steps=None, upscaler="upscaler.safetensors")
    return overrides(cli.parser().parse_args([*command, *said]))


def test_every_option_fills_its_field_and_the_others_stay_unsaid(files: dict[str, str]) -> None:
    assert said_by(files) == NO_OVERRIDES
    for which, prefix in (("first", ""), ("second", "second-")):
        for name, (typed, field, value) in SAID.items():
            assert said_by(files, f"--{prefix}{name}", typed) == Overrides(**{which: PassSettings(**{field: value})})
        sigmas = said_by(files, f"--{prefix}sigmas", "0.9, 0.5 0")
        assert sigmas == Overrides(**{which: PassSettings(sigmas=(0.9, 0.5, 0.0))})
        for form, value in ((f"--{prefix}cfg-star", True), (f"--no-{prefix}cfg-star", False)):
            assert said_by(files, form) == Overrides(**{which: PassSettings(cfg_star=value)})
    for name, (typed, value) in RUN.items():
        assert said_by(files, f"--{name}", typed) == Overrides(**{name.replace("-", "_"): value})


def test_every_field_has_an_option() -> None:
    """All except the lists with a guidance per step and the size of the first of two passes, which `--set` says, and
    half a schedule, of which no clip can be written."""
    typed = {field for _, field, _ in SAID.values()} | {"sigmas", "cfg_star"}
    assert {field.name for field in fields(PassSettings)} - typed == {"guidance", "guidance_timesteps", "unfinished"}
    options = {name.replace("-", "_") for name in RUN}
    assert {field.name for field in fields(Overrides)} == {"first", "second", "downscale_factor", *options}
    assert tuple(SAMPLERS) == SAMPLER_NAMES


@pytest.mark.slow
def test_generate_does_what_is_said_and_writes_it_down(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both passes, and the same clip from the library with the same value."""
    output = tmp_path / "a.mp4"
    said = {
        "steps": None,
        "size": "64x64",
        "sigmas": "1,0.5",
        "stg_scale": "0",
        "guidance": "2",
        "second_sigmas": "0.4,0.2",
    }
    said |= {"second_guidance": "1.5", "sampler": "heun", "adain": "0.5", "decode_timestep": "0", "tone_map": "0.3"}
    command = arguments(files, output, upscaler=files["--upscaler"], save_latent=tmp_path / "a.latent", **said)
    status, _, err = run([*command, "--cfg-star"], capsys)
    assert status == 0, err
    record = media.read_metadata(output)["ltxkit"]
    assert record["settings"] == {
        "first": {"sigmas": [1.0, 0.5], "guidance_scale": 2.0, "stg_scale": 0.0, "cfg_star": True},
        "second": {"sigmas": [pytest.approx(0.4), pytest.approx(0.2)], "guidance_scale": 1.5},
        "sampler": "heun",
        "adain": 0.5,
        "decode_timestep": 0.0,
        "tone_map": 0.3,
    }
    assert [one["sigmas"] for one in record["passes"]] == [[1.0, 0.5, 0.0], pytest.approx([0.4, 0.2, 0.0])]
    assert [one["guidance"]["scale"] for one in record["passes"]] == [[2.0], [1.5]]
    assert (record["decode_timestep"], record["tone_map_compression_ratio"]) == (0.0, 0.3)

    ltx = Components.load(files["--model"], files["--text-encoder"], upscaler=files["--upscaler"], device="cpu")
    value = Overrides(
        first=PassSettings(sigmas=(1, 0.5), guidance_scale=2, stg_scale=0, cfg_star=True),
        second=PassSettings(sigmas=(0.4, 0.2), guidance_scale=1.5),
        sampler="heun",
        adain=0.5,
        decode_timestep=0,
        tone_map=0.3,
    )
    clip = ltx.generate("a fox in the snow", width=64, height=64, frames=9, fps=8, settings=value)
    assert torch.equal(load_file(tmp_path / "a.latent")["latent_tensor"], clip.latent)


def test_a_sampler_that_a_distilled_checkpoint_cannot_use_is_refused_before_it_samples(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(files, tmp_path / "out.mp4", steps=None, sampler="heun", settings="2b-0.9.8-distilled")
    status, out, err = run(command, capsys)
    assert (status, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert "expected one of euler, stochastic, dpmpp_2m, gradient_estimation; choose one of them" in last
    assert "encode text" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"sampler": "fast"}, "argument --sampler: invalid choice: 'fast'"),
        ({"levels": "none"}, "argument --levels: invalid choice: 'none'"),
        ({"stg_mode": "residual"}, "argument --stg-mode: invalid choice: 'residual'"),
        ({"sigmas": "1,half"}, "argument --sigmas: got '1,half'; expected numbers such as 1,0.9,0.5"),
        ({"stg_blocks": "1.5"}, "argument --stg-blocks: got '1.5'; expected whole numbers such as 11,25"),
        ({"steps": None, "sigmas": "0.5,0.9"}, "expected every level to be lower than the one before; sort the list"),
        ({"steps": None, "sigmas": ""}, "argument --sigmas: got ''; expected numbers such as 1,0.9,0.5"),
        ({"sigmas": "1,0.5"}, "got sigmas and steps; expected the levels themselves or a schedule; leave one of them"),
        ({"steps": 0}, "argument --steps: got '0'; expected a whole number from 1 to 1000"),
        ({"skip_initial_steps": -1}, "argument --skip-initial-steps: got '-1'; expected a whole number from 0 to"),
        ({"denoise_strength": 0}, "argument --denoise-strength: got '0'; expected a finite number above 0, at most 1"),
        ({"guidance": "nan"}, "argument --guidance: got 'nan'; expected 0 to 100"),
        ({"stg_rescale": 2}, "argument --stg-rescale: got '2'; expected 0 to 1"),
        ({"stg_blocks": "-1"}, "argument --stg-blocks: got '-1'; expected whole numbers such as 11,25"),
        ({"condition_noise": -1}, "argument --condition-noise: got '-1'; expected 0 to 1"),
        ({"decode_timestep": 1.5}, "argument --decode-timestep: got '1.5'; expected 0 to 1"),
        ({"tone_map": -0.5}, "argument --tone-map: got '-0.5'; expected 0 to 1"),
        ({"second_steps": 3}, "got --second-steps without --upscaler; expected an upscaler"),
        ({"adain": 0}, "got --adain without --upscaler; expected an upscaler, which makes two passes; add it, or"),
    ],
)
def test_a_bad_value_is_refused_before_a_model_is_opened(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    said: dict[str, object],
    message: str,
) -> None:
    command = arguments(files, tmp_path / "out.mp4", **{"model": "nowhere.safetensors", **said})
    status, out, err = run(command, capsys)
    assert (status, out) == (2, "")
    assert message in err.strip().splitlines()[-1]
    assert "nowhere" not in err


def test_help_shows_the_usual_first(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(["generate", "--help"], capsys)
    titles = re.findall(r"^(\w[\w ]*):$", out, re.MULTILINE)
    assert titles == [
        "positional arguments", "options", "the usual", "pictures and videos", "models", "memory", "sampling",
        "second of two passes", "decoding", "format of the result", "more results", "again", "examples",
    ]  # fmt: skip
    usual = out.partition("\nthe usual:")[2].partition("\npictures and videos:")[0]
    for name in (
        "--model",
        "--text-encoder",
        "--prompt",
        "--count",
        "--overwrite",
        "--size",
        "--frames",
        "--steps",
        "--guidance",
        "--output",
    ):
        assert name in usual


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere.safetensors"}, "expected a file or a folder that exists"),
        ({"text_encoder": "{model}"}, r"expected a T5 v1.1 text encoder"),
        ({"image": "{model}"}, "which is not a picture"),
        ({"video": "{model}"}, "which cannot be read"),
        ({"size": "0x32"}, "each from 1 to 16384"),
        ({"frames": 0}, "expected a whole number from 1 to 100000"),
        ({"steps": 0}, "expected a whole number from 1 to 1000"),
        ({"version": "3b"}, "got version '3b'; expected one of 2b-0.9.0"),
    ],
)
def test_a_refused_input_is_one_message(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    message: str,
) -> None:
    changes = {name: str(value).replace("{model}", files["--model"]) for name, value in changes.items()}
    status, out, err = run(arguments(files, tmp_path / "out.mp4", **changes), capsys)
    assert (status, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("ltxkit: ")
    assert message in last
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "64"}, "expected width x height in pixels, such as 768x512"),
        ({"fps": "fast"}, "expected a positive rate such as 24"),
        ({"fps": "0"}, "expected a positive rate such as 24"),
        ({"fps": "1/0"}, "expected a positive rate such as 24"),
        ({"o": "out.avi"}, "expected a name that ends in .mp4"),
        ({"prompt": None}, "got no prompt; expected what the clip shows"),
        ({"image": "a.png", "video": "b.mp4"}, "not allowed with argument"),
    ],
)
def test_a_mistyped_option_is_named(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    message: str,
) -> None:
    status, _, err = run(arguments(files, tmp_path / "out.mp4", **changes), capsys)
    assert status == 2
    assert message in err


@pytest.mark.parametrize("command", ["sample", "reconstruct", "eval-digits", "plan"])
def test_a_size_is_read_alike_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run([command, "--size", "64"], capsys)
    assert status == 2
    assert "argument --size: got '64'; expected width x height in pixels" in err


def test_frame_rates_fit_into_a_video_file() -> None:
    rates = {"24": Fraction(24), "29.97": Fraction(2997, 100), "24000/1001": Fraction(24000, 1001)}
    rates |= {"23.976023976": Fraction(24000, 1001)}
    assert {text: frame_rate(text) for text in rates} == rates
    with pytest.raises(argparse.ArgumentTypeError, match="expected a positive rate"):
        frame_rate("0.0001")  # rounds to 0


def test_results_and_notes_do_not_break_into_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Console() as console:
        console.progress(ProgressEvent("sample", 1, 2))
        console.note("a note")
        console.result("a result")
        console.progress(ProgressEvent("sample", 2, 2))
    out, err = capsys.readouterr()
    assert out == "a result\n"
    lines = [line.strip() for line in re.split(r"[\r\n]+", err)]
    assert "ltxkit: a note" in lines
    assert len([line for line in lines if line.startswith("sample: 100%")]) == 1
    assert err.endswith("\n")


def test_a_text_encoder_of_another_width(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every matrix of the encoder, doubled in width, as if from a larger T5."""
    folder = tmp_path / "t5"
    shutil.copytree(files["--text-encoder"], folder)
    (folder / "config.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    width = tensors["encoder.final_layer_norm.weight"].shape[0]
    wide = {
        name: tensor.repeat(*(2 if size == width else 1 for size in tensor.shape)) for name, tensor in tensors.items()
    }
    save_file(wide, folder / "model.safetensors")
    status, _, err = run(arguments(files, tmp_path / "out.mp4", text_encoder=folder), capsys)
    assert status == 2
    assert f"got a text encoder of width {2 * width}; expected {width}" in err


def test_a_full_disk_is_one_message(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Clip, *_: object, **__: object) -> None:
        raise OSError(28, "cannot write out.mp4 (No space left on device); nothing is left of it")

    monkeypatch.setattr(Clip, "save", full)
    status, _, err = run(arguments(files, tmp_path / "out.mp4", steps=1), capsys)
    assert status == 1
    assert (
        err.strip()
        .splitlines()[-1]
        .startswith(
            "ltxkit: cannot write out.mp4 (No space left on device); nothing is left of it; the latent is kept in "
        )
    )


# -------------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["load vae", "load text encoder", "encode text", "sample", "decode"])
def test_ctrl_c_in_any_stage_leaves_nothing(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = Console.progress

    def interrupted(self: Console, event: ProgressEvent) -> None:
        if event.stage == stage and event.step:
            raise KeyboardInterrupt
        shown(self, event)

    monkeypatch.setattr(Console, "progress", interrupted)
    status, out, err = run([*arguments(files, tmp_path / "out.mp4"), "--no-cache"], capsys)
    assert (status, out) == (130, "")
    assert err.strip().splitlines()[-1] == "ltxkit: interrupted; no partial file remains"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert run(arguments(files, tmp_path / "out.mp4"), capsys)[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_a_real_ctrl_c(files: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ltxkit", *arguments(files, tmp_path / "out" / "a.mp4", steps=1000)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        # A shell starts background processes with SIGINT ignored, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    said = b""
    deadline = time.monotonic() + 120
    while b"sample:" not in said and time.monotonic() < deadline:
        said += os.read(process.stderr.fileno(), 4096)
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=300)
    said += rest
    assert process.returncode == 130, said
    assert out == b""
    assert said.decode().strip().splitlines()[-1] == "ltxkit: interrupted; no partial file remains"
    assert b"Traceback" not in said
    assert not list(tmp_path.rglob("*.mp4"))


# ----------------------------------------------------------------------------------------------- inspect and make-tiny


@pytest.mark.slow
def test_make_tiny_writes_what_generate_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(["make-tiny", str(tmp_path), "--vae", "0.9.1", "--compression", "16x4", "--seed", "7"], capsys)
    assert status == 0
    *paths, remark = out.splitlines()
    assert "random" in remark
    assert sorted(str(path) for path in tmp_path.rglob("*") if path.is_file()) == paths
    made = {
        "--model": f"{tmp_path}/checkpoints/ltxv-tiny.safetensors",
        "--text-encoder": f"{tmp_path}/text_encoders/t5-tiny",
    }
    status, _, err = run(arguments(made, tmp_path / "out.mp4", steps=1), capsys)
    assert status == 0, err


@pytest.mark.slow
def test_inspect_in_words_and_as_json(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(["inspect", files["--model"], "--json"], capsys)
    report = json.loads(out)
    assert (status, report["kind"], report["container"]) == (0, "checkpoint", "safetensors")
    status, out, _ = run(["inspect", files["--model"]], capsys)
    assert status == 0
    assert any(line.split()[:2] == ["kind", "checkpoint:"] for line in out.splitlines())
    status, _, err = run(["inspect", "nowhere"], capsys)
    assert status == 2
    assert "nowhere" in err


# ------------------------------------------------------------------------------------------------------------- entries


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from ltxkit import cli\n"
        "try: cli.main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(str({'torch', 'transformers', 'av'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.strip() == ""
    assert "--text-encoder" in done.stdout


def test_the_folder_itself_is_a_command(tmp_path: Path, repository: Path) -> None:
    """A copy under another name runs its own code as `ltxkit`, whatever is installed, and shadows no other `nodes`."""
    folder = tmp_path / "ComfyUI LTXKit"
    ignored = shutil.ignore_patterns(".*", "tests", "assets", "__pycache__", "*.egg-info")
    shutil.copytree(repository, folder, ignore=ignored)
    with (folder / "cli.py").open("a") as file:
        file.write(
            "\n\nfrom .commands.command import Command\n"
            "\n\ndef _where(options, console):\n    print(__name__, __file__, sys.path)\n    return 0\n"
            "\n\nCOMMANDS = (*COMMANDS, Command('where', 'help', lambda parser: None, _where))\n"
        )
    done = subprocess.run([sys.executable, folder, "where"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ltxkit.cli {folder / 'cli.py'} ")
    assert str(folder) not in done.stdout.removeprefix(f"ltxkit.cli {folder / 'cli.py'} ")

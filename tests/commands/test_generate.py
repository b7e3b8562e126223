"""`ltxkit generate`: a prompt is enough, names are made, models are found, and a wrong option costs nothing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ltxkit import cli
from ltxkit.commands import arguments, names
from ltxkit.commands.jobs import Job, check_results, jobs_of, prompts_of
from ltxkit.commands.places import MODEL, TEXT_ENCODER, Places, config_file, read_config
from ltxkit.commands.settings import assignment, overrides
from ltxkit.ltx_core import filenames, media
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, UnsupportedError
from ltxkit.ltx_core.pipelines.clip import Clip
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.passes import sigmas_for
from ltxkit.ltx_core.pipelines.recipe import guidance_for
from ltxkit.ltx_core.pipelines.recipe_file import RecipeFile, read_recipe
from ltxkit.ltx_core.pipelines.settings import Overrides, PassSettings, Settings
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.sampling.schedules import explicit
from ltxkit.ltx_core.weights.containers import Checkpoint


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without models, config or ComfyUI; the current folder is empty."""
    for name in [*os.environ]:
        if name.startswith(("LTXKIT_", "HF_", "HUGGINGFACE_", "XDG_")) or name in ("COMFYUI_PATH", "APPDATA"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture(scope="module")
def files(tiny_models: Callable[..., Path]) -> dict[str, Path]:
    folder = tiny_models()
    return {
        "model": folder / "checkpoints/ltxv-tiny.safetensors",
        "text_encoder": folder / "text_encoders/t5-tiny",
        "upscaler": folder / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors",
    }


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    try:
        status = cli.main([str(argument) for argument in argv])
    except SystemExit as exit:  # argparse
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def options(*argv: str) -> argparse.Namespace:
    return cli.parser().parse_args(["generate", *argv])


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("prompt", "made"),
    [
        ("a lighthouse", "a-lighthouse"),
        ("  A fox, in the SNOW! ", "a-fox-in-the-snow"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "clip"),
        ("!?", "clip"),
        ("一只猫 in Köln", "一只猫-in-köln"),
        ("x" * 500, "x" * 30),
        ("word " * 40, "word-word-word-word-word-word-word-word-word"),
        ("a fox \udcff", "a-fox"),
        ("{seed}", "seed"),
        ("con", "con-clip"),  # of which Windows makes no file
        ("COM¹!", "com1-clip"),
        ("NUL. Nothing", "nul-nothing"),
    ],
)
def test_a_name_is_made_of_the_first_words(prompt: str, made: str) -> None:
    assert names.slug(prompt) == made


def test_fields_of_a_name() -> None:
    values = names.values_of("a fox", 7, 3)
    assert names.filled("out/{number}-{prompt}-{seed}.mp4", values) == Path("out/003-a-fox-7.mp4")
    assert names.filled("{{a}}.mp4", values) == Path("{a}.mp4")
    assert not names.has_fields("clip.mp4")
    unknown = {"{sed}.mp4": "did you mean {seed}?", "{}.mp4": "{prompt}", "a{.mp4": "{prompt}"}
    for wrong, meant in {
        **unknown,
        **dict.fromkeys(("{seed!r}.mp4", "{seed:4}.mp4", "{prompt.x}.mp4"), "{seed}"),
    }.items():
        with pytest.raises(ConfigError, match="got the name") as caught:
            names.filled(wrong, values)
        assert meant in str(caught.value)


def made(nowhere: Path, *argv: str) -> list[tuple[str, int, str]]:
    said = options(*argv)
    return [(job.prompts[0], job.seed, str(job.output)) for job in jobs_of(said, prompts_of(said))]


def test_made_names_count_on(nowhere: Path) -> None:
    assert made(nowhere, "a fox") == [("a fox", 0, "a-fox-0.mp4")]
    Path("a-fox-0.mp4").touch()
    assert made(nowhere, "a fox") == [("a fox", 1, "a-fox-1.mp4")]
    assert made(nowhere, "a fox", "--count", "2") == [("a fox", 1, "a-fox-1.mp4"), ("a fox", 2, "a-fox-2.mp4")]
    assert made(nowhere, "a fox", "--seed", "0") == [("a fox", 0, "a-fox-0-2.mp4")]
    Path("a-fox-0-2.mp4").touch()
    assert made(nowhere, "a fox", "--seed", "0") == [("a fox", 0, "a-fox-0-3.mp4")]


def test_several_prompts_and_seeds(nowhere: Path) -> None:
    Path("prompts.txt").write_text("a fox\n\n# a remark\n  a hare  \n", encoding="utf-8")
    assert made(
        nowhere, "--prompts", "prompts.txt", "--count", "2", "--seed", "5", "-o", "{number}-{prompt}-{seed}.mp4"
    ) == [
        ("a fox", 5, "001-a-fox-5.mp4"),
        ("a fox", 6, "002-a-fox-6.mp4"),
        ("a hare", 5, "003-a-hare-5.mp4"),
        ("a hare", 6, "004-a-hare-6.mp4"),
    ]
    assert made(nowhere, "--prompt", "a fox", "--prompt", "a fox") == [
        ("a fox", 0, "a-fox-0.mp4"),
        ("a fox", 1, "a-fox-1.mp4"),
    ]
    said = options("--long", "33", "one", "two")
    (job,) = jobs_of(said, prompts_of(said))
    assert job.prompts == ("one", "two")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a fox", "--count", "5", "-o", "out.mp4"], "got 5 clips for the one name out.mp4"),
        (["a fox", "--count", "2", "-o", "{prompt}.mp4"], r"got 2 clips for the one name \{prompt\}.mp4"),
        (["a fox", "--count", "2", "--save-latent", "a.latent"], "got 2 clips for the one name a.latent"),
        (["a fox", "-o", "taken.mp4"], "got the output taken.mp4, which exists; expected a new name"),
        (["a fox", "--save-latent", "taken.mp4"], "got the output taken.mp4, which exists"),
        (["a fox", "--seed", str(2**64 - 1), "--count", "2"], "expected seeds below"),
        ([], "got no prompt; expected what the clip shows"),
        (["a", "lighthouse", "in", "a", "storm"], "expected one prompt in quotes, such as 'a lighthouse in a storm'"),
        (["a fox", "--prompt", "a hare"], "got PROMPT and --prompt; expected the prompt in one way"),
        (["--prompts", "missing.txt"], "which cannot be read"),
        (["--prompts", "empty.txt"], "without a prompt"),
    ],
)
def test_clips_that_cannot_be_named(nowhere: Path, argv: list[str], message: str) -> None:
    Path("taken.mp4").touch()
    Path("empty.txt").write_text("# nothing\n", encoding="utf-8")
    said = options(*argv)
    with pytest.raises(ConfigError, match=message):
        jobs_of(said, prompts_of(said))


@pytest.mark.parametrize(("system", "are_one"), [("linux", False), ("darwin", True), ("win32", True)])
def test_names_that_differ_in_case_alone(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, system: str, are_one: bool
) -> None:
    """Where they are one file, the second clip would take the place of the first."""
    monkeypatch.setattr("sys.platform", system)
    clips = [Job(("a fox",), seed, Path(name)) for seed, name in enumerate(("A.mp4", "a.mp4"))]
    with pytest.raises(ConfigError, match="which is another result") if are_one else nullcontext():
        check_results(clips, [])
    taken = {filenames.same_file_key(Path("A-Fox-0.mp4"))}
    assert names.is_free(Path("a-fox-0.mp4"), taken, None) is not are_one


def test_an_existing_result_is_replaced_when_the_user_says_so(nowhere: Path) -> None:
    Path("taken.mp4").touch()
    assert made(nowhere, "a fox", "-o", "taken.mp4", "--overwrite") == [("a fox", 0, "taken.mp4")]


# -------------------------------------------------------------------------------------------------------------- options


def test_pictures_and_clips_at_frames(tmp_path: Path) -> None:
    odd = tmp_path / "odd@2.png"
    odd.touch()
    assert arguments.shown_at("0=a.png") == (0, Path("a.png"), None)
    assert arguments.shown_at("-1=b=c@0.5") == (-1, Path("b=c"), 0.5)
    assert arguments.shown_at(f"8={odd}") == (8, odd, None)
    assert arguments.shown_at("8=me@home.png") == (8, Path("me@home.png"), None)
    for wrong in ("a.png", "=a.png", "1.5=a.png", "0=", "first=a.png", "0=a.png@2", "0=a.png@nan", "9" * 30 + "=a"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            arguments.shown_at(wrong)


def test_a_negative_frame_needs_no_equals_sign() -> None:
    said = options("x", "--at", "0=a.png", "--at", "-1=b.png@0.5", "--seed", "3")
    assert [at.frame for at in said.at] == [0, -1]
    assert said.seed == 3
    assert options("--at=-1=b.png", "x").at[0].frame == -1


def test_every_knob_can_be_set() -> None:
    said = overrides(
        options(
            "x", "--upscaler", "u", "--set", "first.guidance=3", "--set", "first.stg-blocks=11,25", "--set",
            "second.sigmas=0.9,0.5", "--set", "first.cfg_star=yes", "--set", "tone_map=0.6", "--set", "levels=official",
            "--set", "adain=0.5", "--steps", "12", "--step-cache", "fast", "--set", "second.step_cache=0.1",
        )
    )  # fmt: skip
    assert said == Overrides(
        first=PassSettings(steps=12, guidance_scale=3, stg_blocks=(11, 25), cfg_star=True, step_cache="fast"),
        second=PassSettings(sigmas=(0.9, 0.5), step_cache=0.1),
        tone_map=0.6,
        levels="official",
        adain=0.5,
    )
    listed = overrides(options("x", "--set", "first.guidance_scale=1,6", "--set", "first.guidance_timesteps=1,0.5"))
    assert listed.first == PassSettings(guidance_scale=(1.0, 6.0), guidance_timesteps=(1.0, 0.5))
    blocks = overrides(options("x", "--set", "first.stg_blocks=1;2,3", "--set", "first.guidance_timesteps=1,0.5"))
    assert blocks.first.stg_blocks == ((1,), (2, 3))


def test_set_reaches_every_field_of_the_settings() -> None:
    """All but half a schedule, of which no clip can be written. `guidance` is short for guidance_scale."""
    from dataclasses import fields

    from ltxkit.commands.settings import _knobs

    keys = set(_knobs())
    for which in ("first", "second"):
        missing = {field.name for field in fields(PassSettings) if f"{which}.{field.name}" not in keys}
        assert missing == {"unfinished"}
    assert {field.name for field in fields(Overrides)} - keys == {"first", "second"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first.guidence=3", r"did you mean first.guidance=3\?"),
        ("guidance=3", r"did you mean (first|second).guidance=3\?"),
        ("first.guidance", "expected KEY=VALUE"),
        ("nonsense=1", "the keys are first.steps"),
        ("first.steps=many", "expected a whole number"),
        ("first.guidance=-1", "expected 0 to 100"),
        ("first.guidance=1,nan", "expected 0 to 100"),
        ("sampler=eulr", r"expected one of euler.*did you mean euler\?"),
        ("first.cfg_star=perhaps", "expected true or false"),
        ("tone_map=2", "expected 0 to 1"),
        ("first.step_cache=quick", "expected off, careful, fast, or a number from 0 to 1"),
        ("second.step_cache=carefull", r"did you mean careful\?"),
        ("first.step_cache=1.5", "or a number from 0 to 1"),
        ("step_cache=fast", r"did you mean (first|second).step_cache=fast\?"),
    ],
)
def test_what_cannot_be_set_is_refused(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        assignment(text)


def test_a_value_said_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got first\.steps twice"):
        overrides(options("x", "--steps", "3", "--set", "first.steps=4"))
    with pytest.raises(ConfigError, match="without --upscaler"):
        overrides(options("x", "--set", "second.steps=4"))


# -------------------------------------------------------------------------------------------------------------- recipes


@pytest.fixture(scope="module")
def official(repository: Path) -> dict[str, dict]:
    return json.loads((repository / "tests" / "data" / "official_recipes.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", RELEASES)
def test_lightricks_own_recipes_give_the_release(version: str, official: dict[str, dict], tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(official[version]["settings"]), encoding="utf-8")
    read, own = read_recipe(file), RELEASES[version].recipe
    two = own.first_pass is not None
    assert read.passes == (2 if two else 1)
    entries = [(read.overrides.first, own.first_pass or own.one_pass)]
    entries += [(read.overrides.second, own.second_pass)] if two else []
    settings, plain = Settings(own, read.overrides), Settings(own)
    for which, (said, entry) in zip(("first", "second"), entries, strict=False):
        assert entry is not None
        expected = sigmas_for(entry, None, 64)
        got = explicit(said.sigmas) if said.sigmas is not None else sigmas_for(settings.entry(which), None, 64)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        official_guidance, levels = guidance_for(entry, own), expected[:-1].tolist()
        assert [said.over_guidance(official_guidance, levels).at(level) for level in levels] == [
            official_guidance.at(level) for level in levels
        ]
    last = "second" if two else "one"
    assert settings.decoding(last) == plain.decoding(last)
    assert settings.stepping.name == plain.stepping.name


def test_our_own_recipe_is_the_value_of_the_metadata(tmp_path: Path) -> None:
    said = Overrides(
        first=PassSettings(steps=3, stg_blocks=(1, 2), guidance_scale=2.5), sampler="heun", decode_timestep=0.0
    )
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**said.to_json(), "width": 64, "fps": 8, "negative_prompt": "x"}), encoding="utf-8")
    assert read_recipe(file) == RecipeFile(said, width=64, fps=8, negative_prompt="x")
    over = overrides(options("x", "--recipe", "r", "--set", "first.sigmas=1,0.5"), said)
    assert over.first == PassSettings(sigmas=(1.0, 0.5), stg_blocks=(1, 2), guidance_scale=2.5)
    assert overrides(options("x", "--steps", "9"), over).first.sigmas is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first:\n  guidence_scale: 3\n", "did you mean guidance_scale"),
        ("widht: 64\n", "did you mean width"),
        ("width: many\n", "got width='many'"),
        ("first: 3\n", "got first=3"),
        ("first:\n  sigmas: high\n", "expected"),
        ("- 1\n", "expected keys and their values"),
        ("a: [\n", "which is not YAML"),
        ("pipeline_type: other\n", "expected base or multi-scale"),
        ("pipeline_type: multi-scale\n", "first_pass"),
        ("pipeline_type: base\nguidance_scale: high\n", "guidance_scale"),
        ("pipeline_type: base\nskip_block_list: [19]\nstg_mode: residual\n", "residual"),
        ("pipeline_type: base\ndownscale_factor: 0.5\n", "downscale_factor"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises((ConfigError, UnsupportedError), match=message) as caught:
        read_recipe(file)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- places


def models_in(folder: Path, files: dict[str, Path], *names: str) -> Path:
    """A folder laid out like ComfyUI's `models`, with checkpoints of these names and the T5."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "text_encoders").mkdir()
    for name in names:
        (folder / "checkpoints" / name).write_bytes(files["model"].read_bytes())
    (folder / "text_encoders" / "t5").symlink_to(files["text_encoder"])
    return folder


def test_places_have_an_order(nowhere: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place is left as soon as one before it has a model."""
    snapshot = Path.home() / ".cache/huggingface/hub/models--Lightricks--LTX-Video/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "cached.safetensors").symlink_to(files["model"])
    assert Places().need(MODEL, None) == (snapshot / "cached.safetensors", "the Hugging Face cache")

    comfyui = models_in(Path.home() / "ComfyUI" / "models", files, "comfy.safetensors")
    assert Places().need(MODEL, None) == (comfyui / "checkpoints/comfy.safetensors", "ComfyUI's folders")
    assert Places().need(TEXT_ENCODER, None).path == comfyui / "text_encoders/t5"

    config_file().parent.mkdir(parents=True)
    (config_file().parent / "own.safetensors").symlink_to(files["model"])
    config_file().write_text("[models]\nmodel = own.safetensors\n", encoding="utf-8")
    assert Places().need(MODEL, None) == (config_file().parent / "own.safetensors", str(config_file()))

    monkeypatch.setenv("LTXKIT_MODEL", str(files["model"]))
    assert Places().need(MODEL, None) == (files["model"], "$LTXKIT_MODEL")
    monkeypatch.setenv("LTXKIT_MODEL", "comfy.safetensors")  # a name will do
    assert Places().need(MODEL, None).path == comfyui / "checkpoints/comfy.safetensors"
    assert Places().need(MODEL, "cached").path == snapshot / "cached.safetensors"


def test_comfyui_is_where_the_user_says(nowhere: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = models_in(nowhere / "elsewhere", files, "a.safetensors")
    comfyui = nowhere.parent / "my ComfyUI"
    (comfyui / "models").mkdir(parents=True)
    (comfyui / "extra_model_paths.yaml").write_text(
        f"mine:\n  base_path: {elsewhere}\n  checkpoints: checkpoints/\n  text_encoders: text_encoders\n"
    )
    pytest.importorskip("yaml")
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert Places().need(MODEL, None).path == elsewhere / "checkpoints/a.safetensors"
    monkeypatch.delenv("COMFYUI_PATH")
    assert Places(elsewhere).need(MODEL, None).path == elsewhere / "checkpoints/a.safetensors"
    monkeypatch.setenv("LTXKIT_MODELS", str(elsewhere))
    assert Places().need(MODEL, None).path == elsewhere / "checkpoints/a.safetensors"


def test_several_models_are_listed_and_none_is_taken(
    nowhere: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    models_in(Path("models"), files, "a.safetensors", "b.safetensors")
    status, out, err = run(capsys, "generate", "a lighthouse")
    assert (status, out) == (2, "")
    assert err.startswith("ltxkit: got 2 files with a model in ComfyUI's folders; expected one; choose it with --model")
    assert "a.safetensors  (models/checkpoints/a.safetensors)" in err
    assert "b.safetensors  (models/checkpoints/b.safetensors)" in err
    assert list(nowhere.iterdir()) == [Path("models").resolve()]


def test_without_a_model_the_command_says_how_to_get_one(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "generate", "a lighthouse")
    assert (status, out) == (2, "")
    assert "`ltxkit fetch 2b-0.9.8-distilled`" in err
    assert len(err.splitlines()) == 1
    assert list(nowhere.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2b-0.9.8-distilled", "`ltxkit fetch 2b-0.9.8-distilled` brings it"),
        ("Lightricks/LTX-Video-0.9.8-13B-distilled", "files of the Hugging Face hub come with `ltxkit fetch"),
        (
            "https://huggingface.co/Lightricks/LTX-Video/resolve/main/ltxv-2b-0.9.8-distilled.safetensors",
            "ltxkit fetch",
        ),
        ("nowhere.safetensors", "expected a file or a folder that exists"),
    ],
)
def test_a_name_that_is_not_there(nowhere: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Places().need(MODEL, name)
    assert message in str(caught.value)


def test_the_config_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "config.ini"
    assert read_config(file) == {}
    for text, message in (
        ("model = x\n", "cannot be read"),
        ("[model]\nmodel = x\n", r"got the section \[model\]"),
        ("[models]\nmodle = x\n", "did you mean model"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(file)
    file.write_text("[models]\nmodel = x%y\nvae =\n")
    assert read_config(file) == {"model": "x%y"}


# -------------------------------------------------------------------------------------------------------- wrong options

WRONG = [  # one of each kind: what is said, and what the one sentence has
    (["--frames", "0"], "--frames: got '0'"),
    (["--size", "64"], "--size: got '64'"),
    (["--fps", "fast"], "--fps: got 'fast'"),
    (["--seed", "-1"], "--seed: got '-1'"),
    (["--count", "0"], "--count: got '0'"),
    (["--steps", "0"], "--steps: got '0'"),
    (["--guidance", "nan"], "--guidance: got 'nan'"),
    (["--strength", "3"], "--strength: got '3'"),
    (["--strength", "0.5"], "got --strength without --image"),
    (["--device", "gpu"], "got the device 'gpu'"),
    (["--device", "cuda:99"], "got the device cuda:99"),
    (["--dtype", "float"], "--dtype: invalid choice: 'float'"),
    (["--sampler", "eulr"], "did you mean euler?"),
    (["--set", "first.guidence=3"], "did you mean first.guidance=3?"),
    (["--promt", "x"], "did you mean --prompt?"),
    (["-o", "out.xyz"], "expected a name that ends in"),
    (["-o", "missing\0.mp4"], "expected the name of a file"),
    (["-o", "taken.mp4"], "which exists"),
    (["--count", "5", "-o", "fixed.mp4"], "got 5 clips for the one name fixed.mp4"),
    (["-o", "{sed}.mp4"], "did you mean {seed}?"),
    (["--image", "missing.png"], "got --image missing.png, which is not there"),
    (["--image", "text.txt"], "which is not a picture"),
    (["--at", "first.png"], "--at: got 'first.png'"),
    (["--at", "25=picture.png", "--frames", "9"], "for a clip of 9 frames; expected frame -9 to 8"),
    (["--at", "8=picture.png", "--at", "-1=picture.png", "--frames", "9"], "both at frame 8"),
    (["--at", "3=clip.gif", "--frames", "17"], "expected a multiple of 8"),
    (["--mask", "picture.png"], "got --mask without --from"),
    (["--from", "clip.gif@0"], "expected a share above 0"),
    (["--long", "33", "--count", "2"], "got --long and --count"),
    (["--long", "33", "--window", "20"], "expected 8k+1"),
    (["--lora", "missing.safetensors"], "missing.safetensors"),
    (["--lora", "picture.png"], "picture.png"),
    (["--model", "missing.safetensors"], "expected a file or a folder that exists"),
    (["--model", "picture.png"], "picture.png"),
    (["--vae", "picture.png"], "picture.png"),
    (["--upscaler", "{model}"], "upscaler"),
    (["--version", "3b"], "got version '3b'"),
    (["--settings", "3b"], "got settings '3b'"),
    (["--quantization", "int9"], "int9"),
    (["--size", "4096x4096", "--frames", "100000"], "GB; expected at most the"),
    (["--recipe", "text.txt"], "text.txt"),
    (["--prompts", "text.txt"], "expected the prompt in one way"),
    (["--second-steps", "3"], "without --upscaler"),
    (["--like", "text.txt"], "text.txt"),
]


@pytest.mark.parametrize(("said", "message"), WRONG, ids=[" ".join(said)[:40] for said, _ in WRONG])
def test_a_wrong_option_is_one_sentence_and_loads_nothing(
    said: list[str],
    message: str,
    nowhere: Path,
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    media.write_image(Path("picture.png"), torch.rand(1, 32, 64, 3))
    media.write_gif(Path("clip.gif"), torch.rand(9, 32, 64, 3), Fraction(8))
    Path("text.txt").write_text("[no recipe", encoding="utf-8")
    Path("taken.mp4").touch()
    before = sorted(nowhere.iterdir())

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Components, "load", loaded)
    read = Checkpoint.tensor

    def on_meta(self: Checkpoint, key: str) -> torch.Tensor:
        tensor = read(self, key)
        assert tensor.device.type == "meta", "a tensor was read"
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", on_meta)
    usual = {"--model": files["model"], "--text-encoder": files["text_encoder"], "--device": "cpu", "--size": "64x32"}
    argv = [str(part) for name, value in usual.items() if name not in said for part in (name, value)]
    argv += [text.replace("{model}", str(files["model"])) if text == "{model}" else text for text in said]
    status, out, err = run(capsys, "generate", "a fox", *argv)
    assert (status, out) == (2, ""), err
    (line,) = err.splitlines()
    assert line.startswith("ltxkit: ")
    assert message in line
    assert len(line) < 600
    assert sorted(nowhere.iterdir()) == before


def test_there_are_thirty_of_them() -> None:
    assert len(WRONG) >= 30


# ------------------------------------------------------------------------------------------------------------- one clip


@pytest.mark.slow
def test_a_prompt_is_enough(
    nowhere: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clips with names of their own from models that are found, as JSON; and the same clip from the library."""
    models_in(Path("models"), files, "ltxv.safetensors")
    small = ["--size", "64x32", "--frames", "9", "--steps", "2", "--device", "cpu"]
    status, out, err = run(capsys, "generate", "a fox", *small, "--count", "2", "--json")
    assert status == 0, err
    said = json.loads(out)
    assert [(clip["file"], clip["seed"], clip["frames"]) for clip in said["clips"]] == [
        ("a-fox-0.mp4", 0, 9),
        ("a-fox-1.mp4", 1, 9),
    ]
    assert {"sample", "decode"} <= set(said["clips"][0]["stages"])
    assert "ltxkit: model: models/checkpoints/ltxv.safetensors, from ComfyUI's folders" in err
    assert "ltxkit: a-fox-1.mp4: 9 frames of 64x32, seed 1, in " in err
    assert err.count("load transformer: 100%") == 1
    assert "30 steps" not in err
    ltx = Components.load(files["model"], files["text_encoder"], device="cpu", notes=lambda _: None)
    ltx.generate("a fox", width=64, height=32, frames=9, steps=2, seed=1).save("b.mp4")
    assert torch.equal(media.read_video(Path("b.mp4")).frames, media.read_video(Path("a-fox-1.mp4")).frames)

    status, out, err = run(capsys, "generate", "a fox", *small, "--quiet")
    assert (status, out, err) == (0, "a-fox-2.mp4\n", "")


@pytest.mark.slow
def test_keyframes_a_video_and_windows(
    nowhere: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """--at, --from with --mask, and --long make what the library makes of the same values."""
    from ltxkit import Condition

    frames = torch.rand(9, 32, 64, 3)
    media.write_image(Path("a.png"), frames[:1])
    media.write_image(Path("b.png"), frames[-1:])
    media.write_image(Path("mask.png"), torch.cat([torch.ones(1, 32, 32, 3), torch.zeros(1, 32, 32, 3)], dim=2))
    media.write_video(Path("clip.mp4"), [frames], fps=Fraction(8))
    ltx = Components.load(files["model"], files["text_encoder"], device="cpu", notes=lambda _: None)
    usual = ["--model", files["model"], "--text-encoder", files["text_encoder"], "--device", "cpu", "--steps", "4"]

    def latent(*argv: object) -> torch.Tensor:
        from safetensors.torch import load_file

        given = [*usual, *argv, "--save-latent", "c.latent", "-o", "c.mp4", "--overwrite", "--seed", "3"]
        status, _, err = run(capsys, "generate", "a fox", *given)
        assert status == 0, err
        return load_file("c.latent")["latent_tensor"]

    got = latent("--at", "0=a.png", "--at", "-1=b.png@0.5", "--size", "64x32", "--frames", "9", "--fps", "8")
    items = [Condition("a.png"), Condition("b.png", frame=-1, strength=0.5)]
    wanted = ltx.generate("a fox", width=64, height=32, frames=9, fps=8, steps=4, seed=3, conditions=items)
    assert torch.equal(got, wanted.latent)

    clip = media.read_video(Path("clip.mp4"))
    got = latent("--from", "clip.mp4@0.5")  # size, length and rate are its own
    wanted = ltx.generate("a fox", fps=8, steps=4, seed=3, start=clip.frames, denoise_strength=0.5)
    assert torch.equal(got, wanted.latent)

    got = latent("--from", "clip.mp4", "--mask", "mask.png")
    wanted = ltx.generate("a fox", fps=8, steps=4, seed=3, start=clip.frames, mask="mask.png")
    assert torch.equal(got, wanted.latent)

    windows = ["--size", "64x32", "--long", "25", "--window", "17", "--keep-windows", "kept"]
    status, _, err = run(capsys, "generate", "a fox", "a hare", *usual, *windows, "-o", "l.mp4")
    assert status == 0, err
    assert "2 windows of 17 frames, 2 prompts" in err
    assert media.read_video(Path("l.mp4")).frames.shape == (25, 32, 64, 3)
    assert len(list(Path("kept").iterdir())) == 2


@pytest.mark.slow
def test_a_clip_that_cannot_be_written_leaves_its_latent(
    nowhere: Path,
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file

    def full(self: Clip, *_: object, **__: object) -> None:
        raise OSError(28, "cannot write out.mp4 (No space left on device); nothing is left of it")

    monkeypatch.setattr(Clip, "save", full)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    usual = ["--model", files["model"], "--text-encoder", files["text_encoder"], "--device", "cpu", "--steps", "1"]
    status, out, err = run(capsys, "generate", "a fox", *usual, "--size", "64x32", "--frames", "9", "-o", "out.mp4")
    assert (status, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert "cannot write out.mp4 (No space left on device); nothing is left of it; the latent is kept in " in last
    (kept,) = (tmp_path / "temporary").rglob("a-fox-0.latent")
    assert str(kept) in last
    assert load_file(kept)["latent_tensor"].shape[2:] == (2, 1, 2)

    monkeypatch.setattr(Clip, "save_latent", full)  # where that has no room either
    shutil.rmtree(kept.parent)
    status, _, err = run(capsys, "generate", "a fox", *usual, "--size", "64x32", "--frames", "9", "-o", "out.mp4")
    assert (status, err.strip().splitlines()[-1]) == (
        1,
        "ltxkit: cannot write out.mp4 (No space left on device); nothing is left of it",
    )
    assert list((tmp_path / "temporary").iterdir()) == []

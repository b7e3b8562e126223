"""A clip made again from its own file: `generate --like`, `run` and `inspect` of a clip."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit import cli
from ltxkit.commands import from_library
from ltxkit.commands.again import KEY
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.weights.identity import FileIdentity, described, find
from ltxkit.ltx_core.weights.tiny import make_tiny

FORMATS: list[tuple[str, list[str]]] = [
    ("a.mp4", []),
    ("a.mp4", ["--codec", "hevc"]),
    ("a.webm", []),
    ("a.mkv", ["--codec", "ffv1"]),
    ("a.mov", []),
    ("a.gif", []),
    ("a.webp", []),
    ("a/", []),
    ("a/%04d.exr", []),
]


@pytest.fixture(scope="module")
def models(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of this machine is searched, and files without a folder are in one of the test's own."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("LTXKIT_MODEL", "LTXKIT_TEXT_ENCODER", "LTXKIT_MODELS", "COMFYUI_PATH", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "HF_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("SVT_LOG", "0")
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = cli.main([str(each) for each in arguments])
    except SystemExit as exit:
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out.strip(), captured.err


def made(capsys: pytest.CaptureFixture[str], models: Path, output: str, *more: object) -> Path:
    """A small clip; its file."""
    status, out, err = run(
        capsys,
        *("generate", "--prompt", "a fox in the snow", "--size", "64x32", "--frames", 9, "--fps", 8, "--steps", 2),
        *("--seed", 3, "--device", "cpu", "--model", models / "checkpoints/ltxv-tiny.safetensors"),
        *("--text-encoder", models / "text_encoders/t5-tiny", "-o", output, *more),
    )
    assert status == 0, err
    return Path(out.splitlines()[-1])


def again(
    capsys: pytest.CaptureFixture[str], clip: Path, models: Path, output: str, *more: object
) -> tuple[Path, Mapping[str, Any]]:
    status, out, err = run(
        capsys, "generate", "--like", clip, "--models", models, "-o", output, "--device", "cpu", *more
    )
    assert status == 0, err
    path = Path(out.splitlines()[-1])
    return path, media.read_metadata(path)["ltxkit"]


def frames_of(path: Path) -> torch.Tensor:
    return media.read_video(path, notes=lambda _: None).frames


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FORMATS)
def test_a_clip_in_every_format_is_made_again_from_itself(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, form: list[str]
) -> None:
    clip = made(capsys, models, name, *form)
    other, record = again(capsys, clip, models, f"again-{name}")
    assert torch.equal(frames_of(clip), frames_of(other))
    assert (record["prompt"], record["seed"]) == ("a fox in the snow", 3)
    kept = {key: value for key, value in media.read_metadata(clip)["ltxkit"].items() if key != "arguments"}
    assert kept == {key: value for key, value in record.items() if key != "arguments"}


@pytest.mark.slow
def test_inputs_are_looked_up_and_what_is_said_overrules(
    models: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "far" / "first=frame@2.jpg"
    picture.parent.mkdir()
    shutil.copy(repository / "assets/examples/temple.jpg", picture)
    clip = made(capsys, models, "a.mkv", "--codec", "ffv1", "--at", f"0={picture}@0.9", "--crf", 0, "--guidance", 2)
    status, _, err = run(capsys, "generate", "--like", clip, "--models", models, "-o", "b.mkv")
    assert status == 2
    assert f"a.mkv: got no first=frame@2.jpg, which the clip was made with ({picture.stat().st_size} bytes)" in err
    assert (
        "expected it in input; bring it, name its folder with --input DIR, or choose a file yourself with --at" in err
    )
    assert not Path("b.mkv").exists()
    same, record = again(capsys, clip, models, "b.mkv", "--input", picture.parent)
    assert torch.equal(frames_of(clip), frames_of(same))
    assert record["settings"]["first"]["guidance_scale"] == 2
    other, record = again(capsys, clip, models, "c.mkv", "--input", picture.parent, "--seed", 5, "--guidance", 1)
    assert (record["seed"], record["settings"]["first"]["guidance_scale"]) == (5, 1)
    assert not torch.equal(frames_of(clip), frames_of(other))
    Path("d.png").write_bytes(picture.read_bytes())  # another start needs no search
    started, _ = again(capsys, clip, models, "e.mkv", "--at", "0=d.png@0.9")
    assert torch.equal(frames_of(clip), frames_of(started))


@pytest.mark.slow
def test_a_missing_or_another_model_is_named(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = made(capsys, models, "a.mp4")
    Path("empty").mkdir()
    status, _, err = run(capsys, "generate", "--like", clip, "--models", "empty", "-o", "b.mp4")
    assert (status, "got no ltxv-tiny.safetensors, which the clip was made with" in err) == (2, True)
    make_tiny(tmp_path / "other", seed=1)  # of the same size, with the same header
    status, _, err = run(capsys, "generate", "--like", clip, "--models", "other", "-o", "b.mp4")
    assert (status, "ltxv-tiny.safetensors, which is not the ltxv-tiny.safetensors that the clip" in err) == (2, True)
    status, out, err = run(capsys, "run", clip, "--models", models, "--output", "out", "--set", "steps=1")
    assert status == 0, err
    assert out == str(Path("out/a_00001.mp4"))
    assert len(media.read_metadata(Path(out))["ltxkit"]["passes"][0]["sigmas"]) == 2
    status, out, _ = run(capsys, "inspect", clip)
    assert status == 0
    for line in ("prompt       a fox in the snow", "size         64x32, 9 frames, 8 per second", "seed         3"):
        assert line in out
    size = (models / "checkpoints/ltxv-tiny.safetensors").stat().st_size
    assert f"file         model: ltxv-tiny.safetensors, {size} bytes" in out
    status, out, _ = run(capsys, "inspect", clip, "--json")
    assert json.loads(out) == media.read_metadata(clip)["ltxkit"]
    assert str(models) not in out  # no path of this machine


@pytest.mark.slow
def test_a_clip_of_the_library_is_made_again_too(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ltxkit.ltx_core.pipelines.library import Components

    ltx = Components.load(models / "checkpoints/ltxv-tiny.safetensors", models / "text_encoders/t5-tiny", device="cpu")
    clip = ltx.generate(
        "a fox", width=64, height=32, frames=9, fps=Fraction(25, 2), seed=7, steps=2, stg_scale=0.5, step_cache="off"
    )
    clip.save("a.webm", quality=100)
    other, record = again(capsys, Path("a.webm"), models, "b.webm", "--quality", 100)
    assert torch.equal(frames_of(Path("a.webm")), frames_of(other))
    assert record["settings"]["first"] == {"steps": 2, "stg_scale": 0.5, "step_cache": "off"}
    clip.save("silent.mp4", metadata=False)
    status, _, err = run(capsys, "generate", "--like", "silent.mp4", "-o", "c.mp4")
    assert (status, "got silent.mp4, which does not say what it was made with; expected a clip" in err) == (2, True)


# ------------------------------------------------------------------------------------------------ clips of strangers


def clip_saying(record: Any, name: str) -> Path:
    media.write_image(Path(name), torch.zeros(1, 8, 8, 3), {"ltxkit": record})
    return Path(name)


IDENTITY = {"name": "a.png", "size": 1, "header": "0" * 64, "samples": "0" * 64}


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ("text", "arguments is 'text'"),
        ([["--prompt"]], "the option --prompt is"),
        ([["--prompt", {"a": 1}]], "--prompt is"),
        ([["--overwrite"]], "it has the option '--overwrite'"),
        ([["--output", "/etc/x.mp4"]], "it has the option '--output'"),
        ([["--no-such", "1"]], "it has the option '--no-such'"),
        ([["--image", "/etc/passwd"]], "--image has the path '/etc/passwd'"),
        ([["--at", "0=/etc/passwd"]], "--at has the path"),
        ([["--image", ["", {**IDENTITY, "name": "../a.png"}, ""]]], "got the file name '../a.png'; expected a plain"),
        ([["--image", ["", {**IDENTITY, "name": "C:a.png"}, ""]]], "expected a plain name"),
        ([["--image", ["", {**IDENTITY, "size": "1"}, ""]]], "without size and hashes"),
        ([["--image", ["", {"name": "a.png"}, ""]]], "without size and hashes"),
        ([["--image", ["", IDENTITY, ""]]], "got no a.png, which the clip was made with .* expected it in input"),
        ([["--seed", "-1"]], "got '-1'; expected a whole number"),
        ([["--steps", "1"]] * 301, "arguments is"),
    ],
)
def test_what_a_clip_says_is_checked_as_what_a_user_says(
    pairs: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = clip_saying({"arguments": pairs, "prompt": "x"}, "stranger.png")
    status, out, err = run(capsys, "generate", "--like", clip, "-o", "b.mp4")
    assert (status, out) == (2, "")
    assert re.search(sentence, err), err
    assert len(err.splitlines()) == 1


def test_a_file_without_metadata_or_that_is_no_clip_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    media.write_image(Path("plain.png"), torch.zeros(1, 8, 8, 3))
    media.write_image(Path("graph.png"), torch.zeros(1, 8, 8, 3), {"prompt": {"1": {"class_type": "A", "inputs": {}}}})
    Path("text.txt").write_text("no clip", encoding="utf-8")
    for name, sentence in (
        ("plain.png", "got plain.png, which does not say what it was made with"),
        ("graph.png", "it has a workflow: `ltxkit run` makes it again"),
        ("nowhere.mp4", "got the clip nowhere.mp4, which is not there"),
        ("text.txt", "text.txt"),
    ):
        status, _, err = run(capsys, "generate", "--like", name)
        assert (status, sentence in err, len(err.splitlines())) == (2, True, 1), err


def test_what_is_printed_of_a_clip_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    clip = clip_saying({"prompt": "a\x1b[2Jfox\nb", "x\x1b[2J": "y\r"}, "stranger.png")
    status, out, _ = run(capsys, "inspect", clip)
    assert status == 0
    assert "\x1b" not in out
    assert "a [2Jfox b" in out


# --------------------------------------------------------------------------------------------------------- identity


def test_a_file_is_found_by_name_size_and_content_below_the_folders_named(tmp_path: Path) -> None:
    deep = tmp_path / "models/a/b"
    deep.mkdir(parents=True)
    (deep / "x.bin").write_bytes(os.urandom(3_000_000))
    (tmp_path / "x.bin").write_bytes((deep / "x.bin").read_bytes())  # outside
    wanted = described(deep / "x.bin")
    assert FileIdentity.from_json(wanted.to_json()) == wanted
    assert find(wanted, [tmp_path / "models"]) == deep / "x.bin"
    data = bytearray((deep / "x.bin").read_bytes())
    data[-1] ^= 1
    (deep / "x.bin").write_bytes(data)
    with pytest.raises(ConfigError, match=r"x.bin, which is not the x.bin that the clip was made with;"):
        find(wanted, [tmp_path / "models"])
    (deep / "x.bin").unlink()
    with pytest.raises(ConfigError, match=r"got no x.bin, .*expected it in .*models; bring it"):
        find(wanted, [tmp_path / "models"])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a\0", "C:x", "x" * 300, "\ud800", "a\udfff.png", None, 3, ["a"]]
)
def test_names_that_no_file_of_a_clip_has(name: object, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="the metadata is damaged"):
        FileIdentity.from_json({**described(tmp_path / "x.bin").to_json(), "name": name})


@pytest.mark.parametrize("options", [[["--dtype", "/"]], [["--sampler", ""]], [["--stg-mode", "x"], ["--fps", "8"]]])
def test_choices_of_a_clip_that_are_none_are_a_sentence(
    options: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = clip_saying({"prompt": "a", KEY: [["--prompt", "a"], *options]}, "stranger.png")
    status, _, said = run(capsys, "run", clip)
    assert status == 2
    assert re.search(r"got options that do not go \(.*; expected what the command takes", said)


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "t5").mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / "t5" / file).write_bytes(file.encode() * 1000)
    wanted = described(tmp_path / "one/t5")
    assert find(wanted, [tmp_path / "two"]) == tmp_path / "two/t5"
    (tmp_path / "two/t5/config.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match="is not the t5 that"):
        find(wanted, [tmp_path / "two"])


def test_how_loras_were_applied_goes_along() -> None:
    """Whether there is room to merge them depends on the machine."""
    record = {"loras": [{"file": "a.safetensors", "strength": 0.5}], "lora_mode": "beside", "width": 64, "height": 32}
    known = ("--lora", "--lora-mode", "--size")
    pairs = from_library.pairs_of(record, Path("clip.mp4"), known, ())
    assert [name for name, _ in pairs] == list(known)
    assert ["--lora-mode", "beside"] in pairs

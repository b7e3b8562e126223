"""Every number and every output of every command: what cannot be is refused where it is read, by the option's name."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from ltxkit import cli
from ltxkit.commands.jobs import check_results, jobs_of
from ltxkit.commands.starts import inputs_of
from ltxkit.ltx_core.errors import ConfigError

NO_NUMBER = ("nan", "-inf", "inf", "1e999", "", "many", "9" * 5000, "-" + "9" * 5000, "1e999999999")


def options() -> Iterator[tuple[str, argparse.Action]]:
    """(command, option) of every option with a type."""
    (commands,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        for action in parser._actions:
            if action.type is not None and action.option_strings:
                yield name, action


def numeric() -> list[tuple[str, str]]:
    """(command, option) of every option that reads one number or several."""

    def reads_numbers(action: argparse.Action) -> bool:
        assert callable(action.type)
        try:
            value = action.type("1")
        except (argparse.ArgumentTypeError, ValueError, TypeError):
            value = None
        return isinstance(value, int | float | Fraction) or (
            isinstance(value, tuple) and all(isinstance(each, int | float) for each in value)
        )

    return [(command, action.option_strings[-1]) for command, action in options() if reads_numbers(action)]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command answers with."""
    try:
        status: object = cli.main(arguments)
    except SystemExit as exit:
        status = exit.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("ltxkit: ")
    assert len(line) < 400
    return line


def test_there_is_no_number_that_is_not_checked():
    """`type=float` and `type=int` would let NaN, infinity and everything else pass."""
    assert [(name, action.dest) for name, action in options() if action.type in (int, float)] == []
    assert len(numeric()) > 60


@pytest.mark.parametrize(("command", "option"), numeric())
def test_what_is_no_finite_number_is_refused(command: str, option: str, capsys: pytest.CaptureFixture[str]):
    for text in NO_NUMBER:
        if option.endswith("stg-blocks") and not text:
            continue  # no blocks
        line = refused([command, f"{option}={text}"], capsys)
        assert f"{option}: got " in line
        assert "; expected" in line


@pytest.mark.parametrize(
    ("command", "option", "texts"),
    [
        ("generate", "--guidance", ("-1", "-0.1", "101")),
        ("generate", "--steps", ("0", "-3", "1001", "2.5")),
        ("generate", "--frames", ("0", "-9", "9.5", "100001")),
        ("generate", "--fps", ("0", "-24", "1/0", "1001", "0.0001", "24/-1", "1e300")),
        ("generate", "--size", ("0x64", "64x0", "-64x64", "64", "64x", "20000x64", "nanx64", "9" * 5000 + "x1")),
        ("generate", "--seed", ("-1", str(2**64), "1.5")),
        ("generate", "--strength", ("-0.1", "1.1")),
        ("generate", "--crf", ("-1", "64", "1.5")),
        ("generate", "--resident-blocks", ("-5", "1.5")),
        ("generate", "--tile", ("0", "-1")),
        ("generate", "--stg-blocks", ("-1", "1.5", "nan")),
        ("generate", "--sigmas", ("1,nan", "inf", "1,half", ",")),
        ("generate", "--denoise-strength", ("0", "1.5")),
        ("generate", "--lora", ("a.safetensors=nan", "a.safetensors=inf", "a.safetensors=-1000")),
        ("plan", "--card", ("0", "-8")),
        ("plan", "--branches", ("0", "4")),
        ("plan", "--frames", ("0",)),
        ("make-tiny", "--seed", ("-1",)),
        ("sample", "--steps", ("0",)),
        ("extend", "--frames", ("0", "-1")),
        ("extend", "--overlap", ("0", "-1")),
        ("reconstruct", "--sigma", ("-0.1", "1.5")),
        ("eval-digits", "--clips", ("0",)),
        ("eval-digits", "--glyph-size", ("0", "-40")),
    ],
)
def test_what_makes_no_sense_is_refused(
    command: str, option: str, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    for text in texts:
        assert f"{option}: got " in refused([command, f"{option}={text}"], capsys)


UNWRITABLE = [
    ("taken/clip{}", "is not a folder"),
    ("taken/deeper/clip{}", "is not a folder"),
    ("folder{}", "which is a folder"),
    ("pipe{}", "no ordinary file"),
    ("clip.xyz", "expected a name that ends in"),
    ("clip", "expected a name that ends in"),
    ("clip{}/", "which names a folder"),
    ("a\0b{}", "expected the name of a file"),
    ("\ud800{}", "expected the name of a file"),
    ("x" * 300 + "{}", "which cannot be written (File name too long)"),
]
FOLDERS = ("which is a folder", "which names a folder")  # a clip may be a folder of pictures


@pytest.mark.parametrize(
    ("option", "suffix", "name", "message"),
    [
        (option, suffix, *case)
        for option, suffix in (("--output", ".mp4"), ("--contact-sheet", ".png"))
        for case in UNWRITABLE
        if option != "--output" or case[1] not in FOLDERS
    ],
)
def test_an_output_that_cannot_be_written_is_refused(
    option: str, suffix: str, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "taken").touch()
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    before = sorted(tmp_path.iterdir())
    line = refused(["generate", "x", f"{option}={tmp_path / 'x'}".removesuffix("x") + name.format(suffix)], capsys)
    assert "got the output" in line
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "option"),
    [("run", "--output"), ("sample", "--output"), ("train", "--output"), ("bundle", "--output"),
     ("eval-digits", "--output")],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_refused(
    command: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "taken").touch()
    for name in (str(tmp_path / "taken"), str(tmp_path / "taken/deeper"), "", "a\0b"):
        assert f"{option}: got the output" in refused([command, f"{option}={name}"], capsys)


@pytest.mark.parametrize("command", ["extend", "reconstruct", "generate"])
def test_a_clip_is_an_mp4_everywhere(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = refused([command, *(["x"] if command == "generate" else []), f"--output={tmp_path / 'a.avi'}"], capsys)
    assert "expected a name that ends in .mp4" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_latent": Path("clip.mp4")}, "which is another result"),
        ({"contact_sheet": Path("./clip.mp4")}, "which is another result"),
        ({"video": Path("clip.mp4")}, "a file that the run reads"),
        ({"save_latent": Path("model.safetensors")}, "a file that the run reads"),
        ({"save_latent": Path("lora.safetensors")}, "a file that the run reads"),
    ],
)
def test_a_result_replaces_nothing_that_the_run_needs(changes: dict[str, Path], message: str):
    said = cli.parser().parse_args(
        ["generate", "x", "-o", "clip.mp4", "--model", "model.safetensors", "--lora", "lora.safetensors"]
    )
    vars(said).update(changes)
    with pytest.raises(ConfigError, match=message):
        check_results(jobs_of(said, ["x"]), inputs_of(said))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--device": "nope"}, "got the device 'nope'; expected cuda"),
        ({"--device": "cuda:77"}, "got the device cuda:77, which cannot be used here"),
        ({"--device": "meta"}, "got the device meta, which cannot be used here"),
        ({"--device": "cpu,"}, "got the device ''"),
        ({"--size": "4096x4096", "--frames": "100000"}, "takes .* GB; expected at most the .* GB of main memory"),
        ({"--settings": "3b"}, "got settings '3b'; expected one of 2b-0.9.0"),
        ({"--stg-scale": "1", "--stg-blocks": "99"}, r"got STG blocks \[99\]"),
        ({"--skip-initial-steps": "5"}, "expected fewer than the 2 steps"),
        ({"--size": "48x48", "--upscaler": "{upscaler}"}, "expected sides of at least 49x49"),
        ({"--size": "64x64", "--frames": "1", "--upscaler": "{upscaler}"}, "got a latent of one cell"),
    ],
)
def test_a_request_is_refused_before_a_model_is_loaded(
    changes: dict[str, str],
    message: str,
    tiny_models: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    folder = tiny_models()
    upscaler = folder / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"
    said = {"--model": str(folder / "checkpoints/ltxv-tiny.safetensors")}
    said |= {"--text-encoder": str(folder / "text_encoders/t5-tiny"), "--prompt": "x", "--size": "64x64"}
    said |= {"--frames": "9", "--steps": "2", "--device": "cpu", "--output": str(tmp_path / "clip.mp4"), **changes}
    said = {name: value.replace("{upscaler}", str(upscaler)) for name, value in said.items()}
    status = cli.main(["generate", *(part for pair in said.items() for part in pair)])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert "load " not in err
    (line,) = err.splitlines()
    assert re.search(message, line), line
    assert list(tmp_path.iterdir()) == []

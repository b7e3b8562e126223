"""Names that no disk can have are one sentence and status 2, wherever a command takes a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltxkit import cli

LONG = "x" * 5000
NO_NAMES = (LONG, f"{LONG}.safetensors", "a\0b", "\udcff\udcfe" * 200)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a fox", "--model"],
        ["generate", "a fox", "--model", "ltxkit-digits", "--image"],
        ["generate", "a fox", "--model", "ltxkit-digits", "--from"],
        ["generate", "a fox", "--model", "ltxkit-digits", "--lora"],
        ["generate", "a fox", "--model", "ltxkit-digits", "--vae"],
        ["generate", "a fox", "--model", "ltxkit-digits", "--text-encoder"],
        ["generate", "a fox", "--model", "ltxkit-digits", "--tokenizer"],
        ["generate", "a fox", "--model", "ltxkit-digits", "--recipe"],
        ["generate", "--like"],
        ["generate", "--prompts"],
        ["run"],
        ["inspect"],
        ["plan"],
        ["migrate"],
        ["train", "--config"],
    ],
    ids=" ".join,
)
def test_a_name_that_no_disk_can_have(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for name in NO_NAMES:
        try:
            status = cli.main([*arguments, name])
        except SystemExit as exit:  # argparse
            status = exit.code
        said = capsys.readouterr().err
        assert (status, "Traceback" in said) == (2, False), said[-300:]
        assert len(said) < 40_000
    assert not list(tmp_path.iterdir())

"""The shell around every command: help, wrong commands, completion, lines where there is no terminal."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltxkit import cli
from ltxkit.commands.completion import SHELLS
from ltxkit.commands.console import Console
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.nodes.templates import TEMPLATES


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        status = cli.main(argv)
    except SystemExit as exit:
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_program_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    assert all(command.name in out for command in cli.COMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert re.fullmatch(r"ltxkit \d+\.\d+.*\n", out)


def test_the_bundled_workflows_are_listed_under_the_names_that_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "run", "--list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(TEMPLATES)
    status, out, err = run(capsys, "run")
    assert (status, out) == (2, "")
    assert "got no workflow; expected a file, or the name of a bundled one; see `ltxkit run --list`" in err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["genrate"], "got the command 'genrate'; did you mean generate? (see `ltxkit --help`)"),
        (["xyzzy"], "got the command 'xyzzy' (see `ltxkit --help`)"),
        (["inspect", "a", "--jsno"], "arguments: --jsno; did you mean --json? (see `ltxkit inspect --help`)"),
        (
            ["plan", "a", "b"],
            "arguments: b; expected options; put text with spaces in quotes (see `ltxkit plan --help`)",
        ),
        (["make-tiny", "x", "--family", "2c"], "invalid choice: '2c' (choose from 2b, 13b)"),
    ],
)
def test_a_wrong_word_is_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("ltxkit: ")
    assert sentence in line


def test_stages_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        for step in range(4):
            console.progress(ProgressEvent("sample", step, 3))
        console.progress(ProgressEvent("sample", 3, 3))
        console.note("a note")
        console.progress(ProgressEvent("decode", 0, 1))
        console.progress(ProgressEvent("decode", 1, 1))
        console.progress(ProgressEvent("decode", 0, 1))
        console.progress(ProgressEvent("decode", 1, 1))
        times = console.times()
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = [re.sub(r"[\d.]+ s\)", "s)", line) for line in err.splitlines()]
    assert lines == [
        "sample: 100% (3 of 3, s)",
        "ltxkit: a note",
        "decode: 100% (1 of 1, s)",
        "decode: 100% (1 of 1, s)",
    ]
    assert list(times) == ["sample", "decode"]


def test_a_long_stage_gives_a_sign(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ltxkit.commands.console.time.monotonic", lambda: now[0])
    with Console() as console:
        for step in range(101):
            console.progress(ProgressEvent("sample", step, 100))
            now[0] += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "sample: 2% (2 of 100)",
        "sample: 32% (32 of 100)",
        "sample: 62% (62 of 100)",
        "sample: 92% (92 of 100)",
        "sample: 100% (100 of 100, 100.0 s)",
    ]


def test_a_quiet_console_says_results_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=True) as console:
        console.progress(ProgressEvent("sample", 1, 1))
        console.note("a note")
        console.result("a result")
    assert capsys.readouterr() == ("a result\n", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "completion", shell)
    assert (status, err) == (0, "")
    for command in cli.COMMANDS:
        assert command.name in out
    for option in ("text-encoder", "overwrite", "contact-sheet"):
        assert option in out
    assert "gradient_estimation" in out  # a choice


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["gen"], {"generate"}),
        (["generate", "--text-e"], {"--text-encoder"}),
        (["generate", "--sampler", "h"], {"heun"}),
        (["completion", "z"], {"zsh"}),
        (["generate", "--model", "x"], set()),
    ],
)
def test_bash_completes(
    typed: list[str], expected: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, code, _ = run(capsys, "completion", "bash")
    words = " ".join(f"'{word}'" for word in ("ltxkit", *typed))
    script = f"{code}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed)}; _ltxkit; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_shell_reads_its_code(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    _, code, _ = run(capsys, "completion", shell)
    (tmp_path / "code").write_text(code)
    done = subprocess.run([shell, "-n", str(tmp_path / "code")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of another kind")
@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """As in `ltxkit completion bash | head -1`."""
    command = [sys.executable, "-m", "ltxkit", "completion", "bash"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    assert (process.wait(timeout=300), said) == (141, b"")

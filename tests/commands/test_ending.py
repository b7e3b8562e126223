"""A command that is told to stop leaves nothing, and ends with the status that shells expect; so does a second time."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ltxkit import cli
from ltxkit.commands import console, names
from ltxkit.commands.command import Command
from ltxkit.commands.training import stopping_on_signals
from ltxkit.ltx_core.files import whole
from ltxkit.ltx_core.locks import Claims

posix = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")

WORKS = """
import sys, time
from pathlib import Path
from ltxkit import cli
from ltxkit.commands.command import Command
from ltxkit.ltx_core.files import whole

def work(options, console):
    with whole(Path(sys.argv[1]) / "out.mp4") as part:
        part.write_text("half")
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaning", flush=True)
            time.sleep(60 if sys.argv[2] == "slow" else 0)
    return 0

cli.COMMANDS = (Command("work", "help", lambda parser: None, work),)
sys.exit(cli.main(["work"]))
"""


@posix
@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(
    ("number", "twice", "status"),
    [
        ("SIGINT", False, 130),
        ("SIGINT", True, 130),
        ("SIGTERM", False, 143),
        ("SIGTERM", True, 143),
        ("SIGHUP", False, 129),
    ],
)
def test_signals_leave_nothing(tmp_path: Path, number: str, twice: bool, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKS, str(tmp_path / "run"), "slow" if twice else "quick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.Signals[number])
    assert process.stdout.readline() == b"cleaning\n"
    if twice:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == status, said
    assert b"Traceback" not in said
    assert list((tmp_path / "run").iterdir()) == []


@posix
def test_the_handlers_of_the_caller_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> int:
        with whole(tmp_path / "out.mp4") as part:
            part.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(cli, "COMMANDS", (Command("work", "help", lambda _: None, stopped),))
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["work"]) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert list(tmp_path.iterdir()) == []


@posix
def test_what_the_process_was_started_to_ignore_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def goes_on(*_: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    monkeypatch.setattr(cli, "COMMANDS", (Command("work", "help", lambda _: None, goes_on),))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["work"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_runs_get_names_of_their_own(tmp_path: Path) -> None:
    with Claims() as one, Claims() as other:
        assert names.is_free(tmp_path / "a-0.mp4", set(), one)
        assert not names.is_free(tmp_path / "a-0.mp4", set(), other)
        assert names.free(tmp_path / "a-0.mp4", set(), other) == tmp_path / "a-0-2.mp4"
    with Claims() as later:
        assert names.is_free(tmp_path / "a-0.mp4", set(), later)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream", [None, "closed", "full"])
def test_a_stderr_that_takes_nothing_costs_no_result(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    broken = None if stream is None else Full()
    if stream == "closed" and broken is not None:
        broken.close()
    monkeypatch.setattr(sys, "stderr", broken)
    with console.Console() as terminal:
        terminal.note("a note")
    console.say("a sentence")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_consoles_of_few_characters_show_escapes(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """As on Windows, where a console or a pipe has the characters of one language."""
    errors, results = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="") for _ in range(2))
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(sys, "stdout", results)
    console.say("a fox \U0001f98a in 狐")
    console.Console().result("狐.mp4")
    assert errors.buffer.getvalue().decode() == "ltxkit: a fox \\U0001f98a in \\u72d0\n"  # pyright: ignore
    assert results.buffer.getvalue().decode() == "\\u72d0.mp4\n"  # pyright: ignore


def test_a_name_from_a_file_does_not_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("got \x1b[2J\x07 and \u202egpj.exe and \ud800; expected é\nnext")
    assert capsys.readouterr().err == "ltxkit: got \\x1b[2J\\x07 and \\u202egpj.exe and \\ud800; expected é\nnext\n"


OPENS = """
import sys
from pathlib import Path
from ltxkit import cli
from ltxkit.commands.command import Command

def work(options, console):
    with Path(sys.argv[1]).open("w") as file:
        file.write(str(file.fileno()))
    console.told("done")
    return 0

cli.COMMANDS = (Command("work", "help", lambda parser: None, work),)
sys.exit(cli.main(["work"]))
"""


@posix
@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    """FFmpeg and others write to stderr by its number: into a result, if that has it."""
    line = f'exec "$0" -c "$1" "$2" {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable, OPENS, str(tmp_path / "file")], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert int((tmp_path / "file").read_text()) > 2


@posix
@pytest.mark.slow  # starts processes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("completion bash >/dev/full", 1),
        ("generate --help >/dev/full", 1),
        ("--version >/dev/full", 1),
        ("completion bash >&-", 0),
        ("completion wrong 2>/dev/full", 2),
    ],
)
def test_streams_that_take_nothing(line: str, status: int) -> None:
    """To the end of the interpreter, which would exit with 120 for what is still buffered."""
    done = subprocess.run(["sh", "-c", f'"$0" -m ltxkit {line}', sys.executable], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr == "ltxkit: stdout takes nothing (No space left on device)\n"


@posix
@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("line", ["generate --help | head -1", "--version | true"])
def test_a_reader_that_goes_away(line: str) -> None:
    """`true` may end before anything is written, or after: both are fine."""
    script = f'set -o pipefail; "$0" -m ltxkit {line}'
    done = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, text=True)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_an_ignored_sighup_stays_ignored_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup; SIGINT and SIGTERM are asked for on purpose, as by the Cancel button."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("there is no SIGHUP here")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        came: list[int] = []
        with stopping_on_signals(came) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


TELLS = """
import sys
from ltxkit.commands.console import Console
console = Console()
for name in ("a.mp4", "b.mp4"):
    console.told(name)
"""


@pytest.mark.slow  # starts processes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("stdout", ["full", "closed pipe"])
def test_a_line_that_nobody_takes_costs_no_result(stdout: str) -> None:
    """The clip is there: what is printed about it comes second, and so do the clips that follow."""
    if stdout == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    done = subprocess.run([sys.executable, "-c", TELLS], stdout=descriptor, stderr=subprocess.PIPE, text=True)
    os.close(descriptor)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stdout takes nothing") == 1


def test_a_bar_that_fails_becomes_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import tqdm

    from ltxkit.ltx_core.progress import ProgressEvent

    def broken(**_: object) -> object:
        raise ValueError("could not convert string to float: 'often'")  # TQDM_MININTERVAL=often

    monkeypatch.setattr(tqdm, "tqdm", broken)
    terminal = console.Console()
    terminal._stages = console._Stages(bars=True)
    for step in range(3):
        terminal.progress(ProgressEvent("sample", step, 2))
    said = capsys.readouterr().err
    assert said.count("the progress bar could not be made (could not convert") == 1
    assert "sample: 100%" in said

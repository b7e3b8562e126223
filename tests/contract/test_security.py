"""What SECURITY.md promises: no connection, no file elsewhere, no names that write to the terminal, pinned actions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ltxkit import cli
from ltxkit.ltx_core.errors import LONGEST_LINE, CheckpointError, ConfigError, printable

AUDITED = Path(__file__).with_name("audited.py")
# What torch, matplotlib and the standard library ask for the machine, its libraries, compilers and fonts.
PROBES = {"lscpu", "uname", "gcc", "cc", "ldconfig", "ld", "objdump", "file", "nvidia-smi", "sysctl", "fc-list"}


def test_actions_are_pinned_to_commits(repository: Path) -> None:
    """A tag can be moved to other code by whoever has the action."""
    workflows = list((repository / ".github" / "workflows").glob("*.yml"))
    used = [line for path in workflows for line in re.findall(r"uses:\s*(.+)", path.read_text())]
    assert used
    assert not [line for line in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}  # .+", line)]


# --- network and files ------------------------------------------------------------------------------------------------

TRAINING = """
task: vae
output: {out}/vae
data: {{kind: digits, sizes: [[9, 16, 16]], glyph_size: 12, validation_clips: 2, enlarged: 0.25}}
model:
  in_channels: 3
  out_channels: 3
  latent_channels: 8
  patch_size: 4
  encoder_base_channels: 8
  decoder_base_channels: 8
  encoder_blocks: [[res_x, 1], [compress_all_res, {{multiplier: 2}}], [res_x, 1]]
  decoder_blocks: [[res_x, 1], [compress_all, {{multiplier: 2, residual: true}}], [res_x, 1]]
  timestep_conditioning: true
  causal_decoder: false
  spatial_padding_mode: zeros
crop_frames: 5
optimization: {{steps: 1, batch_size: 1, learning_rate: 0.001, warmup_steps: 0}}
logging: {{log_every: 1, validate_every: 1000, checkpoint_every: 1, keep: 1}}
statistics_clips: 1
"""
GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "three.png"}},
    "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}},
    "3": {
        "class_type": "SaveVideo",
        "inputs": {"video": ["2", 0], "filename_prefix": "a", "format": "auto", "codec": "auto"},
    },
}


@pytest.fixture(scope="module")
def audited(
    repository: Path, tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the run, and what each command did. One process runs all of them: most of its time are imports."""
    folder = tmp_path_factory.mktemp("audited")
    out, empty = folder / "out", folder / "empty"
    for name in ("out", "cache", "tmp", "home", "empty", "given"):
        (folder / name).mkdir()
    (folder / "given" / "graph.json").write_text(json.dumps(GRAPH))
    (folder / "given" / "vae.yaml").write_text(TRAINING.format(out=out))
    tiny = tiny_models()
    model = next((tiny / "checkpoints").iterdir())
    assets, old = repository / "assets", repository / "workflows" / "api" / "01 Demo - a digit from a prompt.json"
    small = ["--frames", "1", "--steps", "1"]
    commands = [
        ["inspect", str(model)],
        ["plan", str(model)],
        ["convert", str(model), str(out / "converted.gguf"), "--to", "gguf-q8_0"],
        ["generate", "the digit three", "--model", "ltxkit-digits", *small, "-o", str(out / "a.mp4")],
        ["run", str(folder / "given" / "graph.json"), "--input", str(assets / "examples"), "--output", str(out)],
        ["migrate", str(old), "-o", str(out / "m.json")],
        ["train-vae", "--config", str(folder / "given" / "vae.yaml")],
        ["doctor"],
        ["fetch", "2b-0.9.5", "--models", str(out / "models"), "--yes"],
    ]  # fmt: skip
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
        "LTXKIT_CACHE": str(folder / "cache"),
        "LTXKIT_KERNELS": "plain",
        "MPLCONFIGDIR": str(folder / "cache"),
        "HF_HOME": str(folder / "cache"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # where nobody answers
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-B", str(AUDITED), json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=empty,
        env=environment,
    )
    assert "TOLD " in done.stdout, done.stderr
    return folder, json.loads(done.stdout.rpartition("TOLD ")[2])


@pytest.mark.slow  # a process runs nine commands
def test_fetch_alone_connects(audited: tuple[Path, list[dict[str, Any]]]) -> None:
    connecting = {
        told["words"][0]: [event for event in told["events"] if event[0].startswith(("socket", "urllib"))]
        for told in audited[1]
    }
    assert connecting.pop("fetch")  # the hook sees what there is
    assert {name: found for name, found in connecting.items() if found} == {}
    failed = {told["words"][0]: told["said"] for told in audited[1] if told["status"] != 0}
    assert list(failed) == ["fetch"], failed


@pytest.mark.slow
def test_nothing_is_written_elsewhere(audited: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, told = audited
    allowed = tuple(f"{folder / name}{os.sep}" for name in ("out", "cache", "tmp"))
    elsewhere = [
        (each["words"][0], event, path)
        for each in told
        for event, path in each["events"]
        if event not in ("subprocess.Popen", "os.posix_spawn")
        and not event.startswith(("socket", "urllib"))
        and not f"{path}{os.sep}".startswith((*allowed, "/dev/null", "/dev/shm/", "/proc/self/"))
    ]
    assert [entry for entry in elsewhere if not _is_probe(*entry, folder)] == []
    assert [*(folder / "empty").iterdir(), *(folder / "home").rglob("*")] == []  # what native code would leave
    assert not [path for path in (folder / "tmp").rglob("*") if path.is_file()]
    made = {path.name for path in (folder / "out").iterdir() if not path.name.startswith(".")}
    assert {"a.mp4", "a_00001_.mp4", "converted.gguf", "m.json", "vae"} <= made


def _is_probe(command: str, event: str, path: str, folder: Path) -> bool:
    """`doctor` tries whether the current folder can be written, with a file that has no name afterwards."""
    places = (Path(path), Path(path).parent)
    return command == "doctor" and folder / "empty" in places and event in ("open", "os.remove")


@pytest.mark.slow
def test_no_program_is_started(audited: tuple[Path, list[dict[str, Any]]]) -> None:
    starts = ("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec", "os.spawn", "pty.spawn")
    programs = {path for told in audited[1] for event, path in told["events"] if event in starts}
    assert programs <= PROBES


# --- names from files -------------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2028\x00\r\x08"
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def test_errors_show_control_characters_as_escapes() -> None:
    for kind in (ConfigError, CheckpointError):
        text = str(kind(f"got {HOSTILE} and é, 左, \t and\nanother line"))
        assert not RAW.search(text)
        assert "\\x1b]0;owned" in text
        assert text.endswith("é, 左, \t and\nanother line")
    assert printable("\ud800") == "\\ud800"


def test_a_long_name_does_not_bury_the_sentence() -> None:
    text = str(ConfigError(f"got {'x' * 10**6}; expected a name; choose another"))
    assert LONGEST_LINE <= len(text) < LONGEST_LINE + 10
    assert text.startswith("got xxx")
    assert text.endswith("; expected a name; choose another")


@pytest.fixture
def hostile_files(tmp_path: Path) -> list[Path]:
    """A LoRA and a model of others whose names and metadata write to a terminal."""
    name = HOSTILE.replace("\x00", "")
    pair = {
        f"transformer_blocks.0.{name}.lora_A.weight": torch.ones(2, 4),
        f"transformer_blocks.0.{name}.lora_B.weight": torch.ones(4, 2),
    }
    metadata = {name: name, "ltxkit_version": name, "config": json.dumps({name: name, "transformer": {name: 1}})}
    save_file(pair, tmp_path / "lora.safetensors", metadata)
    save_file({f"patchify_proj.{name}": torch.ones(2), name: torch.ones(1)}, tmp_path / "model.safetensors", metadata)
    table = tmp_path / "clips"
    table.mkdir()
    (table / "captions.json").write_text(json.dumps([{"file": name, "caption": name}, {name: name}]))
    return [tmp_path / "lora.safetensors", tmp_path / "model.safetensors"]


def test_inspect_shows_names_as_escapes(hostile_files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in hostile_files:
        for options in ([], ["--json"]):
            status = cli.main(["inspect", str(path), *options])
            said = capsys.readouterr()
            assert status in (0, 2)
            assert not RAW.search(said.out + said.err)
            assert "owned" in said.out + said.err or path.name == "lora.safetensors"


def test_refusals_and_notes_show_names_as_escapes(
    hostile_files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = {"1": {"class_type": HOSTILE, "inputs": {HOSTILE: HOSTILE}, "_meta": {"title": HOSTILE}}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    (tmp_path / f"{HOSTILE[:3]}.yaml").write_text(f"task: {json.dumps(HOSTILE)}\n")
    for words in (
        ["plan", str(hostile_files[1])],
        ["convert", str(hostile_files[1]), str(tmp_path / "b.safetensors"), "--to", "single-file"],
        ["generate", "a", "--model", "ltxkit-digits", "--lora", str(hostile_files[0]), "-o", str(tmp_path / "a.mp4")],
        ["run", str(tmp_path / "graph.json"), "--output", str(tmp_path / "out")],
        ["migrate", str(tmp_path / "graph.json"), "-o", str(tmp_path / "new.json")],
        ["train-vae", "--config", str(tmp_path / f"{HOSTILE[:3]}.yaml")],
    ):
        assert cli.main(words) == 2, words
        said = capsys.readouterr()
        assert said.err.startswith("ltxkit: ")
        assert not RAW.search(said.out + said.err), words


def test_the_front_end_writes_text_not_html(repository: Path) -> None:
    """Names that a node reports become text nodes of the page."""
    script = (repository / "web" / "ltxkit.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)

"""A clip that several processes make together is the clip of one; as a command they speak once and end together."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.commands.command import FAILED, REFUSED
from ltxkit.commands.distributed import Processes
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.placing.together import Started, device_here, local_rank, started_together

SCRIPT, KILLED = (Path(__file__).with_name(name) for name in ("group_script.py", "group_killed.py"))
DIGITS = ["generate", "--model", "ltxkit-digits", "a 7 moving up", "--frames", "9", "--no-cache"]


Start = Callable[[list[str], int], list[Any]]
Ended = Callable[..., list[tuple[int, str, str]]]


@pytest.fixture
def started(forked: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path) -> Start:
    """started(arguments, size): the processes that `torchrun` would start; each says what it says to itself."""

    def start(arguments: list[str], size: int) -> list[Any]:
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [
            forked(arguments, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, tmp_path) for rank in range(size)
        ]

    return start


@pytest.mark.slow  # four processes that load models
def test_two_and_four_processes_make_the_clips_of_one(
    tiny_models: Callable[..., Path],
    lora_and_merged: Callable[..., tuple[dict[str, torch.Tensor], object]],
    repository: Path,
    started: Start,
    ended: Ended,
    tmp_path: Path,
) -> None:
    folder = tiny_models()
    stored = load_file(folder / "checkpoints/ltxv-tiny.safetensors")
    prefix = "model.diffusion_model."
    weights = {key.removeprefix(prefix): tensor.float() for key, tensor in stored.items() if key.startswith(prefix)}
    save_file(lora_and_merged(weights, 1.0)[0], tmp_path / "lora.safetensors")
    given = (folder, tmp_path / "lora.safetensors", repository / "assets/examples/temple.jpg")
    processes = started([str(SCRIPT), *map(str, given), str(tmp_path)], 4)
    expected: Mapping[str, torch.Tensor] = runpy.run_path(str(SCRIPT))["made"](*given)
    results = ended(processes, 600)
    assert [status for status, _, _ in results] == [0] * 4, [error[-2000:] for _, _, error in results]
    for size in (2, 4):
        found = load_file(tmp_path / f"{size}.safetensors")
        assert found.keys() == expected.keys()
        for name, latent in expected.items():
            # A forward is within 1e-5 (tests/models/test_sharing.py); guidance and the steps of a clip multiply that.
            difference = (found[name] - latent).abs().max() / latent.abs().max()
            assert difference <= 3e-5, (size, name, difference)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(4)]
    assert all(text.startswith("got seed [0] in process 0 and [1] in process 1; expected the same") for text in said)


# As a command


@pytest.mark.slow  # torchrun, and two processes
def test_the_command_under_torchrun_makes_one_clip(tmp_path: Path, free_port: Callable[[], int]) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--master-port",
        str(free_port()),
        "--nproc-per-node",
        "2",
    ]
    size = ["--set", "first.steps=2", "--dtype", "fp32"]
    options = [*DIGITS, *size, "--count", "2", "--save-latent", "{seed}.latent"]
    done = subprocess.run(
        [*torchrun, "-m", "ltxkit", *options], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    clips = ["a-7-moving-up-0.mp4", "a-7-moving-up-1.mp4"]
    assert done.stdout.splitlines() == ["0.latent", clips[0], "1.latent", clips[1]]
    assert done.stderr.count("clip 2 of 2") == 1
    assert done.stderr.count("2 processes: all for positive") + done.stderr.count("2 processes: 1 for negative") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*clips, "0.latent", "1.latent"])
    assert len(media.read_video(tmp_path / clips[1]).frames) == 9
    alone = Components.load("ltxkit-digits", device="cpu", dtype=torch.float32, cache=False)
    for seed, clip in enumerate(alone.generate("a 7 moving up", seed=[0, 1], frames=9, steps=2)):
        found = load_file(tmp_path / f"{seed}.latent")["latent_tensor"]
        torch.testing.assert_close(found, clip.latent, atol=1e-5, rtol=1e-5)
        clip.save(tmp_path / "alone.mp4", progress=False)
        together, by_one = (media.read_video(tmp_path / name).frames for name in (clips[seed], "alone.mp4"))
        assert (together - by_one).abs().mean() < 0.002  # of two compressions


@pytest.mark.slow  # four processes
def test_what_cannot_be_divided_is_said_once_before_a_model_is_loaded(
    started: Start, ended: Ended, tmp_path: Path
) -> None:
    results = ended(started(["-m", "ltxkit", *DIGITS], 4), 600)
    assert all(status in (1, 2) for status, _, _ in results), results
    said = "".join(error for _, _, error in results)
    assert said.count("got 4 processes for a model with 3 heads of attention") == 1
    assert "load " not in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("interrupts", "ends"), [(True, SystemExit), (False, KeyboardInterrupt)])
def test_an_end_elsewhere_while_this_process_ends(
    monkeypatch: pytest.MonkeyPatch, interrupts: bool, ends: type[BaseException]
) -> None:
    """The interruption comes after the error that ends this process: it is the watch's, or the user's."""

    def leave(status: int) -> None:
        raise KeyboardInterrupt

    processes = Processes(None)
    monkeypatch.setattr(processes, "_watch", SimpleNamespace(interrupts=interrupts, leave=leave, clear=lambda: None))
    with pytest.raises(ends) as raised:
        processes._fail(ConfigError("got"))
    assert ends is KeyboardInterrupt or raised.value.code == FAILED


@pytest.mark.slow  # three processes
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(("number", "rank"), [("SIGKILL", 1), ("SIGTERM", 2)])
def test_the_end_of_one_process_is_the_end_of_all(
    started: Start, ended: Ended, tmp_path: Path, number: str, rank: int
) -> None:
    options = ["--set", "first.steps=1000", "--output", "clip.mp4"]
    processes = started(["-m", "ltxkit", *DIGITS, *options], 3)
    speaking = processes[0].stderr
    assert speaking is not None
    for line in speaking:  # a sign of the stage, after two seconds of it
        if line.startswith("sample:"):
            break
    processes[rank].send_signal(signal.Signals[number])
    results = ended(processes, 120)  # not by a limit of torch, which is half an hour
    assert all(status != 0 for status, _, _ in results)
    said = "".join(error for _, _, error in results)
    assert "Traceback" not in said
    sentence = "no partial file remains" if number == "SIGTERM" else "got no answer from another process"
    assert said.count(sentence) == 1, said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # two processes
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_while_all_decode(started: Start, ended: Ended, tmp_path: Path, rank: int) -> None:
    """No file and no part of one is left, also where the process that writes has died; the other one says it."""
    size = ["--set", "first.steps=1", "--frames", "73", "--output", "clip.mp4"]
    results = ended(started([str(KILLED), str(rank), "40", *DIGITS, *size], 2))
    (killed, _, last), (status, told, said) = results[rank], results[1 - rank]
    assert (killed, last.splitlines()[-1]) == (-signal.SIGKILL, "dies while it decodes")
    assert told == ""
    assert "Traceback" not in said
    if rank == 1:
        assert status == REFUSED
        assert said.count("got no answer from another process of this run") == 1, said
    else:
        assert status in (REFUSED, FAILED)  # whichever it meets first: the group without it, or the store
    assert list(tmp_path.iterdir()) == []


# What the environment says


def test_processes_that_torchrun_has_started() -> None:
    there = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    assert started_together({}) == started_together({"WORLD_SIZE": "1"}) == Started()
    assert started_together(there) == Started(3, 4, 3)
    assert started_together(there | {"LOCAL_RANK": "1"}) == Started(3, 4, 1)
    assert local_rank(there) is None
    assert local_rank({"LOCAL_RANK": "2"}) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": None}, "without RANK; expected all that torchrun sets"),
        ({"MASTER_PORT": None, "MASTER_ADDR": None}, "without MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "got WORLD_SIZE='two'"),
        ({"WORLD_SIZE": ""}, "got WORLD_SIZE=''"),
        ({"RANK": "-1"}, "got RANK='-1'"),
        ({"RANK": "4"}, "got RANK=4 of WORLD_SIZE=4; expected a lower number"),
        ({"LOCAL_RANK": "x"}, "got LOCAL_RANK='x'"),
    ],
)
def test_an_environment_that_says_nonsense(changed: Mapping[str, str | None], message: str) -> None:
    there = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1"} | changed
    with pytest.raises(ConfigError, match=message):
        started_together({name: value for name, value in there.items() if value is not None})


def test_the_device_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_here("cpu", 1) == torch.device("cpu")
    from ltxkit.ltx_core.placing import together

    monkeypatch.setattr(together, "chosen_device", lambda _: torch.device("mps"))
    with pytest.raises(UnsupportedError, match="got mps for several processes; expected cuda or cpu"):
        device_here(None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": ["cpu", "cpu"]}, "got 2 devices for each process of a group"),
        ({"compile": True}, "got compile for a group of processes"),
    ],
)
def test_choices_that_do_not_go_with_a_group(options: dict[str, object], message: str) -> None:
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match=message):
            Components.load("ltxkit-digits", group=torch.distributed.group.WORLD, **options)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match="got group="):
            Components.load("ltxkit-digits", group=4)  # pyright: ignore[reportArgumentType]
    finally:
        torch.distributed.destroy_process_group()


def test_a_group_of_one_computes_alone() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        usual = {"device": "cpu", "dtype": torch.float32, "cache": False}
        size = {"frames": 9, "steps": 1}
        alone = Components.load("ltxkit-digits", **usual).generate("a 7", **size)
        clip = Components.load("ltxkit-digits", group=torch.distributed.group.WORLD, **usual).generate("a 7", **size)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(clip.latent, alone.latent)

"""`ltxkit bench`: what it refuses before anything is loaded, its table, its JSON, and one rehearsal with a peer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ltxkit import cli
from ltxkit.commands import bench as command
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.measuring import bench as measuring
from ltxkit.ltx_core.measuring.bench import Choices
from ltxkit.ltx_core.measuring.peers import PEERS, parse_peers
from ltxkit.ltx_core.measuring.protocol import Rounds, equal_peers, timed
from ltxkit.ltx_core.measuring.random_files import checkpoint_shapes, t5_shapes
from ltxkit.ltx_core.measuring.report import markdown


def test_names_of_the_command_are_those_of_the_measuring() -> None:
    assert command.WHAT == measuring.WHAT
    assert tuple(PEERS) == command.PEERS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--against", "diffuser"], "expected some of diffusers, official, comfyui"),
        (["--against", "diffusers,diffusers"], "twice"),
        (["--against", "comfyui=/nowhere"], "which has no folder comfy"),
        (["--against", ""], "got no peer"),
        (["--sizes", "384x256"], "expected width x height x frames"),
        (["--only", "steps"], "expected some of step, decode, encode, clip"),
        (["--threads", "0"], "--threads"),
        (["--threads", "100000"], "expected at most"),
        (["--tiny", "--model", "x.safetensors"], "leave --tiny out"),
        (["--vae", "x.safetensors"], "add --model"),
        (["--text-encoder", "x.safetensors"], "add --model"),
        (["--model", "x.safetensors", "--only", "clip"], "add --text-encoder"),
        (["--folder", "/no/such/folder"], "expected one that exists"),
        (["--device", "cuda:99"], "device"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_refused_before_anything_is_loaded(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_files", lambda *_: pytest.fail("something was loaded"))
    try:
        status = cli.main(["bench", *options])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("part", "name"), [("2b", "transformer-2b"), ("13b", "transformer-13b")])
def test_random_weights_have_the_released_sizes(part: str, name: str, repository: Path) -> None:
    manifests = repository / "tests" / "data" / "manifests"
    released = json.loads((manifests / f"{name}.single_file.json").read_text())
    released |= json.loads((manifests / "vae-0.9.5.single_file.json").read_text())
    made = checkpoint_shapes(part)  # pyright: ignore[reportArgumentType]
    assert {key: shape for key, shape in released.items() if key in made} == made
    assert all("per_channel_statistics" in key for key in released.keys() - made.keys())


def test_random_t5_has_the_released_size(repository: Path) -> None:
    released = json.loads((repository / "tests" / "data" / "manifests" / "t5xxl.json").read_text())
    made = t5_shapes()
    assert all(released[key] == shape for key, shape in made.items() if key in released)
    assert len(made) > 200


def test_what_differs_or_fails_is_said_and_not_timed() -> None:
    x = torch.ones(3)
    said: list[tuple[str, str]] = []

    def fails() -> torch.Tensor:
        raise RuntimeError("no kernel\nand more")

    peers = {
        "same": lambda: x + 1e-6,
        "other": lambda: x + 1e-3,
        "nan": lambda: x * float("nan"),
        "longer": lambda: torch.ones(4),
        "fails": fails,
    }
    equal, device = equal_peers(lambda: x, peers, 1e-5, lambda name, why: said.append((name, why)))
    assert list(equal) == ["same"]
    assert 0 < equal["same"] <= 1e-5
    assert [name for name, _ in said] == ["other", "nan", "longer", "fails"]
    assert said[-1][1].endswith("RuntimeError: no kernel")
    times = timed({"ours": lambda: x, "same": peers["same"]}, Rounds(1e-5, rounds=3, warmup=1, clock="wall"), device)
    assert [len(seconds) for seconds in times.seconds.values()] == [3, 3]
    middle, least, greatest = times.speedup("ours", "same")
    assert least <= middle <= greatest


def test_the_table_has_memory_threads_and_processor_only_where_there_are_some() -> None:
    row = {
        "case": "step",
        "unit": "s",
        "ours": 0.5,
        "peer_name": "diffusers 1",
        "peer": 1.0,
        "speedup": [2.0, 1.9, 2.1],
        "difference": 3e-7,
        "floor": 0.88,
        "note": "",
        "memory": 4_000_000_000,
        "peer_memory": None,
        "threads": 1,
        "processor": "EPYC",
    }
    machine = {"cpu": "EPYC", "cores": 2, "threads": 1, "gpu": None, "versions": {"torch": "2"}}
    full = markdown({"question": "Q", "machine": machine, "rows": [row]}, made_by="`x`")
    assert "| step | 1 | 500 ms | 4.00 GB | diffusers 1 1 s | 2.00x (1.90 to 2.10) | 3e-07 | 88% | EPYC |" in full
    assert "its memory" not in full
    plain = row | dict.fromkeys(("peer_name", "peer", "speedup", "difference", "floor", "memory", "threads"), None)
    short = markdown({"question": "Q", "machine": machine, "rows": [plain | {"processor": None}]}, made_by="`x`")
    assert "| workload | LTXKit |\n" in short


def test_a_peer_is_named_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "comfy").mkdir()
    first, second = parse_peers(f"diffusers, comfyui={tmp_path}")
    assert (first.name, first.path, second.name, second.path) == ("diffusers", None, "comfyui", tmp_path)
    with pytest.raises(ConfigError, match="ltx_video"):
        parse_peers(f"official={tmp_path}")


def test_without_a_model_the_choices_are_complete() -> None:
    Choices().check()


@pytest.mark.slow
def test_rehearsal_with_a_peer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "comfy").mkdir()  # a checkout that cannot be imported
    options = ["bench", "--tiny", "--only", "step,decode", "--threads", "1", "--rounds", "1", "--dtype", "fp32"]
    assert cli.main([*options, "--against", f"diffusers,comfyui={tmp_path}", "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["case"].split(",")[0] for row in result["rows"]] == ["step", "decode"]
    for row in result["rows"]:
        assert row["peer_name"].startswith("diffusers")
        assert row["difference"] <= 1e-4
        assert row["ours"] > 0
        assert row["peer"] > 0
        assert row["memory"] > 0
        assert row["peer_memory"] > 0
        assert row["floor"] > 0
        assert row["processor"]
    (left,) = result["left_out"]
    assert left.startswith("comfyui: it cannot be imported")

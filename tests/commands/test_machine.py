"""`ltxkit fetch` with a hub on this machine, and `ltxkit doctor`."""

from __future__ import annotations

import getpass
import importlib.metadata
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltxkit import cli
from ltxkit.commands.console import Console
from ltxkit.commands.machine import models_folder
from ltxkit.ltx_core.pipelines import doctor
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.published import PUBLISHED
from ltxkit.ltx_core.weights import bundled

FILES = PUBLISHED["2b-0.9.8-distilled"]
CHECKPOINT, T5, UPSCALER = (file.name for file in FILES)


@pytest.fixture
def hub(loopback_hub: Any) -> Any:
    for number, file in enumerate(FILES):
        loopback_hub.files.setdefault(file.repository, {})[file.name] = bytes([number]) * 2_500_000
    return loopback_hub


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:  # argparse
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fetched(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------------------------------- fetch


def test_fetch_shows_licence_and_size_and_brings_what_a_clip_needs(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "fetch", "2b-0.9.8-distilled", "--yes", "--models", tmp_path)
    assert status == 0, err
    expected = [f"checkpoints/{CHECKPOINT}", f"latent_upscale_models/{UPSCALER}", f"text_encoders/{T5}"]
    assert fetched(tmp_path) == expected
    assert sorted(out.splitlines()) == [str(tmp_path / name) for name in expected]
    first = err.partition("fetch ")[0]
    for words in ("2.5 MB from Lightricks/LTX-Video", "LTXV Open Weights", "Apache-2.0", "https://", CHECKPOINT, T5):
        assert words in first
    assert f"fetch {CHECKPOINT} (MB): 100%" in err

    hub.requests.clear()
    status, out, err = run(capsys, "fetch", "2b-0.9.8-distilled", "--models", tmp_path)
    assert (status, hub.served()) == (0, 0)  # all is there: nothing to ask
    assert err.count("is there") == 3
    assert sorted(out.splitlines()) == [str(tmp_path / name) for name in expected]


def test_fetch_of_the_file_alone(hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "fetch", CHECKPOINT, "--only", "-y", "--models", tmp_path)[0] == 0
    assert fetched(tmp_path) == [f"checkpoints/{CHECKPOINT}"]


@pytest.mark.parametrize("answer", ["y\n", "yes\n", "n\n", "\n", ""])
def test_fetch_asks(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    status, _, err = run(capsys, "fetch", "t5xxl-fp16", "--models", tmp_path)
    assert "Fetch 0.00 GB under these licences? [y/N]" in err
    agreed = answer.startswith("y")
    assert fetched(tmp_path) == ([f"text_encoders/{T5}"] if agreed else [])
    assert (status, "nothing was fetched" in err) == ((0, False) if agreed else (2, True))


def test_fetch_where_nobody_can_answer_shows_and_stops(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    status, out, err = run(capsys, "fetch", "t5xxl-fp16", "--models", tmp_path)
    assert (status, out, fetched(tmp_path), hub.served()) == (2, "", [], 0)
    assert "2.5 MB from comfyanonymous/flux_text_encoders" in err
    assert "nothing was fetched; --yes fetches without asking" in err


def test_fetch_offline_prints_the_addresses(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, out, err = run(capsys, "fetch", "2b-0.9.8-distilled", "--yes", "--models", tmp_path)
    assert status == 1
    for file in FILES:
        assert f"https://huggingface.co/{file.repository}/resolve/main/{file.name}" in out
        assert str(tmp_path / file.folder / file.name) in out
        assert file.licence.name in out
    assert "got no answer" in err
    assert fetched(tmp_path) == []


def test_fetch_that_breaks_off_says_that_it_goes_on(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.cut, hub.cuts, hub.then = 1_000_000, 1, 503
    status, out, err = run(capsys, "fetch", "t5xxl-fp16", "--yes", "--models", tmp_path)
    assert (status, out) == (1, "")
    assert "status 503" in err
    assert "run the command again: it goes on from the 1.0 MB that have arrived" in err
    assert [name for name in fetched(tmp_path) if not name.startswith("text_encoders/.ltxkit-")] == []
    hub.status = None
    status, _, err = run(capsys, "fetch", "t5xxl-fp16", "--yes", "--models", tmp_path)
    assert "of which 1.0 MB have arrived" in err
    assert (status, fetched(tmp_path)) == (0, [f"text_encoders/{T5}"])


def test_ctrl_c_keeps_what_has_arrived(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Console.progress

    def interrupted(console: Console, event: ProgressEvent) -> None:
        progress(console, event)
        if event.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "progress", interrupted)
    status, _, err = run(capsys, "fetch", "t5xxl-fp16", "--yes", "--models", tmp_path)
    assert status == 130
    assert "interrupted; the same command goes on from what has arrived" in err
    (part,) = fetched(tmp_path)
    assert part.startswith("text_encoders/.ltxkit-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2b-0.9.8"], "the nearest are 2b-0.9.8-distilled"),
        (["2b-0.9.8-distilled", "13b-0.9.9"], "got '13b-0.9.9'"),
        (["../../etc/passwd"], "got '../../etc/passwd'"),
        (["ic-lora-depth"], "got no repository Lightricks/LTX-Video-ICLoRA-depth-13b-0.9.7"),
    ],
)
def test_fetch_refuses_in_one_sentence(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = run(capsys, "fetch", *arguments, "--yes", "--models", tmp_path)
    assert (status, out, fetched(tmp_path)) == (2, "", [])
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_fetch_without_a_name_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "fetch")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(PUBLISHED)


@pytest.mark.parametrize("place", ["a file", "below a file", "read only"])
def test_a_models_folder_that_cannot_be_written_is_said_first(
    hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    models = tmp_path / "models"
    if place == "read only":
        models.mkdir()
        monkeypatch.setattr("ltxkit.ltx_core.weights.fetch.os.access", lambda *_: False)  # root may write anywhere
    else:
        models.write_text("")
    status, _, err = run(
        capsys, "fetch", "t5xxl-fp16", "-y", "--models", models / "x" if place == "below a file" else models
    )
    assert (status, hub.served()) == (2, 0)
    assert f"got {models} for models, in which no file can be made" in err


def test_files_go_to_the_comfyui_that_the_pack_is_in(tmp_path: Path) -> None:
    assert models_folder(tmp_path / "ComfyUI/custom_nodes/LTX-Kit") == tmp_path / "ComfyUI/models"
    assert models_folder(tmp_path / "ltxkit") == Path("models")


def test_one_module_downloads(repository: Path) -> None:
    """The other one asks huggingface_hub about its cache on this disk."""
    sources = (
        path
        for room in ("commands", "headless", "ltx_core", "nodes", "service")
        for path in (repository / room).rglob("*.py")
    )
    naming = {
        path.relative_to(repository).as_posix()
        for path in sources
        if re.search(r"^ *(import|from) (huggingface_hub|socket|urllib|http|requests|httpx)\b", path.read_text(), re.M)
    }
    others = {
        "commands/serve.py",  # which listens
        "service/guard.py",  # reads addresses
        "commands/distributed.py",  # a pair of sockets within one process
        "commands/captioner.py",  # an address that the user gives
    }
    assert naming - others == {"ltx_core/weights/fetch.py", "ltx_core/weights/text_encoder.py"}
    text_encoder = (repository / "ltx_core/weights/text_encoder.py").read_text()
    assert re.findall(r"from huggingface_hub import (.*)", text_encoder) == ["try_to_load_from_cache"]


# -------------------------------------------------------------------------------------------------------------- doctor


@pytest.mark.slow
def test_doctor_in_lines_and_as_json(
    tiny_models: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tiny_models()
    status, out, err = run(capsys, "doctor", "--models", models)
    assert status == 0, err
    lines = out.splitlines()
    titles = [line.split()[0] for line in lines]
    assert {"ltxkit", "python", "torch", "transformers", "av", "pillow", "device", "kernel", "folder", "file"} <= {
        *titles
    }
    assert any(re.match(r"file +checkpoints/ltxv-tiny\.safetensors: an LTX-Video checkpoint", line) for line in lines)
    assert any(re.match(r"file +text_encoders/t5-tiny: a T5 text encoder", line) for line in lines)
    assert any(line.startswith("folder") and line.endswith("checkpoints: 1 file") for line in lines)
    assert re.fullmatch(r"make demo +can run", lines[-1])

    status, out, _ = run(capsys, "doctor", "--models", models, "--json")
    examination = json.loads(out)
    assert (status, examination["problems"], examination["missing"]) == (0, [], [])
    assert examination["packages"]["torch"] == importlib.metadata.version("torch")
    assert {file["name"] for file in examination["files"]} >= {"ltxv-tiny.safetensors", "t5-tiny", "ltxkit-digits"}


@pytest.mark.slow
def test_doctor_says_what_released_models_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "doctor", "--models", tmp_path / "none")
    assert status == 0  # the demo needs none of it
    assert re.search(r"missing +a released model: ltxkit fetch 2b-0\.9\.8-distilled", out)
    assert re.search(r"missing +the text encoder of released models: ltxkit fetch t5xxl", out)
    assert re.search(r"missing +the folder .*none", out)
    for name in re.findall(r"ltxkit fetch ([\w.-]+)", out):
        assert name in PUBLISHED


@pytest.mark.slow
def test_doctor_names_files_that_would_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("checkpoints", "text_encoders"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoints/cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "text_encoders/page.safetensors").write_text("<html>404</html>")
    status, out, _ = run(capsys, "doctor", "--models", tmp_path)
    assert status == 0
    assert re.search(r"file +checkpoints/cut\.safetensors: not readable\n +problem +got ", out)
    assert re.search(r"file +text_encoders/page\.safetensors: not readable\n +problem +got ", out)
    assert re.search(r"missing +a released model", out)


def _without(monkeypatch: pytest.MonkeyPatch, name: str, instead: str | None) -> None:
    version = importlib.metadata.version

    def told(distribution: str) -> str:
        if distribution != name:
            return version(distribution)
        if instead is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return instead

    monkeypatch.setattr(importlib.metadata, "version", told)


def _no_torch(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    _without(monkeypatch, "torch", None)


def _old_torch(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    _without(monkeypatch, "torch", "2.4.1+cu121")


def _no_av(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    _without(monkeypatch, "av", None)


def _broken_pillow(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)


def _no_model(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setattr("ltxkit.ltx_core.weights.bundled._MODELS", empty)


def _no_lora(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setitem(bundled._FILES, bundled.BUNDLED_LORA, {})


def _no_workflows(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setattr(doctor, "ROOT", empty)


def _no_codec(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(doctor, "VIDEO_CODEC", "no_such_codec")


def _no_disk(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    usage = doctor.shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=1000))


def _no_device(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr("ltxkit.ltx_core.placing.devices.failing_device", lambda: "got the device cuda:0, which fails")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_torch, r"got no torch; expected 2\.5 or later; run: pip install 'torch>=2\.5'"),
        (_old_torch, r"got torch 2\.4\.1\+cu121; expected 2\.5 or later"),
        (_no_av, r"got no av; expected 14\.2 or later"),
        (_broken_pillow, r"got pillow, which cannot be imported"),
        (_no_model, r"got no ltxkit-digits for checkpoints"),
        (_no_lora, r"got no ltxkit-digits-edges for loras"),
        (_no_workflows, r"got no workflows/api/01 Demo - a digit from a prompt\.json"),
        (_no_codec, r"got an av without the encoder"),
        (_no_disk, r"got 0 MB free here"),
        (_no_device, r"got the device cuda:0"),
    ],
)
def test_doctor_fails_where_the_demo_could_not_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Path], None],
    message: str,
) -> None:
    change(monkeypatch, tmp_path)
    status, out, _ = run(capsys, "doctor")
    assert status == 1
    assert re.search(rf"^problem +{message}", out, re.MULTILINE), out
    assert re.search(r"^make demo +cannot run", out, re.MULTILINE)


@pytest.mark.slow
def test_doctor_works_where_torch_does_not(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ltxkit.cli import main; sys.exit(main(sys.argv[1:]))"
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path, "doctor"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert re.search(r"problem +got torch, which cannot be imported \(libcudart", ran.stdout)
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_the_report_for_an_issue_names_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "jane"
    models = home / "ComfyUI" / "models"
    (models / "checkpoints").mkdir(parents=True)
    (models / "checkpoints/cut | x.safetensors").write_text("<html>")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "jane")
    assert getpass.getuser() == "jane"
    _without(monkeypatch, "av", None)
    status, out, _ = run(capsys, "doctor", "--report", "--models", models)
    assert status == 1
    lines = out.splitlines()
    assert lines[1] == "|---|---|"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert "jane" not in out
    assert str(tmp_path) not in out
    assert "checkpoints/cut / x.safetensors" in out
    assert "| torch | " in out


# -------------------------------------------------------------------------------------------------------------- version


def test_version(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = re.search(r'^version = "(.+)"$', (repository / "pyproject.toml").read_text(), re.MULTILINE)
    assert written is not None
    assert run(capsys, "--version")[:2] == (0, f"ltxkit {written[1]}\n")


def test_the_version_of_an_installation_without_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert doctor.version() == importlib.metadata.version("ltxkit")
    assert {"torch", "av"} <= doctor._requirements().keys()


@pytest.mark.slow
def test_inspect_as_another_release(tiny_models: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_models() / "checkpoints/ltxv-tiny.safetensors"
    status, out, err = run(capsys, "inspect", path, "--version", "2b-0.9.5", "--json")
    assert status == 0, err
    assert json.loads(out)["version"] == "2b-0.9.5"
    status, _, err = run(capsys, "inspect", path, "--version", "2b-9")
    assert status == 2
    assert "expected one of 2b-0.9.0" in err

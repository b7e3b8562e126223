"""A file is opened once, whichever parts are loaded from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.cli import main
from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.pipelines.dry_run import outline
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.weights import containers, gguf_pieces
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae, open_models
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, UPSCALER
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import LoadModel

TinyModels = Callable[..., Path]


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """The number of times that each file's header was read."""
    counts: Counter[Path] = Counter()

    def counted(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def reading(path: Path) -> Any:
            counts[path.resolve()] += 1
            return read(path)

        return reading

    monkeypatch.setattr(containers, "read_header", counted(containers.read_header))
    monkeypatch.setattr(gguf_pieces, "read_gguf_header", counted(gguf_pieces.read_gguf_header))
    return counts


def once(*files: Path) -> dict[Path, int]:
    return {file.resolve(): 1 for file in files}


@pytest.fixture
def files(tiny_models: TinyModels) -> dict[str, Path]:
    folder = tiny_models()
    return {"model": folder / CHECKPOINT, "text_encoder": folder / TEXT_ENCODER, "upscaler": folder / UPSCALER}


@pytest.fixture
def read_once(files: dict[str, Path]) -> dict[Path, int]:
    return once(files["model"], files["text_encoder"] / "model.safetensors", files["upscaler"])


@pytest.mark.slow
def test_generate_reads_each_header_once(
    files: dict[str, Path], read_once: dict[Path, int], headers: Counter[Path], tmp_path: Path
) -> None:
    options = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    clip = ["--prompt", "a", "--size", "64x64", "--frames", "9", "--steps", "1", "--device", "cpu"]
    assert main(["generate", *options, *clip, "-o", str(tmp_path / "clip.mp4")]) == 0
    assert headers == read_once


def test_plan_reads_each_header_once(
    files: dict[str, Path], read_once: dict[Path, int], headers: Counter[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--text-encoder={files['text_encoder']}", f"--upscaler={files['upscaler']}", "--card=8", "--json"]
    assert main(["plan", str(files["model"]), *options]) == 0
    assert json.loads(capsys.readouterr().out)
    assert headers == read_once


def test_the_same_file_named_twice_is_opened_once(files: dict[str, Path], headers: Counter[Path]) -> None:
    outline(files["model"], vae=files["model"])
    assert headers == once(files["model"])


def test_load_model_reads_the_header_once(
    files: dict[str, Path], headers: Counter[Path], tiny_models: TinyModels, tmp_path: Path
) -> None:
    with use_host(PlainHost(tiny_models(), tmp_path, tmp_path)):
        LoadModel().run(files["model"].name, "in the model file", "auto", "from the file")
    assert headers == once(files["model"])


@pytest.mark.slow
@pytest.mark.parametrize("data", [True, False])
def test_the_loaders_are_what_an_opened_file_gives(files: dict[str, Path], data: bool) -> None:
    def described(model: torch.nn.Module) -> dict[str, object]:
        return {
            name: (tensor.dtype, tensor.shape, None if tensor.is_meta else tensor.double().sum().item())
            for name, tensor in model.state_dict().items()
        }

    opened = open_models(files["model"], data=data)
    (model, info), (loaded, loaded_info) = opened.transformer(), load_transformer(files["model"], data=data)
    assert described(model) == described(loaded)
    assert info == loaded_info
    assert described(opened.vae()) == described(load_vae(files["model"], data=data))
    upscaler = open_models(files["upscaler"], data=data).upscaler()
    assert described(upscaler) == described(load_upsampler(files["upscaler"], data=data))


# --- a recipe that cannot run -----------------------------------------------------------------------------------------


@pytest.fixture
def twelve_blocks(files: dict[str, Path], tmp_path: Path) -> Path:
    """A model outside every release, without metadata: the caller has to pass `version`."""
    number = len("model.diffusion_model.transformer_blocks.")
    tensors = {
        name: tensor
        for name, tensor in load_file(files["model"]).items()
        if "transformer_blocks." not in name or int(name[number:].partition(".")[0]) < 12
    }
    save_file(tensors, tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


DISTILLED = [name for name, release in RELEASES.items() if release.distilled]


@pytest.mark.parametrize("option", ["version", "settings"])
def test_a_recipe_that_cannot_run_is_refused(option: str, twelve_blocks: Path, files: dict[str, Path]) -> None:
    options = {"version": DISTILLED[0], option: "2b-0.9.5"}
    with pytest.raises(ConfigError) as raised:
        Components.load(twelve_blocks, files["text_encoder"], **options)
    assert str(raised.value) == (
        f"got {option} 2b-0.9.5, whose recipe perturbs the blocks 19, for a model of 12 blocks; expected one of "
        f"{', '.join(DISTILLED)}; pass one of these with --{option} ({option}=)"
    )
    ltx = Components.load(twelve_blocks, files["text_encoder"], **options | {option: DISTILLED[0]}, device="cpu")
    assert ltx.generate("a", width=32, height=32, frames=1, steps=1).latent.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "plan"])
def test_the_error_names_an_option_that_the_command_has(
    command: str, twelve_blocks: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = ["--prompt=a", "--size=32x32", "--frames=1", f"--output={tmp_path / 'clip.mp4'}"]
    model = [f"--model={twelve_blocks}", *clip] if command == "generate" else [str(twelve_blocks), "--card=8"]
    arguments = [command, *model, f"--text-encoder={files['text_encoder']}"]
    assert main([*arguments, "--version=2b-0.9.5"]) == 2
    message = capsys.readouterr().err
    assert "pass one of these with --version" in message
    assert main([*arguments, f"--version={DISTILLED[0]}"]) == 0


def test_another_family_is_refused_by_settings(files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"settings 13b-0\.9\.8-dev, whose recipe perturbs the blocks 28, 35, 39"):
        Components.load(files["model"], files["text_encoder"], settings="13b-0.9.8-dev")

"""The bundled model: its name resolves, it is small, other libraries can read it, and it draws its words well."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.cli import main
from ltxkit.commands import serve
from ltxkit.commands.arguments import weighted_lora
from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import run_workflow
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.pipelines.dry_run import Card, outline, plan
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.settings import Overrides, PassSettings
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.sampling.patchify import Coordinates
from ltxkit.ltx_core.shapes import PixelShape, ScaleFactors
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.data import to_pixels
from ltxkit.ltx_core.training.digits import evaluate
from ltxkit.ltx_core.training.digits.clips import DIRECTIONS, WORDS, MovingDigits, sklearn_digits
from ltxkit.ltx_core.training.digits.evaluate import Bar, Score, evaluate_digits, prompts
from ltxkit.ltx_core.training.generate import ClipSettings, Models, load_models
from ltxkit.ltx_core.training.pictures import to_frames
from ltxkit.ltx_core.training.sources import open_source
from ltxkit.ltx_core.training.text import encode
from ltxkit.ltx_core.weights.build import load_transformer, load_vae
from ltxkit.ltx_core.weights.bundled import BUNDLED, BUNDLED_LORA, bundled_files, find_model, find_run
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.identity import find, named_identity
from ltxkit.ltx_core.weights.lora import fit_lora, load_lora
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder, LoadUpscaler
from ltxkit.nodes.templates import template

SIZE = PixelShape(25, 64, 64)
GLYPH_SIZE = 40  # as in training
GRID = SIZE.latent(ScaleFactors(8, 32, 32))
HOST = host_on(DevicePlacement("cpu"))
KINDS = ("checkpoints", "text_encoders", "latent_upscale_models")


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(Path(BUNDLED), Path(BUNDLED), host=HOST)


@pytest.fixture(scope="module")
def clip() -> Tensor:
    """A clip of unseen glyphs, drawn as in training: (1 3 f h w) in [-1, 1]."""
    data = MovingDigits(
        sklearn_digits(),
        frames=SIZE.frames,
        height=SIZE.height,
        width=SIZE.width,
        glyph_size=GLYPH_SIZE,
        spread=1.0,
        split="validation",
        seed=0,
    )
    return to_pixels(data.draw([data.describe(3)]))


# ------------------------------------------------------------------------------------------------------- found by name


def test_it_is_whole_and_small(repository: Path) -> None:
    folder = repository / "assets/models" / BUNDLED
    assert find_run(BUNDLED).resolve() == folder
    for kind in KINDS:
        assert bundled_files(kind)[BUNDLED].resolve().is_relative_to(folder)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 24e6


def test_the_lora_on_it_is_found_by_its_name(models: Models, repository: Path) -> None:
    file = find_model(BUNDLED_LORA, "loras")
    assert bundled_files("loras") == {BUNDLED_LORA: file}
    assert file.resolve().parent == repository / "assets/models" / BUNDLED_LORA
    assert file.stat().st_size < 1e6
    lora = load_lora(BUNDLED_LORA)
    assert lora.path == file
    fit_lora(lora, models.transformer)  # every target of it, or an error
    metadata = open_checkpoint(file).metadata
    assert metadata["modelspec.architecture"]
    assert str(repository) not in str(metadata)
    identity = named_identity(file)  # by which a clip's record finds it again
    assert identity.name == BUNDLED_LORA
    assert find(identity, []) == Path(BUNDLED_LORA)


def test_commands_take_the_lora_by_its_name(
    repository: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = repository / "assets/models" / BUNDLED_LORA / f"{BUNDLED_LORA}.safetensors"
    assert main(["inspect", BUNDLED_LORA, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["problems"]) == ("lora", [])
    assert weighted_lora(f"{BUNDLED_LORA}=0.5") == (Path(BUNDLED_LORA), 0.5)
    with pytest.raises(argparse.ArgumentTypeError, match=f"write {BUNDLED_LORA}=0.5"):
        weighted_lora(f"{BUNDLED_LORA}:0.5")
    options = argparse.Namespace(
        model=[BUNDLED],
        lora=[BUNDLED_LORA, f"edges={BUNDLED_LORA}"],
        **dict.fromkeys(["text_encoder", "vae", "upscaler", "version", "quantization", "text_quantization"]),
    )
    assert {name: Path(path) for name, path in serve.offered(options).loras.items()} == {
        BUNDLED_LORA: file.resolve(),
        "edges": file.resolve(),
    }


def test_the_pipeline_finds_it(models: Models) -> None:
    components = Components.load(BUNDLED, BUNDLED, vae=BUNDLED, upscaler=BUNDLED, device="cpu")
    assert components.sources == {
        "model": "model.safetensors",
        "vae": "model.safetensors",
        "text_encoder": "text_encoder",
        "upscaler": "upscaler.safetensors",
    }
    assert components.upscaler is not None
    assert models.upscaler is not None
    weight = components.transformer.proj_out.weight
    torch.testing.assert_close(weight.float(), models.transformer.proj_out.weight, rtol=0, atol=0)


def test_the_plan_finds_it() -> None:
    found = plan(outline(BUNDLED, BUNDLED, vae=BUNDLED, upscaler=BUNDLED), SIZE, Card.of_size(2**30))
    assert [stage.name for stage in found.stages] == ["encode text", "sample", "upscale", "refine", "decode"]
    assert found.fits


@pytest.mark.slow
def test_the_command_line_finds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", BUNDLED, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["layout"]) == ("checkpoint", "single_file")
    assert report["dtype"] == {"transformer": "bfloat16", "vae": "bfloat16"}
    config = load_vae(find_model(BUNDLED, "checkpoints"), data=False).config
    assert config.scale_factors == ScaleFactors(8, 32, 32)
    assert config.latent_channels == 128
    assert load_transformer(find_model(BUNDLED, "checkpoints"), data=False)[0].config.in_channels == 128

    assert main(["plan", BUNDLED, "--text-encoder", BUNDLED, "--size", "64x64", "--frames", "25", "--card", "1"]) == 0
    clip = ["--prompt", "the digit two moving up", "--steps", "2"]
    size = ["--size", "64x64", "--frames", "9", "-o"]
    assert main(["sample", "--model", BUNDLED, *clip, *size, str(tmp_path / "sampled")]) == 0
    files = ["--model", BUNDLED, "--text-encoder", BUNDLED]
    assert main(["generate", *files, *clip, *size, str(tmp_path / "clip.mp4")]) == 0
    assert (tmp_path / "clip.mp4").exists()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """An empty models folder, and a host that uses it."""
    folder = tmp_path / "models"
    with use_host(PlainHost(folder, tmp_path, tmp_path, device=torch.device("cpu"))):
        yield folder


def test_the_loaders_offer_and_load_it(host: Path) -> None:
    inputs = LoadModel.INPUT_TYPES()["required"]
    assert BUNDLED in inputs["model_name"][0]
    assert BUNDLED in inputs["vae_name"][0]
    assert BUNDLED in LoadTextEncoder.INPUT_TYPES()["required"]["text_encoder_name"][0]
    assert BUNDLED in LoadUpscaler.INPUT_TYPES()["required"]["upscaler_name"][0]
    model, vae = LoadModel().run(BUNDLED, BUNDLED, "auto", "from the file")
    assert model.scale == vae.config.scale_factors == ScaleFactors(8, 32, 32)
    (encoder,) = LoadTextEncoder().run(BUNDLED, "auto", False)
    assert encoder.encoder.config.d_model == model.transformer.config.caption_channels
    (upscaler,) = LoadUpscaler().run(BUNDLED, "auto")
    assert upscaler.config.in_channels == 128


def test_a_file_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        assert find_model(BUNDLED, kind).is_absolute()
    (tmp_path / BUNDLED).mkdir()
    for kind in KINDS:
        assert find_model(BUNDLED, kind) == Path(BUNDLED)
    assert find_run(BUNDLED) == Path(BUNDLED)
    with pytest.raises(CheckpointError, match=BUNDLED):
        load_models(Path(BUNDLED), host=HOST)


def test_a_folder_of_that_name_wins_in_the_loaders(host: Path) -> None:
    own = host / "text_encoders" / BUNDLED
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    (own / "model.safetensors").write_bytes(bytes(16))
    names = LoadTextEncoder.INPUT_TYPES()["required"]["text_encoder_name"][0]
    assert list(names) == [BUNDLED]
    with pytest.raises(CheckpointError, match=str(own)):
        LoadTextEncoder().run(BUNDLED, "auto", False)


# ------------------------------------------------------------------------------------------------- readable by others


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a diffusers folder."""
    folder = tmp_path_factory.mktemp("diffusers") / "digits"
    convert(find_model(BUNDLED, "checkpoints"), folder, "diffusers")
    return folder


@pytest.mark.slow
@torch.no_grad()
def test_diffusers_vae_gives_the_same_numbers(theirs: Path, models: Models, clip: Tensor) -> None:
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(theirs / "vae", torch_dtype=torch.float32).eval()
    ours, mine = models.vae, models.vae.encode(clip).mode()
    torch.testing.assert_close(mine, vae.encode(clip).latent_dist.mode(), atol=1e-4, rtol=0)
    level = torch.tensor([0.05])
    pixels = ours.decode(mine, level)
    torch.testing.assert_close(pixels, vae.decode(mine, level).sample, atol=1e-4, rtol=0)
    assert float((pixels - clip).square().mean()) < 0.05  # a digit, rather than two equal kinds of noise
    scaled = (mine - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(ours.normalize(mine), scaled)


@torch.no_grad()
def test_diffusers_transformer_gives_the_same_numbers(theirs: Path, models: Models, clip: Tensor) -> None:
    diffusers = pytest.importorskip("diffusers")
    transformer = diffusers.LTXVideoTransformer3DModel.from_pretrained(
        theirs / "transformer", torch_dtype=torch.float32
    ).eval()
    latent = models.vae.normalize(models.vae.encode(clip).mode())
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    level = 0.7
    x = ((1 - level) * latent + level * noise).flatten(2).transpose(1, 2)
    (text,) = encode(models.text, ["the digit three moving left"], torch.device("cpu"))
    positions = Coordinates(models.vae.config.scale_factors, 25.0, causal=True).positions(GRID)
    ours = models.transformer
    branch = Branch(ours.prepare_text([text]))
    (mine,) = ours(x, torch.full((1, 1, 1), level), ours.prepare_positions(positions), (branch,))
    wanted = transformer(
        hidden_states=x,
        encoder_hidden_states=text[None],
        timestep=torch.full((1, 1), 1000 * level),
        encoder_attention_mask=torch.ones(1, len(text)),
        num_frames=GRID.frames,
        height=GRID.height,
        width=GRID.width,
        video_coords=positions,
    ).sample
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=0)
    true = (noise - latent).flatten(2).transpose(1, 2)  # which a trained model approaches
    assert float((mine - true).square().mean()) < 0.5 * float(true.square().mean())


# --------------------------------------------------------------------------------------------------- does what is said


@pytest.fixture(scope="module")
def made_once() -> Iterator[None]:
    """What a model makes of the same prompts in the same steps is made once for the tests of this module."""
    made: dict[tuple[Any, ...], Tensor] = {}
    usual = evaluate.generate_clips

    def generate(models: Models, texts: list[str], settings: ClipSettings, *, host: Host) -> Tensor:
        key = (models.transformer, tuple(texts), repr(settings))
        if key not in made:
            made[key] = usual(models, texts, settings, host=host)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "generate_clips", generate)
        yield


def scored(models: Models, steps: int = 8) -> Score:
    """The score of one clip for every digit and direction, in fewer steps than for the model card's figures."""
    said = Overrides(first=PassSettings(steps=steps, guidance_scale=3.0))
    settings = ClipSettings(SIZE, 25.0, 1000, said, batch_size=40)
    alone, count = replace(models, upscaler=None), len(WORDS) * len(DIRECTIONS)
    return evaluate_digits(alone, settings, GLYPH_SIZE, clips=count, host=HOST)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("made_once")
def test_it_reaches_the_bar(models: Models) -> None:
    score = scored(models)
    assert score.failures(replace(Bar(), weak_digit=0.75)) == []  # with four clips, each counts a quarter
    assert score.direction == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("made_once")
def test_a_model_that_mistakes_its_prompts_fails(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(count: int) -> tuple[list[str], list[tuple[int, str]]]:
        texts, named = prompts(count)
        return texts, [*named[5:], *named[:5]]  # taken for the next digit, moving the next way

    monkeypatch.setattr(evaluate, "prompts", mistaken)
    score = scored(models)
    assert score.digits < 0.2
    assert score.direction < 0.2
    assert any("digits are right" in failure for failure in score.failures(Bar()))
    assert any("move the named way" in failure for failure in score.failures(Bar()))


@pytest.mark.slow
def test_a_model_of_random_weights_fails(models: Models) -> None:
    torch.manual_seed(0)
    random = LTXTransformer(models.transformer.config).eval()
    score = scored(replace(models, transformer=random), steps=2)
    assert score.digits < 0.5
    assert score.reader >= 0.97  # the reader works
    assert any("digits are right" in failure for failure in score.failures(Bar()))


@pytest.mark.slow
def test_the_demo_of_the_lora_follows_its_reference(repository: Path, tmp_path: Path) -> None:
    """Its digit covers that of the clip whose edges it saw. Without the reference it has another place and shape;
    without the LoRA it is a shadow of the edges."""
    config = load_config("ic-lora-digits")
    source = open_source(config.data, "validation", config.seed, print)
    whole = to_frames(source.samples([6], SIZE, torch.device("cpu")).pixels[0])
    inside = whole.mean(dim=-1) > 0.5

    def overlap(name: str, change: Callable[[dict[str, Any]], object]) -> float:
        graph = json.loads(template("demo-edges").read_text(encoding="utf-8"))
        change({node["class_type"]: node["inputs"] for node in graph.values()})
        workflow = tmp_path / f"{name}.json"
        workflow.write_text(json.dumps(graph), encoding="utf-8")
        examples = repository / "assets/examples"
        (file,) = run_workflow(workflow, models=tmp_path, input_folder=examples, output_folder=tmp_path / name)
        made = media.read_video(file).frames[:, 2::4, 2::4].mean(dim=-1) > 0.5
        assert made.shape == inside.shape == (25, 64, 64)
        return float((made & inside).sum() / (made | inside).sum())

    as_shipped = overlap("shipped", lambda _: None)
    assert as_shipped > 0.55
    assert as_shipped > 1.5 * overlap("alone", lambda nodes: nodes["LTXKitSampleVideo"].pop("conditions"))
    assert as_shipped > 2 * overlap("base", lambda nodes: nodes["LTXKitApplyLoRA"].update(strength=0.0))

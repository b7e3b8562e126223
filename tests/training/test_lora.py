"""A LoRA, from a folder of videos to files for other readers, on a checkpoint in the layout of the releases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ltxkit.ltx_core.errors import ConfigError, ShapeError
from ltxkit.ltx_core.media import write_image, write_video
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.pipelines.settings import Overrides
from ltxkit.ltx_core.placing import compiling
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.sampling.patchify import Coordinates
from ltxkit.ltx_core.shapes import LatentShape, ScaleFactors
from ltxkit.ltx_core.training import text, transformer
from ltxkit.ltx_core.training.checkpoints import latest_checkpoint
from ltxkit.ltx_core.training.config import LoRASettings, load_config
from ltxkit.ltx_core.training.encoded_cache import EncodedCache
from ltxkit.ltx_core.training.generate import ClipSettings, Models
from ltxkit.ltx_core.training.loop import StepReport
from ltxkit.ltx_core.training.lora import LoRALayers
from ltxkit.ltx_core.training.run import run_training as run_config
from ltxkit.ltx_core.weights.build import load_transformer, open_models
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

pytestmark = pytest.mark.slow  # they share a trained LoRA of a model with 28 blocks

GRID = LatentShape(2, 2, 2)
TOLERANCE = 1e-3


class Quiet:
    """A console that records its messages."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, report: StepReport) -> None:
        self.steps.append(report)


def run_training(preset: str, overrides: list[str], console: Quiet, resume: bool = False) -> Path | None:
    config = load_config(preset, overrides)
    return run_config(config, resume=resume, report=console.step, notes=console.note)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        clip = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(number))
        write_video(folder / f"{number}.mp4", [clip], fps=Fraction(25))
        (folder / f"{number}.txt").write_text(f"noise of the kind {number}")
    return folder


def overrides(models: Path, videos: Path, output: Path) -> list[str]:
    values = {
        **dict.fromkeys(("initial", "vae"), models / CHECKPOINT),
        "text.encoder": models / TEXT_ENCODER,
        "data.path": videos,
        "data.sizes": "[[9, 64, 64]]",
        "data.validation_clips": 1,
        "output": output,
        "optimization.steps": 4,
        "optimization.precision": "fp32",
        "optimization.learning_rate": 2e-2,
        "optimization.warmup_steps": 0,
        "logging.validate_every": 4,
        "logging.log_every": 1,
        "validation_samples": 2,
        "lora.rank": 3,
        "lora.alpha": 6,
        "prompts": "[noise of the kind 9]",
        "sample_steps": 1,
    }
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def trained(tiny_models: Callable[..., Path], videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The final folder of a run."""
    final = run_training("lora-2b", overrides(tiny_models(), videos, tmp_path_factory.mktemp("run") / "lora"), Quiet())
    assert final is not None
    return final


def inputs(channels: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x, words = torch.randn(1, GRID.tokens, channels, generator=rng), torch.randn(5, width, generator=rng)
    positions = Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=True).positions(GRID)
    return x, torch.full((1, 1, 1), 0.7), words, positions


@torch.no_grad()
def velocity(model: LTXTransformer) -> Tensor:
    x, sigma, words, positions = inputs(model.config.in_channels, model.config.caption_channels)
    return model(x, sigma, model.prepare_positions(positions), (Branch(model.prepare_text([words])),))[0]


@pytest.fixture(scope="module")
def base(tiny_models: Callable[..., Path]) -> LTXTransformer:
    return load_transformer(tiny_models() / CHECKPOINT, dtype=torch.float32)[0]


@pytest.fixture(scope="module")
def wanted(base: LTXTransformer, trained: Path) -> Tensor:
    """With the product of the factors added to the weights by hand, read from the file in ComfyUI's key style.

    As ComfyUI reads the keys (comfy/lora.py): weight += lora_B @ lora_A; without an alpha the factor is 1.
    """
    tensors = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    stored = load_file(trained / "lora_comfyui.safetensors")
    for key in [key for key in stored if key.endswith("lora_A.weight")]:
        name = key.removeprefix("diffusion_model.").replace("lora_A.weight", "weight")
        tensors[name] += stored[key.replace("lora_A", "lora_B")].float() @ stored[key].float()
    merged = LTXTransformer(base.config)
    merged.load_state_dict(tensors)
    return velocity(merged)


def test_it_has_an_effect(base: LTXTransformer, wanted: Tensor) -> None:
    assert float((velocity(base) - wanted).abs().max()) > 20 * TOLERANCE


@pytest.mark.parametrize("style", ["comfyui", "diffusers"])
def test_the_file_is_bf16_and_says_what_it_is(style: str, trained: Path) -> None:
    file = trained / f"lora_{style}.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.architecture"] == "ltx-video/lora"
    assert metadata["ltxkit_base"] == Path(CHECKPOINT).name
    assert (metadata["format"], metadata["rank"]) == ("pt", "3")
    assert all(str(trained.parent) not in text for text in metadata.values())


@pytest.mark.parametrize("style", ["comfyui", "diffusers"])
def test_our_loader_gives_the_same(style: str, base: LTXTransformer, trained: Path, wanted: Tensor) -> None:
    lora = load_lora(trained / f"lora_{style}.safetensors")
    with applied(base, [WeightedLoRA(lora, 1.0)]) as (report,):
        torch.testing.assert_close(velocity(base), wanted, atol=TOLERANCE, rtol=0)
    assert len(report.matched) == base.config.num_layers * 2 * 4


@torch.no_grad()
def test_diffusers_gives_the_same(base: LTXTransformer, trained: Path, wanted: Tensor) -> None:
    pytest.importorskip("peft")
    import diffusers

    config = base.config
    theirs = diffusers.LTXVideoTransformer3DModel(
        in_channels=config.in_channels, out_channels=config.out_channels, num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads, attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim, caption_channels=config.caption_channels,
    ).eval()  # fmt: skip
    rename = TRANSFORMER_FROM_DIFFUSERS.inverse().rename
    theirs.load_state_dict({rename(key): tensor for key, tensor in base.state_dict().items()})
    theirs.load_lora_adapter(trained / "lora_diffusers.safetensors", prefix="transformer")
    x, sigma, words, positions = inputs(config.in_channels, config.caption_channels)
    got = theirs(
        hidden_states=x,
        encoder_hidden_states=words[None],
        timestep=sigma[:, :, 0] * 1000,
        encoder_attention_mask=torch.ones(1, 5),
        num_frames=GRID.frames,
        height=GRID.height,
        width=GRID.width,
        video_coords=positions,
    ).sample
    torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)


def test_text_and_clips_are_encoded_once(
    trained: Path,
    tiny_models: Callable[..., Path],
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trained.parent
    assert len(torch.load(run / "latents_9x64x64.pt", weights_only=True)["captions"]) == 4  # none is held out
    assert len(torch.load(run / "text.pt", weights_only=True)["captions"]) == 7  # four clips, empty, two prompts
    assert {path.name for path in (run / "validation/step_000004").iterdir()} == {
        "sheet.png",
        "grid.mp4",
        "prompts.txt",
    }
    monkeypatch.setattr(text, "load_text_encoder", None)  # the encoder must not be loaded again
    console = Quiet()
    settings = [*overrides(tiny_models(), videos, run), "optimization.steps=5", "logging.validate_every=100"]
    run_training("lora-2b", [*settings, f"output={run}"], console, resume=True)
    assert [report.step for report in console.steps] == [5]
    assert not any("encoding" in note for note in console.notes)


def test_what_a_text_encoder_said_is_not_taken_for_another_s(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    place, told = shutil.copytree(tiny_models() / TEXT_ENCODER, tmp_path / "t5"), list[str]()
    tokenizer = shutil.copyfile(next(place.rglob("spiece.model")), tmp_path / "spiece.model")
    width = json.loads((place / "config.json").read_text())["d_model"]

    def encoded(tokenizer: Path | None) -> int:
        told.clear()
        frozen = text.FrozenText(place, tokenizer, width, torch.device("cpu"))
        frozen.prepare(["a cat"], tmp_path / "text.pt", told.append, writes=True)
        return len(told)

    assert [encoded(tokenizer), encoded(tokenizer)] == [1, 0]
    assert encoded(None) == 1
    (place / "tokenizer").mkdir()
    (place / "tokenizer/new.json").write_text("{}")  # as in the folder of a pipeline
    assert [encoded(None), encoded(None)] == [1, 0]


def test_captions_are_kept_in_their_order_whichever_was_known_before(
    tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    """As after a run that was interrupted between them: its next try writes the file of an undisturbed one."""
    place = tiny_models() / TEXT_ENCODER
    width = json.loads((place / "config.json").read_text())["d_model"]

    def written(name: str, *known: str) -> list[str]:
        shared, file = EncodedCache(tmp_path / name, lambda _: None), tmp_path / f"{name}.pt"
        for captions in (known, ("a cat", "a dog", "a fox")):
            frozen = text.FrozenText(place, None, width, torch.device("cpu"))
            frozen.prepare(captions, file, lambda _: None, writes=captions != known, shared=shared)
        return torch.load(file)["captions"]

    assert written("some", "a dog") == written("none") == ["a cat", "a dog", "a fox"]


def test_what_of_the_captions_is_not_read_is_said_once(released_t5: Path, tmp_path: Path) -> None:
    with safe_open(released_t5, "pt") as file:
        width = file.get_slice("shared.weight").get_shape()[1]
    frozen, told = text.FrozenText(released_t5, None, width, torch.device("cpu")), list[str]()
    captions = ["a cat", "一只猫", "猫 and 😀", "fox " * 300]
    frozen.prepare(captions, tmp_path / "text.pt", told.append, writes=False)
    assert told[0] == "encoding 4 captions"
    assert told[1].startswith("2 of 4 captions have characters that the text encoder does not know: 一 只 猫 😀; ")
    assert told[2] == "1 of 4 captions have more than 256 tokens; their ends are not read"
    assert len(told) == 3


def test_a_lora_without_its_text_encoder_is_refused(
    tiny_models: Callable[..., Path], videos: Path, tmp_path: Path
) -> None:
    settings = [*overrides(tiny_models(), videos, tmp_path / "run"), "text.encoder=null"]
    with pytest.raises(ConfigError, match=r"got no text.encoder for a LoRA"):
        run_training("lora-2b", settings, Quiet())
    with pytest.raises(ConfigError, match=r"got no initial checkpoint; expected one for a LoRA"):
        run_training("lora-2b", [*overrides(tiny_models(), videos, tmp_path / "run"), "initial=null"], Quiet())


def test_a_release_that_is_trained_on_stays_that_release(
    tiny_models: Callable[..., Path], videos: Path, tmp_path: Path
) -> None:
    settings = [*overrides(tiny_models(), videos, tmp_path / "run"), "lora=null", "optimization.steps=1"]
    settings += ["prompts=[]", "version=2b-0.9.6-dev", "validation_samples=1"]
    final = run_training("lora-2b", settings, Quiet())
    assert final is not None
    base, trained = (open_models(path) for path in (tiny_models() / CHECKPOINT, final / "model.safetensors"))
    assert trained.description.versions == ("2b-0.9.6-dev",)
    told = open_models(tiny_models() / CHECKPOINT, version="2b-0.9.6-dev")
    assert trained.description.scheduler() == told.description.scheduler() == base.description.scheduler()


@pytest.mark.slow
def test_an_average_of_a_lora_is_what_is_exported(
    tiny_models: Callable[..., Path], videos: Path, tmp_path: Path
) -> None:
    settings = [*overrides(tiny_models(), videos, tmp_path / "run"), "optimization.ema_decay=0.5", "prompts=[]"]
    final = run_training("lora-2b", settings, Quiet())
    assert final is not None
    exported = load_file(final / "lora_comfyui.safetensors")
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None
    state = torch.load(newest / "state.pt", weights_only=True)["task"]
    names = [name for name in state["weights"] if name.startswith("down.")]
    averages = dict(zip(state["weights"], state["updater"]["average"], strict=True))
    for name in names:
        key = name.removeprefix("down.")
        (stored,) = [
            tensor for file, tensor in exported.items() if file.replace(".", "_").endswith(f"{key}_lora_A_weight")
        ]
        torch.testing.assert_close(stored.float(), averages[name], atol=1e-2, rtol=1e-2)
        assert not torch.equal(averages[name], state["weights"][name])


def logged(final: Path, lines: int) -> list[dict[str, float]]:
    """The first lines of a run's log."""
    return [json.loads(line) for line in (final.parent / "log.jsonl").read_text().splitlines()[:lines]]


def test_compiled_blocks_train_the_same_and_are_compiled_once_for_all_steps(
    tiny_models: Callable[..., Path], videos: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.testing import CompileCounter

    counter, counts, quiet = CompileCounter(), [], Quiet()
    monkeypatch.setattr(compiling, "no_compiler", lambda device: None)
    monkeypatch.setattr(transformer, "compile_blocks", partial(compiling.compile_blocks, backend=counter))
    monkeypatch.setattr(quiet, "step", lambda report: counts.append(counter.frame_count))
    changes = ["optimization.compile=true", "prompts=[]"]
    final = run_training("lora-2b", [*overrides(tiny_models(), videos, tmp_path / "lora"), *changes], quiet)
    assert final is not None
    assert not [note for note in quiet.notes if "not compiled" in note]
    # The first block, whose input needs no gradients, and the others; with first frames and without; validation. Not
    # for each of 28 blocks, and not for each step, whose text is another object.
    assert 0 < counts[0] <= counts[-1] <= 6
    for ours, theirs in zip(logged(final, 4), logged(trained, 4), strict=True):
        assert [ours[name] for name in ("step", "loss", "gradient_norm")] == pytest.approx(
            [theirs[name] for name in ("step", "loss", "gradient_norm")], rel=1e-5
        )


def test_every_unknown_target_is_named(base: LTXTransformer) -> None:
    with pytest.raises(ConfigError, match=r"got lora\.targets to_x, too, which name no Linear"):
        LoRALayers(base, LoRASettings(targets=("to_q", "to_x", "too")))


def test_a_wrong_size_is_refused_before_the_text_encoder_is_read(
    tiny_models: Callable[..., Path], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "load_text_encoder", None)
    for wrong in ("data.sizes=[[9, 70, 64]]", "preview.size=[9, 64, 70]"):
        with pytest.raises(ShapeError, match="multiples of"):
            run_training("lora-2b", [*overrides(tiny_models(), videos, tmp_path / "run"), wrong], Quiet())


def test_previews_have_the_recipe_of_the_base_and_what_the_user_chose(
    tiny_models: Callable[..., Path], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Models, ClipSettings, bool]] = []

    def record(models: Models, prompts: list[str], settings: ClipSettings, **_: object) -> Tensor:
        seen.append((models, settings, bool(prompts)))
        return torch.zeros(len(prompts), 3, *settings.size)

    monkeypatch.setattr(transformer, "generate_clips", record)
    write_image(tmp_path / "first.png", torch.rand(1, 64, 64, 3))
    settings = [each for each in overrides(tiny_models(), videos, tmp_path / "run") if "sample_steps" not in each]
    settings += ["version=2b-0.9.6-distilled", "optimization.steps=1", "optimization.precision=bf16", "preview.seed=5"]
    settings += ["preview.size=[17, 64, 96]", "preview.negative_prompt=blurred", f"preview.image={tmp_path}/first.png"]
    run_training("lora-2b", settings, Quiet())
    assert [folder.name for folder in sorted((tmp_path / "run/validation").glob("step_*"))] == [
        "step_000000",
        "step_000001",
    ]
    for models, said, _ in seen:
        recipe = RELEASES["2b-0.9.6-distilled"].recipe
        assert models.recipe == replace(recipe, negative_prompt="blurred")
        assert said.overrides == Overrides()
        assert (said.seed, tuple(said.size), said.autocast) == (5, (17, 64, 96), True)
        assert said.shown is not None

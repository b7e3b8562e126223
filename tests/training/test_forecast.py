"""What a training is said to take, phase by phase, against what its tensors take while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltxkit import cli
from ltxkit.ltx_core.budget.plan import Card
from ltxkit.ltx_core.budget.weights import weight_bytes
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.media import write_video
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training import encoding, latents, text, transformer
from ltxkit.ltx_core.training.config import TransformerTraining, load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.encoding import ClipEncoder, encoding_needs
from ltxkit.ltx_core.training.footprint import Alive
from ltxkit.ltx_core.training.forecast import (
    TrainingPlan,
    check_training_fits,
    fitting_plan,
    plan_transformer,
)
from ltxkit.ltx_core.training.lora import LoRALayers, save_lora
from ltxkit.ltx_core.training.models import save_checkpoint_file, tensors_of
from ltxkit.ltx_core.training.run import make_task
from ltxkit.ltx_core.weights.build import load_transformer, load_vae
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

GIB = 2**30
ONE = World(0, 1, torch.device("cpu"))
PHASES = ["encode text", "encode clips", "train", "validate", "export"]
MAIN = Card("main memory", 2**62, 2**62, is_main_memory=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        clip = torch.rand(17, 128, 128, 3, generator=torch.Generator().manual_seed(number))
        write_video(folder / f"{number}.mp4", [clip], fps=Fraction(25))
        (folder / f"{number}.txt").write_text(f"noise of the kind {number}, which moves from left to right")
    return folder


@pytest.fixture
def config(tiny_models: Callable[..., Path], videos: Path, tmp_path: Path) -> Callable[..., TransformerTraining]:
    """config(**changes): of a LoRA on the tiny model."""

    def make(*changes: str) -> TransformerTraining:
        models = tiny_models()
        values = {
            **dict.fromkeys(("initial", "vae"), models / CHECKPOINT),
            "text.encoder": models / TEXT_ENCODER,
            "data.path": videos,
            "data.sizes": "[[17, 128, 128]]",
            "output": tmp_path / "run",
            "optimization.steps": 2,
            "optimization.precision": "fp32",
            "validation_samples": 1,
            "lora.rank": 4,
            "prompts": "[noise of the kind 9]",
            "sample_steps": 2,
        }
        made = load_config("lora-2b", [*(f"{key}={value}" for key, value in values.items()), *changes])
        assert isinstance(made, TransformerTraining)
        return made

    return make


class Measured(dict[str, int]):
    """Bytes of live tensors at the peak of each phase: what there is before it, and what it allocates."""

    @contextmanager
    def phase(self, name: str, before: Callable[[], int] = lambda: 0) -> Iterator[None]:
        held = before()
        with Alive() as alive:
            yield
        self[name] = max(self.get(name, 0), held + alive.most)


def run(config: TransformerTraining, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainingPlan, Measured]:
    """A run of two steps, a preview and an export, of which nothing is known from other runs.

    With the fixture half_precision: in float32, as on processors without it, the copies of weights that the decoder of
    this small model takes early outweigh what it allocates late, beside the finished frames, and the plan adds the two.
    """
    monkeypatch.setattr(transformer.EncodedCache, "of_user", lambda notes: None)
    measured, said = Measured(), list[str]()
    resting = 0  # weights that main memory holds from the beginning
    encode, prepare = text.FrozenText._encode, transformer.TransformerTask._encode_all

    def encoded(self: text.FrozenText, encoder: Any, captions: Any) -> None:
        with measured.phase("encode text", lambda: weight_bytes(encoder.model) + resting):
            encode(self, encoder, captions)

    def prepared(self: transformer.TransformerTask, notes: Any) -> None:
        nonlocal resting
        if config.lora is None or config.quantization is not None:
            resting = weight_bytes(self.transformer)
        make = latents.Latents._make

        def made(of: latents.Latents, size: PixelShape) -> Any:
            # Weights that are float32 in the file are used there; others are allocated in the phase.
            stored = next(of.vae.encoder.parameters()).dtype
            before = resting + (weight_bytes(of.vae.encoder) if stored == torch.float32 else 0)
            with measured.phase("encode clips", lambda: before):
                return make(of, size)

        monkeypatch.setattr(latents.Latents, "_make", made)
        prepare(self, notes)

    monkeypatch.setattr(text.FrozenText, "_encode", encoded)
    monkeypatch.setattr(transformer.TransformerTask, "_encode_all", prepared)
    task = make_task(config, ONE, said.append)
    assert isinstance(task, transformer.TransformerTask)
    assert [line.split("  ")[0] for line in said if line.split("  ")[0] in PHASES]

    def held() -> int:
        modules: list[nn.Module] = [task.transformer, *([] if task.lora is None else [task.lora])]
        if not isinstance(task.text, text.FrozenText):
            modules.append(task.text.model)
        states = [state for each in task.updater.optimizers for state in each.state.values()]
        numbers = sum(v.nbytes for state in states for v in state.values() if isinstance(v, Tensor))
        average = task.updater.average
        numbers += 0 if average is None else sum(v.nbytes for v in average.values)
        kept = [clips.latents.nbytes for each in (task.latents, task.validation) for clips in each._kept.values()]
        return sum(map(weight_bytes, modules)) + numbers + sum(kept) + task.encoder.nbytes

    task.update(0)
    with measured.phase("train", held):
        task.update(1)
    with measured.phase("validate", lambda: held() + weight_bytes(task.vae.decoder)):
        task._sample(None)
    folder = config.output / "exported"
    folder.mkdir()
    with measured.phase("export", held):
        state = task.state()
        task.export(folder)
    del state
    return task.plan, measured


CASES = {
    "lora": [],
    "lora, bf16": ["optimization.precision=bf16"],
    "lora, activations kept": ["optimization.gradient_checkpointing=false", "optimization.batch_size=2"],
    "lora on int8": ["quantization=int8"],
    "lora, clips encoded between steps": ["cache_clips=0"],
    "whole": ["lora=null", "optimization.ema_decay=0.9"],
    "whole, in pieces": ["lora=null", "optimization.batch_size=2", "optimization.accumulation=2"],
}


@pytest.mark.slow
@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("case", CASES)
def test_every_phase_takes_what_is_said(
    case: str, config: Callable[..., TransformerTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, measured = run(config(*CASES[case]), monkeypatch)
    assert [stage.name for stage in plan.stages] == PHASES
    assert measured.keys() == set(PHASES)
    got = {stage.name: stage.peak / measured[stage.name] for stage in plan.stages}
    assert got == {name: pytest.approx(1, abs=0.1) for name in PHASES}


@pytest.fixture(scope="module")
def true_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of the 2B model's width with four of its blocks, in bfloat16."""
    config = TransformerConfig.of_size(layers=4, heads=32, head_dim=64, channels=128, captions=32)
    with torch.device("meta"):
        model = LTXTransformer(config)
    rng = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16).uniform_(-1, 1, generator=rng) / tensor.shape[-1] ** 0.5
        for name, tensor in model.state_dict().items()
    }
    path = tmp_path_factory.mktemp("wide") / "blocks.safetensors"
    save_checkpoint_file(path, tensors, config, None)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("half_precision")
def test_four_blocks_of_the_true_width_take_what_is_said(
    true_width: Path, config: Callable[..., TransformerTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA of the preset's rank; the activations by themselves too, beside 600 MB of weights."""
    changes = [f"initial={true_width}", "lora.rank=32", "data.sizes=[[9, 192, 192]]", "optimization.batch_size=2"]
    plan, measured = run(config(*changes), monkeypatch)
    got = {stage.name: stage.peak / measured[stage.name] for stage in plan.stages}
    assert got == {name: pytest.approx(1, abs=0.1) for name in PHASES}
    assert plan.step.weights > 500e6
    assert plan.step.activations is not None
    beside = measured["train"] - plan.step.weights - plan.step.optimizer
    assert plan.step.activations + plan.step.gradients == pytest.approx(beside, rel=0.1)


def test_it_is_said_before_anything_but_headers_is_read(
    config: Callable[..., TransformerTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(transformer, "open_vae", stop)
    with pytest.raises(KeyboardInterrupt):
        make_task(config(), ONE, said.append)
    assert [line.split("  ")[0] for line in said[1:6]] == PHASES
    assert said[-1].startswith("Peak ")
    assert said[-1].endswith(" of main memory: it fits.")


def test_what_does_not_fit_is_refused_with_what_to_change(
    config: Callable[..., TransformerTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "card_of", lambda _: Card("cuda", 2**20, 2**20))
    said: list[str] = []
    with pytest.raises(UnsupportedError, match=r"got a training whose phase .* takes .*; change it: ") as refused:
        make_task(config(), ONE, said.append)
    assert "ltxkit plan --train" in str(refused.value)
    plan = plan_transformer(config(), Card("small", 10, 10))
    assert not plan.fits
    check_training_fits(plan, spare=plan.peak)  # what the disk can take is left to the system


def test_the_command_lists_every_phase(
    config: Callable[..., TransformerTraining],
    tiny_models: Callable[..., Path],
    videos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = tiny_models()
    said = [f"initial={models / CHECKPOINT}", f"text.encoder={models / TEXT_ENCODER}", f"data.path={videos}"]
    said += ["data.sizes=[[9, 64, 64]]", "prompts=[a cat]"]
    command = ["plan", "--train", "lora-2b", "--vae", str(models / CHECKPOINT), "--card", "8"]
    command += [part for each in said for part in ("--set", each)]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:6]] == PHASES
    assert lines[-1].endswith("it fits.")
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in told["stages"]] == PHASES
    assert told["fits"] is True
    assert told["peak"] == max(stage["peak"] for stage in told["stages"])
    assert not (Path("runs") / "lora-2b").exists()
    for wrong, message in (
        ([*command, "--size", "64x64"], "got --train with --size"),
        (["plan"], "got a plan without a model"),
        (["plan", "ltxkit-digits", "--set", "seed=1"], "--set without --train"),
    ):
        assert cli.main(wrong) == 2
        assert message in capsys.readouterr().err


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_only_the_encoder_is_widened_and_only_meanwhile(tiny_models: Callable[..., Path]) -> None:
    vae = load_vae(tiny_models() / CHECKPOINT, dtype=torch.bfloat16)
    encoder = ClipEncoder(vae, torch.device("cpu"))
    pixels = torch.rand(2, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    got = encoder.encode(pixels)
    assert {p.dtype for p in vae.encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in vae.decoder.parameters()} == {torch.bfloat16}
    assert encoder.nbytes == weight_bytes(vae.encoder)
    encoder.rest()
    assert {p.dtype for p in vae.encoder.parameters()} == {torch.bfloat16}
    assert encoder.nbytes == 0
    wide = vae.float()
    with torch.no_grad():
        wanted = wide.normalize(wide.encode(pixels).mode())
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_large_clips_are_encoded_in_pieces_to_the_same_latents(
    tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = load_vae(tiny_models() / CHECKPOINT, dtype=torch.float32)
    pixels = torch.rand(2, 3, 17, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = ClipEncoder(vae, torch.device("cpu")).encode(pixels)
    monkeypatch.setattr(encoding, "WHOLE_PIXELS", 2**10)
    encoder = ClipEncoder(vae, torch.device("cpu"))
    assert encoder.needs(PixelShape(17, 64, 64), 2).tiling is not None
    torch.testing.assert_close(encoder.encode(pixels), whole, atol=1e-4, rtol=1e-4)


def test_less_room_encodes_fewer_at_once_then_in_pieces_then_in_tiles(tiny_models: Callable[..., Path]) -> None:
    vae = load_vae(tiny_models() / CHECKPOINT, dtype=torch.float32)
    size = PixelShape(17, 512, 512)
    free = encoding_needs(vae, PixelShape(9, 64, 64), 40, None)
    half = encoding_needs(vae, PixelShape(9, 64, 64), 40, free.work // 2)
    assert free.at_once == 40
    assert 10 <= half.at_once < 40
    assert half.work <= free.work // 2
    streamed = encoding_needs(vae, size, 40, None)
    assert streamed.at_once == 1
    assert streamed.tiling is not None
    assert streamed.tiling.height is None
    tiled = encoding_needs(vae, size, 40, streamed.work // 4)
    assert tiled.tiling is not None
    assert tiled.tiling.height is not None
    assert tiled.work < streamed.work


# --- true sizes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def true_lora(true_size: Callable[[str], Path], tmp_path: Path) -> Callable[..., TransformerTraining]:
    """true_lora(release, *changes): the preset on a model of the true size, of which there is the header alone."""

    def make(release: str, *changes: str) -> TransformerTraining:
        place = true_size(release)
        values = [f"initial={place}", f"vae={place}", f"text.encoder={true_size('t5xxl')}"]
        made = load_config("lora-2b", [*values, f"version={release}", f"data.path={tmp_path / 'none'}", *changes])
        assert isinstance(made, TransformerTraining)
        return made

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("release", "size"), [("2b-0.9.6-dev", 12), ("13b-0.9.8-dev", 16), ("13b-0.9.8-dev", 24)])
def test_a_lora_of_the_true_size_is_planned_for_a_card(
    release: str, size: int, true_lora: Callable[..., TransformerTraining]
) -> None:
    card = Card.of_size(size * GIB)
    plan = fitting_plan(true_lora(release), card)
    if not plan.fits:
        assert plan.changes
        plan = plan_transformer(true_lora(release, *plan.changes), card)
    assert plan.fits
    assert plan.stage("encode text").held <= card.available
    assert plan.step.activations is not None


@pytest.mark.slow
def test_blocks_beyond_the_counted_ones_take_as_much(
    config: Callable[..., TransformerTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltxkit.ltx_core.training import forecast

    short = plan_transformer(config("optimization.gradient_checkpointing=false"), MAIN).step
    monkeypatch.setattr(forecast, "COUNTED_BLOCKS", (100, 100))
    whole = plan_transformer(config("optimization.gradient_checkpointing=false"), MAIN).step
    assert short.activations == pytest.approx(whole.activations, rel=0.01)
    assert short.trained == whole.trained


@pytest.mark.slow
def test_a_lora_that_goes_on_has_a_plan_of_all_its_blocks(
    config: Callable[..., TransformerTraining], tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    """The file and the patterns are of 28 blocks, of which the plan counts some."""
    patterns = "lora.rank_pattern={'transformer_blocks.27.attn1.to_q': 9}"
    changed = config(patterns)
    assert changed.lora is not None
    layers = LoRALayers(load_transformer(tiny_models() / CHECKPOINT)[0], changed.lora)
    save_lora(tmp_path / "lora.safetensors", layers, tensors_of(layers), "comfyui")
    start = f"lora.init_from={tmp_path}/lora.safetensors"
    plan = plan_transformer(config(patterns, start), MAIN)
    assert plan.step.trained == sum(p.numel() for p in layers.parameters())
    # Before captions and clips are encoded, which takes long.
    with pytest.raises(ConfigError, match=r"27\.attn1\.to_q has rank 9, more than the 4 to be trained"):
        plan_transformer(config(start), MAIN)
    with pytest.raises(ConfigError, match=r"got lora.rank_pattern with transformer_blocks.28, which names no Linear"):
        plan_transformer(config("lora.rank_pattern={'transformer_blocks.28': 4}"), MAIN)


def test_a_plan_needs_a_vae(config: Callable[..., TransformerTraining]) -> None:
    with pytest.raises(ConfigError, match="got no vae"):
        plan_transformer(config("vae=null"), MAIN)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["moving-mnist-vae", "moving-mnist", "digits-vae"])
def test_every_preset_has_a_plan(
    preset: str, tiny_models: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    vae = [] if preset.endswith("vae") else ["--vae", str(tiny_models() / CHECKPOINT), "--set", "prompts=[]"]
    assert cli.main(["plan", "--train", preset, *vae, "--card", "80", "--set", "optimization.batch_size=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"train", "export"} <= {line.split("  ")[0] for line in lines}
    assert lines[-1].endswith("it fits.")


@pytest.mark.parametrize("change", ["quantization=int8", "optimization.resident_blocks=2"])
def test_a_whole_model_has_no_frozen_base(change: str, config: Callable[..., TransformerTraining]) -> None:
    with pytest.raises(ConfigError, match=f"got {change.partition('=')[0]} for the training of a whole model"):
        config("lora=null", change)

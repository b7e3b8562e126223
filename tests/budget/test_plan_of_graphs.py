"""The memory of CUDA graphs in the plan and in what a run asks for, and their pool against what a block allocates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.ltx_core.budget.plan import Card, format_plan
from ltxkit.ltx_core.budget.stages import recording
from ltxkit.ltx_core.budget.work import TABLE_BYTES
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.pipelines.dry_run import Choices, Outline, card_here, outline, plan
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.placing.compiling import compile_where_placed
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.weights.build import load_transformer, load_vae

Files = Callable[[str], Path]
CARD = Card.of_size(80 * 2**30)
SIZE = PixelShape(121, 704, 1216)


@pytest.fixture(scope="module")
def two_passes(true_size: Files) -> Outline:
    return outline(true_size("13b-0.9.8-dev"), upscaler=true_size("spatial-0.9.8"))


def test_stages_after_a_pass_lack_what_its_graphs_keep(two_passes: Outline) -> None:
    recorded, plain = (plan(two_passes, SIZE, CARD, Choices(cuda_graphs=each)) for each in (True, False))
    names = [stage.name for stage in recorded.stages]
    assert names == ["sample", "upscale", "refine", "decode"]
    first, upscale, second, decode = recorded.stages
    assert (first.recorded, second.recorded) == (0, 0), "the larger pass takes what the smaller one has"
    assert 0 < upscale.recorded < decode.recorded
    for stage, without in zip(recorded.stages, plain.stages, strict=True):
        copies = stage.activations - without.activations
        assert copies > 0 if stage.model == "transformer" else copies == 0
        assert stage.peak == without.peak + copies + stage.recorded
    assert f"{decode.recorded / 1e9:.2f} GB kept by CUDA graphs" in format_plan(recorded)
    assert recorded.to_json()["stages"][-1]["recorded"] == decode.recorded
    assert "CUDA graphs" not in format_plan(plain)


def test_main_memory_has_no_graphs(two_passes: Outline) -> None:
    main = replace(card_here("cpu"), available=2**40, total=2**40)
    assert plan(two_passes, SIZE, main, Choices(cuda_graphs=True)) == plan(two_passes, SIZE, main)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 3])
def test_the_pool_is_what_a_block_allocates(
    true_size: Files, meta_device: Any, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    """The block's own tensors, and copies of its inputs but for weights and the result of the block before."""
    monkeypatch.setattr("torch.nn.functional.rms_norm", lambda x, *_, **__: torch.empty_like(x))  # one kernel on a card
    model: LTXTransformer = load_transformer(true_size("2b-0.9.8-distilled"), data=False)[0]
    tokens, length = 2688, 128
    _, kept = recording(model, tokens=tokens, branches=lanes, text_tokens=[length] * min(lanes, 2))
    given: list[Any] = []
    hook = model.transformer_blocks[1].register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    with torch.inference_mode(), torch.device("meta"):
        texts = [model.prepare_text([torch.empty(length, 4096)]) for _ in range(min(lanes, 2))]
        branches = [Branch(text) for text in texts] + [Branch(texts[0], frozenset({1}))] * (lanes == 3)
        rotary = model.prepare_positions(torch.empty(1, 3, tokens))
        model(torch.empty(1, tokens, 128), torch.empty(1, 1, 1), rotary, branches)
        hook.remove()
        with meta_device(model) as counted:
            model.transformer_blocks[1](*given[0])
    table = tokens * model.config.hidden_size * TABLE_BYTES
    texts_of_block = min(lanes, 2) * length * 2 * model.config.hidden_size * 2
    pool = counted.peak + 2 * table + texts_of_block  # comfy-kitchen's table has twice the size
    rows_of_levels = 8 * model.config.hidden_size * 2 * 2  # which the plan leaves out
    assert 0.8 * kept <= pool <= kept + rows_of_levels


@pytest.mark.slow
def test_a_run_asks_for_what_the_plan_counts(tiny_models: Callable[..., Path]) -> None:
    checkpoint, size = tiny_models() / "checkpoints/ltxv-tiny.safetensors", PixelShape(17, 64, 96)
    models = outline(checkpoint, None, version="2b-0.9.8-distilled")
    asked: list[int] = []

    @contextmanager
    def watching(module: torch.nn.Module, *, memory_required: int = 0) -> Iterator[torch.device]:
        asked.append(memory_required)
        yield torch.device("cpu")

    transformer, vae = load_transformer(checkpoint)[0], load_vae(checkpoint)
    for records in (False, True):
        if records:
            compile_where_placed(transformer, cuda_graphs=True)
        choices = Choices(branches=1, text_tokens=7, cuda_graphs=records)
        planned = plan(models, size, Card.of_size(8 * 2**30), choices).stage("sample").activations
        sample(
            Pass(transformer, torch.tensor([1.0, 0.0]), NO_GUIDANCE, EULER),
            LatentClip.empty(vae, size, 25.0),
            Prompts(EncodedPrompt(torch.zeros(1, 7, transformer.config.caption_channels))),
            noise=SeededNoise(0),
            host=Host(watching),
        )
        assert abs(asked[-1] - planned) <= 0.02 * planned + 20_000
    assert asked[1] > asked[0]

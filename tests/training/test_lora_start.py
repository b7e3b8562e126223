"""Where a LoRA begins: ranks by pattern as peft has them, and files that training goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltxkit.ltx_core.errors import CheckpointError, ConfigError
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.sampling.patchify import Coordinates
from ltxkit.ltx_core.shapes import LatentShape, ScaleFactors
from ltxkit.ltx_core.training.config import LoRASettings
from ltxkit.ltx_core.training.lora import LoRALayers, save_lora
from ltxkit.ltx_core.training.lora_start import shapes_of
from ltxkit.ltx_core.training.models import restart, tensors_of, transformer_config
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora

GRID = LatentShape(2, 2, 2)
MODEL = {
    "in_channels": 8, "out_channels": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
    "cross_attention_dim": 32, "caption_channels": 16, "norm_eps": 1e-6, "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048], "timestep_scale_multiplier": 1000.0,
    "causal_temporal_positioning": True,
}  # fmt: skip
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
PATTERNS = {
    "rank_pattern": {"attn2.to_v": 2, "transformer_blocks.1.*": 6, "to_q": 3},
    "alpha_pattern": {r"^transformer_blocks\.0\.attn1\..*": 1.0, "net.2": 9},
}


def fresh() -> LTXTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LTXTransformer(transformer_config(MODEL))
        restart(model)
        for parameter in model.parameters():  # `restart` makes blocks that change nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@torch.no_grad()
def velocity(model: LTXTransformer) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    x, words = torch.randn(1, GRID.tokens, 8, generator=rng), torch.randn(5, 16, generator=rng)
    positions = Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=True).positions(GRID)
    rotary = model.prepare_positions(positions)
    return model(x, torch.full((1, 1, 1), 0.7), rotary, (Branch(model.prepare_text([words])),))[0]


def trained(folder: Path, **changes: Any) -> tuple[Path, Tensor]:
    """A LoRA that has an effect, as both files, and what a model with it says."""
    model, config = fresh(), LoRASettings(**({"rank": 4, "alpha": 8.0, "targets": TARGETS} | changes))
    layers = LoRALayers(model, config)
    with torch.no_grad():
        for number, up in enumerate(layers.up.values()):
            up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    for style in ("comfyui", "diffusers"):
        save_lora(folder / f"lora_{style}.safetensors", layers, tensors_of(layers), style)
    return folder, velocity(model)


def going_on(file: Path, **changes: Any) -> tuple[LTXTransformer, LoRALayers]:
    model = fresh()
    values = {"rank": 4, "alpha": 8.0, "targets": TARGETS, "init_from": file} | changes
    return model, LoRALayers(model, LoRASettings(**values))


# ------------------------------------------------------------------------------------------------------------- patterns


def linears() -> list[str]:
    names = [name for name, module in fresh().named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in names if name.startswith("transformer_blocks.")]


@pytest.mark.slow  # imports peft
def test_patterns_are_peft_s() -> None:
    pytest.importorskip("peft")
    from peft.utils.other import get_pattern_key

    names = linears()
    for patterns in (
        *PATTERNS.values(),
        {"to_q": 3, "attn1.to_q": 5},
        {"o_q": 3, "attn1.to_q": 5},
        {"0.attn1.to_q": 5},
        {".*attn1.*": 2, "to_k|to_v": 3},
        {r"transformer_blocks\.[0]\.ff\.net\.(0\.proj|2)": 7},
    ):
        used = {key: value for key, value in patterns.items() if any(get_pattern_key([key], n) == key for n in names)}
        shapes = shapes_of(LoRASettings(rank_pattern={key: int(value) for key, value in used.items()}), names)
        assert {name: shapes[name].rank for name in names} == {
            name: int(used.get(get_pattern_key(list(used), name), 32)) for name in names
        }


def test_each_linear_has_its_rank_and_alpha(tmp_path: Path) -> None:
    folder, wanted = trained(tmp_path, **PATTERNS)
    stored = load_file(folder / "lora_comfyui.safetensors")
    ranks = {
        key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight"): len(tensor)
        for key, tensor in stored.items()
        if key.endswith("lora_A.weight")
    }
    assert ranks["transformer_blocks.0.attn2.to_v"] == 2
    assert ranks["transformer_blocks.1.attn2.to_v"] == 2  # the first pattern that fits counts
    assert ranks["transformer_blocks.1.attn1.to_q"] == 6
    assert ranks["transformer_blocks.0.attn1.to_q"] == 3
    assert ranks["transformer_blocks.0.attn1.to_k"] == 4
    model = fresh()
    with applied(model, [WeightedLoRA(load_lora(folder / "lora_comfyui.safetensors"), 1.0)]):
        torch.testing.assert_close(velocity(model), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow  # imports diffusers
def test_diffusers_reads_ranks_that_differ(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    import diffusers

    folder, wanted = trained(tmp_path, **PATTERNS)
    model = fresh()
    config = model.config
    theirs = diffusers.LTXVideoTransformer3DModel(
        in_channels=config.in_channels, out_channels=config.out_channels, num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads, attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim, caption_channels=config.caption_channels,
    ).eval()  # fmt: skip
    rename = TRANSFORMER_FROM_DIFFUSERS.inverse().rename
    theirs.load_state_dict({rename(key): tensor for key, tensor in model.state_dict().items()})
    theirs.load_lora_adapter(folder / "lora_diffusers.safetensors", prefix="transformer")
    rng = torch.Generator().manual_seed(1)
    x, words = torch.randn(1, GRID.tokens, 8, generator=rng), torch.randn(5, 16, generator=rng)
    with torch.no_grad():
        found = theirs(
            hidden_states=x,
            encoder_hidden_states=words[None],
            timestep=torch.full((1, 1), 700.0),
            encoder_attention_mask=torch.ones(1, 5),
            num_frames=GRID.frames,
            height=GRID.height,
            width=GRID.width,
            video_coords=Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=True).positions(GRID),
        ).sample
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_pattern": {"to_x": 3}}, r"lora\.rank_pattern with to_x, which names no Linear"),
        ({"alpha_pattern": {"attn3.*": 3.0}}, r"lora\.alpha_pattern with attn3\.\*"),
        ({"rank_pattern": {"to_q": 0}}, r"lora\.rank_pattern\.to_q=0"),
        ({"rank_pattern": {"to_q": 2.5}}, r"lora\.rank_pattern\.to_q=2\.5"),
        ({"alpha_pattern": {"to_q": -1.0}}, r"lora\.alpha_pattern\.to_q=-1"),
        ({"alpha_pattern": {"to_q": "high"}}, r"lora\.alpha_pattern\.to_q"),
        ({"rank_pattern": {"to_(q": 3}}, "expected a regular expression"),
    ],
)
def test_patterns_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRALayers(fresh(), LoRASettings(**changes))


# ------------------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("style", ["comfyui", "diffusers"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rank": 7}, {"alpha": 3.0}, {"rank": 6, "rank_pattern": {"to_q": 9}, "alpha_pattern": {"to_k": 2.0}}],
    ids=["same", "wider", "another alpha", "patterns"],
)
def test_training_goes_on_from_what_a_file_does(style: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder, wanted = trained(tmp_path)
    model, layers = going_on(folder / f"lora_{style}.safetensors", **changes)
    torch.testing.assert_close(velocity(model), wanted, atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in layers.parameters())
    save_lora(tmp_path / "again.safetensors", layers, tensors_of(layers), "comfyui")
    other = fresh()
    with applied(other, [WeightedLoRA(load_lora(tmp_path / "again.safetensors"), 1.0)]):
        torch.testing.assert_close(velocity(other), wanted, atol=1e-5, rtol=0)


def test_more_targets_than_a_file_has_begin_at_zero(tmp_path: Path) -> None:
    folder, wanted = trained(tmp_path, targets=("to_q", "to_v"))
    model, layers = going_on(folder / "lora_comfyui.safetensors")
    torch.testing.assert_close(velocity(model), wanted, atol=1e-5, rtol=0)
    assert len(layers.names) == 2 * (4 + 4 + 2)


def test_an_alpha_in_the_file_counts(tmp_path: Path) -> None:
    folder, _ = trained(tmp_path)
    tensors = load_file(folder / "lora_comfyui.safetensors")
    targets = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    save_file(tensors | {f"{target}.alpha": torch.tensor(2.0) for target in targets}, tmp_path / "alpha.safetensors")
    reference = fresh()
    with applied(reference, [WeightedLoRA(load_lora(tmp_path / "alpha.safetensors"), 1.0)]):
        wanted = velocity(reference)
    model, _ = going_on(tmp_path / "alpha.safetensors")
    torch.testing.assert_close(velocity(model), wanted, atol=1e-5, rtol=0)


def test_the_folder_of_a_run_is_its_lora(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    _, wanted = trained(tmp_path / "final")
    torch.testing.assert_close(velocity(going_on(tmp_path)[0]), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, r"attn1.to_q has rank 4, more than the 3 to be trained"),
        ({"targets": ("to_q",)}, r"attn1\.to_k\.weight is not among lora\.targets"),
    ],
)
def test_a_file_that_does_not_suit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, _ = trained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        going_on(folder / "lora_comfyui.safetensors", **changes)


def test_what_is_no_pair_of_factors_is_refused(tmp_path: Path) -> None:
    save_file(
        {"diffusion_model.transformer_blocks.0.attn1.to_q.diff": torch.ones(32, 32)},
        tmp_path / "difference.safetensors",
    )
    with pytest.raises(ConfigError, match=r"attn1\.to_q is changed by something other than one pair of factors"):
        going_on(tmp_path / "difference.safetensors")
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
        going_on(tmp_path / "nowhere.safetensors")

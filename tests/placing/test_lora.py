"""LoRA files in every key style, against peft in diffusers' transformer and against weights with the LoRA added."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.quant.gguf import GGUF
from ltxkit.ltx_core.quant.linear import QuantizedLinear, linear_weights
from ltxkit.ltx_core.quant.registry import QUANTIZATION_NAMES, quantization_by_name
from ltxkit.ltx_core.weights.adapters import Change, merged
from ltxkit.ltx_core.weights.containers import TensorInfo
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS
from ltxkit.ltx_core.weights.lora import WeightedLoRA, fit_lora, load_lora, match_lora

HEADS, HEAD_DIM, LAYERS, CHANNELS, CAPTION = 2, 16, 2, 8, 24
TARGETS = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_v", "transformer_blocks.1.ff.net.0.proj")
OUTSIDE = ("patchify_proj", "adaln_single.linear")


@pytest.fixture(scope="module")
def model() -> LTXTransformer:
    torch.manual_seed(0)
    config = TransformerConfig.of_size(
        layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, channels=CHANNELS, captions=CAPTION, causal=False
    )
    return LTXTransformer(config).eval().requires_grad_(False)


def factors(model: LTXTransformer, names: tuple[str, ...] = TARGETS, rank: int = 4) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, dict[str, Tensor]] = {}
    for number, name in enumerate(names):
        rows, columns = model.get_submodule(name).weight.shape
        r = rank + number  # ranks may differ
        tensors[name] = {
            "down": torch.randn(r, columns, generator=generator) * 0.2,
            "up": torch.randn(rows, r, generator=generator) * 0.2,
        }
    return tensors


def diffusers_name(name: str) -> str:
    return TRANSFORMER_FROM_DIFFUSERS.inverse().rename(f"{name}.weight").removesuffix(".weight")


STYLES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "diffusers": (lambda name: f"transformer.{diffusers_name(name)}", ".lora_A.weight", ".lora_B.weight"),
    "comfyui": (lambda name: f"diffusion_model.{name}", ".lora_A.weight", ".lora_B.weight"),
    "lora_up": (lambda name: f"diffusion_model.{name}", ".lora_down.weight", ".lora_up.weight"),
    "lora.up": (lambda name: f"diffusion_model.{name}", ".lora.down.weight", ".lora.up.weight"),
    "_lora.up": (lambda name: f"transformer.{diffusers_name(name)}", "_lora.down.weight", "_lora.up.weight"),
    "checkpoint": (lambda name: f"model.diffusion_model.{name}", ".lora_A.weight", ".lora_B.weight"),
    "kohya": (lambda name: f"lora_unet_{name.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"),
    "finetrainers": (lambda name: f"transformer.{diffusers_name(name)}", ".lora_A.weight", ".lora_B.weight"),
    "bare": (diffusers_name, ".lora_A.weight", ".lora_B.weight"),
    "kohya, diffusers": (
        lambda name: f"lora_transformer_{diffusers_name(name).replace('.', '_')}",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "peft": (
        lambda name: f"base_model.model.{diffusers_name(name)}",
        ".lora_A.default.weight",
        ".lora_B.default.weight",
    ),
}


def write(path: Path, tensors: dict[str, dict[str, Tensor]], style: str = "comfyui", **more: Tensor) -> Path:
    rename, down, up = STYLES[style]
    stored = {
        rename(name) + ending: pair[role]
        for name, pair in tensors.items()
        for role, ending in (("down", down), ("up", up))
    }
    save_file(stored | more, path)
    return path


def added_to(model: LTXTransformer, path: Path) -> dict[str, Tensor]:
    """What a LoRA adds to each parameter of a model."""
    fit = fit_lora(load_lora(path), model)
    base = model.state_dict()
    return {
        name: merged(base[name], [(change, 1.0) for change in changes]) - base[name]
        for slot, changes in fit.changes.items()
        for name in (f"{slot.module}.{slot.parameter}",)
    }


def with_added(model: LTXTransformer, deltas: dict[str, Tensor]) -> LTXTransformer:
    """A model with the differences added to its weights."""
    changed = LTXTransformer(model.config).eval().requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for name, delta in deltas.items():
        state[f"{name}.weight"] += delta
    changed.load_state_dict(state)
    return changed


@pytest.mark.parametrize("style", STYLES)
def test_everything_a_file_can_hold_in_every_key_style(
    style: str, model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    """alpha, DoRA, diff and diff_b, and different ranks, in one file."""
    rename, down, up = STYLES[style]
    torch.manual_seed(6)
    tensors: dict[str, Tensor] = {}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for number, name in enumerate((*TARGETS, *OUTSIDE)):
        weight = state[f"{name}.weight"]
        a, b = torch.randn(number + 2, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], number + 2) * 0.2
        tensors |= {rename(name) + down: a, rename(name) + up: b, f"{rename(name)}.alpha": torch.tensor(3.0)}
        changed = weight + 3.0 / (number + 2) * b @ a
        if number % 2:
            magnitude = torch.rand(weight.shape[0], 1) + 0.5
            tensors[f"{rename(name)}.dora_scale"] = magnitude
            changed = changed * magnitude / changed.norm(dim=1, keepdim=True)
        state[f"{name}.weight"] += 0.7 * (changed - weight)
    for name, kind in (("transformer_blocks.1.attn1.to_k", "diff"), ("transformer_blocks.0.attn2.q_norm", "diff")):
        difference = torch.randn_like(state[f"{name}.weight"]) * 0.1
        tensors[f"{rename(name)}.{kind}"] = difference
        state[f"{name}.weight"] += 0.7 * difference
    bias = "transformer_blocks.0.ff.net.2"
    tensors[f"{rename(bias)}.diff_b"] = torch.randn_like(state[f"{bias}.bias"]) * 0.1
    state[f"{bias}.bias"] += 0.7 * tensors[f"{rename(bias)}.diff_b"]
    save_file(tensors, tmp_path / "lora.safetensors")
    merged = LTXTransformer(model.config).eval().requires_grad_(False)
    merged.load_state_dict(state)
    base = velocity(model)
    with applied(model, [WeightedLoRA(load_lora(tmp_path / "lora.safetensors"), 0.7)]) as (report,):
        got = velocity(model)
    assert len(report.matched) == 8
    torch.testing.assert_close(got, velocity(merged), rtol=1e-4, atol=2e-5)
    assert torch.equal(velocity(model), base)


@pytest.mark.parametrize("style", STYLES)
def test_every_key_style_gives_what_added_weights_give(
    style: str, model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    names = TARGETS + OUTSIDE
    tensors = factors(model, names)
    lora = load_lora(write(tmp_path / "lora.safetensors", tensors, style))
    base = velocity(model)
    with applied(model, [WeightedLoRA(lora, 0.8)]) as (report,):
        got = velocity(model)
    expected = velocity(with_added(model, {name: 0.8 * pair["up"] @ pair["down"] for name, pair in tensors.items()}))
    assert len(report.matched) == len(names)
    assert not report.unmatched
    assert (expected - base).abs().max() > 1e-3  # the LoRA has an effect
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(velocity(model), base)  # and leaves no trace


def test_equals_peft_in_diffusers(model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]) -> None:
    from diffusers import LTXVideoTransformer3DModel
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    theirs = LTXVideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=HEADS, attention_head_dim=HEAD_DIM,
        cross_attention_dim=HEADS * HEAD_DIM, num_layers=LAYERS, caption_channels=CAPTION,
    ).eval()  # fmt: skip
    to_diffusers = TRANSFORMER_FROM_DIFFUSERS.inverse()
    theirs.load_state_dict({to_diffusers.rename(key): value for key, value in model.state_dict().items()})
    torch.manual_seed(3)
    theirs.add_adapter(
        LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    )
    theirs.save_lora_adapter(tmp_path)
    # peft's own scale (alpha / r = 2) is not in this file: multiply one factor by it.
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    save_file(
        {key: value * 2 if "lora_B" in key else value for key, value in saved.items()}, tmp_path / "scaled.safetensors"
    )
    lora = load_lora(tmp_path / "scaled.safetensors")

    merged = {
        name: layer.get_delta_weight("default")
        for name, layer in theirs.named_modules()
        if isinstance(layer, LoraLayer)
    }
    deltas = {
        TRANSFORMER_FROM_DIFFUSERS.rename(f"{name}.weight").removesuffix(".weight"): d for name, d in merged.items()
    }
    assert len(deltas) == LAYERS * 8
    with applied(model, [WeightedLoRA(lora, 1.0)]):
        got = velocity(model)
    torch.testing.assert_close(got, velocity(with_added(model, deltas)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stabilized", [False, True])
def test_alpha_in_the_header_is_what_peft_makes_of_it(stabilized: bool, model: LTXTransformer, tmp_path: Path) -> None:
    """A file from diffusers' own saver, with a separate rank and alpha for some targets."""
    from diffusers import LTXPipeline, LTXVideoTransformer3DModel
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    theirs = LTXVideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=HEADS, attention_head_dim=HEAD_DIM,
        cross_attention_dim=HEADS * HEAD_DIM, num_layers=LAYERS, caption_channels=CAPTION,
    ).eval()  # fmt: skip
    torch.manual_seed(3)
    theirs.add_adapter(
        LoraConfig(
            r=4,
            lora_alpha=6,
            rank_pattern={"transformer_blocks.1.attn1.to_q": 2, "attn2.to_v": 3},
            alpha_pattern={"attn2.to_v": 12, "0.attn1.to_q": 1},
            use_rslora=stabilized,
            target_modules=["to_q", "to_v", "to_out.0"],
            init_lora_weights=False,
        )
    )
    LTXPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs),
        **_collate_lora_metadata({"transformer": theirs}),
    )
    deltas = added_to(model, tmp_path / "pytorch_lora_weights.safetensors")
    layers = {name: layer for name, layer in theirs.named_modules() if hasattr(layer, "get_delta_weight")}
    assert len(deltas) == len(layers) == LAYERS * 6
    for name, layer in layers.items():
        ours = TRANSFORMER_FROM_DIFFUSERS.rename(f"{name}.weight")
        torch.testing.assert_close(deltas[ours], layer.get_delta_weight("default"), rtol=1e-5, atol=1e-6)
    assert len({layer.scaling["default"] for layer in layers.values()}) == 4


def test_alpha_of_finetrainers(model: LTXTransformer, tmp_path: Path) -> None:
    """Its header has `lora_config` (finetrainers/trainer/sft_trainer/trainer.py)."""
    path = write(tmp_path / "lora.safetensors", factors(model, TARGETS[:1]), "finetrainers")
    save_file(load_file(path), path, {"lora_config": json.dumps({"r": 4, "lora_alpha": 8, "target_modules": "to_q"})})
    pair = factors(model, TARGETS[:1])[TARGETS[0]]
    torch.testing.assert_close(added_to(model, path), {f"{TARGETS[0]}.weight": 2.0 * pair["up"] @ pair["down"]})
    save_file(load_file(path), path, {"lora_config": "{"})
    with pytest.raises(CheckpointError, match=r"lora_config in its header.*unreadable LoRA settings .*; expected JSON"):
        load_lora(path)


def test_alpha_stack_and_strength_zero(model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]) -> None:
    tensors = factors(model)
    rename = STYLES["comfyui"][0]
    alphas = {f"{rename(name)}.alpha": torch.tensor(2.0) for name in tensors}
    first = load_lora(write(tmp_path / "a.safetensors", tensors, "comfyui", **alphas))
    second = load_lora(write(tmp_path / "b.safetensors", factors(model, TARGETS[:1], rank=2)))
    base = velocity(model)
    with applied(model, [WeightedLoRA(first, 0.0)]):
        assert torch.equal(velocity(model), base)
    with applied(model, [WeightedLoRA(first, 0.5), WeightedLoRA(second, -1.5)]):
        got = velocity(model)
    deltas = {name: 0.5 * 2.0 / pair["down"].shape[0] * pair["up"] @ pair["down"] for name, pair in tensors.items()}
    other = factors(model, TARGETS[:1], rank=2)[TARGETS[0]]
    deltas[TARGETS[0]] = deltas[TARGETS[0]] - 1.5 * other["up"] @ other["down"]
    torch.testing.assert_close(got, velocity(with_added(model, deltas)), rtol=1e-4, atol=1e-5)


def test_dora_gives_rows_their_stored_length(
    model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    name = TARGETS[0]
    pair = factors(model, (name,))[name]
    weight = model.get_submodule(name).weight
    magnitude = weight.norm(dim=1, keepdim=True) * 1.3
    rename = STYLES["comfyui"][0]
    path = write(tmp_path / "dora.safetensors", {name: pair}, "comfyui", **{f"{rename(name)}.dora_scale": magnitude})
    changed = weight + pair["up"] @ pair["down"]
    delta = changed * magnitude / changed.norm(dim=1, keepdim=True) - weight
    with applied(model, [WeightedLoRA(load_lora(path), 1.0)]):
        got = velocity(model)
    torch.testing.assert_close(got, velocity(with_added(model, {name: delta})), rtol=1e-4, atol=1e-5)


def test_full_differences_of_weights_biases_and_norms(
    model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    torch.manual_seed(4)
    linear, norm = "transformer_blocks.0.attn1.to_k", "transformer_blocks.0.attn1.q_norm"
    changes = {
        f"diffusion_model.{linear}.diff": torch.randn_like(model.get_submodule(linear).weight) * 0.1,
        f"diffusion_model.{linear}.diff_b": torch.randn_like(model.get_submodule(linear).bias) * 0.1,
        f"diffusion_model.{norm}.diff": torch.randn_like(model.get_submodule(norm).weight) * 0.1,
    }
    save_file(changes, tmp_path / "diff.safetensors")
    base = velocity(model)
    with applied(model, [WeightedLoRA(load_lora(tmp_path / "diff.safetensors"), 0.5)]):
        got = velocity(model)
    changed = LTXTransformer(model.config).eval().requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state[f"{linear}.weight"] += 0.5 * changes[f"diffusion_model.{linear}.diff"]
    state[f"{linear}.bias"] += 0.5 * changes[f"diffusion_model.{linear}.diff_b"]
    state[f"{norm}.weight"] += 0.5 * changes[f"diffusion_model.{norm}.diff"]
    changed.load_state_dict(state)
    torch.testing.assert_close(got, velocity(changed), rtol=1e-4, atol=1e-5)
    assert torch.equal(velocity(model), base)


def with_quantized_blocks(model: LTXTransformer, quantization: str) -> LTXTransformer:
    """The same model with the Linears of its blocks in a quantization, or in blocks of a ggml type."""
    changed = LTXTransformer(model.config).eval().requires_grad_(False)
    state = dict(model.state_dict())
    if quantization in QUANTIZATION_NAMES:
        pack = quantization_by_name(quantization, "transformer_blocks.").prepare(changed, {}, torch.float32)
    else:
        kind = gguf.GGMLQuantizationType[quantization]
        linears = [key for key in linear_weights(changed) if "transformer_blocks." in key]
        infos = {key: TensorInfo(tuple(state[key].shape), quantization, 0, 0) for key in linears}
        pack = GGUF().prepare(changed, infos, torch.float32)
        state |= {key: torch.from_numpy(gguf.quants.quantize(state[key].numpy(), kind)) for key in linears}
    packed = {name: tensor for key, value in state.items() for name, tensor in pack(key, value).items()}
    changed.load_state_dict(packed, assign=True)
    return changed


@pytest.mark.parametrize("quantization", [*QUANTIZATION_NAMES, "Q8_0", "Q4_0", "Q5_1"])
def test_on_quantized_weights(
    quantization: str, model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    quantized = with_quantized_blocks(model, quantization)
    dequantized = LTXTransformer(model.config).eval().requires_grad_(False)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    for name, module in quantized.named_modules():
        if isinstance(module, QuantizedLinear):
            plain[f"{name}.weight"] = module.dequantized(torch.float32)
    dequantized.load_state_dict(plain)
    tensors = factors(model)
    lora = load_lora(write(tmp_path / "lora.safetensors", tensors))
    base = velocity(quantized)
    assert (base - velocity(model)).abs().max() > 1e-4  # it is quantized
    with applied(quantized, [WeightedLoRA(lora, 1.0)]):
        got = velocity(quantized)
    expected = velocity(with_added(dequantized, {name: pair["up"] @ pair["down"] for name, pair in tensors.items()}))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(velocity(quantized), base)


def every_kind(model: LTXTransformer) -> dict[str, Tensor]:
    """Something of every kind for the Linears of the blocks, and for what is no Linear."""
    generator = torch.Generator().manual_seed(9)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    def low_rank() -> dict[str, Tensor]:
        return {"lora_A.weight": noise(2, 32), "lora_B.weight": noise(32, 2)}

    kinds: dict[str, dict[str, Tensor]] = {
        "0.attn1.to_q": {"lokr_w1": noise(4, 4), "lokr_w2_a": noise(8, 2), "lokr_w2_b": noise(2, 8)},
        "0.attn1.to_k": {f"hada_w{n}_{half}": noise(*shape) for n in (1, 2) for half, shape in HALVES.items()},
        "0.attn1.to_v": {"oft_blocks": noise(8, 4, 4), "rescale": 1 + noise(32, 1)},
        "0.attn2.to_q": {"oft_blocks": noise(3, 8, 4, 4)},
        "0.attn2.to_k": {f"{half}{n}.weight": noise(*HALVES["ab"[n - 1]]) for half in "ab" for n in (1, 2)},
        "0.attn2.to_v": {"set_weight": noise(32, 32), "diff_b": noise(32)},
        "1.attn1.to_q": {"diff": noise(32, 32), **low_rank(), "lora_B.bias": noise(32)},
        "1.attn1.to_k": {**low_rank(), "dora_scale": 1 + noise(1, 32)},
        "1.attn1.to_v": {"lokr_w1": noise(4, 4), "lokr_w2": noise(8, 8), "dora_scale": 1 + noise(32, 1)},
        "1.attn1.q_norm": {"w_norm": noise(32)},
        "1.scale_shift_table": {"diff": noise(6, 32)},
    }  # fmt: skip
    return {
        f"diffusion_model.transformer_blocks.{target}.{role}": tensor
        for target, roles in kinds.items()
        for role, tensor in roles.items()
    }


HALVES = {"a": (32, 2), "b": (2, 32)}


@pytest.mark.parametrize("strength", [1.0, -0.4])
@pytest.mark.parametrize("quantization", [None, *QUANTIZATION_NAMES, "Q8_0", "Q4_0"])
def test_every_kind_of_adapter_is_what_merged_weights_are(
    quantization: str | None, strength: float, model: LTXTransformer, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    running = model if quantization is None else with_quantized_blocks(model, quantization)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for name, module in running.named_modules():
        if isinstance(module, QuantizedLinear):
            state[f"{name}.weight"] = module.dequantized(torch.float32)
    save_file(every_kind(model), tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors")
    pair = load_lora(write(tmp_path / "pair.safetensors", factors(model, ("transformer_blocks.0.attn2.to_v",))))
    items = [WeightedLoRA(lora, strength), WeightedLoRA(pair, 0.5)]
    changes: dict[str, list[tuple[Change, float]]] = {}
    for item in items:
        for slot, found in fit_lora(item.lora, model).changes.items():
            changes.setdefault(f"{slot.module}.{slot.parameter}", []).extend(
                (change, item.strength) for change in found
            )
    assert len(changes) == 13
    state |= {name: merged(state[name], found) for name, found in changes.items()}
    expected = LTXTransformer(model.config).eval().requires_grad_(False)
    expected.load_state_dict(state)
    base = velocity(running)
    for order in (items, items[::-1]):
        with applied(running, order):
            torch.testing.assert_close(velocity(running), velocity(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(velocity(running), base)
    assert (base - velocity(expected)).abs().max() > 0.01


def test_a_target_that_the_model_lacks_is_an_error_unless_allowed(model: LTXTransformer, tmp_path: Path) -> None:
    extra = {
        f"diffusion_model.transformer_blocks.9.attn1.to_q.{half}.weight": torch.zeros(4, 4)
        for half in ("lora_A", "lora_B")
    }
    lora = load_lora(write(tmp_path / "lora.safetensors", factors(model), "comfyui", **extra))
    with (
        pytest.raises(
            CheckpointError, match=r"3 of 4 transformer targets matched.*transformer_blocks\.9.*allow_partial"
        ),
        applied(model, [WeightedLoRA(lora, 1.0)]),
    ):
        pass
    with applied(model, [WeightedLoRA(lora, 1.0, allow_partial=True)]) as (report,):
        assert report.unmatched == ("diffusion_model.transformer_blocks.9.attn1.to_q",)
        assert str(report).endswith("matched, not in the model: diffusion_model.transformer_blocks.9.attn1.to_q")


def test_a_lora_for_another_size_is_refused_before_anything_changes(model: LTXTransformer, tmp_path: Path) -> None:
    name = TARGETS[0]
    wide = {name: {"down": torch.zeros(4, 64), "up": torch.zeros(64, 4)}}
    lora = load_lora(write(tmp_path / "wide.safetensors", wide))
    with (
        pytest.raises(CheckpointError, match=r"64x64.*this model has 32x32.*2B or 13B"),
        applied(model, [WeightedLoRA(lora, 1.0)]),
    ):
        pass
    assert not any(module._forward_hooks for module in model.modules())


RELEASED = {"2b": (28, 2048), "13b": (48, 4096)}


def released(family: str) -> LTXTransformer:
    """A model of released size, without data."""
    layers, width = RELEASED[family]
    with torch.device("meta"):
        return LTXTransformer(
            TransformerConfig.of_size(layers=layers, heads=32, head_dim=width // 32, channels=128, captions=4096)
        )


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_a_lora_on_every_linear_of_the_13b_matches(style: str, tmp_path: Path) -> None:
    """Like the distilled LoRA, whose size shows that it covers the Linears outside the blocks too."""
    model, (rename, down, up) = released("13b"), STYLES[style]
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    tensors: dict[str, Tensor] = {}
    for name, linear in linears.items():
        tensors[rename(name) + down] = torch.zeros(1, linear.in_features)
        tensors[rename(name) + up] = torch.zeros(linear.out_features, 1)
    save_file(tensors, tmp_path / "distilled.safetensors")
    report = match_lora(load_lora(tmp_path / "distilled.safetensors"), model)
    assert len(report.matched) == len(linears) == 48 * 10 + 7
    assert not report.unmatched


@pytest.mark.parametrize(("of", "on"), [("2b", "13b"), ("13b", "2b")])
def test_a_lora_of_the_other_released_size(of: str, on: str, tmp_path: Path) -> None:
    """Full sizes, without data for the model. The second of two LoRAs is wrong, and the error names it."""

    def lora(family: str) -> WeightedLoRA:
        layers, width = RELEASED[family]
        halves = {"lora_A": torch.zeros(1, width), "lora_B": torch.zeros(width, 1)}
        tensors = {
            f"diffusion_model.transformer_blocks.{layer}.attn1.to_q.{half}.weight": tensor.clone()
            for layer in range(layers)
            for half, tensor in halves.items()
        }
        save_file(tensors, tmp_path / f"{family}.safetensors")
        return WeightedLoRA(load_lora(tmp_path / f"{family}.safetensors"), 1.0)

    width, model = RELEASED[on][1], released(on)
    theirs = RELEASED[of][1]
    message = rf"{of}\.safetensors for a Linear of {theirs}x{theirs} .*this model has {width}x{width}.*\(2B or 13B\)"
    with pytest.raises(CheckpointError, match=message), applied(model, [lora(on), lora(of)]):
        pass
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "role", "shape", "words"),
    [
        ("attn1.to_q", "diff", (8, 32), "for a Linear of 8x32"),
        ("attn1.to_q", "diff", (32,), r"\.diff of shape \[32\]; this model has \[32, 32\] there"),
        ("attn1.to_q", "diff_b", (8,), r"\.diff_b of shape \[8\]; this model has \[32\] there"),
        ("attn1.q_norm", "diff", (8,), r"\.diff of shape \[8\]; this model has \[32\] there"),
        ("attn1.q_norm", "diff_b", (32,), r"\.diff_b of shape \[32\]; this model has nothing there"),
    ],
)
def test_differences_of_another_size(
    name: str, role: str, shape: tuple[int, ...], words: str, model: LTXTransformer, tmp_path: Path
) -> None:
    save_file({f"diffusion_model.transformer_blocks.0.{name}.{role}": torch.zeros(shape)}, tmp_path / "d.safetensors")
    lora = load_lora(tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match=f"{words}.*2B or 13B"), applied(model, [WeightedLoRA(lora, 1.0)]):
        pass


def test_a_magnitude_of_another_size(model: LTXTransformer, tmp_path: Path) -> None:
    more = {f"diffusion_model.{TARGETS[0]}.dora_scale": torch.ones(8, 1)}
    lora = load_lora(write(tmp_path / "lora.safetensors", factors(model, TARGETS[:1]), **more))
    with (
        pytest.raises(CheckpointError, match=r"dora_scale of shape \[8, 1\]; this model has \[32, 1\]"),
        applied(model, [WeightedLoRA(lora, 1.0)]),
    ):
        pass


def test_halves_that_do_not_fit(model: LTXTransformer, tmp_path: Path) -> None:
    name = TARGETS[0]
    save_file({f"diffusion_model.{name}.lora_A.weight": torch.zeros(4, 32)}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"the down half of .* and no up half"):
        load_lora(tmp_path / "half.safetensors")
    lora = load_lora(write(tmp_path / "r.safetensors", {name: {"down": torch.zeros(4, 32), "up": torch.zeros(32, 5)}}))
    with pytest.raises(CheckpointError, match="ranks 4 and 5"), applied(model, [WeightedLoRA(lora, 1.0)]):
        pass


def test_a_model_file_is_no_lora(model: LTXTransformer, tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no LoRA"):
        load_lora(tmp_path / "model.safetensors")


def test_hooks_go_when_the_work_is_interrupted(model: LTXTransformer, tmp_path: Path) -> None:
    lora = load_lora(write(tmp_path / "lora.safetensors", factors(model)))
    with pytest.raises(KeyboardInterrupt), applied(model, [WeightedLoRA(lora, 1.0)]):
        raise KeyboardInterrupt
    assert not any(module._forward_hooks for module in model.modules())
    assert isinstance(model.get_submodule(TARGETS[0]), nn.Linear)

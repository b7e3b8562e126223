"""What the tensors of a LoRA file change in a transformer: every name, every shape, and nothing goes unread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.lora import applied, device_bytes
from ltxkit.ltx_core.weights.adapters import merged
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS, detect_layout
from ltxkit.ltx_core.weights.lora import LoRAReport, WeightedLoRA, fit_lora, load_lora
from ltxkit.ltx_core.weights.lora_keys import in_text_encoder, is_lora, parse

QUERY, OUT, TABLE, NORM = (
    "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_out.0",
    "transformer_blocks.1.scale_shift_table", "transformer_blocks.0.attn1.q_norm",
)  # fmt: skip
WIDTH, RANK = 32, 3


@pytest.fixture(scope="module")
def model() -> LTXTransformer:
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=2, heads=2, head_dim=16, channels=8, captions=24, causal=False)
    return LTXTransformer(config).eval().requires_grad_(False)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """written(tensors, metadata): the file."""

    def write(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "lora.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata)
        return path

    return write


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def pair(stem: str, seed: int = 0, *, rows: int = WIDTH, columns: int = WIDTH) -> dict[str, Tensor]:
    return {
        f"{stem}.lora_A.weight": noise(RANK, columns, seed=seed),
        f"{stem}.lora_B.weight": noise(rows, RANK, seed=seed + 1),
    }


def product(seed: int = 0) -> Tensor:
    return noise(WIDTH, RANK, seed=seed + 1) @ noise(RANK, WIDTH, seed=seed)


def added(model: LTXTransformer, path: Path, *, allow_partial: bool = False) -> tuple[dict[str, Tensor], LoRAReport]:
    """What the file adds to each parameter that it changes, and the report."""
    fit = fit_lora(load_lora(path), model, allow_partial=allow_partial)
    state, found = model.state_dict(), dict[str, Tensor]()
    for slot, changes in fit.changes.items():
        name = f"{slot.module}.{slot.parameter}".removeprefix(".")
        found[name] = merged(state[name], [(change, 1.0) for change in changes]) - state[name]
    return found, fit.report


def assert_added(model: LTXTransformer, path: Path, expected: Mapping[str, Tensor]) -> None:
    found, report = added(model, path)
    torch.testing.assert_close(found, dict(expected), rtol=1e-5, atol=1e-6)
    assert not report.unmatched
    assert not report.refused


def diffusers_name(name: str) -> str:
    return (TRANSFORMER_FROM_DIFFUSERS.inverse().rename(f"{name}.weight") or "").removesuffix(".weight")


PREFIXES = (
    "", "transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", "module.", "_orig_mod.",
    "transformer._orig_mod.", "_orig_mod.transformer.", "module._orig_mod.", "base_model.model.transformer.",
    "base_model.model._orig_mod.", "transformer.base_model.model.", "_orig_mod.module.base_model.model.",
    "_fsdp_wrapped_module.", "transformer.module._fsdp_wrapped_module.", "model.", "unet.", "dit.", "pipe.dit.",
)  # fmt: skip
FLAT = (
    "lora_unet_", "lora_transformer_", "lycoris_", "lora_", "lycoris_transformer_", "lora_unet__orig_mod_",
    "lora_dit_", "lora_unet__",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers(prefix: str, model: LTXTransformer, written: Callable[..., Path]) -> None:
    tensors = pair(prefix + diffusers_name(QUERY)) | pair(prefix + OUT, 2)
    assert_added(model, written(tensors), {f"{QUERY}.weight": product(), f"{OUT}.weight": product(2)})


@pytest.mark.parametrize("prefix", FLAT)
def test_names_with_underscores(prefix: str, model: LTXTransformer, written: Callable[..., Path]) -> None:
    stem = prefix + diffusers_name(QUERY).replace(".", "_")
    tensors = {
        f"{stem}.lora_down.weight": noise(RANK, WIDTH),
        f"{stem}.lora_up.weight": noise(WIDTH, RANK, seed=1),
        f"{stem}.alpha": torch.tensor(1.5),
    }
    assert_added(model, written(tensors), {f"{QUERY}.weight": 0.5 * product()})


@pytest.mark.parametrize(
    "stem",
    [
        "transformer_blocks.0._orig_mod.attn1.to_q",
        "transformer_blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.attn1.to_q",
        "transformer.transformer_blocks.0.attn1.processor.to_q",
        "lora_unet_transformer_blocks_0__orig_mod_attn1_to_q",
    ],
)
def test_wrappers_inside_a_path(stem: str, model: LTXTransformer, written: Callable[..., Path]) -> None:
    assert_added(model, written(pair(stem)), {f"{QUERY}.weight": product()})


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_A.default_0.weight", ".lora_B.default_0.weight"),
        (".lora_A.my-style.weight", ".lora_B.my-style.weight"),
        (".lora_A", ".lora_B"),
        (".lora_a", ".lora_b"),
        (".lora_down.weight", ".lora_up.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_endings_of_a_pair(down: str, up: str, model: LTXTransformer, written: Callable[..., Path]) -> None:
    stem = f"diffusion_model.{QUERY}"
    tensors = {stem + down: noise(RANK, WIDTH), stem + up: noise(WIDTH, RANK, seed=1)}
    assert is_lora(tensors)
    assert detect_layout(tensors).kind == "lora"
    assert_added(model, written(tensors), {f"{QUERY}.weight": product()})


def test_transposed_factors(model: LTXTransformer, written: Callable[..., Path]) -> None:
    """(in, rank) and (rank, out), as MLX has them."""
    wide = "transformer_blocks.0.ff.net.2"
    down, up = noise(RANK, 4 * WIDTH), noise(WIDTH, RANK, seed=1)
    tensors = {f"{wide}.lora_a": down.T, f"{wide}.lora_b": up.T}
    assert_added(model, written(tensors), {f"{wide}.weight": up @ down})


HALVES = {"a": (WIDTH, 2), "b": (2, WIDTH)}
FORMATS: dict[str, tuple[dict[str, Tensor], Tensor]] = {
    "pair": (
        {"lora_A.weight": noise(RANK, WIDTH), "lora_B.weight": noise(WIDTH, RANK, seed=1)},
        product(),
    ),
    "other pair": (
        {"lora_down.weight": noise(RANK, WIDTH, seed=2), "lora_up.weight": noise(WIDTH, RANK, seed=3)},
        product(2),
    ),
    "other adapter": (
        {"lora_A.second.weight": noise(RANK, WIDTH, seed=4), "lora_B.second.weight": noise(WIDTH, RANK, seed=5)},
        product(4),
    ),
    "lokr": (
        {"lokr_w1": noise(4, 8, seed=6), "lokr_w2": noise(8, 4, seed=7)},
        torch.kron(noise(4, 8, seed=6), noise(8, 4, seed=7)),
    ),
    "loha": (
        {f"hada_w{n}_{half}": noise(*HALVES[half], seed=8 + n) for n in (1, 2) for half in HALVES},
        (noise(WIDTH, 2, seed=9) @ noise(2, WIDTH, seed=9)) * (noise(WIDTH, 2, seed=10) @ noise(2, WIDTH, seed=10)),
    ),
    "diff": ({"diff": noise(WIDTH, WIDTH, seed=11)}, noise(WIDTH, WIDTH, seed=11)),
    "w_norm": ({"w_norm": noise(WIDTH, WIDTH, seed=12)}, noise(WIDTH, WIDTH, seed=12)),
}  # fmt: skip


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_two_formats_in_one_file_are_both_applied(
    first: str, second: str, model: LTXTransformer, written: Callable[..., Path]
) -> None:
    """On one target, and on two spellings of it."""
    (one, adds), (other, adds_too) = FORMATS[first], FORMATS[second]
    files = [
        ("transformer." + diffusers_name(QUERY), "diffusion_model." + QUERY),
        *([] if first == second else [("diffusion_model." + QUERY,) * 2]),
    ]
    for stem, other_stem in files:
        tensors = {f"{stem}.{role}": tensor for role, tensor in one.items()}
        tensors |= {f"{other_stem}.{role}": tensor for role, tensor in other.items()}
        assert_added(model, written(tensors), {f"{QUERY}.weight": adds + adds_too})


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        (f"diffusion_model.{NORM}.diff", f"{NORM}.weight"),
        (f"diffusion_model.{NORM}.w_norm", f"{NORM}.weight"),
        (f"transformer.{NORM.replace('q_norm', 'norm_q')}.w_norm", f"{NORM}.weight"),
        (f"diffusion_model.{TABLE}.diff", TABLE),
        ("diffusion_model.scale_shift_table.diff", "scale_shift_table"),
        ("lora_unet_scale_shift_table.diff", "scale_shift_table"),
        (f"diffusion_model.{QUERY}.diff", f"{QUERY}.weight"),
        (f"diffusion_model.{QUERY}.diff_b", f"{QUERY}.bias"),
        (f"diffusion_model.{QUERY}.b_norm", f"{QUERY}.bias"),
        (f"diffusion_model.{QUERY}.bias.diff", f"{QUERY}.bias"),
        (f"diffusion_model.{QUERY}.weight.diff", f"{QUERY}.weight"),
        ("diffusion_model.patchify_proj.diff", "patchify_proj.weight"),
        ("transformer.proj_in.diff_b", "patchify_proj.bias"),
        ("transformer.time_embed.linear.diff", "adaln_single.linear.weight"),
        ("diffusion_model.caption_projection.linear_2.diff_b", "caption_projection.linear_2.bias"),
    ],
)  # fmt: skip
def test_differences_of_every_parameter(
    key: str, parameter: str, model: LTXTransformer, written: Callable[..., Path]
) -> None:
    difference = noise(*model.state_dict()[parameter].shape)
    assert_added(model, written({key: difference}), {parameter: difference})


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        ("diffusion_model.proj_out.set_weight", "proj_out.weight"),
        (f"diffusion_model.{NORM}.set_weight", f"{NORM}.weight"),
        (f"diffusion_model.{TABLE}.set_weight", TABLE),
        ("base_model.model.proj_in.modules_to_save.weight", "patchify_proj.weight"),
        ("base_model.model.proj_in.modules_to_save.default.bias", "patchify_proj.bias"),
        ("transformer.proj_out.weight", "proj_out.weight"),
        ("diffusion_model.caption_projection.linear_1.bias", "caption_projection.linear_1.bias"),
        (f"diffusion_model.{QUERY}.base_layer.weight", f"{QUERY}.weight"),
        (f"transformer.{TABLE}", TABLE),
        ("module.scale_shift_table", "scale_shift_table"),
    ],
)
def test_whole_tensors_beside_low_rank_ones(
    key: str, parameter: str, model: LTXTransformer, written: Callable[..., Path], velocity: Callable[..., Tensor]
) -> None:
    """At every strength but 0 they stand in the place of the model's, as ComfyUI has it."""
    base = model.state_dict()[parameter]
    path = written({key: noise(*base.shape), **pair(f"diffusion_model.{OUT}")})
    assert_added(model, path, {parameter: noise(*base.shape) - base, f"{OUT}.weight": product()})
    changed = LTXTransformer(model.config).eval().requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[parameter] = noise(*base.shape)
    state[f"{OUT}.weight"] += 0.5 * product()
    changed.load_state_dict(state)
    before = velocity(model)
    with applied(model, [WeightedLoRA(load_lora(path), 0.5)]):
        got = velocity(model)
    torch.testing.assert_close(got, velocity(changed), rtol=1e-4, atol=2e-5)
    assert torch.equal(velocity(model), before)
    assert model.get_parameter(parameter) is dict(model.named_parameters())[parameter]


def test_set_beside_factors_of_the_same_target(model: LTXTransformer, written: Callable[..., Path]) -> None:
    stem, base = f"diffusion_model.{QUERY}", model.state_dict()[f"{QUERY}.weight"]
    path = written({f"{stem}.set_weight": noise(WIDTH, WIDTH, seed=9), **pair(stem)})
    assert_added(model, path, {f"{QUERY}.weight": noise(WIDTH, WIDTH, seed=9) + product() - base})


def test_peft_s_copy_of_an_untrained_module_is_not_applied(model: LTXTransformer, written: Callable[..., Path]) -> None:
    shape = model.proj_out.weight.shape
    tensors = {
        "base_model.model.proj_out.modules_to_save.default.weight": noise(*shape),
        "base_model.model.proj_out.original_module.weight": noise(*shape, seed=1),
        **pair(f"base_model.model.{QUERY}"),
    }
    expected = {"proj_out.weight": noise(*shape) - model.proj_out.weight, f"{QUERY}.weight": product()}
    assert_added(model, written(tensors), expected)


def test_factors_for_a_table_and_a_norm(model: LTXTransformer, written: Callable[..., Path]) -> None:
    table = model.state_dict()[TABLE].shape
    tensors = pair(f"diffusion_model.{TABLE}", rows=table[0], columns=table[1])
    tensors |= pair(f"diffusion_model.{NORM}", 4, rows=WIDTH, columns=1)
    expected = {
        TABLE: noise(table[0], RANK, seed=1) @ noise(RANK, table[1]),
        f"{NORM}.weight": (noise(WIDTH, RANK, seed=5) @ noise(RANK, 1, seed=4)).flatten(),
    }
    assert_added(model, written(tensors), expected)


def test_the_bias_of_lora_b_is_scaled_as_the_factors_are(model: LTXTransformer, written: Callable[..., Path]) -> None:
    """peft, tuners/lora/layer.py: lora_B(lora_A(x)) * scaling."""
    stem = f"base_model.model.{QUERY}"
    tensors = pair(stem) | {f"{stem}.lora_B.bias": noise(WIDTH, seed=8), f"{stem}.alpha": torch.tensor(1.5)}
    expected = {f"{QUERY}.weight": 0.5 * product(), f"{QUERY}.bias": 0.5 * noise(WIDTH, seed=8)}
    assert_added(model, written(tensors), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scaled", [False, True])
def test_factors_of_few_bits(
    scaled: bool,
    dtype: torch.dtype,
    model: LTXTransformer,
    written: Callable[..., Path],
    velocity: Callable[..., Tensor],
) -> None:
    stem = f"diffusion_model.{QUERY}"
    down, up = noise(RANK, WIDTH).to(dtype), noise(WIDTH, RANK, seed=1).to(dtype)
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    factor = 1.0
    if scaled:
        factor = 0.5 * 3.0
        tensors |= {
            f"{stem}.lora_A.weight_scale": torch.tensor(0.5),
            f"{stem}.lora_B.scale_weight": torch.full((WIDTH, 1), 3.0),
            "scaled_fp8": torch.zeros(0, dtype=dtype),
        }
    path = written(tensors)
    assert_added(model, path, {f"{QUERY}.weight": factor * up.float() @ down.float()})
    with applied(model, [WeightedLoRA(load_lora(path), 1.0)]):
        assert velocity(model).isfinite().all()


TEXT = (
    "lora_te_encoder_block_0_layer_0_SelfAttention_q", "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder.encoder.block.0.layer.0.SelfAttention.q", "text_encoder_2.x", "text_encoders.t5xxl.transformer.x",
    "t5xxl.transformer.encoder.block.0.x", "base_model.model.encoder.block.0.layer.0.SelfAttention.q",
    "lora_prior_te_x", "te.encoder.block.0", "lycoris_text_encoder_x",
)  # fmt: skip


@pytest.mark.parametrize("stem", TEXT)
def test_a_text_encoder_s_targets_are_said(stem: str, model: LTXTransformer, written: Callable[..., Path]) -> None:
    assert in_text_encoder(stem)
    path = written(pair(stem, rows=7, columns=5) | pair(f"transformer.{QUERY}") | {f"{stem}.alpha": torch.tensor(1.0)})
    found, report = added(model, path)
    torch.testing.assert_close(found, {f"{QUERY}.weight": product()})
    assert str(report) == "1 of 1 transformer targets matched; 1 targets in a text encoder are not used"
    others = {"text_encoder_2.x": "a LoRA for Stable Diffusion XL"}  # which no model of ours has
    alone = others.get(stem, r"0 of 0 transformer targets matched; 1 targets in a text encoder")
    with pytest.raises(CheckpointError, match=alone):
        added(model, written(pair(stem)), allow_partial=True)


def test_nothing_of_the_transformer_is_taken_for_a_text_encoder(model: LTXTransformer) -> None:
    for name in model.state_dict():
        for prefix in PREFIXES:
            assert not in_text_encoder(prefix + name)
        assert parse(name) is None


UNREAD: dict[str, tuple[int, ...]] = {
    f"diffusion_model.{QUERY}.lokr_w3": (4, 4),
    f"diffusion_model.{QUERY}.oft_R.weight": (4, 6),
    f"diffusion_model.{QUERY}.boft_R": (1, 8, 4, 4),
    f"diffusion_model.{QUERY}.vera_lambda_d": (RANK,),
    f"diffusion_model.{QUERY}.on_input": (1,),
    f"diffusion_model.{QUERY}.bm.weight": (RANK, RANK),
    f"diffusion_model.{QUERY}.lora_A.bias": (RANK,),
    f"diffusion_model.{QUERY}.lora_alpha_1": (1,),
    f"diffusion_model.{QUERY}.scalar": (1,),
    f"diffusion_model.{QUERY}.reshape_weight": (2,),
    "emb_params": (4, 4),
    "diffusion_model.proj_out.weight": (8, 5),
    f"diffusion_model.{QUERY}.oft_blocks": (3, 4, 4),
    f"diffusion_model.{QUERY}.dora_scale": (5,),
    f"diffusion_model.{NORM}.b_norm": (WIDTH,),
    f"diffusion_model.{NORM}.dora_scale": (WIDTH, 1),
    "diffusion_model.transformer_blocks.0.norm1.w_norm": (WIDTH,),
    "diffusion_model.transformer_blocks.7.attn1.to_q.lokr_w1": (4, 4),
    "diffusion_model.other_proj_in.weight": (4, 4),
    f"diffusion_model.{QUERY}.lora_magnitude_vector.second.weight": (WIDTH,),
}


@pytest.mark.parametrize("key", UNREAD)
def test_what_cannot_be_applied_is_refused_by_name(
    key: str, model: LTXTransformer, written: Callable[..., Path]
) -> None:
    tensors = pair(f"diffusion_model.{OUT}", 2) | {key: noise(*UNREAD[key]).abs() + 1}
    if key.endswith("lokr_w1"):
        tensors[key.replace("w1", "w2")] = noise(8, 8)
    if "second" in key:
        tensors |= pair(f"diffusion_model.{QUERY}")
        tensors[key.replace("second", "first")] = noise(WIDTH).abs() + 1
    path = written(tensors)
    named = key.removesuffix(".lokr_w1")
    with pytest.raises(CheckpointError) as refusal:
        added(model, path)
    assert named in str(refusal.value)
    assert "allow_partial" in str(refusal.value)
    found, report = added(model, path, allow_partial=True)
    torch.testing.assert_close(found[f"{OUT}.weight"], product(2))
    assert any(named in name for name in (*report.unmatched, *report.refused))
    assert named in str(report)


def test_a_shape_that_the_model_has_is_no_change(model: LTXTransformer, written: Callable[..., Path]) -> None:
    stem = f"diffusion_model.{QUERY}"
    path = written(pair(stem) | {f"{stem}.reshape_weight": torch.tensor([WIDTH, WIDTH])})
    assert_added(model, path, {f"{QUERY}.weight": product()})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_A.weight": (4, 4)}, "the down half of .* and no up half"),
        ({"lora_up.weight": (4, 4)}, "the up half of .* and no down half"),
        ({"lora_A.x.weight": (4, 4), "lora_B.y.weight": (4, 4)}, "the down half of"),
        ({"lokr_w1": (4, 4)}, r"lokr_w1 and no w2 or w2_a and w2_b"),
        ({"lokr_w1_a": (4, 4), "lokr_w2": (4, 4)}, "and no w1 or w1_a and w1_b"),
        ({"hada_w1_a": (4, 4), "hada_w1_b": (4, 4), "hada_w2_a": (4, 4)}, "and no w2_b"),
        ({"rescale": (32, 1), "lora_A.weight": (4, 4), "lora_B.weight": (4, 4)}, "rescale and no oft_blocks"),
    ],
)
def test_parts_that_are_missing(tensors: dict[str, tuple[int, ...]], words: str, written: Callable[..., Path]) -> None:
    path = written({f"diffusion_model.{QUERY}.{role}": noise(*shape) for role, shape in tensors.items()})
    with pytest.raises(CheckpointError, match=f"{words}.*; expected both; download"):
        load_lora(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(value: float, written: Callable[..., Path]) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2):
        broken = pair(f"diffusion_model.{QUERY}")
        broken[f"diffusion_model.{QUERY}.lora_A.weight"][1, 2] = value
        path = written({key: tensor.to(dtype) for key, tensor in broken.items()})
        with pytest.raises(CheckpointError, match=r"to_q\.lora_A\.weight, which holds NaN or infinity"):
            load_lora(path)


def test_lokr_and_loha_on_another_size(model: LTXTransformer, written: Callable[..., Path]) -> None:
    for stem, tensors in {
        "lokr": {"lokr_w1": noise(4, 4), "lokr_w2": noise(16, 16)},
        "loha": {f"hada_w{n}_{half}": noise(*((64, 2) if half == "a" else (2, 64))) for n in (1, 2) for half in "ab"},
        "lora": {"lora_A.weight": noise(4, 64), "lora_B.weight": noise(64, 4)},
    }.items():
        path = written({f"diffusion_model.{QUERY}.{role}": tensor for role, tensor in tensors.items()})
        for allow_partial in (False, True):  # nothing else is in the file
            with pytest.raises(CheckpointError, match=r"64x64.*this model has 32x32.*2B or 13B"):
                added(model, path, allow_partial=allow_partial)
        assert stem


def test_integers_are_no_factors(model: LTXTransformer, written: Callable[..., Path]) -> None:
    tensors = pair(f"diffusion_model.{QUERY}")
    path = written({key: (10 * tensor).to(torch.int8) for key, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=r"lora_A\.weight of type int8; expected floating-point numbers"):
        added(model, path)


FOLDERS = {
    "pytorch_lora_weights.safetensors": None,
    "adapter_model.safetensors": None,
    "anything.safetensors": None,
    "default/adapter_model.safetensors": None,
    "transformer_lora/pytorch_lora_weights.safetensors": None,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_trainer(name: str, model: LTXTransformer, written: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    written(pair(f"transformer.{QUERY}")).rename(file)
    assert load_lora(tmp_path / "run").path == file
    assert_added(model, tmp_path / "run", {f"{QUERY}.weight": product()})


def test_a_folder_that_leaves_it_open(written: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"with no safetensors file; expected pytorch_lora_weights"):
        load_lora(folder)
    for name in ("a", "b"):
        written(pair(QUERY)).rename(folder / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"with a\.safetensors, b\.safetensors; .*pass the path of the LoRA"):
        load_lora(folder)


def test_dora_is_asked_for_its_lengths(model: LTXTransformer, written: Callable[..., Path]) -> None:
    path = written(pair(f"transformer.{QUERY}"), {"lora_adapter_metadata": '{"transformer.use_dora": true}'})
    with pytest.raises(CheckpointError, match=rf"{QUERY} without lora_magnitude_vector, though .* says use_dora"):
        added(model, path)


def test_long_names_cost_little(model: LTXTransformer, written: Callable[..., Path]) -> None:
    """Quadratic work on these would not come back."""
    for name in (
        "lora_" * 40_000,
        "model." * 40_000 + "to_q",
        "_orig_mod." * 20_000 + "x",
        "." * 200_000,
    ):
        with pytest.raises(CheckpointError, match=r"0 of 1 transformer targets matched") as refusal:
            added(model, written(pair(name)))
        assert len(str(refusal.value)) < 2000
    many = {f"transformer_blocks.{number}.attn1.to_q.lora_A.weight": noise(1, 1) for number in range(1000)}
    many |= {key.replace("_A", "_B"): tensor for key, tensor in many.items()}
    with pytest.raises(CheckpointError, match="for a Linear of 1x1"):
        added(model, written(many))


def test_a_model_without_data_is_enough(model: LTXTransformer, written: Callable[..., Path]) -> None:
    with torch.device("meta"):
        outline = LTXTransformer(model.config)
    tensors = {key: tensor for roles, _ in FORMATS.values() for key, tensor in roles.items()}
    tensors = {f"diffusion_model.{QUERY}.{role}": tensor for role, tensor in tensors.items()}
    tensors |= {
        f"diffusion_model.{OUT}.oft_blocks": noise(8, 4, 4),
        f"diffusion_model.{OUT}.dora_scale": noise(WIDTH, 1),
    }
    report = fit_lora(load_lora(written(tensors)), outline).report
    assert str(report) == "2 of 2 transformer targets matched"
    assert report.modules == {f"diffusion_model.{name}": name for name in (QUERY, OUT)}


def test_a_scale_for_nothing(model: LTXTransformer, written: Callable[..., Path]) -> None:
    path = written({f"diffusion_model.{QUERY}.alpha": torch.tensor(1.0), **pair(f"diffusion_model.{OUT}")})
    with pytest.raises(CheckpointError, match=rf"with nothing for diffusion_model\.{QUERY} but a scale"):
        added(model, path)


def test_bytes_on_the_device(written: Callable[..., Path]) -> None:
    stem = f"diffusion_model.{QUERY}"
    lora = load_lora(written(pair(stem)))
    assert device_bytes([WeightedLoRA(lora, 1.0)], 2) == 2 * 2 * RANK * WIDTH
    assert device_bytes([WeightedLoRA(lora, 0.0)], 2) == 0
    loha = load_lora(written({f"{stem}.{role}": tensor for role, tensor in FORMATS["loha"][0].items()}))
    assert device_bytes([WeightedLoRA(loha, 1.0)], 2) == 4 * 8 * WIDTH + 12 * WIDTH * WIDTH

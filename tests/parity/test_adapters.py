"""Every kind of adapter against LyCORIS and ComfyUI (recorded, see adapters/README.md) and against peft (live)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.weights.adapters import merged
from ltxkit.ltx_core.weights.lora import WeightedLoRA, fit_lora, load_lora

RECORDED = load_file(Path(__file__).parent / "adapters/adapters.safetensors")
WHOSE = ("lycoris", "comfyui")
# ComfyUI divides by the lengths of the unchanged rows and leaves out OFT's rescale: where it differs, LyCORIS, whose
# files they are, and peft have the last word.
DIFFERENT = {
    ("comfyui", "lora, lengths of rows"),
    ("comfyui", "lokr, lengths of rows"),
    ("comfyui", "oft, rescaled"),
}


CASES = sorted({key.partition("/")[0] for key in RECORDED if "/" in key})


def of(case: str) -> dict[str, Tensor]:
    return {key.partition("/")[2]: tensor for key, tensor in RECORDED.items() if key.startswith(f"{case}/")}


class OneLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        rows, columns = RECORDED["weight"].shape
        self.proj = nn.Linear(columns, rows).requires_grad_(False)
        self.proj.weight.copy_(RECORDED["weight"])


def written(case: str, folder: Path) -> Path:
    path = folder / "lora.safetensors"
    save_file({f"diffusion_model.proj.{role}": tensor for role, tensor in of(case).items() if role not in WHOSE}, path)
    return path


def as_merged(path: Path, model: nn.Module) -> Tensor:
    ((_, changes),) = fit_lora(load_lora(path), model).changes.items()
    return merged(RECORDED["weight"], [(change, 1.0) for change in changes])


@pytest.mark.parametrize(("whose", "case"), [(whose, case) for whose in WHOSE for case in CASES if whose in of(case)])
def test_the_weight_is_what_others_make_of_it(whose: str, case: str, tmp_path: Path) -> None:
    ours, theirs = as_merged(written(case, tmp_path), OneLinear()), of(case)[whose]
    assert (theirs - RECORDED["weight"]).abs().max() > 0.05
    if (whose, case) in DIFFERENT:
        assert (ours - theirs).abs().max() > 0.01
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-6)


def test_all_kinds_are_recorded() -> None:
    compared = {case for case in CASES if any(whose in of(case) and (whose, case) not in DIFFERENT for whose in WHOSE)}
    assert set(CASES) - compared == {"lokr, tucker"}  # ComfyUI fails on it, LyCORIS has it for convolutions alone
    assert len(compared) == 23


def test_lokr_in_tucker_form(tmp_path: Path) -> None:
    """Written out: w2[p, r] = sum t2[i, j] w2_a[i, p] w2_b[j, r], and the Kronecker product with w1."""
    stored = of("lokr, tucker")
    inner = torch.einsum("ij,ip,jr->pr", stored["lokr_t2"][..., 0, 0], stored["lokr_w2_a"], stored["lokr_w2_b"])
    expected = RECORDED["weight"] + 1.5 / 3 * torch.kron(stored["lokr_w1"], inner)
    torch.testing.assert_close(as_merged(written("lokr, tucker", tmp_path), OneLinear()), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_the_linear_it_is_the_same(dtype: torch.dtype, case: str, tmp_path: Path) -> None:
    """With a batch and tokens, at a strength; a replacement does not know strengths."""
    path, model = written(case, tmp_path), OneLinear()
    weight = as_merged(path, model)
    if case != "set":
        weight = RECORDED["weight"] + 0.7 * (weight - RECORDED["weight"])
    x = torch.randn(2, 5, weight.shape[1], generator=torch.Generator().manual_seed(3))
    expected, base = nn.functional.linear(x, weight, model.proj.bias), model.proj(x)
    model.to(dtype)
    with applied(model, [WeightedLoRA(load_lora(path), 0.7)]):
        got = model.proj(x.to(dtype)).float()
    assert (expected - base).norm() > 0.02 * expected.norm()
    assert (got - expected).norm() < (1e-6 if dtype == torch.float32 else 0.01) * expected.norm()


PEFT = {
    "lora, bias": {"r": 4, "lora_alpha": 2, "lora_bias": True},
    "lora, dora": {"r": 4, "lora_alpha": 2, "use_dora": True},
    "lora, rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True},
    "lora, patterns": {"r": 4, "lora_alpha": 2, "rank_pattern": {"proj": 2}, "alpha_pattern": {r"pr.*": 3}},
    "lokr": {"r": 4, "alpha": 6, "decompose_factor": 4},
    "lokr, both factors": {"r": 1, "alpha": 6, "decompose_factor": 4, "decompose_both": True},
    "lokr, both whole": {"r": 32, "alpha": 6, "decompose_factor": 4},
    "lokr, patterns": {"r": 32, "alpha": 6, "rank_pattern": {"proj": 64}, "alpha_pattern": {"proj": 5}},
    "loha": {"r": 4, "alpha": 6},
}


@pytest.mark.parametrize("case", PEFT)
@pytest.mark.parametrize("adapter", ["default", "my-style"])
def test_folders_of_peft(adapter: str, case: str, tmp_path: Path) -> None:
    """`save_pretrained`: keys with base_model.model., the scale in adapter_config.json alone."""
    import peft

    torch.manual_seed(1)
    kind = {"lora": peft.LoraConfig, "lokr": peft.LoKrConfig, "loha": peft.LoHaConfig}[case.partition(",")[0]]
    start = {"init_lora_weights": False} if kind is peft.LoraConfig else {"init_weights": False}
    theirs = peft.get_peft_model(OneLinear(), kind(**PEFT[case], **start, target_modules=["proj"]), adapter)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "magnitude" in name or ("lora_B" in name and name.endswith("bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "run")
    folder = tmp_path / "run" if adapter == "default" else tmp_path / "run" / adapter
    model = OneLinear()
    model.proj.bias.copy_(theirs.get_base_model().proj.base_layer.bias)
    x = torch.randn(2, 5, 24)
    base, expected = model.proj(x), theirs.base_model.model.proj(x).detach()
    for path in (folder, folder / "adapter_model.safetensors", tmp_path / "run"):
        with applied(model, [WeightedLoRA(load_lora(path), 1.0)]):
            torch.testing.assert_close(model.proj(x), expected, rtol=1e-4, atol=1e-5)
    assert (expected - base).abs().max() > 0.05

"""Record what LyCORIS and ComfyUI make of a weight with each kind of adapter. See README.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = Path(__file__).parent / "adapters.safetensors"
ROWS, COLUMNS, RANK = 32, 24, 3
NAME = "proj"


def filled(tensors: dict[str, Tensor], seed: int, size: float = 0.3) -> dict[str, Tensor]:
    """The same tensors with random numbers of this size; alpha stays, and lengths are around 1."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Tensor] = {}
    for role, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        lengths = role in ("dora_scale", "rescale")
        values[role] = tensor.clone() if role == "alpha" else 1 + 0.2 * noise if lengths else size * noise
    return values


def lycoris_modules(linear: nn.Linear) -> dict[str, nn.Module]:
    """One module of LyCORIS for each kind of file."""
    from lycoris.modules.boft import ButterflyOFTModule
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.glora import GLoRAModule
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    size = {"lora_dim": RANK, "alpha": 1.5}
    rows = {"weight_decompose": True, "wd_on_out": True}
    columns = {"weight_decompose": True, "wd_on_out": False}
    return {
        "lora": LoConModule(NAME, linear, **size),
        "lora, lengths of rows": LoConModule(NAME, linear, **size, **rows),
        "lora, lengths of columns": LoConModule(NAME, linear, **size, **columns),
        "loha": LohaModule(NAME, linear, **size),
        "loha, lengths of columns": LohaModule(NAME, linear, **size, **columns),
        "lokr, both whole": LokrModule(NAME, linear, **size, factor=4, full_matrix=True),
        "lokr, outer whole": LokrModule(NAME, linear, lora_dim=2, alpha=1.5, factor=2),
        "lokr, both factors": LokrModule(NAME, linear, lora_dim=1, alpha=1.5, factor=4, decompose_both=True),
        "lokr, lengths of rows": LokrModule(NAME, linear, lora_dim=2, alpha=1.5, factor=2, **rows),
        "glora": GLoRAModule(NAME, linear, **size),
        "oft": DiagOFTModule(NAME, linear, lora_dim=4),
        "oft, rescaled": DiagOFTModule(NAME, linear, lora_dim=4, rescaled=True),
        "boft": ButterflyOFTModule(NAME, linear, lora_dim=4),
        "boft, rescaled": ButterflyOFTModule(NAME, linear, lora_dim=4, rescaled=True),
    }


def other_files() -> dict[str, dict[str, Tensor]]:
    """Files that LyCORIS writes for convolutions, or wrote once, and that ComfyUI reads for a Linear too."""
    core, alpha = torch.zeros(RANK, RANK, 1, 1), torch.tensor(1.5)
    up, down = torch.zeros(ROWS, RANK), torch.zeros(RANK, COLUMNS)
    loha = {"hada_w1_a": up.T, "hada_w1_b": down, "hada_w2_a": up.T, "hada_w2_b": down}
    lokr = {"lokr_w2_a": torch.zeros(RANK, ROWS // 4), "lokr_w2_b": torch.zeros(RANK, COLUMNS // 4)}
    old_glora = {"a1.weight": down, "a2.weight": down.T, "b1.weight": down, "b2.weight": up}
    pointwise = {"lora_up.weight": up[..., None, None], "lora_down.weight": down[..., None, None]}
    return {
        "lora, 1x1": {**pointwise, "alpha": alpha},
        "lora, tucker": {"lora_up.weight": up, "lora_mid.weight": core, "lora_down.weight": down, "alpha": alpha},
        "loha, tucker": {**loha, "hada_t1": core, "hada_t2": core, "alpha": alpha},
        "lokr, tucker": {**lokr, "lokr_w1": torch.zeros(4, 4), "lokr_t2": core, "alpha": alpha},
        "glora, before version 2": {**old_glora, "alpha": alpha},
        "oft, limited": {"oft_blocks": torch.zeros(8, 4, 4), "alpha": torch.tensor(0.5)},
        "boft, limited": {"oft_blocks": torch.zeros(3, 8, 4, 4), "alpha": torch.tensor(0.5)},
        "full": {"diff": torch.zeros(ROWS, COLUMNS)},
        "norm": {"w_norm": torch.zeros(ROWS, COLUMNS)},
        "set": {"set_weight": torch.zeros(ROWS, COLUMNS)},
    }  # fmt: skip


def record_lycoris() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(COLUMNS, ROWS, bias=False).requires_grad_(False)
    results = {"weight": linear.weight.data.clone()}
    for seed, (case, module) in enumerate(lycoris_modules(linear).items()):
        stored = filled({key: tensor.detach() for key, tensor in module.state_dict().items()}, seed)
        with torch.no_grad():
            for key, tensor in stored.items():
                if key != "alpha":
                    module.get_parameter(key).copy_(tensor)
            merged = module(torch.eye(COLUMNS)).T  # as it was trained; its `merge_to` scales LoHa and LoKr twice
        results |= {f"{case}/{key}": tensor for key, tensor in stored.items()}
        results[f"{case}/lycoris"] = merged.float().reshape(ROWS, COLUMNS).clone()
    for seed, (case, tensors) in enumerate(other_files().items(), start=100):
        size = 0.8 if "tucker" in case else 0.3
        results |= {f"{case}/{key}": tensor for key, tensor in filled(tensors, seed, size).items()}
    save_file({key: tensor.contiguous() for key, tensor in results.items()}, FILE)


def record_comfyui(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.lora

    results = {key: tensor for key, tensor in load_file(FILE).items() if not key.endswith("/comfyui")}
    for case in sorted({key.partition("/")[0] for key in results if "/" in key}):
        stored = {key.partition("/")[2]: tensor for key, tensor in results.items() if key.startswith(f"{case}/")}
        if "oft_blocks" in stored and "alpha" not in stored:
            continue
        file = {f"{NAME}.{role}": tensor for role, tensor in stored.items() if role != "lycoris"}
        patches = comfy.lora.load_lora(file, {NAME: f"{NAME}.weight"})
        patch = (1.0, patches[f"{NAME}.weight"], 1.0, None, None)
        merged = comfy.lora.calculate_weight([patch], results["weight"].clone(), f"{NAME}.weight")
        if not torch.equal(merged, results["weight"]):  # else it has logged an error and left the weight alone
            results[f"{case}/comfyui"] = merged.clone()
    save_file(results, FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", nargs="?", type=Path, help="a checkout; without one, LyCORIS is recorded")
    checkout = parser.parse_args().comfyui
    record_lycoris() if checkout is None else record_comfyui(checkout)


if __name__ == "__main__":
    main()

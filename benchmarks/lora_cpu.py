"""What LoRAs cost per step: merged into plain weights, and beside quantized ones, against none.

Two blocks of the 2B width, 384 and 2,688 latent tokens, LoRAs of rank 128 on all ten Linears of a block: one and three,
in one run with none, round by round. The outputs of merged and beside are shown equal before. One thread, CPU time.

python benchmarks/lora_cpu.py [--tiny] [--types float32,bfloat16,Q8_0,int8]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import gguf
import torch
from protocol import Row, arguments, publish
from safetensors.torch import save_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.measuring.machine import peak_bytes
from ltxkit.ltx_core.measuring.protocol import Rounds, relative_difference, timed
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.quant.gguf import GGUF
from ltxkit.ltx_core.quant.linear import linear_weights
from ltxkit.ltx_core.quant.registry import quantization_by_name
from ltxkit.ltx_core.weights.containers import TensorInfo
from ltxkit.ltx_core.weights.lora import LoRA, WeightedLoRA, load_lora

LAYERS, RANK, TEXT = 2, 128, 60
GRIDS = ((4, 8, 12), (7, 16, 24))  # latent cells
CONFIG = TransformerConfig.of_size(layers=LAYERS, heads=32, head_dim=64, channels=128, captions=4096)
TINY = TransformerConfig.of_size(layers=LAYERS, heads=2, head_dim=16, channels=128, captions=64)
TYPES = ("float32", "bfloat16", "Q8_0", "int8")
BLOCKS = "transformer_blocks."
EQUAL = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def base(config: TransformerConfig, stored: str) -> tuple[LTXTransformer, torch.dtype]:
    """A model of random weights in a type, and the dtype in which it computes."""
    torch.manual_seed(0)
    plain = LTXTransformer(config).eval().requires_grad_(False)
    if stored in ("float32", "bfloat16"):
        dtype = getattr(torch, stored)
        return plain.to(dtype), dtype
    dtype = torch.bfloat16
    state = {key: value.to(dtype) for key, value in plain.state_dict().items()}
    with torch.device("meta"):
        model = LTXTransformer(config).eval().requires_grad_(False)
    linears = [key for key in linear_weights(model) if key.startswith(BLOCKS)]
    if stored == "int8":
        pack = quantization_by_name(stored, BLOCKS).prepare(model, {}, dtype)
    else:
        kind = gguf.GGMLQuantizationType[stored]
        infos = {key: TensorInfo(tuple(state[key].shape), stored, 0, 0) for key in linears}
        pack = GGUF().prepare(model, infos, dtype)
        state |= {key: torch.from_numpy(gguf.quants.quantize(state[key].float().numpy(), kind)) for key in linears}
    packed = {name: tensor for key, value in state.items() for name, tensor in pack(key, value).items()}
    model.load_state_dict(packed, assign=True)
    return model.requires_grad_(False), dtype


def lora_for(config: TransformerConfig, rank: int, folder: Path, number: int) -> LoRA:
    """Factors of this rank for every Linear of the blocks."""
    generator = torch.Generator().manual_seed(number)
    with torch.device("meta"):
        model = LTXTransformer(config)
    tensors: dict[str, Tensor] = {}
    for name, linear in model.named_modules():
        if name.startswith(BLOCKS) and isinstance(linear, nn.Linear):
            down, up = (rank, linear.in_features), (linear.out_features, rank)
            tensors[f"diffusion_model.{name}.lora_A.weight"] = 0.01 * torch.randn(down, generator=generator)
            tensors[f"diffusion_model.{name}.lora_B.weight"] = 0.01 * torch.randn(up, generator=generator)
    save_file(tensors, folder / f"{number}.safetensors")
    return load_lora(folder / f"{number}.safetensors")


def step_of(model: LTXTransformer, grid: tuple[int, int, int], stack: ExitStack) -> Callable[[], Tensor]:
    """One forward with a prompt; the context that the model is in is left open."""
    config = model.config
    cells = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")).reshape(1, 3, -1)
    torch.manual_seed(1)
    x, text = torch.randn(1, cells.shape[2], config.in_channels), torch.randn(TEXT, config.caption_channels)
    stack.enter_context(torch.inference_mode())
    rotary = model.prepare_positions(cells * torch.tensor([8 / 25, 32, 32])[None, :, None])
    branch = Branch(model.prepare_text([text]))
    sigma = torch.full((1, 1, 1), 0.725)
    return lambda: model(x, sigma, rotary, (branch,))[0]


def rows(stored: str, grid: tuple[int, int, int], loras: list[LoRA], *, tiny: bool) -> list[Row]:
    model, dtype = base(TINY if tiny else CONFIG, stored)
    mode = "merged" if stored in ("float32", "bfloat16") else "beside"
    with ExitStack() as stack:
        steps: dict[str, Callable[[], Tensor]] = {}
        for count in (0, 1, 3):
            with torch.device("meta"):
                again = LTXTransformer(model.config).eval().requires_grad_(False)
            for name, module in list(model.named_modules()):  # the same weights, quantized Linears and all
                if name and not list(module.children()):
                    parent, _, child = name.rpartition(".")
                    setattr(again.get_submodule(parent), child, _twin(module))
            for name, parameter in model.named_parameters():
                parent, _, child = name.rpartition(".")
                setattr(again.get_submodule(parent), child, parameter)
            items = [WeightedLoRA(lora, 0.5) for lora in loras[:count]]
            with applied(again, items, "beside"), ExitStack() as inner:
                beside = step_of(again, grid, inner)().float()
            stack.enter_context(applied(again, items, mode))
            steps[str(count)] = step_of(again, grid, stack)
            if relative_difference(steps[str(count)](), beside) > EQUAL[dtype]:
                raise ValueError(f"{stored}, {count} LoRAs: {mode} and beside differ")
        rounds = Rounds(1.0, 1, 0) if tiny else Rounds(1.0, 9 if grid == GRIDS[0] else 5, 1)
        times = timed(steps, rounds, torch.device("cpu"))
        memory = {count: peak_bytes(step, torch.device("cpu")) for count, step in steps.items()}
    tokens = grid[0] * grid[1] * grid[2]
    words = {"1": "one LoRA", "3": "three LoRAs"}
    return [
        Row(
            case=f"step, {stored}, {tokens} tokens, {words[count]} of rank {RANK} {mode}",
            unit="s",
            ours=times.median(count),
            peer_name="no LoRA",
            peer=times.median("0"),
            speedup=times.speedup(count, "0"),
            memory=memory[count],
            peer_memory=memory["0"],
            threads=1,
        )
        for count in words
    ]


def _twin(module: nn.Module) -> nn.Module:
    """A module of its own with the same tensors."""
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__ = {
        key: value.copy() if isinstance(value, dict) else value  # parameters, buffers and hooks
        for key, value in module.__dict__.items()
    }
    return twin


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--types", default=",".join(TYPES), help="of the weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TINY if options.tiny else CONFIG
    with tempfile.TemporaryDirectory() as folder:
        loras = [lora_for(config, 4 if options.tiny else RANK, Path(folder), number) for number in range(3)]
        found = [
            row
            for stored in options.types.split(",")
            for grid in (GRIDS[:1] if options.tiny else GRIDS)
            for row in rows(stored, grid, loras, tiny=options.tiny)
        ]
    publish("lora_cpu", "What do LoRAs cost per step on a CPU?", found, tiny=options.tiny)


if __name__ == "__main__":
    main()

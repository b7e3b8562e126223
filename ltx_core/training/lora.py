"""Low-rank layers added to frozen Linears, written in the key styles that other programs read (arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.transformer import LTXTransformer
from ..weights.layouts import TRANSFORMER_FROM_DIFFUSERS
from ..weights.save import write_safetensors
from .config import LoRASettings
from .lora_start import factors_from, shapes_of, widened

Style = Literal["diffusers", "comfyui"]


class LoRALayers(nn.Module):
    """Factors for Linears of the blocks: a hook adds alpha / rank * up(down(x)) to each Linear's result.

    The weights of the base model, which may be quantized, do not change.
    """

    def __init__(self, model: LTXTransformer, config: LoRASettings) -> None:
        super().__init__()
        self.config = config
        self.names: dict[str, str] = {}  # a name without dots -> the Linear's
        blocks = [name for name, _ in model.named_modules() if name.startswith(model.BLOCK_PREFIX)]
        unknown = [t for t in config.targets if not any(name.endswith(f".{t}") for name in blocks)]
        if unknown or not config.targets:
            raise ConfigError(
                f"got lora.targets {', '.join(unknown) or '[]'}, which name no Linear of a block; expected to_q, "
                "to_k, to_v, to_out.0, ff.net.0.proj or ff.net.2; change them"
            )
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        endings = tuple(f".{target}" for target in config.targets)
        targets = {
            name: module for name, module in model.named_modules() if name in set(blocks) and name.endswith(endings)
        }
        shapes = shapes_of(config, list(targets))
        start = {} if config.init_from is None else factors_from(config.init_from, model, shapes)
        self.scales: dict[str, float] = {}  # by the same names
        self._additions: dict[str, _Addition] = {}
        for name, module in targets.items():
            inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
            if inputs is None or outputs is None:
                raise ConfigError(f"got lora.targets with {name}; expected Linears; leave it out")
            key = name.replace(".", "_")
            self.names[key], self.scales[key] = name, shapes[name].scale
            device = next(chain(module.parameters(), module.buffers())).device  # a quantized weight is a buffer
            down = torch.empty(shapes[name].rank, inputs)  # on the CPU: the same start on every device
            nn.init.kaiming_uniform_(down, a=5**0.5)
            up = torch.zeros(outputs, len(down))
            if name in start:
                down, up = widened(start[name], down, up)
            self.down[key], self.up[key] = nn.Parameter(down.to(device)), nn.Parameter(up.to(device))
            self._additions[key] = addition = _Addition(self.down[key], self.up[key], self.scales[key])
            module.register_forward_hook(addition)
        model.register_forward_pre_hook(self._bind)

    def _bind(self, *_: object) -> None:
        """Give each hook its factors, which are other objects while FSDP has gathered them."""
        for key, addition in self._additions.items():
            addition.down, addition.up = self.down[key], self.up[key]


class _Addition:
    """The hook of one Linear. It holds its factors and knows no name: so the compiler takes the hooks of all blocks for
    the same code, where names would make it compile every block anew."""

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        self.down, self.up, self.scale = down, up, scale

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(self.down.dtype)
        return output + (x @ self.down.T @ self.up.T * self.scale).to(output.dtype)


def save_lora(
    path: Path,
    layers: LoRALayers,
    factors: Mapping[str, Tensor],
    style: Style,
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the factors of `layers`, from `tensors_of`, as other programs read them.

    `transformer.X.lora_A.weight` with diffusers' module names, or `diffusion_model.X.lora_A.weight` with the
    official ones, as ComfyUI reads them. The factor alpha / rank is folded into lora_B: no reader needs to know it.
    dtype: of the file. metadata: more entries of its header.
    """
    to_diffusers = TRANSFORMER_FROM_DIFFUSERS.inverse()
    tensors: dict[str, Tensor] = {}
    for key, name in layers.names.items():
        if style == "diffusers":
            target = f"transformer.{(to_diffusers.rename(f'{name}.weight') or '').removesuffix('.weight')}"
        else:
            target = f"diffusion_model.{name}"
        tensors[f"{target}.lora_A.weight"] = factors[f"down.{key}"].to(dtype)
        tensors[f"{target}.lora_B.weight"] = (factors[f"up.{key}"] * layers.scales[key]).to(dtype)
    write_safetensors(path, tensors, {**metadata, "format": "pt", "rank": str(layers.config.rank)})

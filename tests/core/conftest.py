"""What the tests of quantized weights share: valid random blocks of ggml's types, and files of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from torch import Tensor

# Where the float16 scales lie in a block of each type; all other bytes may have any value.
HALF_OFFSETS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


@pytest.fixture(scope="session")
def random_blocks() -> Callable[..., np.ndarray]:
    """random_blocks("Q4_K", count, seed=7, spread=None): (count, bytes per block) uint8, with finite scales.

    spread: standard deviation of the weights that they hold; None: whatever random scales give.
    """
    import gguf

    def get(name: str, count: int, seed: int = 7, spread: float | None = None) -> np.ndarray:
        rng = np.random.default_rng(seed)
        kind = gguf.GGMLQuantizationType[name]
        blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        halves = [rng.standard_normal(count).astype(np.float16) for _ in HALF_OFFSETS[name]]

        def put(factor: float) -> None:
            for offset, scales in zip(HALF_OFFSETS[name], halves, strict=True):
                blocks[:, offset : offset + 2] = (scales * np.float16(factor))[:, None].view(np.uint8)

        put(1.0)
        if spread is not None:  # weights are linear in the scales
            put(spread / float(gguf.quants.dequantize(blocks, kind).std()))
        return blocks

    return get


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """write_gguf(path, architecture, {name: (array, type)}, {key: text}): packed arrays are (rows, bytes) uint8."""
    import gguf

    def write(
        path: Path,
        architecture: str,
        tensors: Mapping[str, tuple[np.ndarray, str]],
        texts: Mapping[str, str] | None = None,
    ) -> Path:
        writer = gguf.GGUFWriter(path, architecture)
        for key, text in (texts or {}).items():
            writer.add_string(key, text)
        for name, (array, kind) in tensors.items():
            writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def lora_and_merged() -> Callable[[Mapping[str, Tensor], float], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """lora_and_merged(weights, strength): the tensors of a LoRA in ComfyUI's key style, and the weights with it added.

    It has factors for every Linear of the blocks, every third with DoRA, differences for the output, and an alpha.
    """
    import torch

    def make(weights: Mapping[str, Tensor], strength: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(8)
        merged = {key: tensor.clone() for key, tensor in weights.items()}
        tensors: dict[str, Tensor] = {}

        def add(key: str, change: Tensor) -> None:
            merged[key] = merged[key] + strength * change

        blocks = [key for key in weights if "transformer_blocks." in key and weights[key].ndim == 2]
        for number, key in enumerate(key for key in blocks if key.endswith(".weight")):
            weight, stem = weights[key], f"diffusion_model.{key.removesuffix('.weight')}"
            down = torch.randn(3, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5
            up = torch.randn(weight.shape[0], 3, generator=generator) * 0.3
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up, f"{stem}.alpha": torch.tensor(1.5)}
            changed = weight + 0.5 * up @ down
            if number % 3 == 0:
                magnitude = changed.norm(dim=1, keepdim=True) * 1.1
                tensors[f"{stem}.dora_scale"] = magnitude
                changed = changed * 1.1
            add(key, changed - weight)
        for key, role in (("proj_out.weight", "diff"), ("proj_out.bias", "diff_b"), ("patchify_proj.bias", "diff_b")):
            name = f"diffusion_model.{key.rpartition('.')[0]}.{role}"
            tensors[name] = torch.randn(weights[key].shape, generator=generator) * 0.1
            add(key, tensors[name])
        return tensors, merged

    return make

"""The transformer on a GPU: close to the CPU's numbers, and bit for bit the same when its blocks are streamed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.budget.weights import weight_bytes
from ltxkit.ltx_core.budget.work import norms_are_one_kernel, sample_bytes
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.placement import DevicePlacement

pytestmark = pytest.mark.gpu

CONFIG = TransformerConfig.of_size(layers=12, heads=8, head_dim=64, channels=16, captions=32)


def build(dtype: torch.dtype) -> LTXTransformer:
    torch.manual_seed(0)
    return LTXTransformer(CONFIG).to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def denoise(model: LTXTransformer, device: torch.device, tokens: int = 256, steps: int = 3) -> list[Tensor]:
    """Guided steps, all from the same latent."""
    generator = torch.Generator().manual_seed(1)
    x, positions = torch.randn(1, tokens, 16, generator=generator), torch.rand(1, 3, tokens, generator=generator) * 100
    texts = [torch.randn(n, 32, generator=generator) for n in (3, 7)]
    negative, positive = (model.prepare_text([text.to(device)]) for text in texts)
    branches = (Branch(negative), Branch(positive), Branch(positive, frozenset({5})))
    rotary = model.prepare_positions(positions.to(device))
    results: list[Tensor] = []
    for sigma in (1.0, 0.8, 0.5)[:steps]:
        velocities = model(x.to(device), torch.full((1, 1, 1), sigma, device=device), rotary, branches)
        results += velocities if device.type == "meta" else [velocity.cpu() for velocity in velocities]
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_equals_cpu(dtype: torch.dtype, rounding_bound: Callable[..., float]) -> None:
    """Against the same weights in float32 on the CPU, whatever the dtype on the GPU."""
    model = build(dtype)
    bound = 1e-3
    if dtype == torch.bfloat16:
        shapes = copy.deepcopy(model).to("meta")
        bound = rounding_bound(lambda: denoise(shapes, torch.device("meta"), steps=1), dtype)
    expected = denoise(copy.deepcopy(model).float(), torch.device("cpu"))
    with DevicePlacement("cuda")(model) as device:
        found = denoise(model, device)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("resident", [0, 1, 5, 11])
def test_streamed_blocks_give_the_same_bits_for_less_memory(
    monkeypatch: pytest.MonkeyPatch, resident: int, pinned: bool
) -> None:
    monkeypatch.setattr("ltxkit.ltx_core.placing.streaming._may_pin", lambda blocks: pinned)
    model = build(torch.bfloat16)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with DevicePlacement("cuda")(model) as device:
        expected = denoise(model, device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    with DevicePlacement("cuda", resident_blocks=resident)(model) as device:
        found = denoise(model, device)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    block = weight_bytes(model.transformer_blocks[0])
    weights = weight_bytes(model) - (CONFIG.num_layers - min(CONFIG.num_layers, resident + 2)) * block
    work = sample_bytes(CONFIG, tokens=256, lanes=3, text_tokens=(3, 7), itemsize=2, fused_norms=norms_are_one_kernel())
    assert torch.cuda.max_memory_allocated() - start <= 1.1 * weights + work + 4_000_000

"""Activations that wait in main memory: the same gradients, less on the device, and as much as the forecast counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.training.config import LoRASettings, Optimization
from ltxkit.ltx_core.training.flow import Flow
from ltxkit.ltx_core.training.footprint import step_bytes
from ltxkit.ltx_core.training.forecast import left_behind
from ltxkit.ltx_core.training.lora import LoRALayers
from ltxkit.ltx_core.training.offload import SMALLEST, kept_in_main_memory, offloaded

CONFIG = TransformerConfig.of_size(layers=6, heads=2, head_dim=64, channels=16, captions=32)
TOKENS = 512
INPUT = 4 * TOKENS * CONFIG.hidden_size  # bytes of what each block receives


def flow(device: str) -> Flow:
    torch.manual_seed(0)
    model = LTXTransformer(CONFIG).to(device).requires_grad_(False)
    model.gradient_checkpointing = True
    return Flow(model, None, LoRALayers(model, LoRASettings(rank=4, alpha=4.0)))


def loss(of: Any, device: str) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1, TOKENS, CONFIG.in_channels, generator=rng).to(device)
    text = torch.randn(5, CONFIG.caption_channels, generator=rng).to(device)
    sigma, positions = torch.full((1, 1, 1), 0.4), torch.arange(3.0 * TOKENS).view(1, 3, TOKENS)
    return of(x0, noise, sigma.to(device), positions.to(device), [text]).mean()


class Copied(TorchDispatchMode):
    """Records the bytes of each tensor that is copied into another one."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].nbytes >= SMALLEST:
            self.sizes.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def test_gradients_are_bit_equal() -> None:
    plain, away = flow("cpu"), flow("cpu")
    loss(plain, "cpu").backward()
    with Copied() as copied, kept_in_main_memory(torch.device("cpu")):
        value = loss(away, "cpu")
    value.backward()
    assert copied.sizes.count(INPUT) >= CONFIG.num_layers
    wanted, got = dict(plain.named_parameters()), dict(away.named_parameters())
    gradients = {name: p.grad for name, p in wanted.items() if p.grad is not None}
    assert len(gradients) == len(list(away.lora.parameters())) > 0  # type: ignore[union-attr]
    for name, gradient in gradients.items():
        assert torch.equal(got[name].grad, gradient), name  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_saves_the_inputs_of_the_blocks_and_the_forecast_says_so(meta_device: Any) -> None:
    """On a device that computes nothing, whose memory is counted."""
    peaks, said = list[int](), list[int]()
    for wanted in (False, True):
        made = flow("meta")
        with meta_device(made) as device:
            with offloaded(torch.device("meta"), wanted):
                value = loss(made, "meta")
            value.backward()
        peaks.append(device.peak)

        def counted(run: Any, wanted: bool = wanted) -> Tensor:
            with left_behind(wanted):
                return loss(run, "cpu")

        said += [step_bytes(counted, [flow("cpu")], levels=2, device=torch.device("cpu")) or 0]
    # One is at work, and another one may be on its way. No more is promised than is saved.
    assert (CONFIG.num_layers - 2) * INPUT <= said[0] - said[1] <= peaks[0] - peaks[1]


def test_nothing_leaves_main_memory_or_is_asked_for_without_checkpointing() -> None:
    made = flow("cpu")
    with Copied() as copied, offloaded(torch.device("cpu")):
        loss(made, "cpu")
    assert INPUT not in copied.sizes
    with pytest.raises(ConfigError, match=r"got offload_activations without gradient_checkpointing; expected both"):
        Optimization(steps=1, batch_size=1, learning_rate=1.0, offload_activations=True)

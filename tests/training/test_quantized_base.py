"""A LoRA on a base that stays quantized, as it lies in its file or as it was made while loading; and on blocks that
come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.placing.swapping import SwappedBlocks
from ltxkit.ltx_core.quant.linear import QuantizedLinear, linear_weights, unpack_linears
from ltxkit.ltx_core.training.config import LoRASettings, Optimization
from ltxkit.ltx_core.training.flow import Flow
from ltxkit.ltx_core.training.footprint import Alive
from ltxkit.ltx_core.training.lora import LoRALayers, save_lora
from ltxkit.ltx_core.training.models import restart, save_checkpoint_file, tensors_of
from ltxkit.ltx_core.training.optimize import Updater
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.convert import convert

CPU = torch.device("cpu")
CONFIG = TransformerConfig.of_size(layers=4, heads=2, head_dim=32, channels=16, captions=32, causal=True)
STEPS = 50
IN_FILE = ("fp8", "fp8-scaled", "comfy-int8", "gguf-q4_0")
ON_LOAD = ("int8", "nf4")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four blocks in bfloat16."""
    torch.manual_seed(0)
    model = LTXTransformer(CONFIG)
    restart(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("to_out.0.weight", "ff.net.2.weight")) or name == "proj_out.weight":
            nn.init.xavier_uniform_(parameter)  # zero at the start of a new model
    path = tmp_path_factory.mktemp("plain") / "base.safetensors"
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(model).items()}
    save_checkpoint_file(path, tensors, CONFIG, None)
    return path


@pytest.fixture(scope="module")
def base(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LTXTransformer]:
    """base("fp8" | ... | "int8 on load" | ...): the checkpoint, loaded in this form."""
    folder = tmp_path_factory.mktemp("forms")

    def load(form: str) -> LTXTransformer:
        if form.endswith(" on load"):
            return load_transformer(plain, quantization=form.removesuffix(" on load"), dtype=torch.float32)[0]
        if form == "plain":
            return load_transformer(plain, dtype=torch.float32)[0]
        target = folder / (f"{form}.gguf" if form.startswith("gguf") else f"{form}.safetensors")
        if not target.exists():
            convert(plain, target, form)
        return load_transformer(target, dtype=torch.float32)[0]

    return load


def dequantized(model: LTXTransformer) -> LTXTransformer:
    """The same numbers in float32."""
    with torch.device("meta"):
        plain = linear_weights(LTXTransformer(CONFIG))
    unpack_linears(model, {k: v for k, v in plain.items() if k.startswith(model.BLOCK_PREFIX)}, torch.float32)
    assert not any(isinstance(part, QuantizedLinear) for part in model.modules())
    return model


class Run:
    """A LoRA in training on a base, on fixed clips."""

    def __init__(self, model: LTXTransformer, *, checkpointing: bool = False, **changes: object) -> None:
        model.requires_grad_(False)
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(1)
        self.lora = LoRALayers(model, LoRASettings(rank=4, alpha=4.0))
        self.flow = Flow(model, None, self.lora)
        settings = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-3, "warmup": 0.0, "schedule": "constant"}
        self.updater = Updater([self.lora], Optimization(**(settings | changes)))  # type: ignore[arg-type]

    def loss(self, step: int) -> Tensor:
        rng = torch.Generator().manual_seed(step % 5)
        x0, noise = torch.randn(2, 2, 8, CONFIG.in_channels, generator=rng)
        sigma = torch.rand(2, 1, 1, generator=rng)
        text = [torch.randn(5, CONFIG.caption_channels, generator=rng) for _ in range(2)]
        positions = torch.arange(24.0).view(1, 3, 8)
        return self.flow(x0, noise, sigma, positions, text).mean()

    def gradients(self, step: int = 0) -> dict[str, Tensor]:
        self.loss(step).backward()
        return {name: p.grad.clone() for name, p in self.lora.named_parameters() if p.grad is not None}

    def train(self, steps: int = STEPS) -> list[float]:
        losses: list[float] = []
        for step in range(steps):
            loss = self.loss(step)
            loss.backward()
            losses.append(float(loss.detach()))
            self.updater.apply(step)
        return losses


@pytest.mark.slow
@pytest.mark.parametrize("form", [*IN_FILE, *(f"{name} on load" for name in ON_LOAD)])
def test_a_lora_on_a_quantized_base_is_that_on_its_numbers(
    form: str, base: Callable[[str], LTXTransformer], tmp_path: Path
) -> None:
    quantized = base(form)
    assert any(isinstance(part, QuantizedLinear) for part in quantized.modules())
    stored, numbers = Run(quantized), Run(dequantized(base(form)))
    losses, expected = stored.train(), numbers.train()
    assert losses == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[-1 - STEPS // 2]  # the clips are the same again
    for name, run in (("stored", stored), ("numbers", numbers)):
        save_lora(tmp_path / f"{name}.safetensors", run.lora, tensors_of(run.lora), "comfyui")
    got, wanted = load_file(tmp_path / "stored.safetensors"), load_file(tmp_path / "numbers.safetensors")
    assert got.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor, atol=1e-3, rtol=0)
    assert any(float(tensor.abs().max()) > 1e-2 for key, tensor in got.items() if "lora_B" in key)


@pytest.mark.parametrize("form", ["int8 on load", "nf4 on load", "gguf-q4_0"])
def test_the_backward_pass_unpacks_again(form: str, base: Callable[[str], LTXTransformer]) -> None:
    """Unpacked weights that were kept for it would take as much memory as a plain base."""
    model = base(form)
    unpacked = 4 * sum(
        part.in_features * part.out_features for part in model.modules() if isinstance(part, QuantizedLinear)
    )
    run = Run(model)
    with Alive() as alive:
        loss = run.loss(0)
        kept = alive.now
        loss.backward()
    plain = Run(dequantized(base(form)))
    with Alive() as alive:
        loss = plain.loss(0)
        assert kept < alive.now + unpacked / 20
        loss.backward()


def test_quantized_under_autocast_as_plain_under_autocast(base: Callable[[str], LTXTransformer]) -> None:
    def gradients(model: LTXTransformer) -> Tensor:
        run = Run(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = run.loss(0)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in run.lora.parameters() if p.grad is not None])

    got, wanted = gradients(base("int8 on load")), gradients(dequantized(base("int8 on load")))
    assert float((got - wanted).norm() / wanted.norm()) < 0.05  # of bfloat16: in which order it rounds


# --- blocks that come and go ------------------------------------------------------------------------------------------


class Cloning:
    """Transfers to a device that is not there: copies, counted."""

    copies = True

    def __init__(self) -> None:
        self.there: dict[nn.Module, Copies] = {}
        self.fetched: list[nn.Module] = []
        self.most = 0

    def start(self, block: nn.Module) -> None:
        if block not in self.there:
            self.there[block] = Copies(block, Tensor.clone)
            self.fetched.append(block)
            self.most = max(self.most, len(self.there))

    def finish(self, block: nn.Module) -> None:
        self.start(block)

    def drop(self, block: nn.Module) -> None:
        if block in self.there:
            self.there.pop(block).drop()


def hooks_of(model: nn.Module) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules())


@pytest.mark.parametrize(("form", "resident"), [("plain", 0), ("plain", 3), ("int8 on load", 1), ("gguf-q4_0", 1)])
def test_gradients_of_swapped_blocks_are_bit_equal(
    form: str, resident: int, base: Callable[[str], LTXTransformer]
) -> None:
    expected = Run(base(form), checkpointing=True)
    model = base(form)
    run, transfers = Run(model, checkpointing=True), Cloning()
    blocks = list(model.transformer_blocks)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    hooks = hooks_of(model)
    swapped = SwappedBlocks(model, CPU, resident, transfers=transfers)
    for step in range(2):
        wanted, got = expected.gradients(step), run.gradients(step)
        assert wanted.keys() == got.keys()
        assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
        away = blocks[resident:]
        # Every block forward, then from the last one back: each comes twice, and at most one beside the working one.
        assert transfers.fetched == [*away, *reversed(away)]
        assert transfers.most <= 2
        assert not transfers.there
        transfers.fetched.clear()
        for each in (expected, run):
            each.updater.apply(step)
    swapped.drop()
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert hooks_of(model) == hooks


def test_the_next_block_is_fetched_before_it_is_needed(base: Callable[[str], LTXTransformer]) -> None:
    model, transfers = base("plain"), Cloning()
    run = Run(model, checkpointing=True)
    order: list[str] = []
    names = {block: str(number) for number, block in enumerate(model.transformer_blocks)}
    start, drop = transfers.start, transfers.drop

    def started(block: nn.Module) -> None:
        if block not in transfers.there:
            order.append(f"+{names[block]}")
        start(block)

    def dropped(block: nn.Module) -> None:
        if block in transfers.there:
            order.append(f"-{names[block]}")
        drop(block)

    transfers.start, transfers.drop = started, dropped  # type: ignore[method-assign]
    swapped = SwappedBlocks(model, CPU, 1, transfers=transfers)
    run.gradients()
    assert order == ["+1", "+2", "-1", "+3", "-2", "-3", "+3", "+2", "-3", "+1", "-2", "-1"]
    swapped.drop()


def test_an_interrupted_pass_leaves_nothing_behind(base: Callable[[str], LTXTransformer]) -> None:
    model, transfers = base("plain"), Cloning()
    run = Run(model, checkpointing=True)
    swapped = SwappedBlocks(model, CPU, 0, transfers=transfers)
    handle = model.transformer_blocks[2].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.loss(0)
    handle.remove()
    wanted = Run(base("plain"), checkpointing=True).gradients()
    got = run.gradients()
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    with swapped.paused():
        assert not transfers.there
    swapped.drop()


def test_what_cannot_be_swapped_is_refused(base: Callable[[str], LTXTransformer]) -> None:
    with pytest.raises(UnsupportedError, match="weights to train"):
        SwappedBlocks(base("plain").requires_grad_(True), CPU, 0)
    with pytest.raises(UnsupportedError, match="no stack of blocks"):
        SwappedBlocks(nn.Linear(2, 2).requires_grad_(False), CPU, 0)
    with pytest.raises(ConfigError, match="no gradient_checkpointing"):
        Optimization(steps=1, batch_size=1, learning_rate=1.0, resident_blocks=1)

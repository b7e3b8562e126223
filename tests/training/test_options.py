"""Options of a run: perceptual loss, injected noise, bfloat16, boards, a count of memory."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from ltxkit.ltx_core.errors import CheckpointError, ConfigError
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training.config import Logging, load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.footprint import Alive, Footprint, step_bytes
from ltxkit.ltx_core.training.logs import Log
from ltxkit.ltx_core.training.models import tensors_of
from ltxkit.ltx_core.training.run import make_task
from ltxkit.ltx_core.training.vae import VAETask

ONE = World(0, 1, torch.device("cpu"))
MODEL = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "patch_size": 4,
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
    "encoder_blocks": [["res_x", 1], ["compress_all_res", {"multiplier": 2}], ["res_x", 1]],
    "decoder_blocks": [["res_x", 1], ["compress_all", {"multiplier": 2, "residual": True}], ["res_x", 1]],
    "timestep_conditioning": True,
    "causal_decoder": False,
    "spatial_padding_mode": "zeros",
}
NOISY = MODEL | {
    "decoder_blocks": [
        ["res_x", {"num_layers": 1, "inject_noise": True}],
        ["compress_all", {"multiplier": 2, "residual": True}],
        ["res_x", {"num_layers": 1, "inject_noise": True}],
    ]
}


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., VAETask]:
    """task(**changes of the config): the training of a VAE, ready for its first step."""

    def make(notes: Callable[[str], None] = lambda _: None, **changes: Any) -> VAETask:
        tree = {
            "task": "vae",
            "output": str(tmp_path / "vae"),
            "data": {"kind": "digits", "sizes": [[5, 16, 16]], "glyph_size": 12, "validation_clips": 2},
            "model": MODEL,
            "optimization": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0},
        } | changes
        path = tmp_path / "vae.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        made = make_task(load_config(path), ONE, notes)
        assert isinstance(made, VAETask)
        return made

    return make


class Distance(nn.Module):
    """A user's perceptual loss: pictures (b, 3, h, w) twice -> (b,)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.conv(a) - self.conv(b)).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_frames": 1}, "got adversary.weight 0.1 for clips of 1 frames; expected 4 or more"),
        ({"layers": 5}, "got adversary.layers 5 for clips of 16 pixels; expected 4 or fewer"),
        ({"width": 10}, "got adversary.width 10; expected a multiple of 4: .*; use 12"),
    ],
)
def test_clips_that_the_discriminator_cannot_judge_are_refused(
    changes: dict[str, int], said: str, task: Callable[..., VAETask]
) -> None:
    """At the start, although the GAN acts later: its first step would be the last one."""
    adversary = {"weight": 0.1, "start": 1000, **{k: v for k, v in changes.items() if k != "crop_frames"}}
    with pytest.raises(ConfigError, match=said):
        task(adversary=adversary, **{k: v for k, v in changes.items() if k == "crop_frames"})


@pytest.mark.slow
def test_perceptual_loss_from_a_users_torchscript_file(task: Callable[..., VAETask], tmp_path: Path) -> None:
    torch.manual_seed(0)
    distance, path = Distance(), tmp_path / "distance.pt"
    pictures = torch.rand(2, 3, 16, 16)
    torch.jit.trace(distance, (pictures, pictures)).save(str(path))
    only = {name: {"weight": 0.0} for name in ("l1", "l2", "wavelet", "kl")}
    trained = task(**only, perceptual={"weight": 2.0}, perceptual_weights=str(path))
    assert trained.perceptual is not None
    before, fixed = tensors_of(trained.vae), tensors_of(trained.perceptual)
    numbers = trained.update(0)
    assert numbers["loss"] == pytest.approx(2 * numbers["loss_perceptual"], rel=1e-5)
    assert numbers["loss_perceptual"] > 0
    changed = [name for name, tensor in tensors_of(trained.vae).items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("decoder") for name in changed)
    assert any(name.startswith("encoder") for name in changed)
    assert all(torch.equal(tensor, fixed[name]) for name, tensor in tensors_of(trained.perceptual).items())

    path.write_bytes(b"no TorchScript")
    with pytest.raises(CheckpointError, match="is not a TorchScript file"):
        task(perceptual={"weight": 2.0}, perceptual_weights=str(path))


@pytest.mark.slow
def test_noise_of_each_layer_is_learned_repeatable_and_exported(task: Callable[..., VAETask], tmp_path: Path) -> None:
    first, again = task(model=NOISY), task(model=NOISY)
    for step in range(3):
        assert first.update(step) == again.update(step)
    scales = {name: tensor for name, tensor in tensors_of(first.vae).items() if "per_channel_scale" in name}
    assert len(scales) == 4  # two convolutions in each of two blocks
    assert all(float(tensor.abs().max()) > 0 for tensor in scales.values())  # initialised to zero
    assert math.isfinite(first.validate(3, None)["psnr"])
    first.export(tmp_path)
    assert (tmp_path / "vae.safetensors").is_file()


@pytest.mark.slow
def test_bfloat16_autocast_is_close_and_keeps_weights_in_float32(task: Callable[..., VAETask]) -> None:
    common = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0}
    exact, rounded = (task(optimization=common | {"precision": precision}) for precision in ("fp32", "bf16"))
    # One rounding errs by 2^-8 / sqrt(3) rms, about 20 in a row by 1 %; a squared distance changes by twice that.
    assert rounded.update(0)["loss"] == pytest.approx(exact.update(0)["loss"], rel=0.02)
    assert {parameter.dtype for parameter in rounded.vae.parameters()} == {torch.float32}


# -------------------------------------------------------------------------------------------------------------- boards


def test_boards_get_what_the_log_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "tensorboard")
            assert purge_step == 1

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, value, step))

        def close(self) -> None:
            seen.append(("closed", 0, 0))

    def init(**settings: Any) -> Any:
        assert settings["name"] == tmp_path.name
        return types.SimpleNamespace(
            id="abc",
            log=lambda values, step: seen.extend((f"wandb {name}", value, step) for name, value in values.items()),
            finish=lambda: seen.append(("finished", 0, 0)),
        )

    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    log = Log(tmp_path, Logging(tensorboard=True, wandb=True), 0)
    log.write(3, {"loss": 0.5})
    log.close()
    assert seen == [("loss", 0.5, 3), ("wandb loss", 0.5, 3), ("closed", 0, 0), ("finished", 0, 0)]
    assert read_log(tmp_path / "log.jsonl") == [{"step": 3, "loss": 0.5}]


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_counted_memory_is_what_a_step_allocates(precision: str, task: Callable[..., VAETask]) -> None:
    said: list[str] = []
    settings = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "precision": precision, "ema_decay": 0.9}
    trained = task(said.append, optimization=settings, adversary={"weight": 0.1, "width": 8, "layers": 2})
    needs: Footprint = trained.needs
    assert needs.activations is not None
    assert said[-1] == str(needs)
    assert "activations" in said[-1]
    trained.update(0)  # allocates the optimizer's state
    before = tensors_of(trained.vae)
    with Alive() as alive:
        trained.update(1)
    measured = needs.weights + needs.optimizer + alive.most
    assert needs.total == pytest.approx(measured, rel=0.1)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tensors_of(trained.vae).items())


def test_checkpointing_is_counted() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(8)))

    def loss(*, keep: bool) -> Callable[..., Tensor]:
        def step(run: Callable[..., Tensor]) -> Tensor:
            x = torch.empty(512, 64)
            if keep:
                return run(x).sum()
            return torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False).sum()

        return step

    whole, parts = step_bytes(loss(keep=True), [layers], 1), step_bytes(loss(keep=False), [layers], 1)
    assert whole is not None
    assert parts is not None
    # Each layer keeps its result and that of its GELU; checkpointing everything still recomputes them at the end.
    assert whole == pytest.approx(16 * 512 * 64 * 4, rel=0.3)
    assert parts <= whole
    assert all(parameter.grad is None for parameter in layers.parameters())
    assert not any(type(parameter.data).__name__ == "FakeTensor" for parameter in layers.parameters())


def test_an_operator_that_cannot_be_counted_is_no_reason_to_stop() -> None:
    def loss(run: Callable[..., Tensor]) -> Tensor:
        return run(torch.ones(2, 4)).sum() * float(torch.ones(()).item())

    assert step_bytes(loss, [nn.Linear(4, 4)], 1) is None
    text = str(Footprint(10**6, 2**30, 0, 0, None))
    assert text == "about 1.00 GiB (weights 1.00, gradients 0.00, optimizer and averages 0.00; and activations)"

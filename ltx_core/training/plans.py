"""The memory plan of any training: of a transformer by `forecast`, of the smaller models here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..budget.plan import Card, Stage
from ..budget.weights import Weights, weight_bytes
from ..errors import ConfigError
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..shapes import PixelShape
from ..weights.build import open_models
from .checkpoints import find_export
from .config import Optimization, Training, TransformerTraining, UpscalerTraining, VAETraining
from .distributed import Unit, gathered_bytes
from .footprint import Footprint, beyond_gradients, kept_share
from .forecast import TrainingPlan, fitting_plan
from .losses import PairDiscriminator
from .models import upsampler_config, vae_config
from .optimize import Updater
from .upscaler import Upscaling, sizes_of, upscaler_step_bytes
from .vae import Reconstruction, vae_step_bytes

CPU = torch.device("cpu")  # on which a step is counted: the tensors are the same


def plan_training(config: Training, card: Card, *, processes: int = 1) -> TrainingPlan:
    """The phases of a training on a card, from its config and the headers of its files.

    Raises:
        ConfigError, CheckpointError, ShapeError: as the training itself.
    """
    if isinstance(config, TransformerTraining):
        return fitting_plan(config, card, processes=processes)
    if isinstance(config, VAETraining):
        return _vae(config, card, processes)
    return _upscaler(config, card, processes)


def _at_once(optimization: Optimization, processes: int) -> int:
    return max(1, optimization.batch_size // (processes * optimization.accumulation))


def _vae(config: VAETraining, card: Card, processes: int) -> TrainingPlan:
    with torch.device("meta"):
        vae = VideoVAE(vae_config(config.model)).requires_grad_(True)
        judge = None
        if config.adversary.weight > 0:
            judge = PairDiscriminator(vae.config.out_channels, config.adversary.width, config.adversary.layers)
    if vae.config.timestep_conditioning:
        vae.decoder.timestep_scale_multiplier.requires_grad_(False)
    if config.freeze_encoder:
        vae.encoder.requires_grad_(False)
    objective = Reconstruction(vae, config, None)
    largest = max((PixelShape(*size) for size in config.data.sizes), key=lambda size: size.frames)
    first = PixelShape(*config.data.sizes[0])
    size = PixelShape(min(config.crop_frames or largest.frames, largest.frames), first.height, first.width)
    clips = _at_once(config.optimization, processes)
    split = _Split.of(config.optimization, processes, objective, vae.called_parts())
    kept = kept_share(config.optimization.accumulation, split.processes)
    peak, forward = (
        vae_step_bytes(config, objective, judge, clips=clips, size=size, device=CPU, backward=backward, kept=kept)
        for backward in (True, False)
    )
    step = split.step(Updater([vae], config.optimization).needs([objective], None), peak, config.optimization)
    beside = 0
    if judge is not None:  # its weights, and what its own optimizer keeps
        own = Updater([judge], config.optimization, config.adversary.learning_rate).needs([judge], 0)
        beside = own.weights + own.optimizer
    beside = split.share(beside) + (0 if judge is None else split.weights(judge))
    return _plan("VAE", vae, step, beside, split.forward(forward), card)


def _upscaler(config: UpscalerTraining, card: Card, processes: int) -> TrainingPlan:
    if config.vae is None:
        raise ConfigError("got no vae; expected the run of train-vae, or a checkpoint with a VAE; pass --vae")
    vae = open_models(find_export(config.vae, "vae.safetensors"), data=False).vae(dtype=torch.float32)
    with torch.device("meta"):
        upsampler = LatentUpsampler(upsampler_config(config.model)).requires_grad_(True)
    for size in sizes_of(config):
        size.latent(vae.config.scale_factors)
    objective = Upscaling(upsampler, vae)
    clips = _at_once(config.optimization, processes)
    split = _Split.of(config.optimization, processes, objective, upsampler.called_parts())
    kept = kept_share(config.optimization.accumulation, split.processes)
    peak, forward = (
        upscaler_step_bytes(config, objective, vae, clips=clips, device=CPU, backward=backward, kept=kept)
        for backward in (True, False)
    )
    step = split.step(Updater([upsampler], config.optimization).needs([upsampler], None), peak, config.optimization)
    return _plan("upscaler", upsampler, step, weight_bytes(vae), split.forward(forward), card)


@dataclass(frozen=True)
class _Split:
    """What FSDP2 leaves in each process. gathered, shown: bytes that it holds at once beyond its shards, during a step
    and during a validation."""

    processes: int
    gathered: int
    shown: int

    @classmethod
    def of(cls, optimization: Optimization, processes: int, module: nn.Module, units: Sequence[Unit]) -> _Split:
        shards = optimization.sharding == "fsdp" and processes > 1
        if not shards:
            return cls(1, 0, 0)
        shown = gathered_bytes(module, units, processes, backward=False)
        return cls(processes, gathered_bytes(module, units, processes), shown)

    def share(self, size: int) -> int:
        return size // self.processes

    def weights(self, module: nn.Module) -> int:
        """Of a module that is gathered as a whole, with its gradients."""
        return 0 if self.processes == 1 else gathered_bytes(module, (), self.processes)

    def forward(self, peak: int | None) -> int | None:
        return None if peak is None else peak + self.shown

    def step(self, step: Footprint, peak: int | None, optimization: Optimization) -> Footprint:
        """peak: of a step, with the shards of its gradients."""
        gradients = self.share(step.gradients)
        beside = beyond_gradients(peak, gradients, optimization.accumulation)
        return replace(
            step,
            weights=self.share(step.weights),
            gradients=gradients,
            optimizer=self.share(step.optimizer),
            activations=None if beside is None else beside + self.gathered,
        )


def _plan(name: str, model: nn.Module, step: Footprint, beside: int, forward: int | None, card: Card) -> TrainingPlan:
    """beside: bytes of other weights. forward: of a validation, which keeps nothing."""
    total = Weights.of(model).total
    held = step.weights + step.optimizer + beside
    words = f"{step.trained / 1e6:,.1f} million numbers trained"
    work = step.gradients + (step.activations or 0)
    copies = 2 * total  # for the checkpoint, and for the files of other programs
    stages = (
        Stage("train", name, total, held, 0, None, work, words),
        Stage("validate", name, total, held, 0, None, forward or 0),
        Stage("export", name, total, held, 0, None, copies if card.is_main_memory else 0, "copies of the weights"),
    )
    return TrainingPlan(card, stages, step)

"""The latent upscaler's training: latents of a clip to latents of the same clip at twice the height and width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..progress import Notes, log_note
from ..sampling.noise import initialised, stream
from ..shapes import PixelShape
from .checkpoints import find_export
from .config import UpscalerTraining
from .data import Split
from .distributed import World, gathered_bytes, is_sharded, sharded_after, synchronised
from .footprint import kept_share, step_bytes
from .latents import LatentCache, Latents
from .loop import log_values
from .models import load_tensors, open_vae, save_upsampler, tensors_of, upsampler_config
from .optimize import Updater, autocast
from .pictures import save_pairs
from .sources import open_source

SHOWN_CLIPS = 4  # in the pictures of a validation


class Upscaling(nn.Module):
    """Normalised latents (b c f h w), and those of the same clips at twice the size -> squared error per clip (b,)."""

    def __init__(self, upsampler: LatentUpsampler, vae: VideoVAE) -> None:
        super().__init__()
        self.upsampler = upsampler
        self._vae = [vae]  # for its statistics; in a list, its weights are no part of this module

    def upscaled(self, small: Tensor) -> Tensor:
        """Latents alone. For calls from outside: of a sharded module the weights are gathered for each."""
        return self._upscaled(small)

    def _upscaled(self, small: Tensor) -> Tensor:
        (vae,) = self._vae
        return vae.normalize(self.upsampler(vae.un_normalize(small)))

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        return (self._upscaled(small).float() - large).square().mean(dim=(1, 2, 3, 4))


def sizes_of(config: UpscalerTraining) -> tuple[PixelShape, PixelShape]:
    """Of the clips, and of the same at twice the height and width."""
    small = PixelShape(*config.data.sizes[0])
    return small, PixelShape(small.frames, small.height * 2, small.width * 2)


def upscaler_step_bytes(
    config: UpscalerTraining,
    objective: Upscaling,
    vae: VideoVAE,
    *,
    clips: int,
    device: torch.device,
    backward: bool = True,
    kept: float = 1,
) -> int | None:
    """The peak of a step; see `footprint`."""
    channels, scale = vae.config.latent_channels, vae.config.scale_factors

    def loss(run: Callable[..., Tensor]) -> Tensor:
        pair = [torch.empty(clips, channels, *size.latent(scale), device=device) for size in sizes_of(config)]
        with autocast(config.optimization, device):
            return run(*pair).mean()

    return step_bytes(loss, [objective], levels=clips, device=device, backward=backward, kept=kept)


class UpscalerTask:
    """A spatial upscaler on the latents of a trained VAE."""

    def __init__(self, config: UpscalerTraining, world: World, notes: Notes = log_note) -> None:
        self.config, self.world = config, world
        if config.vae is None:
            raise ConfigError("got no vae; expected the run of train-vae, or a checkpoint with a VAE; pass --vae")
        if config.data.kind not in ("digits", "mnist"):
            raise ConfigError(
                f"got data.kind {config.data.kind}; expected digits or mnist, which are drawn at two sizes; change it"
            )
        self.vae = open_vae(find_export(config.vae, "vae.safetensors")).to(world.device)
        self.small, self.large = sizes_of(config)
        architecture = upsampler_config(config.model)
        if architecture.temporal_upsample or not architecture.spatial_upsample:
            raise ConfigError("got an upscaler in time; expected spatial_upsample alone; change model")
        with initialised(config.seed, "new upscaler"):
            self.upsampler = LatentUpsampler(architecture).to(world.device)
        self.plain = Upscaling(self.upsampler, self.vae)
        step = self._step_bytes()
        parts = self.upsampler.called_parts()
        if step is not None and world.shards(config.optimization):
            step += gathered_bytes(self.plain, parts, world.size)
        self.objective = world.spread(self.plain, config.optimization, parts, ["upscaled"])
        self.updater = Updater([self.upsampler], config.optimization)
        self.needs = self.updater.needs([self.upsampler, self.vae], step)
        notes(str(self.needs))
        cached = LatentCache(config.output, config.cache_clips, world.first, share_sizes=False)
        self.latents = self._latents("train", cached, notes)
        self.validation = self._latents("validation", LatentCache(config.output, 0, writes=False), notes)

    def _latents(self, split: Split, cache: LatentCache, notes: Notes) -> Latents:
        data, seed = self.config.data, self.config.seed
        return Latents(open_source(data, split, seed), self.vae, data, seed, cache=cache, notes=notes)

    def _step_bytes(self) -> int | None:
        optimization = self.config.optimization
        clips = self.world.share(optimization.batch_size, optimization.accumulation)
        device, kept = self.world.device, kept_share(optimization.accumulation, self.world.parts(optimization))
        return upscaler_step_bytes(self.config, self.plain, self.vae, clips=clips, device=device, kept=kept)

    def _pair(self, latents: Latents, indices: range) -> tuple[Tensor, Tensor]:
        small, large = (latents.clips(indices, size).latents.to(self.world.device) for size in (self.small, self.large))
        return small, large

    def update(self, step: int) -> dict[str, float]:
        optimization = self.config.optimization
        total = torch.zeros((), device=self.world.device)
        for piece in self.world.pieces(step, optimization.batch_size, optimization.accumulation):
            pair = self._pair(self.latents, piece.indices)
            with synchronised(self.objective, piece.last), autocast(optimization, self.world.device):
                loss = self.objective(*pair).mean() / optimization.accumulation
                loss.backward()
            total += loss.detach()
        numbers = log_values({"loss": total}, self.world)
        if not math.isfinite(numbers["loss"]):
            return numbers  # the weights stay as they are; the loop stops
        return numbers | self.updater.apply(step)

    @torch.no_grad()
    def validate(self, step: int, folder: Path | None) -> dict[str, float]:  # noqa: ARG002
        with self.updater.averaged(), sharded_after(self.objective):
            count, optimization = self.config.data.validation_clips, self.config.optimization
            portions = self.world.portions(count, optimization.batch_size, optimization.accumulation)
            losses = [self.plain(*self._pair(self.validation, indices)) for indices in portions]
            if folder is not None or is_sharded(self.objective):
                small, large = self._pair(self.validation, range(min(SHOWN_CLIPS, count)))
                made = self.plain.upscaled(small)
                if folder is not None:
                    original, upscaled = (self._decoded(x) for x in (large, made))
                    save_pairs(folder, original, upscaled, self.config.data.fps)
        return {"validation_loss": float(torch.cat(losses).mean())}

    def _decoded(self, latents: Tensor) -> Tensor:
        """Clip by clip: these are twice the size of the training clips."""
        timestep = torch.zeros(1, device=self.world.device) if self.vae.config.timestep_conditioning else None
        return torch.cat(
            [
                self.vae.decode(latent, timestep, generator=stream(self.config.seed, "decode"))
                for latent in self.vae.un_normalize(latents).split(1)
            ]
        )

    def preview(self, folder: Path | None) -> None:
        """Nothing: a new upscaler has no clip to show."""

    def state(self) -> dict[str, Any]:
        return {"upscaler": tensors_of(self.upsampler), "updater": self.updater.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        load_tensors(self.upsampler, state["upscaler"])
        self.updater.load(state["updater"])

    @torch.no_grad()
    def export(self, folder: Path | None, *, final: bool = True) -> None:  # noqa: ARG002
        """upscaler.safetensors, in the form of the released ones."""
        with self.updater.averaged():
            tensors = tensors_of(self.upsampler)
        if folder is not None:
            save_upsampler(folder / "upscaler.safetensors", tensors, self.upsampler.config)

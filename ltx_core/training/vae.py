"""The VAE's training: one step of `ltxkit train-vae`.

Source: LTX-Video paper (arXiv 2501.00103), section 2.1, for the losses and the denoising decoder. The rest comes from
experiments: a data-dependent start, and ramps that wait, keep the latents from collapsing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, TrainingError, reason_of
from ..models.video_vae import Posterior, VideoVAE
from ..progress import Notes, Progress, ProgressEvent, log_note, silent
from ..sampling.noise import initialised, stream
from ..shapes import PixelShape
from ..weights.build import load_vae
from .agreement import check_clips
from .config import VAETraining
from .data import Source, crop
from .distributed import World, gathered_bytes, is_sharded, sharded_after, synchronised
from .footprint import kept_share, step_bytes
from .loop import log_values
from .losses import (
    LEAST_FRAMES,
    PairDiscriminator,
    discriminator_loss,
    generator_loss,
    kl_loss,
    psnr,
    ssim,
    wavelet_loss,
)
from .models import copied, load_tensors, save_vae, tensors_of, vae_config
from .optimize import Updater, autocast
from .pictures import save_pairs
from .sources import open_sources

LOGVAR_START = -5.0  # posterior std 0.08 at first: at the usual 0 the noise drowns the encoder's output
STATISTICS_RATE = 0.01  # of the running mean and variance, the unit of the decoder's noise
START_CLIPS = 16  # for the data-dependent start
COLLAPSE_STD = 0.05  # latents with a smaller deviation have collapsed


class Reconstruction(nn.Module):
    """Pixels -> every loss per clip. One module: DistributedDataParallel must see one forward."""

    def __init__(self, vae: VideoVAE, config: VAETraining, perceptual: nn.Module | None) -> None:
        super().__init__()
        self.vae = vae
        self._perceptual = [perceptual]  # in a list, its weights are no part of this module, and none is sharded
        self.freeze_encoder = config.freeze_encoder

    def encode(self, pixels: Tensor) -> Posterior:
        """As the VAE's. For calls from outside: of a sharded module the weights are gathered for each."""
        return self.vae.encode(pixels)

    def decode(self, latent: Tensor, timestep: Tensor | None, generator: torch.Generator) -> Tensor:
        """As the VAE's, for the same calls."""
        return self.vae.decode(latent, timestep, generator=generator)

    def forward(
        self, pixels: Tensor, posterior_noise: Tensor, decoder_noise: Tensor, level: Tensor, injected: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """pixels (b 3 f h w); noises shaped like the latents; level (b,). Returns losses (b,), the
        reconstruction and the latent means."""
        vae = self.vae
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            posterior = vae.encode(pixels)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latent = mean + (0.5 * logvar).exp() * posterior_noise
        if vae.config.timestep_conditioning:
            t = level[:, None, None, None, None]
            latent = vae.un_normalize((1 - t) * vae.normalize(latent) + t * decoder_noise)
        timestep = level if vae.config.timestep_conditioning else None
        output = vae.decode(latent, timestep, generator=injected).float()
        losses = {
            "l1": (output - pixels).abs().mean(dim=(1, 2, 3, 4)),
            "l2": (output - pixels).square().mean(dim=(1, 2, 3, 4)),
            "wavelet": wavelet_loss(output, pixels),
            "kl": kl_loss(mean, logvar),
        }
        (perceptual,) = self._perceptual
        if perceptual is not None:
            frames = [x.transpose(1, 2).flatten(0, 1) for x in (output, pixels)]
            losses["perceptual"] = perceptual(*frames).reshape(len(pixels), -1).mean(dim=1)
        return losses, output, mean.detach()


def vae_step_bytes(
    config: VAETraining,
    objective: Reconstruction,
    adversary: PairDiscriminator | None,
    *,
    clips: int,
    size: PixelShape,
    device: torch.device,
    backward: bool = True,
    kept: float = 1,
) -> int | None:
    """The peak of a step with `clips` of `size`, with the discriminator if there is one; see `footprint`."""
    vae = objective.vae.config
    shape = (clips, vae.latent_channels, *size.latent(vae.scale_factors))

    def loss(run: Callable[..., Any], judge: Callable[..., Tensor] | None = None) -> Tensor:
        pixels, noise = torch.empty(clips, 3, *size, device=device), torch.empty(2, *shape, device=device)
        with autocast(config.optimization, device):
            losses, output, _ = run(pixels, *noise, torch.empty(clips, device=device), torch.Generator())
            if judge is not None and size.frames >= LEAST_FRAMES:
                losses["gan"] = generator_loss(judge, pixels, output, config.adversary.loss)
            return torch.stack([value.mean() for value in losses.values()]).sum()

    modules = [objective] if adversary is None else [objective, adversary]
    return step_bytes(loss, modules, levels=clips, device=device, backward=backward, kept=kept)


class VAETask:
    """One VAE, its discriminator if there is one, and their optimizers."""

    def __init__(self, config: VAETraining, world: World, notes: Notes = log_note, progress: Progress = silent) -> None:
        self.config, self.world, self.progress = config, world, progress
        self.source, self.validation = open_sources(config.data, config.seed, notes, config.validation, captioned=False)
        check_clips([self.source, self.validation], world)
        self._check_judged()
        optimization = config.optimization
        self.vae = self._start()
        if not world.shards(optimization):  # FSDP2 takes contiguous weights alone
            # torch's stubs do not know `memory_format` without another argument.
            self.vae.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        self.vae.to(world.device)
        self.vae.requires_grad_(True)
        if self.vae.config.timestep_conditioning:
            self.vae.decoder.timestep_scale_multiplier.requires_grad_(False)
        if config.freeze_encoder:
            self.vae.encoder.requires_grad_(False)
        self.perceptual = self._perceptual()
        self.plain = objective = Reconstruction(self.vae, config, self.perceptual)
        self.adversary: PairDiscriminator | None = None
        if config.adversary.weight > 0:
            channels = self.vae.config.out_channels
            with initialised(config.seed, "new discriminator"):
                adversary = PairDiscriminator(channels, config.adversary.width, config.adversary.layers)
            self.adversary = adversary.to(world.device)
        step = self._step_bytes(objective)
        parts = self.vae.called_parts()
        if step is not None and world.shards(optimization):
            step += gathered_bytes(objective, parts, world.size)
        self.objective = world.spread(objective, optimization, parts, ["encode", "decode"])
        self.updater = Updater([self.vae], optimization)
        if self.adversary is not None:
            self.judge = world.spread(self.adversary, optimization)
            self.judge_updater = Updater([self.adversary], optimization, config.adversary.learning_rate)
        self.needs = self.updater.needs([objective, *([self.perceptual] if self.perceptual is not None else [])], step)
        notes(str(self.needs))
        # The step at which a validation lifted each restriction; None: not yet.
        self.unlocked: int | None = None if config.unlock_psnr is not None else 0
        self.clips_from: int | None = None if config.images_until_psnr is not None else 0

    # ----------------------------------------------------------------------------------------------------- beginning

    def _check_judged(self) -> None:
        """Raises ConfigError: no clip is large enough for the discriminator, which would be seen at its first step."""
        adversary = self.config.adversary
        if adversary.weight == 0:
            return
        sizes = [self._cropped(size) for size in self.source.sizes()]
        judged = [size for size in sizes if size.frames >= LEAST_FRAMES]
        side = min((min(size.height, size.width) for size in judged), default=0)
        if not judged:
            raise ConfigError(
                f"got adversary.weight {adversary.weight:g} for clips of {max(size.frames for size in sizes)} frames; "
                f"expected {LEAST_FRAMES} or more: its discriminator halves the time twice; set adversary.weight=0, or "
                "change data.sizes or crop_frames"
            )
        if side < 2**adversary.layers:
            raise ConfigError(
                f"got adversary.layers {adversary.layers} for clips of {side} pixels; expected "
                f"{side.bit_length() - 1} or fewer: each layer halves both sides; change it"
            )

    def _start(self) -> VideoVAE:
        config = self.config
        if config.initial is not None:
            vae = load_vae(config.initial, dtype=torch.float32)
            if vae.config != vae_config(config.model):
                raise ConfigError(
                    f"got initial {config.initial} of another architecture than model; expected the same; change one"
                )
            return copied(vae)
        with initialised(config.seed, "new vae"):
            vae = VideoVAE(vae_config(config.model)).to(self.world.device)
        pixels = self._pixels(range(START_CLIPS), self.source, self.source.size(0))
        pixels = crop(pixels, self._size(0), torch.rand(START_CLIPS, 3, generator=stream(config.seed, "start")))
        data_dependent_start(vae, pixels)
        return vae

    def _perceptual(self) -> nn.Module | None:
        path = self.config.perceptual_weights
        if (path is None) != (self.config.perceptual.weight == 0):
            raise ConfigError(
                f"got perceptual weight {self.config.perceptual.weight} and perceptual_weights {path}; expected "
                "both or neither; give a TorchScript file that compares two batches of pictures"
            )
        if path is None:
            return None
        try:
            judge = torch.jit.load(str(path), map_location=self.world.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"got {path}, which is not a TorchScript file ({reason_of(error)}); expected one; export it again"
            ) from error
        for parameter in judge.parameters():  # script modules have no requires_grad_
            parameter.requires_grad_(False)
        return judge

    def _step_bytes(self, objective: Reconstruction) -> int | None:
        """The peak of a step, with the discriminator if there is one; see `footprint`."""
        optimization = self.config.optimization
        clips = self.world.share(optimization.batch_size, optimization.accumulation)
        counted = self.config, objective, self.adversary
        kept = kept_share(optimization.accumulation, self.world.parts(optimization))
        return vae_step_bytes(*counted, clips=clips, size=self._size(0), device=self.world.device, kept=kept)

    def _size(self, step: int) -> PixelShape:
        """The size of the training clips at `step`; smaller ones are cropped out of the source's."""
        return self._cropped(self.source.size(step))

    def _cropped(self, size: PixelShape) -> PixelShape:
        base = PixelShape(*self.config.data.sizes[0])
        frames = self.config.crop_frames or size.frames
        return PixelShape(min(frames, size.frames), min(size.height, base.height), min(size.width, base.width))

    # ----------------------------------------------------------------------------------------------------- one step

    def _pixels(self, indices: range, source: Source, full: PixelShape) -> Tensor:
        """Clips (b 3 f h w) of `full` size."""
        return source.samples(indices, full, self.world.device).pixels

    def _noise(self, step: int, shape: tuple[int, ...], largest: float) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior noise, decoder noise and its level, for the whole batch of a step."""
        device, count = self.world.device, self.config.optimization.batch_size
        rng = stream(self.config.seed, "vae", step, device)
        posterior, decoder = torch.randn(2, count, *shape, generator=rng, device=device)
        return posterior, decoder, torch.rand(count, generator=rng, device=device) * largest

    def update(self, step: int) -> dict[str, float]:
        config, optimization = self.config, self.config.optimization
        full, size = self.source.size(step), self._size(step)
        if self.clips_from is None:
            size = PixelShape(1, size.height, size.width)
        weights = self._weights(step)
        shape = (self.vae.config.latent_channels, *size.latent(self.vae.config.scale_factors))
        gan = weights["gan"] > 0 and size.frames >= LEAST_FRAMES
        totals: dict[str, Tensor] = {}
        moments: list[Tensor] = []
        pieces: list[tuple[Tensor, Tensor]] = []
        if self.adversary is not None:
            self.adversary.requires_grad_(False)
        places = torch.rand(optimization.batch_size, 3, generator=stream(config.seed, "crop", step))
        whole = self._noise(step, shape, weights["decoder_noise"])
        first = self.source.start(step, optimization.batch_size)
        for piece in self.world.pieces(step, optimization.batch_size, optimization.accumulation):
            indices = range(first + piece.rows.start, first + piece.rows.stop)
            pixels = crop(self._pixels(indices, self.source, full), size, places[piece.rows])
            noise = tuple(value[piece.rows] for value in whole)
            with synchronised(self.objective, piece.last), autocast(optimization, self.world.device):
                losses, output, mean = self.objective(pixels, *noise, stream(config.seed, "inject", step))
                if gan and self.adversary is not None:
                    losses["gan"] = generator_loss(self.adversary, pixels, output, config.adversary.loss)
                loss = sum(
                    (weights[name] * value.mean() for name, value in losses.items()),
                    torch.zeros_like(pixels[0, 0, 0, 0, 0]),
                )
                (loss / optimization.accumulation).backward()
            for name, value in {"loss": loss, **{f"loss_{k}": v.mean() for k, v in losses.items()}}.items():
                totals[name] = totals.get(name, 0) + value.detach() / optimization.accumulation
            moments.append(torch.stack([mean.mean(dim=(0, 2, 3, 4)), mean.square().mean(dim=(0, 2, 3, 4))]))
            pieces.append((pixels, output.detach()))
        numbers = log_values(totals, self.world)
        if not all(map(math.isfinite, numbers.values())):
            return numbers  # the weights stay as they are; the loop stops
        numbers |= self.updater.apply(step)
        if gan:
            numbers |= self._teach_adversary(pieces, step)
        numbers["latent_std"] = self._follow_statistics(torch.stack(moments).mean(0), step)
        return numbers

    def _weights(self, step: int) -> dict[str, float]:
        """The weight of every loss at `step`; KL and decoder noise wait for `unlock_psnr`."""
        config = self.config
        since = -1 if self.unlocked is None else step - self.unlocked
        return {
            "l1": config.l1.at(step),
            "l2": config.l2.at(step),
            "wavelet": config.wavelet.at(step),
            "perceptual": config.perceptual.at(step),
            "gan": config.adversary.term.at(step),
            "kl": config.kl.at(since),
            "decoder_noise": config.decoder_noise.at(since),
        }

    def _teach_adversary(self, pieces: list[tuple[Tensor, Tensor]], step: int) -> dict[str, float]:
        if self.adversary is None:
            return {}
        self.adversary.requires_grad_(True)
        total = torch.zeros((), device=self.world.device)
        for number, (pixels, output) in enumerate(pieces):
            last = number == len(pieces) - 1
            with synchronised(self.judge, last), autocast(self.config.optimization, self.world.device):
                loss = discriminator_loss(self.judge, pixels, output, self.config.adversary.loss).mean() / len(pieces)
                loss.backward()
            total += loss.detach()
        applied = self.judge_updater.apply(step)
        own = {"gradient_norm": "discriminator_gradient", "skipped_steps": "discriminator_skipped_steps"}
        return {
            **log_values({"loss_discriminator": total}, self.world),
            **{name: applied[key] for key, name in own.items() if key in applied},
        }

    @torch.no_grad()
    def _follow_statistics(self, moments: Tensor, step: int) -> float:
        """Move the per-channel statistics towards this batch's. Returns the latents' deviation."""
        mean, square = self.world.mean(moments)
        variance = (square - mean.square()).clamp(min=1e-8)
        if not self.config.freeze_encoder:
            statistics = self.vae.per_channel_statistics
            rate = max(STATISTICS_RATE, 1 / (step + 1))
            drift = (1 - rate) * rate * (mean - statistics.mean).square()
            statistics.std.copy_(((1 - rate) * statistics.std.square() + rate * variance + drift).sqrt())
            statistics.mean.lerp_(mean, rate)
        return float(variance.mean().sqrt())

    # ----------------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        with self.updater.averaged(), sharded_after(self.objective):
            pixels, output, posterior = self._reconstruct()
        numbers = {"psnr": float(psnr(output, pixels).mean()), "ssim": float(ssim(output, pixels).mean())}
        spread = float(posterior.mean.std(dim=(0, 2, 3, 4)).mean())
        numbers["posterior_std"] = float((0.5 * posterior.logvar).exp().mean())
        if folder is not None:
            save_pairs(folder, pixels, output, self.config.data.fps)
        if self.clips_from is None:
            if numbers["psnr"] >= (self.config.images_until_psnr or 0):
                self.clips_from = step
        elif self.unlocked is None and numbers["psnr"] >= (self.config.unlock_psnr or 0):
            self.unlocked = step
        if spread < COLLAPSE_STD or numbers["posterior_std"] > 2 * spread:
            raise TrainingError(
                f"got latents with a deviation of {spread:.3f} under posterior noise of "
                f"{numbers['posterior_std']:.3f} at step {step}: "
                "they collapsed; expected latents above their noise; start again with a smaller kl.weight, a later "
                "kl.start and decoder_noise.start, or unlock_psnr a few dB above the mean picture"
            )
        return numbers

    def _reconstruct(self) -> tuple[Tensor, Tensor, Posterior]:
        size = self.validation.sizes()[0]
        originals: list[Tensor] = []
        reconstructions: list[Tensor] = []
        posteriors: list[Posterior] = []
        for indices in self._portions(self.config.data.validation_clips):
            pixels = self._pixels(indices, self.validation, size)
            if self.clips_from is None:
                pixels = pixels[:, :, :1]
            posterior = self.plain.encode(pixels)
            timestep = torch.zeros(len(pixels), device=pixels.device) if self.vae.config.timestep_conditioning else None
            rng = stream(self.config.seed, "validation")  # the same injected noise for all clips
            originals.append(pixels)
            reconstructions.append(self.plain.decode(posterior.mode(), timestep, rng).float())
            posteriors.append(posterior)
        whole = Posterior(torch.cat([p.mean for p in posteriors]), torch.cat([p.logvar for p in posteriors]))
        return torch.cat(originals), torch.cat(reconstructions), whole

    def _portions(self, count: int) -> Iterator[range]:
        optimization = self.config.optimization
        return self.world.portions(count, optimization.batch_size, optimization.accumulation)

    def preview(self, folder: Path | None) -> None:
        """Nothing: a new VAE has no picture to show."""

    # ----------------------------------------------------------------------------------------------------- files

    def state(self) -> dict[str, Any]:
        judge = None if self.adversary is None else (tensors_of(self.adversary), self.judge_updater.state())
        return {
            "vae": tensors_of(self.vae),
            "updater": self.updater.state(),
            "judge": judge,
            "unlocked": self.unlocked,
            "clips_from": self.clips_from,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        load_tensors(self.vae, state["vae"])
        self.updater.load(state["updater"])
        if self.adversary is not None and state["judge"] is not None:
            load_tensors(self.adversary, state["judge"][0])
            self.judge_updater.load(state["judge"][1])
        self.unlocked, self.clips_from = state["unlocked"], state["clips_from"]

    @torch.no_grad()
    def export(self, folder: Path | None, *, final: bool = True) -> None:
        """Write vae.safetensors. The final one has statistics measured over `statistics_clips` training clips; those of
        checkpoints are the running ones, which cost nothing: a run that is asked to stop may have seconds to save."""
        if folder is None and not is_sharded(self.objective):
            return
        with self.updater.averaged(), sharded_after(self.objective):
            tensors = tensors_of(self.vae)
            if final and not self.config.freeze_encoder:
                mean, std = self.measure_statistics()
                tensors["per_channel_statistics.mean-of-means"] = mean
                tensors["per_channel_statistics.std-of-means"] = std
        if folder is not None:
            save_vae(folder / "vae.safetensors", tensors, self.vae.config)

    def measure_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every latent channel, (c,) each."""
        size = self.source.sizes()[0]
        count = square = total = 0
        clips = self.config.statistics_clips
        for indices in self._portions(clips):
            self.progress(ProgressEvent("measure statistics", indices.start, clips))
            latent = self.plain.encode(self._pixels(indices, self.source, size)).mode().double()
            total = total + latent.sum(dim=(0, 2, 3, 4))
            square = square + latent.square().sum(dim=(0, 2, 3, 4))
            count += latent[:, 0].numel()
        self.progress(ProgressEvent("measure statistics", clips, clips))
        mean = torch.as_tensor(total / count)
        std = (torch.as_tensor(square / count) - mean.square()).clamp(min=1e-8).sqrt()
        return mean.float().cpu(), std.float().cpu()


@torch.no_grad()
def data_dependent_start(vae: VideoVAE, pixels: Tensor) -> None:
    """Scale the encoder's last layer so that every latent channel of `pixels` has mean 0 and deviation 1, and the
    posterior a deviation far below it (Salimans and Kingma, arXiv 1602.07868, section 3)."""
    conv = vae.encoder.conv_out.conv
    bias = conv.bias
    if bias is None:
        raise ConfigError(
            "got an encoder whose last layer has no bias; expected the official architecture; change model"
        )
    conv.weight[-1].mul_(0.1)
    bias[-1] = LOGVAR_START
    mean = torch.cat([vae.encode(clip).mean for clip in pixels.split(1)])
    centre, spread = mean.mean(dim=(0, 2, 3, 4)), mean.std(dim=(0, 2, 3, 4)).clamp(min=1e-6)
    conv.weight[:-1].div_(spread[:, None, None, None, None])
    bias[:-1].sub_(centre).div_(spread)

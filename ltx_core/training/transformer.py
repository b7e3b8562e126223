"""The transformer's training: what `ltxkit train` computes in one step, for whole models and for LoRA.

Sources: LTX-Video paper (arXiv 2501.00103) section 2.2 to 2.4 (rectified flow, shifted logit-normal levels, first
frames given with their own timestep).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.transformer import LTXTransformer
from ..progress import Notes, log_note
from ..sampling.patchify import Coordinates, patchify
from ..shapes import PixelShape
from ..weights.build import load_transformer
from .config import TransformerTraining
from .data import generator, open_source
from .distributed import World, synchronised
from .flow import Draws, Flow, draw
from .generate import Generator, Models
from .latents import EncodedClips, Latents
from .loop import find_export, log_values
from .lora import LoRALayers, save_lora
from .models import copied, open_vae, restart, save_checkpoint_file, tensors_of, transformer_config
from .optimize import Updater
from .pictures import save_clips
from .text import encode, make_text_encoder, save_text_encoder

VALIDATION_SAMPLES = 64


class TransformerTask:
    """A transformer, the text encoder trained with it or frozen beside it, or LoRA layers on a frozen transformer."""

    def __init__(self, config: TransformerTraining, world: World, notes: Notes = log_note) -> None:
        self.config, self.world = config, world
        torch.manual_seed(config.seed)
        if config.vae is None:
            raise ConfigError("got no vae; expected the run of train-vae, or a checkpoint with a VAE; pass --vae")
        self.vae = open_vae(_checkpoint(config.vae, "vae.safetensors")).to(world.device)
        self.transformer = self._start().to(world.device)
        self.transformer.gradient_checkpointing = config.optimization.gradient_checkpointing
        self.source = open_source(config.data, "train", config.seed, notes)
        validation = open_source(config.data, "validation", config.seed)
        if world.first:
            config.output.mkdir(parents=True, exist_ok=True)
        self.text = self._text()
        self.trains_text = config.text.encoder is None and config.lora is None
        count = config.cache_clips
        self.latents = Latents(
            self.source, self.vae, config.data, config.seed, count, config.output, notes, writes=world.first
        )
        self.validation = Latents(
            validation, self.vae, config.data, config.seed, 0, config.output, notes, writes=world.first
        )
        self.lora = None
        if config.lora is not None:
            self.transformer.requires_grad_(False)
            self.lora = LoRALayers(self.transformer, config.lora)
        trained: list[nn.Module] = [self.lora if self.lora is not None else self.transformer]
        if self.trains_text:
            trained.append(self.text.model)
        flow = Flow(self.transformer, self.text, self.trains_text)
        flow.lora = self.lora  # its factors must belong to what DistributedDataParallel wraps
        self.objective = world.wrap(flow)
        if config.optimization.compile:
            self.transformer.compile()
        self.updater = Updater(trained, config.optimization)
        notes(f"training {self.updater.needs()}")
        self._embedded: dict[str, Tensor] = {}

    # ----------------------------------------------------------------------------------------------------- beginning

    def _start(self) -> LTXTransformer:
        config = self.config
        if config.initial is not None:
            model, _ = load_transformer(
                _checkpoint(config.initial, "model.safetensors"),
                dtype=None if config.lora else torch.float32,
                version=config.version,
            )
            if config.model is not None and model.config != transformer_config(config.model):
                raise ConfigError(
                    f"got initial {config.initial} of another architecture than model; expected the same; change one"
                )
            return model if config.lora else copied(model).requires_grad_(True)
        if config.model is None or config.lora is not None:
            raise ConfigError(
                "got no initial checkpoint; expected one for a LoRA, or where model is left out; set initial"
            )
        model = LTXTransformer(transformer_config(config.model))
        if model.config.in_channels != self.vae.config.latent_channels:
            raise ConfigError(
                f"got model.in_channels {model.config.in_channels}; expected {self.vae.config.latent_channels}, "
                f"the VAE's latent "
                "channels; change it and out_channels"
            )
        restart(model)
        return model

    def _text(self):
        config, channels = self.config, self.transformer.config.caption_channels
        start = (
            None if config.initial is None else _checkpoint(config.initial, "model.safetensors").parent / "text_encoder"
        )
        if config.text.encoder is None and start is not None and start.is_dir():
            from ..weights.text_encoder import load_text_encoder

            text = load_text_encoder(start, dtype=torch.float32)
            copied(text.model).requires_grad_(config.lora is None)
        else:
            if not self.world.first:
                self.world.barrier()  # the first process makes the tokenizer, the others read it
            text = make_text_encoder(config.text, channels, self.source.captions(), config.output / "tokenizer")
            if self.world.first:
                self.world.barrier()
        nn.Module.to(text.model, self.world.device)
        return text

    # ----------------------------------------------------------------------------------------------------- one step

    def update(self, step: int) -> dict[str, float]:
        optimization = self.config.optimization
        size, count = self.source.size(step), optimization.accumulation
        totals: dict[str, Tensor] = {}
        whole = self._draws("flow", step, optimization.batch_size, size)
        for piece in range(count):
            clips = self.latents.clips(self.world.indices(step, piece, optimization.batch_size, count), size)
            draws = whole.rows(self.world.rows(piece, optimization.batch_size, count))
            with synchronised(self.objective, piece == count - 1), self._autocast():
                losses, sigma = self._losses(clips, draws, size)
                loss = losses.mean()
                (loss / count).backward()
            totals["loss"] = totals.get("loss", 0) + loss.detach() / count
            # Per-level losses are compared with 1, the loss of predicting nothing about the data.
            for name, low, high in (
                ("loss_low", 0.0, 1 / 3),
                ("loss_middle", 1 / 3, 2 / 3),
                ("loss_high", 2 / 3, 1.01),
            ):
                inside = (sigma >= low) & (sigma < high)
                totals[f"{name}_sum"] = totals.get(f"{name}_sum", 0) + (losses.detach() * inside).sum()
                totals[f"{name}_count"] = totals.get(f"{name}_count", 0) + inside.sum().float()
        numbers = log_values(totals, self.world)
        for name in ("loss_low", "loss_middle", "loss_high"):
            total, seen = numbers.pop(f"{name}_sum"), numbers.pop(f"{name}_count")
            if seen:
                numbers[name] = total / seen
        if not torch.isfinite(torch.tensor(numbers["loss"])):
            return numbers  # the weights stay as they are; the loop stops
        return numbers | self.updater.apply(step)

    def _draws(self, stream: str, number: int, count: int, size: PixelShape) -> Draws:
        frames, height, width = size.latent(self.vae.config.scale_factors)
        return draw(
            generator(self.config.seed, stream, number),
            generator(self.config.seed, f"{stream} noise", number, self.world.device),
            (count, frames * height * width, self.vae.config.latent_channels),
            self.config.noising,
            text_dropout=self.config.text_dropout,
            first_frame=self.config.first_frame if frames > 1 else 0.0,
        )

    def _losses(self, clips: EncodedClips, draws: Draws, size: PixelShape) -> tuple[Tensor, Tensor]:
        """Loss and noise level per sample, (b,) each."""
        device = self.world.device
        x0 = patchify(clips.latents).to(device)
        height, width = clips.latents.shape[-2:]
        sigma = draws.sigma[:, None, None].repeat(1, x0.shape[1], 1)
        sigma[:, : height * width][draws.first_frame] = 0
        scale = self.vae.config.scale_factors
        coordinates = Coordinates(scale, self.config.data.fps, self.transformer.config.causal_temporal_positioning)
        positions = coordinates.positions(size.latent(scale)).to(device)
        captions = ["" if empty else text for text, empty in zip(clips.captions, draws.empty_prompt, strict=True)]
        prompts = captions if self.trains_text else [self._embed(caption) for caption in captions]
        return self.objective(x0, draws.noise, sigma.to(device), positions, prompts), draws.sigma.to(device)

    @torch.no_grad()
    def _embed(self, caption: str) -> Tensor:
        """A frozen text encoder sees every caption once."""
        if caption not in self._embedded:
            self._embedded[caption] = encode(self.text, [caption], self.world.device)[0].clone()
        return self._embedded[caption]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=self.config.optimization.precision == "bf16"
        )

    # ----------------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def validate(self, step: int, folder: Path | None) -> dict[str, float]:  # noqa: ARG002
        """Loss on fixed clips with fixed noise, and clips of the configured prompts."""
        size = PixelShape(*self.config.data.sizes[0])
        with self._averaged():
            total = torch.zeros((), device=self.world.device)
            for start in range(0, VALIDATION_SAMPLES, 16):
                clips = self.validation.clips(range(start, start + 16), size)
                draws = self._draws("flow validation", start, 16, size)
                total += self._losses(clips, draws, size)[0].sum()
            if self.config.prompts:
                maker = Generator(Models(self.transformer, self.vae, self.text), self.config.data.fps)
                pixels = maker.clips(
                    self.config.prompts,
                    size,
                    steps=self.config.sample_steps,
                    guidance_scale=self.config.guidance_scale,
                    seed=self.config.seed,
                )
                if folder is not None:
                    save_clips(folder, pixels, self.config.prompts, self.config.data.fps)
        return {"validation_loss": float(total) / VALIDATION_SAMPLES}

    # ----------------------------------------------------------------------------------------------------- files

    def _averaged(self) -> Any:
        return self.updater.average.applied() if self.updater.average is not None else nullcontext()

    def state(self) -> dict[str, Any]:
        trained = self.transformer if self.lora is None else self.lora
        return {
            "weights": tensors_of(trained),
            "text": tensors_of(self.text.model) if self.trains_text else None,
            "updater": self.updater.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        trained = self.transformer if self.lora is None else self.lora
        trained.load_state_dict(state["weights"])
        if self.trains_text and state["text"] is not None:
            self.text.model.load_state_dict(state["text"])
        self.updater.load(state["updater"])

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """model.safetensors (transformer and VAE) and text_encoder/, or the LoRA in both key styles."""
        with self._averaged():
            if self.lora is not None:
                for style in ("diffusers", "comfyui"):
                    save_lora(folder / f"lora_{style}.safetensors", self.lora, style)
                return
            save_checkpoint_file(
                folder / "model.safetensors", tensors_of(self.transformer), self.transformer.config, self.vae
            )
            if self.trains_text:
                save_text_encoder(self.text, folder / "text_encoder")


def _checkpoint(path: Path, name: str) -> Path:
    return path if path.is_file() or (path / "config.json").is_file() else find_export(path, name)

"""A step of LoRA training as other projects take it, with the weights of ours, for `training_cpu.py`.

A plain loop of diffusers, peft and torch's AdamW always takes part. LTX_VIDEO_TRAINER_PATH: a checkout of
Lightricks/LTX-Video-Trainer. FINETRAINERS_PATH: one of finetrainers at v0.1.0, whose step is that of later versions;
these import names of torch that have gone since. Without them, these are left out. They import packages that LTXKit
does without: TRAINERS_PACKAGES names a folder that has them beside torch and diffusers of this environment:

    pip install --no-deps --target FOLDER optimum-quanto ninja
    pip install --no-deps --target FOLDER datasets dill multiprocess xxhash torchdata decord wandb sentry-sdk

for the former and the latter. Of both trainers the code that a step consists of
is called: their noising, their call of the transformer, their loss, gradient clipping and optimizer, in the order of
their loops. Their draws are replaced by the common ones, and prompts are padded as their tools store them.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock, patch

import torch
from einops import rearrange
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.training.lora import LoRALayers
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS

FRAME_RATE = 25
TEXT = 60  # tokens of a caption
PADDED_OFFICIAL, PADDED_FINETRAINERS = 256, 128  # the defaults of scripts/process_captions.py, and of finetrainers
LEARNING_RATE = 2e-4

Step = Callable[[int], float]
"""The number of a step -> its loss; the weights change."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A step's draws. x0, noise: (1 c f h w). text: a caption's embedding (l d). level: of the noise, (1 1 1)."""

    x0: Tensor
    noise: Tensor
    text: Tensor
    level: Tensor

    @classmethod
    def of(cls, config: TransformerConfig, grid: tuple[int, int, int], step: int) -> Batch:
        shape = (1, config.in_channels, *grid)
        rng = torch.Generator().manual_seed(2**20 + step)
        # In thousandths, as diffusers' models read it; a little above, for finetrainers cuts the rest off.
        level = (1 + (torch.rand(1, 1, 1, generator=rng) * 998).round()) / 1000
        return cls(
            torch.randn(shape, generator=rng),
            torch.randn(shape, generator=noise_rng(step)),
            torch.randn(TEXT, config.caption_channels, generator=rng),
            torch.nextafter(level, torch.tensor(1.0)),
        )

    def tokens(self) -> tuple[Tensor, Tensor]:
        """x0 and noise, (1 n c)."""
        x0, noise = (rearrange(each, "b c f h w -> b (f h w) c") for each in (self.x0, self.noise))
        return x0, noise

    def padded(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The text (1 tokens d), and its mask (1 tokens)."""
        text = nn.functional.pad(self.text[None], (0, 0, 0, tokens - TEXT))
        return text, (torch.arange(tokens) < TEXT)[None]


def noise_rng(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


def positions_of(grid: tuple[int, int, int]) -> Tensor:
    """In seconds and pixels, (1 3 n)."""
    cells = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")).reshape(1, 3, -1)
    return cells * torch.tensor([8 / FRAME_RATE, 32, 32])[None, :, None]


@dataclass(frozen=True, eq=False)
class Start:
    """What all begin with. factors: of `lora` before the first step, by their keys there."""

    model: LTXTransformer
    lora: LoRALayers
    factors: dict[str, Tensor]
    grid: tuple[int, int, int]

    @classmethod
    def of(cls, model: LTXTransformer, lora: LoRALayers, grid: tuple[int, int, int]) -> Start:
        return cls(model, lora, {name: value.clone() for name, value in lora.state_dict().items()}, grid)

    def batch(self, step: int) -> Batch:
        return Batch.of(self.model.config, self.grid, step)

    def theirs(self) -> tuple[Any, list[nn.Parameter]]:
        """diffusers' transformer on our weights with peft's layers, which begin as ours do; and their factors."""
        import diffusers
        from peft import LoraConfig

        config, settings = self.model.config, self.lora.config
        theirs = diffusers.LTXVideoTransformer3DModel(  # pyright: ignore[reportPrivateImportUsage]
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            attention_head_dim=config.attention_head_dim,
            cross_attention_dim=config.cross_attention_dim,
            caption_channels=config.caption_channels,
        )
        rename = TRANSFORMER_FROM_DIFFUSERS.inverse().rename
        theirs.load_state_dict({str(rename(k)): tensor for k, tensor in self.model.state_dict().items()}, assign=True)
        theirs.requires_grad_(False)
        alpha = cast(int, settings.alpha)  # peft takes a fraction too
        theirs.add_adapter(LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=list(settings.targets)))
        named = dict(theirs.named_parameters())
        with torch.no_grad():
            for key, name in self.lora.names.items():
                their_name = (rename(f"{name}.weight") or "").removesuffix(".weight")
                named[f"{their_name}.lora_A.default.weight"].copy_(self.factors[f"down.{key}"])
                named[f"{their_name}.lora_B.default.weight"].copy_(self.factors[f"up.{key}"])
        return theirs.train(), [parameter for parameter in theirs.parameters() if parameter.requires_grad]


def plain(start: Start) -> Step:
    """The loop that one writes with diffusers and peft."""
    theirs, trained = start.theirs()
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    positions, mask = positions_of(start.grid), torch.ones(1, TEXT)

    def step(number: int) -> float:
        batch = start.batch(number)
        (x0, noise), level = batch.tokens(), batch.level
        x = (1 - level) * x0 + level * noise
        timestep = (level * 1000)[:, :, 0]
        (velocity,) = theirs(x, batch.text[None], timestep, mask, video_coords=positions, return_dict=False)
        loss = nn.functional.mse_loss(velocity, noise - x0)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def official(start: Start) -> Step:
    """LTX-Video-Trainer: `StandardTrainingStrategy` and the loop of `LtxvTrainer.train`, without mixed precision."""
    from accelerate import Accelerator
    from ltxv_trainer.config import ConditioningConfig  # pyright: ignore[reportMissingImports]
    from ltxv_trainer.training_strategies import StandardTrainingStrategy  # pyright: ignore[reportMissingImports]

    theirs, trained = start.theirs()
    accelerator: Any = Accelerator(mixed_precision="no", cpu=True)
    transformer = accelerator.prepare(theirs)
    optimizer = accelerator.prepare(torch.optim.AdamW(trained, lr=LEARNING_RATE))
    strategy: Any = StandardTrainingStrategy(ConditioningConfig(first_frame_conditioning_p=0.0))
    sizes = dict(zip(("num_frames", "height", "width"), (torch.tensor([n]) for n in start.grid), strict=True))

    def step(number: int) -> float:
        batch = start.batch(number)
        x0, noise = batch.tokens()
        text, mask = batch.padded(PADDED_OFFICIAL)
        item = {
            "latents": {"latents": x0, **sizes, "fps": torch.tensor([float(FRAME_RATE)])},
            "conditions": {"prompt_embeds": text, "prompt_attention_mask": mask},
        }
        sampler = types.SimpleNamespace(sample_for=lambda _: batch.level.view(1))
        with accelerator.accumulate(transformer):
            with patch.object(torch, "randn_like", lambda *_, **__: noise):
                prepared = strategy.prepare_batch(item, sampler)
            loss = strategy.compute_loss(transformer(**strategy.prepare_model_inputs(prepared))[0], prepared)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return step


def finetrainers(start: Start) -> Step:
    """finetrainers 0.1.0: `LTXVideoModelSpecification.forward` and the loop of `SFTTrainer._train`.

    It replaces the transformer's forward pass for the whole process; here only for its own model. Its clipping, which
    asks for grouped operations that a CPU lacks and is then skipped with a warning, takes torch's plain ones.
    """
    _without_readers()
    from finetrainers import optimizer as optimizers  # pyright: ignore[reportMissingImports]
    from finetrainers import utils  # pyright: ignore[reportMissingImports]
    from finetrainers.models.ltx_video import LTXVideoModelSpecification  # pyright: ignore[reportMissingImports]
    from finetrainers.parallel import ParallelBackendEnum  # pyright: ignore[reportMissingImports]
    from finetrainers.patches.models.ltx_video import patch as patches  # pyright: ignore[reportMissingImports]

    theirs, _ = start.theirs()
    theirs.forward = types.MethodType(patches._patched_LTXVideoTransformer3D_forward, theirs)
    specification: Any = object.__new__(LTXVideoModelSpecification)  # its constructor reads a folder of models
    specification.transformer_config = theirs.config
    kind = ParallelBackendEnum.ACCELERATE
    asked = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01}
    optimizer = optimizers.get_optimizer(kind, "adamw", [theirs], LEARNING_RATE, **asked)
    schedule = optimizers.get_lr_scheduler(kind, "constant", optimizer)
    sizes = dict(zip(("num_frames", "height", "width"), start.grid, strict=True))
    channels = start.model.config.in_channels

    def step(number: int) -> float:
        batch = start.batch(number)
        text, mask = batch.padded(PADDED_FINETRAINERS)
        random.seed(0)  # no clip of these is conditioned on its first frame
        latents = {"latents": batch.x0, **sizes}
        pred, target, sigmas = specification.forward(
            transformer=theirs,
            condition_model_conditions={"encoder_hidden_states": text, "encoder_attention_mask": mask},
            latent_model_conditions={
                **latents,
                "latents_mean": torch.zeros(1, channels),
                "latents_std": torch.ones(1, channels),
            },
            sigmas=utils.expand_tensor_dims(batch.level.view(1), batch.x0.ndim),
            generator=noise_rng(number),
        )
        scheduler = _flow_scheduler()
        weights = utils.prepare_loss_weights(scheduler=scheduler, sigmas=sigmas, flow_weighting_scheme="none")
        loss = utils.expand_tensor_dims(weights, pred.ndim).float() * (pred.float() - target.float()).pow(2)
        loss = loss.mean(list(range(1, loss.ndim))).mean()
        loss.backward()
        utils.torch.clip_grad_norm_(list(theirs.parameters()), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach().item()

    return step


def _without_readers() -> None:
    """Let finetrainers import where torchvision, which reads its data sets and no step touches, is not installed."""
    import diffusers
    import transformers

    # Whether torchvision is there is decided when these are imported.
    _ = diffusers.LTXImageToVideoPipeline, transformers.T5EncoderModel  # pyright: ignore[reportPrivateImportUsage]
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = MagicMock(__spec__=ModuleSpec("torchvision", None))  # named in annotations


def _flow_scheduler() -> Any:
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler()  # pyright: ignore[reportPrivateImportUsage]


def peers() -> dict[str, Callable[[Start], Step]]:
    """Those that can take part, by the names that a table has for them."""
    found: dict[str, Callable[[Start], Step]] = {"diffusers + peft + AdamW": plain}
    for name, variable, inside, make in (
        ("LTX-Video-Trainer", "LTX_VIDEO_TRAINER_PATH", "src/ltxv_trainer", official),
        ("finetrainers", "FINETRAINERS_PATH", "finetrainers", finetrainers),
    ):
        checkout = os.environ.get(variable)
        if not checkout:
            continue
        package = Path(checkout).resolve() / inside
        if not package.is_dir():
            raise ValueError(f"got {variable}={checkout} without {inside}; expected a checkout of {name}")
        for folder in (str(package.parent), os.environ.get("TRAINERS_PACKAGES")):
            if folder and folder not in sys.path:
                sys.path.append(folder)  # behind all others: torch and diffusers stay those of this environment
        if importlib.util.find_spec(package.name) is None:
            raise ValueError(f"got {variable}={checkout}, whose {package.name} cannot be found")
        found[name] = make
    return found

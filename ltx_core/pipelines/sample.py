"""From noise, a prompt and conditions to a latent: one pass of the transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..budget import stages
from ..errors import ConfigError, ShapeError, UnsupportedError
from ..host import Host
from ..models.transformer import Branch, LTXTransformer, PreparedText
from ..placing.lora import applied, device_bytes
from ..progress import ProgressEvent
from ..quant.linear import remarks
from ..sampling.conditioning import apply_conditions, initial_state
from ..sampling.noise import Noise
from ..sampling.patchify import Coordinates
from ..sampling.samplers import integrate
from ..sampling.state import LatentState
from ..shapes import LatentShape, PixelShape, ScaleFactors
from ..values import check_frame_rate
from .condition import NOTHING, Conditions
from .passes import Pass

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """The output of the text encoder for one prompt, or for one per sample.

    embeddings: (1 | b, l, c) float. mask: (1 | b, l) integer or bool, 1 = a real token, 0 = padding; None: all real.
    """

    embeddings: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a pass. negative: needed only for guidance above 1."""

    positive: EncodedPrompt
    negative: EncodedPrompt | None = None


@dataclass(frozen=True, eq=False)
class LatentClip:
    """The start of a pass.

    latent: (b c f h w) normalised; zeros for a new clip (noise covers it at level 1), or a clip to start from.
    scale: pixels per cell of the VAE that will decode it. fps: frames per second of the result.
    denoise_mask: (b | 1, 1, f, h, w), 0 to 1; 0 keeps `latent`, None denoises all of it.
    """

    latent: Tensor
    scale: ScaleFactors
    fps: float
    denoise_mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_frame_rate("fps", self.fps)

    @classmethod
    def empty(cls, vae: VideoVAE, size: PixelShape, fps: float) -> LatentClip:
        """A new clip of a size that the VAE can have; any other raises ShapeError."""
        scale = vae.config.scale_factors
        return cls(torch.zeros(1, vae.config.latent_channels, *size.latent(scale)), scale, fps)

    @property
    def grid(self) -> LatentShape:
        return LatentShape(*self.latent.shape[2:])

    @property
    def size(self) -> PixelShape:
        return self.grid.pixels(self.scale)


@torch.no_grad()
def sample(
    run_pass: Pass, clip: LatentClip, prompts: Prompts, *, noise: Noise, host: Host, conditions: Conditions = NOTHING
) -> Tensor:
    """Denoise a latent from the first level of a pass to 0.

    noise: `SeededNoise(seed)`; the initial noise is its first draw. conditions: encoded at the size of the clip.
    Progress is sent before the first step and after every step, with the current estimate of the clean latent.

    Returns:
        (b c f h w) float32 on the CPU, normalised, in the shape of `clip.latent`; inputs are not changed.

    Raises:
        ShapeError: channels, text width, batch sizes or mask do not fit. ConfigError: a setting that cannot work.
        CheckpointError: a LoRA is not for this model. UnsupportedError: the model returned numbers that are not finite.
    """
    transformer, total = run_pass.transformer, len(run_pass.sigmas) - 1
    _check_latent(clip.latent, transformer.config.in_channels)
    _check_prompts(prompts, clip.latent.shape[0], transformer.config.caption_channels)
    if prompts.negative is None and run_pass.is_guided:
        raise ConfigError(
            f"got guidance scale {max(step.scale for step in run_pass.steps)} without a negative prompt; expected one "
            "whenever the scale is above 1; pass an (empty) negative prompt or set the scale to 1"
        )
    if conditions.needs_lora and not run_pass.loras:
        host.say("There is a reference video but no LoRA: only a model with an IC-LoRA understands it.")

    state = _initial_state(run_pass, clip, conditions, noise, host)
    host.progress(ProgressEvent(run_pass.stage, 0, total))
    with (
        applied(transformer, run_pass.loras),
        host.place(transformer, memory_required=_work(run_pass, state, prompts)) as device,
    ):
        for remark in remarks(transformer, device):
            host.say(remark)
        state = state.to(device)
        rotary = transformer.prepare_positions(state.positions)
        texts = {"positive": _prepare_text(transformer, prompts.positive, device)}
        if run_pass.is_guided and prompts.negative is not None:
            texts["negative"] = _prepare_text(transformer, prompts.negative, device)

        def velocity(step: int, x: Tensor, level: Tensor) -> Tensor:
            branches = tuple(
                Branch(texts[branch.text], branch.skip_blocks, run_pass.guidance.stg_mode)
                for branch in run_pass.steps[step].branches
            )
            velocities = transformer(x, level, rotary, branches)
            return run_pass.steps[step].combine([v.float() for v in velocities])

        def report(done: int, denoised: Tensor) -> None:
            host.progress(ProgressEvent(run_pass.stage, done, total, state.grid(denoised)))

        state = integrate(velocity, state, run_pass.sigmas, run_pass.sampler, noise=noise, callback=report)
        result = state.grid(state.latent).cpu()
    if not bool(result.isfinite().all()):
        raise UnsupportedError(
            "got numbers that are not finite from the model; expected a latent; float16 overflows in these models: "
            "load it as bfloat16 or float32, and check LoRA strengths"
        )
    return result


def _initial_state(run_pass: Pass, clip: LatentClip, conditions: Conditions, noise: Noise, host: Host) -> LatentState:
    """The state before the first step, with all conditions."""
    latent = clip.latent.float().cpu()
    coordinates = Coordinates(clip.scale, clip.fps, run_pass.transformer.config.causal_temporal_positioning)
    state = initial_state(latent, noise(latent.shape), float(run_pass.sigmas[0]), coordinates, clip.denoise_mask)
    items = conditions.encoded(clip.size, latent.shape[0], clip.fps, noise, host)
    return apply_conditions(state, items, coordinates, noise)


def _work(run_pass: Pass, state: LatentState, prompts: Prompts) -> int:
    """Bytes that the pass takes in addition to the weights of its transformer."""
    samples, tokens, _ = state.latent.shape
    texts = [prompt for prompt in (prompts.positive, prompts.negative) if prompt is not None]
    work = stages.sampling(
        run_pass.transformer,
        samples=samples,
        tokens=tokens,
        branches=run_pass.branches,
        text_tokens=[text.embeddings.shape[1] for text in texts],
    )
    return work + device_bytes(run_pass.loras, run_pass.transformer.dtype.itemsize)


def _prepare_text(transformer: LTXTransformer, prompt: EncodedPrompt, device: torch.device) -> PreparedText:
    embeddings = prompt.embeddings.to(device)
    if prompt.mask is None:
        return transformer.prepare_text(list(embeddings))
    masks = prompt.mask.to(device).bool()
    return transformer.prepare_text([text[mask] for text, mask in zip(embeddings, masks, strict=True)])


def _check_latent(latent: Tensor, channels: int) -> None:
    if latent.ndim != 5 or latent.shape[1] != channels:
        raise ShapeError(
            f"got a latent of shape {tuple(latent.shape)}; expected (batch, {channels}, frames, height, width); use "
            "a latent of this model's VAE"
        )
    if not bool(latent.isfinite().all()):
        raise ConfigError("got a latent with NaN or infinity; expected finite numbers; look for the step that made it")


def _check_prompts(prompts: Prompts, batch: int, width: int) -> None:
    for name, prompt in (("positive", prompts.positive), ("negative", prompts.negative)):
        if prompt is None:
            continue
        shape = tuple(prompt.embeddings.shape)
        if len(shape) != 3 or shape[2] != width:
            raise ShapeError(
                f"got a {name} prompt of shape {shape}; expected (1, tokens, {width}); encode it with T5 v1.1 XXL, "
                "the text encoder of LTX-Video"
            )
        if shape[0] not in (1, batch):
            raise ShapeError(
                f"got {shape[0]} {name} prompts for {batch} clips; expected 1 or {batch}; change the batch size"
            )
        if prompt.mask is not None:
            if tuple(prompt.mask.shape) != shape[:2]:
                raise ShapeError(
                    f"got a {name} prompt mask of shape {tuple(prompt.mask.shape)}; expected {shape[:2]}, as the "
                    "embeddings"
                )
            if not bool(prompt.mask.bool().any(dim=1).all()):
                raise ShapeError(
                    f"got a {name} prompt without tokens; expected at least the end of sequence; check its mask"
                )

"""From noise, a prompt and conditions to a latent: one pass of the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ShapeError, UnsupportedError
from ..memory.plan import norms_are_one_kernel, sample_bytes, unpacking
from ..models.transformer import Branch, LTXTransformer, PreparedText
from ..placing.lora import applied, device_bytes
from ..progress import Notes, Progress, ProgressEvent, log_note, silent
from ..quant.linear import remarks
from ..sampling.conditioning import LatentCondition, LatentReference, add_native_guides, apply_conditions, initial_state
from ..sampling.guidance import NO_GUIDANCE, Guidance
from ..sampling.noise import Noise
from ..sampling.patchify import Coordinates
from ..sampling.samplers import EULER, SamplerSettings, integrate
from ..sampling.schedules import check_sigmas
from ..sampling.state import LatentState
from ..shapes import LatentShape, PixelShape, ScaleFactors
from ..weights.lora import WeightedLoRA
from .condition import Condition, Reference, encode_conditions

if TYPE_CHECKING:
    from ..memory.placement import Placement
    from ..models.video_vae import VideoVAE


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """What the text encoder made of one prompt, or of one per sample.

    embeddings: (1 | b, l, c) float. mask: (1 | b, l) integer or bool, 1 = a real token, 0 = padding; None: all real.
    """

    embeddings: Tensor
    mask: Tensor | None = None


@torch.no_grad()
def sample(
    transformer: LTXTransformer,
    latent: Tensor,
    positive: EncodedPrompt,
    negative: EncodedPrompt | None = None,
    *,
    sigmas: Tensor,
    noise: Noise,
    fps: float,
    scale: ScaleFactors,
    placement: Placement,
    guidance: Guidance = NO_GUIDANCE,
    settings: SamplerSettings = EULER,
    conditions: Sequence[Condition | LatentCondition | LatentReference] = (),
    vae: VideoVAE | None = None,
    loras: Sequence[WeightedLoRA] = (),
    noise_mask: Tensor | None = None,
    keyframe_idxs: Tensor | None = None,
    progress: Progress = silent,
    stage: str = "sample",
    notes: Notes = log_note,
) -> Tensor:
    """Denoise a latent from level sigmas[0] to 0.

    latent: (b c f h w) normalised; zeros for a new clip (covered by noise at level 1), or a clip to start from.
    sigmas: (steps + 1) float32, see `sampling.schedules`. noise: `SeededNoise(seed)`.
    fps: of the result. scale: of the VAE that will decode it.
    conditions: pictures, clips and references (these need `vae`, which encodes them at the size of `latent`), latents.
    loras: for the transformer, while this runs.
    noise_mask: as ComfyUI's nodes leave it, see `latent_mask`; 1 = denoise, 0 = keep `latent`.
    keyframe_idxs: of guides that ComfyUI's nodes have appended to `latent`, see `add_native_guides`. They come back at
        the end of the result as they were, for those nodes to crop.
    progress: called before the first step and after every one, with the current estimate of the clean latent.
    notes: what was done differently from what was asked.

    Returns:
        (b c f h w) float32 on the CPU, normalised, of the shape of `latent`; inputs are not changed.

    Raises:
        ShapeError: channels, text width, batch sizes or mask do not fit. ConfigError: a setting that cannot work.
        CheckpointError: a LoRA is not for this model. UnsupportedError: the model returned numbers that are not finite.
    """
    coordinates = Coordinates(scale, fps, transformer.config.causal_temporal_positioning)
    check_sigmas(sigmas)
    _check_latent(latent, transformer.config.in_channels)
    _check_prompts(positive, negative, latent.shape[0], transformer.config.caption_channels)
    plan = guidance.plan(sigmas, transformer.config.num_layers)
    if negative is None and any(step.scale > 1 for step in plan):
        raise ConfigError(
            f"got guidance scale {max(step.scale for step in plan)} without a negative prompt; expected one whenever "
            "the scale is above 1; pass an (empty) negative prompt or set the scale to 1"
        )

    latent = latent.float().cpu()
    b, _, frames, h, w = latent.shape
    own = frames - (0 if keyframe_idxs is None else _guide_frames(keyframe_idxs, latent))
    size = LatentShape(own, h, w).pixels(scale)
    mask = torch.ones(1, 1, frames, h, w) if noise_mask is None else latent_mask(noise_mask, latent, scale.frames)
    drawn, first = noise(latent.shape), float(sigmas[0])
    state = initial_state(latent[:, :, :own], drawn[:, :, :own], first, coordinates, mask[:, :, :own])
    if keyframe_idxs is not None:
        guides = latent[:, :, own:], drawn[:, :, own:], mask[:, :, own:]
        state = add_native_guides(state, *guides, keyframe_idxs.cpu(), first, fps)
    state = apply_conditions(
        state, _latent_conditions(conditions, vae, size, b, fps, noise, placement, progress, notes), coordinates, noise
    )
    if not loras and any(isinstance(condition, Reference | LatentReference) for condition in conditions):
        notes("There is a reference video and no LoRA: only a model with an IC-LoRA knows what to make of it.")

    total = len(sigmas) - 1
    progress(ProgressEvent(stage, 0, total))
    lanes = max((len(step.branches) for step in plan), default=1)
    work = _work(transformer, state, lanes, positive, negative) + device_bytes(loras, transformer.dtype.itemsize)
    with applied(transformer, loras), placement(transformer, memory_required=work) as device:
        for remark in remarks(transformer, device):
            notes(remark)
        state = state.to(device)
        rotary = transformer.prepare_positions(state.positions)
        texts = {"positive": _prepare_text(transformer, positive, device)}
        if any(step.scale > 1 for step in plan) and negative is not None:
            texts["negative"] = _prepare_text(transformer, negative, device)

        def velocity(step: int, x: Tensor, level: Tensor) -> Tensor:
            branches = tuple(
                Branch(texts[branch.text], branch.skip_blocks, guidance.stg_mode) for branch in plan[step].branches
            )
            velocities = transformer(x, level, rotary, branches)
            return plan[step].combine([v.float() for v in velocities])

        def report(done: int, denoised: Tensor) -> None:
            progress(ProgressEvent(stage, done, total, state.grid(denoised)))

        state = integrate(velocity, state, sigmas, settings, noise=noise, callback=report)
        result = torch.cat([state.grid(state.latent).cpu(), latent[:, :, own:]], dim=2)
    if not bool(result.isfinite().all()):
        raise UnsupportedError(
            "got numbers that are not finite from the model; expected a latent; float16 overflows in these models: "
            "load it as bfloat16 or float32, and check LoRA strengths"
        )
    return result


def _work(transformer: LTXTransformer, state: LatentState, lanes: int, *prompts: EncodedPrompt | None) -> int:
    """Bytes that the passes through the transformer need beside its weights."""
    samples, tokens, _ = state.latent.shape
    return sample_bytes(
        transformer.config,
        samples=samples,
        tokens=tokens,
        lanes=lanes,
        text_tokens=[prompt.embeddings.shape[1] for prompt in prompts if prompt is not None],
        itemsize=transformer.dtype.itemsize,
        unpacking=unpacking(transformer, transformer.dtype),
        fused_norms=norms_are_one_kernel(),
    )


def latent_mask(noise_mask: Tensor, latent: Tensor, frames_per_latent: int) -> Tensor:
    """A noise mask as ComfyUI's nodes leave it, for a latent (b c f h w): (b | 1, 1, f, h, w) float32 on the CPU.

    noise_mask: (1 | b, 1, 1 | f, 1 | h, 1 | w) in latent cells; or pictures (n, [1,] any h, any w), scaled as ComfyUI
    does (bilinear): one for all frames, one per latent frame, or one per frame of the clip, of which a latent frame
    takes the largest value.

    Raises:
        ShapeError: another number of pictures or cells.
    """
    b, _, f, h, w = latent.shape
    mask = noise_mask.float().cpu()
    if mask.ndim == 5 and all(have in (1, want) for have, want in zip(mask.shape, (b, 1, f, h, w), strict=True)):
        return mask.expand(-1, 1, f, h, w)
    clip_frames = (f - 1) * frames_per_latent + 1
    if mask.ndim in (3, 4):
        pictures = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=(h, w), mode="bilinear")
        pictures = pictures.movedim(0, 1)[None]
        if pictures.shape[2] in (1, f):
            return pictures.expand(-1, -1, f, -1, -1)
        if pictures.shape[2] == clip_frames:
            later = pictures[:, :, 1:].unflatten(2, (f - 1, frames_per_latent)).amax(dim=3)
            return torch.cat([pictures[:, :, :1], later], dim=2)
    raise ShapeError(
        f"got a noise mask of shape {tuple(noise_mask.shape)} for a latent of {f}x{h}x{w} cells; expected one mask for "
        f"all frames, one per latent frame ({f}) or one per frame ({clip_frames}); change the length of the mask"
    )


def _guide_frames(keyframe_idxs: Tensor, latent: Tensor) -> int:
    """How many latent frames at the end of `latent` (b c f h w) are guides."""
    b, _, f, h, w = latent.shape
    shape = tuple(keyframe_idxs.shape)
    fits = len(shape) in (3, 4) and shape[0] in (1, b) and shape[1] == 3 and shape[2] % (h * w) == 0
    if not fits or not 0 < shape[2] // (h * w) < f:
        raise ShapeError(
            f"got guides (keyframe_idxs) of shape {shape} for a latent of {f}x{h}x{w} cells; expected those of this "
            "latent; crop the guides before the latent is resized"
        )
    return shape[2] // (h * w)


def _latent_conditions(
    conditions: Sequence[Condition | LatentCondition | LatentReference],
    vae: VideoVAE | None,
    size: PixelShape,
    batch: int,
    fps: float,
    noise: Noise,
    placement: Placement,
    progress: Progress,
    notes: Notes,
) -> list[LatentCondition | LatentReference]:
    pictures = [condition for condition in conditions if isinstance(condition, Condition)]
    if pictures and vae is None:
        raise ConfigError("got conditions without a VAE; expected the VAE of the model, which encodes them; connect it")
    encoded = iter(
        encode_conditions(
            vae, pictures, size, batch=batch, fps=fps, noise=noise, placement=placement, progress=progress, notes=notes
        )
        if vae is not None and pictures
        else ()
    )
    return [next(encoded) if isinstance(condition, Condition) else condition for condition in conditions]


def _prepare_text(transformer: LTXTransformer, prompt: EncodedPrompt, device: torch.device) -> PreparedText:
    embeddings = prompt.embeddings.to(device)
    if prompt.mask is None:
        return transformer.prepare_text(list(embeddings))
    masks = prompt.mask.to(device).bool()
    return transformer.prepare_text([one[mask] for one, mask in zip(embeddings, masks, strict=True)])


def _check_latent(latent: Tensor, channels: int) -> None:
    if latent.ndim != 5 or latent.shape[1] != channels:
        raise ShapeError(
            f"got a latent of shape {tuple(latent.shape)}; expected (batch, {channels}, frames, height, width); use "
            "a latent of this model's VAE"
        )
    if not bool(latent.isfinite().all()):
        raise ConfigError("got a latent with NaN or infinity; expected finite numbers; look for the step that made it")


def _check_prompts(positive: EncodedPrompt, negative: EncodedPrompt | None, batch: int, width: int) -> None:
    for name, prompt in (("positive", positive), ("negative", negative)):
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

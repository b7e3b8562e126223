"""From noise, a prompt and conditions to a latent: one pass of the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..budget import stages
from ..config import Levels
from ..errors import ConfigError, ShapeError, UnsupportedError
from ..host import Host
from ..models.teams import Division
from ..models.transformer import Branch, LTXTransformer, PreparedText
from ..placing.compiling import is_to_be_recorded
from ..placing.lora import Application, applied, device_bytes, merging_work
from ..placing.unpacking import blocks_unpacked
from ..progress import ProgressEvent, doubt
from ..quant.linear import remarks
from ..sampling.conditioning import all_at, apply_conditions, initial_state
from ..sampling.noise import Noise
from ..sampling.patchify import Coordinates
from ..sampling.samplers import Point, integrate
from ..sampling.state import LatentState
from ..sampling.step_cache import StepCache, held_bytes
from ..shapes import LatentShape, PixelShape, ScaleFactors
from ..values import check_frame_rate
from .condition import NOTHING, Conditions
from .division import divisions_of
from .passes import Pass

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """The output of the text encoder for one prompt, or for one per sample.

    embeddings: (1 | b, l, c) float. mask: (1 | b, l) integer or bool, 1 = a real token, 0 = padding; None: all real.
    highest, lowest: levels of the schedule between which the model reads it, both included. weight: its share among the
    prompts that the model reads at one level.
    """

    embeddings: Tensor
    mask: Tensor | None = None
    highest: float = 1.0
    lowest: float = 0.0
    weight: float = 1.0

    def read_at(self, sigma: float) -> bool:
        return self.weight > 0 and self.lowest <= sigma <= self.highest

    @property
    def is_read_at_times(self) -> bool:
        """Whether there are levels at which the model does not read it."""
        return not (self.read_at(0.0) and self.read_at(1.0))


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a pass. negative: needed only for guidance above 1.

    Of several in one place, the mean of their velocities counts; without one at some level, the estimate of x0 is 0 as
    in ComfyUI.
    """

    positive: EncodedPrompt | tuple[EncodedPrompt, ...]
    negative: EncodedPrompt | tuple[EncodedPrompt, ...] | None = None

    @property
    def by_name(self) -> dict[str, tuple[EncodedPrompt, ...]]:
        """Those that are given, as "positive" and "negative"."""
        given = {"positive": self.positive, "negative": self.negative}
        return {
            name: (prompts,) if isinstance(prompts, EncodedPrompt) else tuple(prompts)
            for name, prompts in given.items()
            if prompts is not None
        }


@dataclass(frozen=True, eq=False)
class Left:
    """A clip that a pass left at a level above 0, from which another goes on.

    state: on the CPU, with the conditions of that pass. rule: of that pass, see `SamplerSettings.levels`.
    denoise_mask: of the clip, see `LatentClip`.
    """

    level: float
    state: LatentState
    rule: Levels
    denoise_mask: Tensor | None = None

    @property
    def latent(self) -> Tensor:
        """The clip (b c f h w) as ComfyUI's samplers leave one: x / (1 - level), which another without noise goes on
        from. What is kept is itself."""
        return self.state.grid(self.tokens)

    @property
    def tokens(self) -> Tensor:
        """`latent` of all tokens (b n c), extra ones in front."""
        mask = self.state.denoise_mask
        level = torch.full_like(mask, self.level) if self.rule == "comfyui" else mask.clamp(max=self.level)
        return torch.where(mask == 0, self.state.clean_latent, self.state.latent / (1 - level))


@dataclass(frozen=True, eq=False)
class LatentClip:
    """The start of a pass.

    latent: (b c f h w) normalised; zeros for a new clip (noise covers it at level 1), or a clip to start from.
    scale: pixels per cell of the VAE that will decode it. fps: frames per second of the result.
    denoise_mask: (b | 1, 1, f, h, w), 0 to 1; 0 keeps `latent`, None denoises all of it.
    start: "noise" for the pass to add noise up to its first level; "as it is" where `latent` is what is left of a clip
        at that level without its noise's share: x / (1 - level), as ComfyUI's samplers leave it; or a `Left`.
    """

    latent: Tensor
    scale: ScaleFactors
    fps: float
    denoise_mask: Tensor | None = None
    start: Literal["noise", "as it is"] | Left = "noise"

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
    if run_pass.left_at > 0:
        raise ConfigError(
            f"got a pass that ends at level {run_pass.left_at:g}; expected 0, where a clip is finished; leave "
            "`unfinished` out, or call sample_state"
        )
    state = sample_state(run_pass, clip, prompts, noise=noise, host=host, conditions=conditions)
    return state.grid(state.latent)


@torch.no_grad()
def sample_state(
    run_pass: Pass, clip: LatentClip, prompts: Prompts, *, noise: Noise, host: Host, conditions: Conditions = NOTHING
) -> LatentState:
    """`sample` to the last level of a pass, which may be above 0. The result is the whole state on the CPU, with the
    tokens of conditions."""
    transformer, total = run_pass.transformer, len(run_pass.sigmas) - 1
    _check_latent(clip.latent, transformer.config.in_channels)
    _check_prompts(prompts, clip.latent.shape[0], transformer.config.caption_channels)
    if prompts.negative is None and run_pass.is_guided:
        raise ConfigError(
            f"got guidance scale {max(step.scale for step in run_pass.steps)} without a negative prompt; expected one "
            "whenever the scale is above 1; pass an (empty) negative prompt or set the scale to 1"
        )
    if conditions.needs_lora and not run_pass.loras:
        doubt("There is a reference video but no LoRA: only a model with an IC-LoRA understands it.", host.say)

    state = _initial_state(run_pass, clip, conditions, noise, host)
    host.progress(ProgressEvent(run_pass.stage, 0, total))
    with (
        host.place(transformer, memory_required=_work(run_pass, state, prompts, host)) as device,
        applied(transformer, run_pass.loras, run_pass.lora_mode, partial(_note, host)),  # inside: into its copies
    ):
        for remark in remarks(transformer, device):
            host.say(remark)
        _note_unpacked(run_pass, device, host)
        state = state.to(device)
        rotary = transformer.prepare_positions(state.positions, state.weights)
        texts = {
            name: [(prompt, _prepare_text(transformer, prompt, device)) for prompt in given]
            for name, given in prompts.by_name.items()
            if name == "positive" or run_pass.is_guided
        }

        levels = run_pass.sigmas.tolist()
        cache = StepCache(
            levels, run_pass.evaluated, run_pass.sampler.levels, corrects=run_pass.sampler.name == "euler"
        )

        def velocity(x: Tensor, point: Point) -> Tensor:
            step = run_pass.steps[point.step]
            read = [[pair for pair in texts[branch.text] if pair[0].read_at(point.sigma)] for branch in step.branches]
            named = [(branch, text) for branch, pairs in zip(step.branches, read, strict=True) for _, text in pairs]

            def evaluate() -> Sequence[Tensor]:
                mode = run_pass.guidance.stg_mode
                branches = [Branch(text, branch.skip_blocks, mode) for branch, text in named]
                return transformer(x, point.level, rotary, branches) if branches else ()

            def combine(velocities: Sequence[Tensor]) -> Tensor:
                each = iter(velocities)
                return step.combine([_mean([(next(each), prompt) for prompt, _ in pairs], x, point) for pairs in read])

            return cache.velocity(point, named, evaluate, combine)

        def report(done: int, denoised: Tensor) -> None:
            host.progress(ProgressEvent(run_pass.stage, done, total, state.grid(denoised)))

        state = integrate(velocity, state, run_pass.sigmas, run_pass.sampler, noise=noise, callback=report)
        state = state.to(torch.device("cpu"))
    if run_pass.step_cache:
        host.say(cache.describe())
    if not bool(state.latent.isfinite().all()):
        raise UnsupportedError(
            "got numbers that are not finite from the model; expected a latent; float16 overflows in these models: "
            "load it as bfloat16 or float32, and check LoRA strengths"
        )
    return state


def _mean(velocities: Sequence[tuple[Tensor, EncodedPrompt]], x: Tensor, point: Point) -> Tensor:
    """The velocity of the prompts that the model read at a point, by their weights."""
    if not velocities:
        return x.float() / point.sigma
    if len(velocities) == 1:
        return velocities[0][0].float()
    total = sum(prompt.weight for _, prompt in velocities)
    return torch.stack([velocity.float() * (prompt.weight / total) for velocity, prompt in velocities]).sum(dim=0)


def _initial_state(run_pass: Pass, clip: LatentClip, conditions: Conditions, noise: Noise, host: Host) -> LatentState:
    """The state before the first step, with all conditions."""
    latent, sigma = clip.latent.float().cpu(), float(run_pass.sigmas[0])
    coordinates = Coordinates(clip.scale, clip.fps, run_pass.transformer.config.causal_temporal_positioning)
    source = noise if clip.start == "noise" else torch.zeros  # what goes on has its noise
    state = initial_state(latent, source(latent.shape), sigma, coordinates, clip.denoise_mask)
    encoder_noise = torch.zeros if isinstance(clip.start, Left) else noise
    items = conditions.encoded(clip.size, latent.shape[0], clip.fps, encoder_noise, host)
    state = apply_conditions(state, items, coordinates, source)
    if isinstance(clip.start, Left):
        return _going_on(clip.start, state, clip.denoise_mask, conditions)
    return all_at(state, sigma) if run_pass.sampler.levels == "comfyui" else state


def _going_on(left: Left, state: LatentState, mask: Tensor | None, conditions: Conditions) -> LatentState:
    """The start of a pass that goes on from `left`.

    state: what its own inputs make of the clip. Without conditions, those of the pass before go on too.
    """
    before = left.state
    same_mask = mask is left.denoise_mask or (
        mask is not None and left.denoise_mask is not None and torch.equal(mask, left.denoise_mask)
    )
    if not conditions.items and same_mask:
        return before
    if torch.equal(state.positions, before.positions):
        if torch.equal(state.denoise_mask, before.denoise_mask):
            return replace(before, weights=state.weights)
        x = before.latent
    else:
        x = torch.cat([state.latent[:, : state.num_extra], before.latent[:, before.num_extra :]], dim=1)
    return state.with_latent(torch.where(state.denoise_mask == 0, state.clean_latent, x))


def _work(run_pass: Pass, state: LatentState, prompts: Prompts, host: Host) -> int:
    """Bytes that the pass takes in addition to the weights of its transformer."""
    samples, tokens, _ = state.latent.shape
    sharing = run_pass.transformer.sharing
    names = {name: given for name, given in prompts.by_name.items() if name == "positive" or run_pass.is_guided}
    texts = [prompt for given in names.values() for prompt in given]
    branches = run_pass.branches + len(texts) - len(names)
    divisions: Sequence[Division] = ()
    if sharing is not None:
        counts = {name: len(given) for name, given in names.items()}
        divisions = divisions_of(run_pass, sharing.size, counts, teams=sharing.teams)
        if any(prompt.is_read_at_times for prompt in texts):  # then the teams of a step are others
            divisions = [replace(division, texts=None) for division in divisions]
    sizes: dict[str, Any] = {
        "kernels": stages.dtypes_of(host),
        "samples": samples,
        "tokens": tokens,
        "branches": branches,
        "text_tokens": [text.embeddings.shape[1] for text in texts],
    }
    work = stages.sampling(run_pass.transformer, **sizes, divisions=divisions)
    if is_to_be_recorded(
        run_pass.transformer
    ):  # wherever it is: elsewhere than on a card it asks for a little too much
        work += stages.recording(run_pass.transformer, **sizes)[0]
    if state.weights is not None:
        work += state.num_extra * tokens * run_pass.transformer.compute_dtype.itemsize  # the mask of their attention
    work += held_bytes(run_pass.evaluated, branches, state.latent.numel())
    held = device_bytes(run_pass.loras, run_pass.transformer.dtype.itemsize)
    return work + held + merging_work(run_pass.transformer, run_pass.loras, run_pass.lora_mode)


def _note(host: Host, application: Application) -> None:
    host.say(str(application))
    host.record("lora_mode", application.mode)


def _note_unpacked(run_pass: Pass, device: torch.device, host: Host) -> None:
    unpacked, blocks = blocks_unpacked(run_pass.transformer), run_pass.transformer.config.num_layers
    if unpacked:
        host.say(f"{unpacked} of {blocks} blocks stay unpacked on {device}, where there is room.")
        host.record(f"unpacked_blocks, {run_pass.stage}", f"{unpacked} of {blocks}")


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
    for name, prompt in ((name, prompt) for name, given in prompts.by_name.items() for prompt in given):
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

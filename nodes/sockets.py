"""The values that travel between nodes, and checks that an input has the type of its socket.

IMAGE, LATENT, CONDITIONING and SIGMAS are ComfyUI's own, with the meaning of its LTXV nodes. The handles are ours,
under names of our own, because they differ from ComfyUI's MODEL and VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ltx_core.errors import ConfigError, ShapeError, UnsupportedError
from ..ltx_core.host import Host, Record, nowhere
from ..ltx_core.models.text_encoder import TextEncoder
from ..ltx_core.models.transformer import LTXTransformer
from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.sample import EncodedPrompt, Left
from ..ltx_core.sampling.guidance import Guidance
from ..ltx_core.sampling.noise import SeededNoise
from ..ltx_core.sampling.preview import LinearPreview
from ..ltx_core.sampling.schedules import level_at
from ..ltx_core.shapes import LatentShape, PixelShape, ScaleFactors
from ..ltx_core.weights.build import CheckpointInfo
from ..ltx_core.weights.lora import WeightedLoRA
from .checks import checked
from .host import host
from .widgets import SocketType

MODEL = "LTXKIT_MODEL"
VAE = "LTXKIT_VAE"
TEXT_ENCODER = "LTXKIT_TEXT_ENCODER"
UPSCALER = "LTXKIT_UPSCALER"
CONDITION = "LTXKIT_CONDITION"
GUIDANCE = "LTXKIT_GUIDANCE"
LORA = "LTXKIT_LORA"
DATASET = "LTXKIT_DATASET"

# ComfyUI pads T5 for LTXV to this length (comfy/text_encoders/lt.py); prompts of unequal length can then be mixed.
PADDED_TOKENS = 128
LEVEL_TOLERANCE = 1e-4  # between a level and the same one from another schedule
DEFAULT_FRAME_RATE = 25.0  # of ComfyUI's LTXV model for a CONDITIONING without one (model_base.py)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Model:
    """LTXKIT_MODEL: a transformer, and the description of its file.

    scale: pixels per latent cell of the VAE that was loaded with it.
    loras: applied while it samples; its own weights do not change.
    resident_blocks: how many blocks stay on the device while it works; None: the host chooses.
    preview: makes the pictures of that VAE while sampling; fitted at the first call.
    """

    transformer: LTXTransformer
    info: CheckpointInfo
    scale: ScaleFactors
    loras: tuple[WeightedLoRA, ...] = ()
    resident_blocks: int | None = None
    preview: Callable[[], LinearPreview] | None = None

    @property
    def module(self) -> nn.Module:
        """What a host places."""
        return self.transformer

    @property
    def patcher(self) -> object:
        """What ComfyUI's caches recognise a model by; None elsewhere."""
        return getattr(self.module, "patcher", None)

    @property
    def lora_names(self) -> tuple[tuple[str, float], ...]:
        """Identifies a stack of LoRAs: each file, with its time and size, and strength."""
        stats = [(item, item.lora.path.stat()) for item in self.loras]
        return tuple((f"{item.lora.path} {stat.st_mtime_ns} {stat.st_size}", item.strength) for item, stat in stats)


@dataclass(frozen=True, eq=False)
class Encoder:
    """LTXKIT_TEXT_ENCODER.

    keep: leave the weights on the device after encoding. resident_blocks: as in Model.
    """

    encoder: TextEncoder
    keep: bool
    resident_blocks: int | None = None

    @property
    def module(self) -> nn.Module:
        """What a host places."""
        return self.encoder.model

    @property
    def patcher(self) -> object:
        """As in Model."""
        return getattr(self.module, "patcher", None)


@dataclass(frozen=True)
class Canvas:
    """`ltxkit_canvas` of a LATENT: the requested clip, and its latent grid.

    size: of the clip; the grid may decode to more. fps: frames per second.
    """

    size: PixelShape
    fps: float
    grid: LatentShape


class NoiseDrawn(NamedTuple):
    """The noise of the passes that made a LATENT: their seed, and `SeededNoise.drawn`."""

    seed: int
    drawn: tuple[int, ...]


class Unfinished(NamedTuple):
    """A clip that a Sample left at a level above 0, and the samples of its LATENT."""

    left: Left
    samples: Tensor


@dataclass(frozen=True)
class Dataset:
    """LTXKIT_DATASET: clips to train on.

    path: as `data.path` of a training. size, fps: at which they are trained. settings: further assignments of
    `ltxkit train`, all about clips. faults: why a training on them would be refused.
    """

    path: Path
    size: PixelShape
    fps: float
    settings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


# Keys that our nodes write into a LATENT in addition to ComfyUI's own and `ltxkit_canvas`.
GUIDES = "ltxkit_guides"  # number of latent frames at its end that are guides of native nodes
MOTION = "ltxkit_motion"  # the settings that govern motion, for the score that Decode shows
NOISE = "ltxkit_noise_drawn"  # a NoiseDrawn, after which the next Sample continues
LEFT = "ltxkit_left"  # an Unfinished, from which the next Sample goes on

# LTXKIT_VAE is a VideoVAE, LTXKIT_UPSCALER a LatentUpsampler, LTXKIT_GUIDANCE a Guidance, LTXKIT_LORA a file's path,
# and LTXKIT_CONDITION a tuple of Condition and Reference, in the order in which they were chained.
KINDS: Mapping[str, type] = {
    MODEL: Model,
    VAE: VideoVAE,
    TEXT_ENCODER: Encoder,
    UPSCALER: LatentUpsampler,
    CONDITION: tuple,
    GUIDANCE: Guidance,
    LORA: Path,
    DATASET: Dataset,
}


class Node:
    """Base of all nodes: what a node says stays on it, and its widgets are checked.

    ComfyUI repeats what VALIDATE_INPUTS says for every input in its signature, and leaves these inputs unchecked. So
    nodes leave links, numbers and files to ComfyUI, whose messages are on the right input, by the types in `widgets`;
    VALIDATE_INPUTS is for one text, or for what is not connected.
    """

    CATEGORY = "LTXKit"
    FUNCTION = "execute"

    # Every node has its own `run`, with its inputs as parameters.
    run: Callable[..., tuple[Any, ...]]

    def __init_subclass__(cls) -> None:
        """Every node checks its widgets in `run` too: ComfyUI checks nothing that arrives through a link."""
        if "run" in cls.__dict__:
            cls.run = checked(cls.__dict__["run"])

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def problem(cls, values: Mapping[str, Any]) -> str | None:  # noqa: ARG003
        """What is wrong with the constants of several inputs together. `ltxkit run` asks before anything runs; in
        ComfyUI, where no single input could show it, `run` finds it."""
        return None

    def execute(self, **inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
        """`run`, whose sentences become the node's `ui` output: front ends keep it, and caches bring it back."""
        with host().listening() as said:
            result = self.run(**inputs)
        host().recognise(result)
        return {"ui": {"text": said}, "result": result} if said else result


def _wrong_type(received_type: str, expected: str, name: str) -> str:
    return f"got {received_type} on `{name}`; expected {SocketType(expected)}"


def received(socket: str, value: object, name: str) -> Any:
    """`value`, if it has the type of `socket`; otherwise ConfigError.

    Links are checked before a prompt runs, but ComfyUI accepts any constant of a hand-written prompt, and nodes with an
    output of type `*` return anything.
    """
    if isinstance(value, KINDS[socket]):
        return value
    raise ConfigError(_wrong_type(type(value).__name__, socket, name))


def received_model(model: object, wanted_for: str) -> Model:
    """The value of the input `model`. Raises ConfigError without one, or for another type."""
    if model is None:
        raise ConfigError(f"got no model; expected one for {wanted_for}; connect Load Model (LTXKit)")
    return received(MODEL, model, "model")


def stage_host(*handles: Model | Encoder, record: Record = nowhere) -> Host:
    """The host for a stage of the core: that of the running node, with the resident blocks of the handles."""
    resident = {handle.module: handle.resident_blocks for handle in handles}
    here = host()

    def place(module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]:
        return here.place(module, memory_required=memory_required, resident_blocks=resident.get(module))

    preview = next((handle.preview for handle in handles if isinstance(handle, Model)), None)
    return Host(place, here.spare_memory, here.progress(preview), here.say, record, bfloat16=here.bfloat16)


def outgoing(tensor: Tensor) -> Tensor:
    """A picture or latent on the device, and of the type, in which the host passes them between nodes."""
    return tensor.to(host().output_device, host().output_dtype)


# ------------------------------------------------------------------------------------------------ LATENT


def latent_samples(latent: object, name: str = "latent") -> Tensor:
    """The tensor (b, c, f, h, w) of a LATENT.

    Raises:
        ConfigError: not a LATENT. ShapeError: not a video. UnsupportedError: video and sound.
    """
    if not isinstance(latent, dict) or "samples" not in latent:
        raise ConfigError(
            f"got {type(latent).__name__} on `{name}`; expected LATENT; connect a node that outputs a latent"
        )
    samples = latent["samples"]
    if not isinstance(samples, Tensor):  # core's NestedTensor of picture and sound
        raise UnsupportedError(
            f"got a latent of {type(samples).__name__} on `{name}`; expected a latent of video alone; connect a "
            "latent of LTX-Video (latents with sound belong to LTX-2)"
        )
    if samples.ndim != 5:
        raise ShapeError(
            f"got a latent of shape {tuple(samples.shape)} on `{name}`; expected (batch, channels, frames, height, "
            "width); connect a video latent, such as that of Empty Latent (LTXKit)"
        )
    return samples


def latent_canvas(latent: Mapping[str, Any]) -> Canvas | None:
    """The canvas of a LATENT, if it still fits its samples: native nodes copy it even if they change those."""
    canvas = latent.get("ltxkit_canvas")
    return canvas if isinstance(canvas, Canvas) and tuple(canvas.grid) == tuple(latent["samples"].shape[2:]) else None


def continued_noise(latent: Mapping[str, Any], seed: int) -> SeededNoise:
    """The noise of a pass over a LATENT. With the seed of the passes that made it, noise continues where they stopped,
    as in the second pass of Two-Stage; with another seed, or for a LATENT without this record, it starts anew."""
    before = latent.get(NOISE)
    return SeededNoise(seed, before.drawn if isinstance(before, NoiseDrawn) and before.seed == seed else ())


def left_of(latent: Mapping[str, Any], sigma: float | None = None) -> Left | None:
    """The clip of a LATENT that a Sample left above level 0. None for any other LATENT, and for one whose samples have
    changed since: a native sampler copies what it does not know.

    sigma: the level at which the next pass starts.

    Raises:
        ConfigError: the clip was left at another level.
    """
    record = latent.get(LEFT)
    if not isinstance(record, Unfinished):
        return None
    samples, level = latent["samples"], record.left.level
    same = samples is record.samples or (
        samples.shape == record.samples.shape and torch.equal(samples.cpu(), record.samples.cpu())
    )
    if same and sigma is not None and abs(sigma - level) > LEVEL_TOLERANCE:
        raise ConfigError(
            f"got a schedule that starts at level {sigma:g} for a latent that was left at level {level:g}; expected "
            "the rest of the same schedule; connect `low_sigmas` of the SplitSigmas whose `high_sigmas` made the latent"
        )
    if not same and sigma is not None and abs(sigma - level) <= LEVEL_TOLERANCE:
        host().say(
            f"The latent was left at level {level:g} and has changed since: noise is added as to a finished one. If it "
            "still has its noise, turn add_noise off."
        )
    return record.left if same else None


def refuse_unfinished(latent: Mapping[str, Any], wanted_for: str) -> None:
    """Raises ConfigError if a LATENT is half sampled."""
    left = left_of(latent)
    if left is not None:
        raise ConfigError(
            f"got a latent that was left at level {left.level:g}; expected a finished one for {wanted_for}; sample the "
            "rest of its schedule first"
        )


def refuse_guides(latent: Mapping[str, Any]) -> None:
    """Raises ConfigError if a LATENT from our Sample still contains guides of native nodes."""
    if latent.get(GUIDES):
        raise ConfigError(
            f"got a latent whose last {latent[GUIDES]} frames are guides of native nodes; expected the clip alone; put "
            "LTXVCropGuides in front of this node"
        )


def seems_guided(latent: Mapping[str, Any]) -> bool:
    """Whether the noise mask looks like that of native guides: it (partly) keeps the last frames, and not the first."""
    mask = latent.get("noise_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 5 or mask.shape[2] < 2:
        return False
    return bool((mask[:, :, 0] == 1).all()) and bool((mask[:, :, -1] < 1).all())


def upscaled(latent: Mapping[str, Any], samples: Tensor, *, slower: bool = False) -> dict[str, Any]:
    """A copy of a LATENT with larger samples (b, c, f, h, w): the canvas grows with them, the noise mask is dropped.

    With any VAE, twice the latent frames less one are twice the pixel frames less one: at twice the rate, or at the
    same rate for a clip at half the speed (`slower`).
    """
    canvas = latent_canvas(latent)
    larger = {key: value for key, value in latent.items() if key not in ("noise_mask", "ltxkit_canvas", LEFT)}
    if canvas is not None:
        times = samples.shape[-1] // canvas.grid.width
        frames, height, width = canvas.size
        doubled = samples.shape[2] > canvas.grid.frames
        size = PixelShape(2 * frames - 1 if doubled else frames, height * times, width * times)
        fps = canvas.fps * 2 if doubled and not slower else canvas.fps
        larger["ltxkit_canvas"] = Canvas(size, fps, LatentShape(*samples.shape[2:]))
    return {**larger, "samples": samples}


# ------------------------------------------------------------------------------------------------ CONDITIONING


def to_conditioning(
    prompt: EncodedPrompt, frame_rate: float, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[list[Any]]:
    """CONDITIONING in the form of ComfyUI's LTXV nodes: padded on the right, integer `attention_mask`, `frame_rate`."""
    embeddings = prompt.embeddings.float()
    mask = torch.ones(embeddings.shape[:2], dtype=torch.int64) if prompt.mask is None else prompt.mask
    padding = max(PADDED_TOKENS - embeddings.shape[1], 0)
    embeddings = F.pad(embeddings, (0, 0, 0, padding)).to(device, dtype)
    return [[embeddings, {"attention_mask": F.pad(mask, (0, padding)).to(device), "frame_rate": frame_rate}]]


# Values of native nodes that change what ComfyUI samples with LTX-Video, and that we do not have, by the nodes that
# write them. All other values that are not read here have no effect there either.
UNSUPPORTED = {
    "area": "Conditioning (Set Area)",
    "mask": "Conditioning (Set Mask)",
    "hooks": "Cond Set Props and other nodes for hooks",
    "control": "Apply ControlNet",
    "gligen": "GLIGEN Textbox Apply",
    "default": "Cond Set Default Combine",
    "concat_mask": "InpaintModelConditioning",
    "generated_keyframes": "nodes for keyframes of LTX-2",
}
OF_PROMPT = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent", "strength")
OF_CLIP = ("frame_rate", "keyframe_idxs", "guide_attention_entries")  # the same in every prompt of a clip


def from_conditioning(conditioning: object, name: str) -> tuple[tuple[EncodedPrompt, ...], dict[str, Any]]:
    """The prompts in a CONDITIONING (several, where native nodes have combined them), and the values of the clip.

    Raises:
        ConfigError: not a CONDITIONING. UnsupportedError: values of native nodes that we do not have.
    """
    if not isinstance(conditioning, list) or not conditioning or not isinstance(conditioning[0], list | tuple):
        raise ConfigError(
            f"got {type(conditioning).__name__} on `{name}`; expected CONDITIONING; connect Encode Prompt (LTXKit)"
        )
    first = conditioning[0][1]
    for _, values in conditioning:
        other = next((key for key in OF_CLIP if not same_value(values.get(key), first.get(key))), None)
        if other is not None:
            raise UnsupportedError(
                f"got prompts with different {other} combined on `{name}`; expected the same in all; combine the "
                "prompts first, and connect LTXVConditioning or LTXVAddGuide behind that"
            )
    return tuple(_prompt(embeddings, values, name) for embeddings, values in conditioning), dict(first)


def _prompt(embeddings: Any, values: Mapping[str, Any], name: str) -> EncodedPrompt:
    foreign = next((key for key in UNSUPPORTED if values.get(key) is not None), None)
    if foreign is not None:
        raise UnsupportedError(
            f"got {foreign!r} in the CONDITIONING on `{name}`; expected a prompt for the whole picture; disconnect "
            f"{UNSUPPORTED[foreign]}, or sample with ComfyUI's own nodes"
        )
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 3:
        raise ConfigError(
            f"got CONDITIONING without a text on `{name}`; expected (1, tokens, width); connect Encode Prompt (LTXKit)"
        )
    mask = values.get("attention_mask")
    if mask is not None and mask.shape[-1] != embeddings.shape[1]:
        raise UnsupportedError(
            f"got a prompt of {embeddings.shape[1]} tokens on `{name}` with a mask for {mask.shape[-1]}, as "
            "Conditioning (Concat) makes it; expected one mask for all; write both texts into one prompt, or use "
            "Conditioning (Combine)"
        )
    shares = {key: float(value) for key, value in values.items() if key in OF_PROMPT and value is not None}
    start = max(shares.get("start_percent", 0.0), shares.get("clip_start_percent", 0.0))
    end = min(shares.get("end_percent", 1.0), shares.get("clip_end_percent", 1.0))
    return EncodedPrompt(embeddings, mask, level_at(start), level_at(end), shares.get("strength", 1.0))


def same_value(value: Any, other: Any) -> bool:
    """Whether two values of CONDITIONING are equal, with the tensors in them."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape == other.shape and torch.equal(value, other)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(same_value(*pair) for pair in zip(value, other, strict=True))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(same_value(each, other[key]) for key, each in value.items())
    return not isinstance(value, Tensor) and not isinstance(other, Tensor) and bool(value == other)


def frame_rate(values: Mapping[str, Any], canvas: Canvas | None) -> float:
    """Frames per second of a clip: those of the prompt, else those of the latent's canvas."""
    return float(values.get("frame_rate") or (canvas.fps if canvas else DEFAULT_FRAME_RATE))

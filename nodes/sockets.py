"""The values that travel between nodes, and checks that an input has the type of its socket.

IMAGE, LATENT, CONDITIONING and SIGMAS are ComfyUI's own, with the meaning of its LTXV nodes. The handles are ours,
under names of our own, because they differ from ComfyUI's MODEL and VAE.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ltx_core.errors import ConfigError, ShapeError, UnsupportedError
from ..ltx_core.host import Host
from ..ltx_core.models.text_encoder import TextEncoder
from ..ltx_core.models.transformer import LTXTransformer
from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.sample import EncodedPrompt
from ..ltx_core.sampling.guidance import Guidance
from ..ltx_core.sampling.noise import SeededNoise
from ..ltx_core.sampling.preview import LinearPreview
from ..ltx_core.shapes import LatentShape, PixelShape, ScaleFactors
from ..ltx_core.weights.build import CheckpointInfo
from ..ltx_core.weights.lora import WeightedLoRA
from .host import host
from .widgets import FileChoices, SocketType, declared_inputs, problem_with

MODEL = "LTXKIT_MODEL"
VAE = "LTXKIT_VAE"
TEXT_ENCODER = "LTXKIT_TEXT_ENCODER"
UPSCALER = "LTXKIT_UPSCALER"
CONDITION = "LTXKIT_CONDITION"
GUIDANCE = "LTXKIT_GUIDANCE"
LORA = "LTXKIT_LORA"

# ComfyUI pads T5 for LTXV to this length (comfy/text_encoders/lt.py); prompts of unequal length can then be mixed.
PADDED_TOKENS = 128
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


# Keys that our nodes write into a LATENT in addition to ComfyUI's own and `ltxkit_canvas`.
GUIDES = "ltxkit_guides"  # number of latent frames at its end that are guides of native nodes
MOTION = "ltxkit_motion"  # the settings that govern motion, for the score that Decode shows
NOISE = "ltxkit_noise_drawn"  # a NoiseDrawn, after which the next Sample continues

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
}


def _checked(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` of a node, which refuses a value that its widget could not have.

    A name of a file is left to the loader, whose message lists the files and their folders.
    """
    signature = inspect.signature(run)

    @functools.wraps(run)
    def checked(self: Node, *args: Any, **kwargs: Any) -> Any:
        values = signature.bind(self, *args, **kwargs).arguments
        declared = declared_inputs(type(self))
        for name, value in values.items():
            spec = declared.get(name)
            if spec is None or isinstance(spec.choices, FileChoices):
                continue
            problem = problem_with(name, value, spec)
            if problem:
                rest = problem.removeprefix(f"{name}: got ")
                raise ConfigError(f"got {name} {rest}; change the widget, or what is linked to it")
            if spec.type == "INT":
                values[name] = int(value)
        return run(**values)

    return checked


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
            cls.run = _checked(cls.__dict__["run"])

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


def stage_host(*handles: Model | Encoder) -> Host:
    """The host for a stage of the core: that of the running node, with the resident blocks of the handles."""
    resident = {handle.module: handle.resident_blocks for handle in handles}
    here = host()

    def place(module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]:
        return here.place(module, memory_required=memory_required, resident_blocks=resident.get(module))

    preview = next((handle.preview for handle in handles if isinstance(handle, Model)), None)
    return Host(place, here.spare_memory, here.progress(preview), here.say)


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
    larger = {key: value for key, value in latent.items() if key not in ("noise_mask", "ltxkit_canvas")}
    if canvas is not None:
        times = samples.shape[-1] // canvas.grid.width
        frames, height, width = canvas.size
        doubled = samples.shape[2] > canvas.grid.frames
        size = PixelShape(2 * frames - 1 if doubled else frames, height * times, width * times)
        fps = canvas.fps * 2 if doubled and not slower else canvas.fps
        larger["ltxkit_canvas"] = Canvas(size, fps, LatentShape(*samples.shape[2:]))
    return {**larger, "samples": samples}


# ------------------------------------------------------------------------------------------------ CONDITIONING


def to_conditioning(prompt: EncodedPrompt, frame_rate: float, device: torch.device) -> list[list[Any]]:
    """CONDITIONING in the form of ComfyUI's LTXV nodes: padded on the right, integer `attention_mask`, `frame_rate`."""
    embeddings = prompt.embeddings.float()
    mask = torch.ones(embeddings.shape[:2], dtype=torch.int64) if prompt.mask is None else prompt.mask
    padding = max(PADDED_TOKENS - embeddings.shape[1], 0)
    embeddings = F.pad(embeddings, (0, 0, 0, padding)).to(device)
    return [[embeddings, {"attention_mask": F.pad(mask, (0, padding)).to(device), "frame_rate": frame_rate}]]


def from_conditioning(conditioning: object, name: str) -> tuple[EncodedPrompt, dict[str, Any]]:
    """The prompt in a CONDITIONING, and the other values in it.

    Raises:
        ConfigError: not a CONDITIONING. UnsupportedError: several combined.
    """
    if not isinstance(conditioning, list) or not conditioning or not isinstance(conditioning[0], list | tuple):
        raise ConfigError(
            f"got {type(conditioning).__name__} on `{name}`; expected CONDITIONING; connect Encode Prompt (LTXKit)"
        )
    if len(conditioning) > 1:
        raise UnsupportedError(
            f"got {len(conditioning)} conditionings combined on `{name}`; expected one; connect a single prompt"
        )
    embeddings, values = conditioning[0]
    return EncodedPrompt(embeddings, values.get("attention_mask")), values


def frame_rate(values: Mapping[str, Any], canvas: Canvas | None) -> float:
    """Frames per second of a clip: those of the prompt, else those of the latent's canvas."""
    return float(values.get("frame_rate") or (canvas.fps if canvas else DEFAULT_FRAME_RATE))

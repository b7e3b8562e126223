"""Nodes in the place of ComfyUI-LTXVideo's of July 2025, whose graphs open again with them.

They take and give what stood around the old ones: ComfyUI's own MODEL, CLIP, VAE, GUIDER, LATENT. All that they ask of
ComfyUI are its own nodes, by id. For new graphs there are our Sample, Long Video and Condition.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ltx_core.errors import ConfigError, UnsupportedError
from ..ltx_core.sampling.filters import adain
from ..ltx_core.sampling.filters import film_grain as grain
from ..ltx_core.sampling.noise import stream
from . import sockets
from .host import core_node, has_core_node, host
from .old_guidance import PRESETS, Entry, Lists, at_level, entries_of, lists_of
from .widgets import choice, decimal, integer, link, seed, switch, text

CATEGORY = "LTXKit/old graphs"
ANY = "*"
STG_NODE = "LTXVSpatioTemporalGuidance"  # cores with it know the option below
STG_OPTION = "stg_self_attn_blocks"


class CreateNativeGuider(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "In the place of STGGuiderAdvanced in graphs of July 2025: guidance by noise level for ComfyUI's own samplers."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "STGGuiderAdvanced", "STGGuider", "guider"]
    RETURN_TYPES = ("GUIDER",)
    RETURN_NAMES = ("guider",)
    OUTPUT_TOOLTIPS = ("For SamplerCustomAdvanced and Sample Natively.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": link("MODEL", "ComfyUI's own model of LTX-Video."),
                "positive": link("CONDITIONING", "The prompt."),
                "negative": link("CONDITIONING", "The negative prompt."),
                "skip_steps_sigma_threshold": decimal(
                    0.998, 0.0, 100.0, 0.001, "Steps above this level predict nothing, and only scale the noise."
                ),
                "cfg_star_rescale": switch(True, "CFG-zero-star: scale the negative prediction to the positive one."),
                "sigmas": text("1.0", "Levels. A step takes the entry of the smallest one that is not below it."),
                "cfg_values": text("1", "Classifier-free guidance: an entry for each level."),
                "stg_scale_values": text("0", "Spatio-temporal guidance: an entry for each level."),
                "stg_rescale_values": text("1", "Rescaling after STG: an entry for each level. 0: off."),
                "stg_layers_indices": text("[]", "Blocks that STG disturbs: a list for each level."),
            },
            "optional": {"preset": (ANY, {"tooltip": "The name of a preset, which replaces the values above."})},
        }

    def run(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        skip_steps_sigma_threshold: float,
        cfg_star_rescale: bool,
        sigmas: str,
        cfg_values: str,
        stg_scale_values: str,
        stg_rescale_values: str,
        stg_layers_indices: str,
        preset: Any = None,
    ) -> tuple[Any]:
        if preset in PRESETS:
            skip_above, lists = PRESETS[preset]
            cfg_star_rescale = True
        elif preset in (None, "", "Custom"):
            skip_above = skip_steps_sigma_threshold
            lists = lists_of(sigmas, cfg_values, stg_scale_values, stg_rescale_values, stg_layers_indices)
        else:
            raise ConfigError(f"got the preset {preset!r}; expected one of {', '.join(PRESETS)}; choose Custom")
        return (native_guider(model, (positive, negative), lists, skip_above, cfg_star=cfg_star_rescale),)


def native_guider(model: Any, conds: tuple[Any, Any], lists: Lists, skip_above: float, *, cfg_star: bool) -> Any:
    """A GUIDER of core's own class, whose scale and STG follow the level of the step.

    Raises:
        ConfigError: lists of unequal length. UnsupportedError: STG on a core without it.
    """
    entries = entries_of(lists)
    if any(entry.stg for entry in entries) and not has_core_node(STG_NODE):
        raise UnsupportedError(
            "got spatio-temporal guidance on a ComfyUI without it; expected 0.33 or later; update ComfyUI, or sample "
            "with Sample (LTXKit)"
        )
    (plain,) = core_node("CFGGuider", model=model, positive=conds[0], negative=conds[1], cfg=1.0)
    guider = _guided(type(plain))(model)
    guider.set_conds(*conds)
    guider.raw_conds = conds
    guider.ltxkit = (entries, skip_above, cfg_star)
    return guider


def _guided(base: Any) -> Any:
    """The subclass of core's guider that asks `ltxkit` in every step."""

    class GuidedByLevel(base):
        ltxkit: tuple[tuple[Entry, ...], float, bool]

        def predict_noise(
            self, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any] | None = None, seed: Any = None
        ) -> Tensor:
            entries, skip_above, cfg_star = self.ltxkit
            level = float(timestep.max())
            if level > skip_above:
                return torch.zeros_like(x)
            entry = at_level(entries, level)
            options = dict(model_options or {})
            seen: dict[str, Tensor] = {}

            def combine(args: Mapping[str, Any]) -> Tensor:
                positive, negative = args["cond_denoised"], args["uncond_denoised"]
                seen["positive"] = positive
                if cfg_star:
                    negative = negative * _projection(positive, negative)
                return args["input"] - (positive + (entry.cfg - 1) * (positive - negative))

            guided = {**options, "sampler_cfg_function": combine} if not math.isclose(entry.cfg, 1) else options
            self.cfg = entry.cfg
            result: Tensor = super().predict_noise(x, timestep, guided, seed)
            if entry.stg:
                positive: Tensor = seen.get("positive", result)
                inner = {**options.get("transformer_options", {}), STG_OPTION: frozenset(entry.blocks)}
                disturbed = {**options, "transformer_options": inner, "sampler_post_cfg_function": []}
                self.cfg = 1.0
                perturbed = super().predict_noise(x, timestep, disturbed, seed)
                result = result + entry.stg * (positive - perturbed)
                if entry.rescale:
                    factor = positive.std() / result.std()
                    result = result * (entry.rescale * factor + 1 - entry.rescale)
            return result

    return GuidedByLevel


def _projection(positive: Tensor, negative: Tensor) -> Tensor:
    """(b, 1, ...): the factor that brings `negative` closest to `positive`, for each clip (arXiv 2503.18886)."""
    one, other = positive.flatten(1), negative.flatten(1)
    factor = (one * other).sum(1) / ((other**2).sum(1) + 1e-8)
    return factor.reshape(-1, *[1] * (positive.ndim - 1))


# ------------------------------------------------------------------------------------------------ sampling


class SampleNatively(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "In the place of LTXVBaseSampler, LTXVExtendSampler, LTXVInContextSampler and LTXVLoopingSampler in "
        " graphs of July 2025: one pass of ComfyUI's own sampler, or several windows of a long clip."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "LTXVBaseSampler", "LTXVExtendSampler", "LTXVLoopingSampler"]
    RETURN_TYPES = ("LATENT", "CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("latent", "positive", "negative")
    OUTPUT_TOOLTIPS = ("The sampled clip.", "The prompt of the guider.", "The negative prompt of the guider.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": link("VAE", "ComfyUI's own VAE of LTX-Video."),
                "guider": link("GUIDER", "From Guider by Level: it brings the model and the prompts."),
                "sampler": link("SAMPLER", "From KSamplerSelect."),
                "sigmas": link("SIGMAS", "The levels."),
                "noise": link("NOISE", "From RandomNoise."),
                "task": choice(
                    ["new clip", "refine", "extend", "follow", "long clip"],
                    "new clip: of width, height and frames. refine: the latent. extend: new frames after the latent. "
                    "follow: the guiding latent, with an IC-LoRA. long clip: windows of the size of the latent.",
                ),
                "width": integer(768, 32, 16384, "Of a new clip."),
                "height": integer(512, 32, 16384, "Of a new clip."),
                "frames": integer(97, -1, 16384, "Of a new clip, 8k+1; to extend: new frames. -1: of the guiding one."),
                "overlap": integer(24, 8, 1000, "Frames of the end of one part with which the next begins."),
                "window": integer(80, 24, 1000, "Frames of a window of a long clip."),
                "strength": decimal(0.9, 0.0, 1.0, 0.01, "Of the pictures, and of the overlap."),
                "crop": choice(
                    ["center", "disabled"], "How pictures get the size of the clip. center: cut. disabled: stretch."
                ),
                "crf": integer(0, 0, 100, "Compression of the pictures. 0: off."),
                "blur": integer(0, 0, 10, "Radius of a blur on the pictures. 0: off."),
                "frames_of_images": text("0", "Frame of each picture."),
                "strengths": text("", "Strength of each picture; empty: `strength`."),
                "adain": decimal(0.0, 0.0, 1.0, 0.01, "How far windows move to the colours of the first."),
            },
            "optional": {
                "latent": link("LATENT", "The clip to refine or to extend, or the size of a long one."),
                "guiding_latent": link("LATENT", "The clip to follow."),
                "images": link("IMAGE", "Pictures that the clip must show."),
                "prompts": link("CONDITIONING", "A prompt for each window, from Encode Prompt List."),
            },
        }

    def run(
        self,
        vae: Any,
        guider: Any,
        sampler: Any,
        sigmas: Any,
        noise: Any,
        task: str,
        width: int,
        height: int,
        frames: int,
        overlap: int,
        window: int,
        strength: float,
        crop: str,
        crf: int,
        blur: int,
        frames_of_images: str,
        strengths: str,
        adain: float,
        latent: Any = None,
        guiding_latent: Any = None,
        images: Tensor | None = None,
        prompts: Any = None,
    ) -> tuple[Any, ...]:
        said = {
            "width": width,
            "height": height,
            "frames": frames,
            "overlap": overlap,
            "window": window,
            "strength": strength,
            "crop": crop,
            "crf": crf,
            "blur": blur,
            "adain": adain,
            "frames_of_images": frames_of_images or "0",
            "strengths": strengths,
            "latent": latent,
            "guiding_latent": guiding_latent,
            "images": images,
            "prompts": prompts,
        }
        if not isinstance(getattr(guider, "raw_conds", None), tuple):
            raise ConfigError(
                "got a guider without its prompts; expected one of Guider by Level (LTXKit); put that in its place"
            )
        native = _Pass(vae, guider, sampler, sigmas, noise)
        needed = {"refine": "latent", "extend": "latent", "long clip": "latent", "follow": "guiding_latent"}.get(task)
        if needed is not None and said.get(needed) is None:
            raise ConfigError(f"got the task {task!r} without {needed}; expected a LATENT; connect one")
        made = {
            "new clip": _new_clip,
            "refine": _refined,
            "extend": _extended,
            "follow": _followed,
            "long clip": _long_clip,
        }[task](native, said)
        return (made, *guider.raw_conds)


class RefineNatively(SampleNatively):
    DESCRIPTION = "In the place of LTXVTiledSampler in graphs of July 2025: ComfyUI's own sampler over a clip."
    SEARCH_ALIASES = ["ltx", "ltxv", "LTXVTiledSampler"]
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("latent", "denoised")
    OUTPUT_TOOLTIPS = ("The sampled clip.", "The same clip: the old node gave it twice.")

    def execute(self, **inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
        """The clip, twice, in the place of the clip and its prompts."""
        made = super().execute(**inputs)
        if isinstance(made, dict):
            return {**made, "result": made["result"][:1] * 2}
        return made[:1] * 2


Guide = tuple[Tensor, int, float]


class _Pass:
    """ComfyUI's own nodes around one guider."""

    def __init__(self, vae: Any, guider: Any, sampler: Any, sigmas: Any, noise: Any) -> None:
        self.vae, self.guider, self.sampler, self.sigmas, self.noise = vae, guider, sampler, sigmas, noise
        self.positive, self.negative = guider.raw_conds
        self.time, *_ = vae.downscale_index_formula

    def empty(self, width: int, height: int, frames: int) -> dict[str, Any]:
        size = {"width": width, "height": height, "length": frames, "batch_size": 1}
        return core_node("EmptyLTXVLatentVideo", **size)[0]

    def size(self, latent: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height in pixels."""
        _, across, down = self.vae.downscale_index_formula
        return latent["samples"].shape[-1] * across, latent["samples"].shape[-2] * down

    def pixels(self, latent: Mapping[str, Any]) -> Tensor:
        return core_node("VAEDecode", vae=self.vae, samples=latent)[0]

    def sample(
        self, latent: Any, guides: Sequence[tuple[Tensor, int, float]], *, seed_offset: int = 0
    ) -> dict[str, Any]:
        """A pass over `latent`. guides: frames (f, h, w, 3), where they stand, and their strength."""
        positive, negative = self.positive, self.negative
        for images, frame, strength in guides:
            said = {"positive": positive, "negative": negative, "vae": self.vae, "latent": latent}
            guide = {"image": images, "frame_idx": frame, "strength": strength}
            positive, negative, latent = core_node("LTXVAddGuide", **said, **guide)[:3]
        guider = copy.copy(self.guider)
        guider.set_conds(positive, negative)
        noise = copy.copy(self.noise)
        if seed_offset:
            noise.seed = noise.seed + seed_offset
        parts = {"noise": noise, "guider": guider, "sampler": self.sampler, "sigmas": self.sigmas}
        made = core_node("SamplerCustomAdvanced", **parts, latent_image=latent)[1]
        return core_node("LTXVCropGuides", positive=positive, negative=negative, latent=made)[2]


def _images(said: Mapping[str, Any], width: int, height: int) -> list[Guide]:
    images = said.get("images")
    if images is None:
        return []
    method = {"upscale_method": "bilinear", "width": width, "height": height, "crop": said["crop"]}
    images = core_node("ImageScale", image=images, **method)[0].clamp(0, 1)
    if said["crf"]:
        images = core_node("LTXVPreprocess", image=images, img_compression=said["crf"])[0]
    if said["blur"]:
        images = core_node("ImageBlur", image=images, blur_radius=said["blur"], sigma=0.3 * said["blur"])[0]
    frames = [int(word) for word in said["frames_of_images"].replace(",", " ").split()]
    if len(frames) != len(images):
        raise ConfigError(
            f"got {len(images)} pictures for the frames {frames}; expected as many frames; correct frames_of_images"
        )
    strengths = [float(word) for word in said["strengths"].replace(",", " ").split()] or [said["strength"]]
    strengths += [strengths[-1]] * len(frames)
    return [(images[i : i + 1], frame, strengths[i]) for i, frame in enumerate(frames)]


def _new_clip(native: _Pass, said: Mapping[str, Any]) -> dict[str, Any]:
    width, height, frames = said["width"], said["height"], said["frames"]
    guides = _images(said, width, height)
    if len(guides) == 1 and guides[0][1] == 0:
        size = {"width": width, "height": height, "length": frames, "batch_size": 1}
        conds = {"positive": native.positive, "negative": native.negative}
        shown = {"vae": native.vae, "image": guides[0][0], "strength": guides[0][2]}
        return native.sample(core_node("LTXVImgToVideo", **conds, **shown, **size)[2], [])
    return native.sample(native.empty(width, height, frames), guides)


def _refined(native: _Pass, said: Mapping[str, Any]) -> dict[str, Any]:
    return native.sample(said["latent"], _images(said, *native.size(said["latent"])))


def _extended(native: _Pass, said: Mapping[str, Any]) -> dict[str, Any]:
    old, overlap = said["latent"], max(said["overlap"] // native.time, 1) + 1
    frames = said["frames"]
    if frames < 0:
        if said.get("guiding_latent") is None:
            raise ConfigError("got -1 new frames without guiding_latent; expected one; write their number")
        frames = (said["guiding_latent"]["samples"].shape[2] - overlap) * native.time
    return _appended(native, old, overlap, frames, said, said.get("guiding_latent"))


def _appended(
    native: _Pass, old: Any, overlap: int, frames: int, said: Mapping[str, Any], guiding: Any = None, offset: int = 0
) -> dict[str, Any]:
    """`old` and new frames, which begin with its last `overlap` latent frames as a guide."""
    overlap = min(overlap, old["samples"].shape[2])
    end = native.pixels({"samples": old["samples"][:, :, -overlap:]})
    length = (overlap - 1) * native.time + 1 + frames // native.time * native.time
    guides = [(end, 0, float(said["strength"]))]
    if guiding is not None:
        guides.append((native.pixels(guiding)[:length], 0, 1.0))
    new = native.sample(native.empty(*native.size(old), length), guides, seed_offset=offset)
    fresh = new["samples"][:, :, overlap:].to(old["samples"])
    if said["adain"]:
        fresh = adain(fresh, old["samples"], said["adain"])
    return {"samples": torch.cat((old["samples"], fresh), dim=2)}


def _followed(native: _Pass, said: Mapping[str, Any]) -> dict[str, Any]:
    guiding = said["guiding_latent"]
    width, height = native.size(guiding)
    frames = (guiding["samples"].shape[2] - 1) * native.time + 1 if said["frames"] < 0 else said["frames"]
    guides = [(native.pixels(guiding), 0, 1.0), *_images(said, width, height)]
    return native.sample(native.empty(width, height, frames), guides)


def _long_clip(native: _Pass, said: Mapping[str, Any]) -> dict[str, Any]:
    total = said["latent"]["samples"].shape[2]
    width, height = native.size(said["latent"])
    window = min(max(said["window"] // native.time, 2) + 1, total)
    overlap = max(min(said["overlap"] // native.time + 1, window - 1), 1)
    prompts, guiding = said.get("prompts"), said.get("guiding_latent")
    listed = prompts if isinstance(prompts, PromptList) else None

    def part(start: int, end: int) -> Any:
        return None if guiding is None else {"samples": guiding["samples"][:, :, start:end]}

    def use(index: int) -> None:
        if listed:
            native.positive = listed[min(index, len(listed) - 1)]

    use(0)
    guides = _images(said, width, height)
    first = part(0, window)
    if first is not None:
        guides.insert(0, (native.pixels(first), 0, 1.0))
    clip = native.sample(native.empty(width, height, (window - 1) * native.time + 1), guides)
    index = 0
    while (done := clip["samples"].shape[2]) < total:
        index += 1
        use(index)
        more = min(window - overlap, total - done)
        begin = done - overlap
        clip = _appended(native, clip, overlap, more * native.time, said, part(begin, done + more), index)
    return clip


class PromptList(list[Any]):
    """CONDITIONING of several prompts, one for each window; as one CONDITIONING it is the first."""


class EncodePromptList(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = "In the place of MultiPromptProvider in graphs of July 2025: a prompt for each window of a long clip."
    SEARCH_ALIASES = ["ltx", "ltxv", "MultiPromptProvider"]
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("prompts",)
    OUTPUT_TOOLTIPS = ("For Sample Natively.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "prompts": text("", "Prompts, with | between them.", lines=True),
                "clip": link("CLIP", "ComfyUI's own text encoder."),
            }
        }

    def run(self, prompts: str, clip: Any) -> tuple[Any]:
        parts = [part.strip() for part in prompts.split("|")]
        return (PromptList(core_node("CLIPTextEncode", clip=clip, text=part)[0] for part in parts),)


class AddNativeGuide(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "In the place of LTXVAddGuideAdvanced and LTXVImgToVideoAdvanced in graphs of July 2025: a picture, compressed "
        "and blurred, as a guide of ComfyUI's own samplers."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "LTXVAddGuideAdvanced", "LTXVImgToVideoAdvanced"]
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    OUTPUT_TOOLTIPS = (
        "The prompt with the guide.",
        "The negative prompt with the guide.",
        "The latent with the guide.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        methods = ["lanczos", "bislerp", "nearest", "bilinear", "bicubic", "area", "nearest-exact"]
        return {
            "required": {
                "positive": link("CONDITIONING", "The prompt."),
                "negative": link("CONDITIONING", "The negative prompt."),
                "vae": link("VAE", "ComfyUI's own VAE of LTX-Video."),
                "image": link("IMAGE", "The picture, or the frames of a clip."),
                "frame": integer(0, -9999, 9999, "Where it stands. Negative: from the end."),
                "strength": decimal(1.0, 0.0, 1.0, 0.01, "1 keeps it as it is."),
                "crf": integer(29, 0, 51, "Compression. 0: off."),
                "blur_radius": integer(0, 0, 7, "Radius of a blur. 0: off."),
                "interpolation": choice(
                    methods,
                    "How its size is changed: lanczos, bislerp, bicubic and bilinear are smooth, area averages, "
                    "nearest and nearest-exact take one pixel.",
                ),
                "crop": choice(
                    ["disabled", "center"], "How it gets the size of the clip. disabled: stretch. center: cut."
                ),
                "width": integer(768, 32, 16384, "Of a new clip, without a latent."),
                "height": integer(512, 32, 16384, "Of a new clip, without a latent."),
                "length": integer(97, 1, 16384, "Frames of a new clip, without a latent."),
                "batch_size": integer(1, 1, 4096, "Number of new clips, without a latent."),
            },
            "optional": {"latent": link("LATENT", "The clip. Without it: a new one that begins with the picture.")},
        }

    def run(
        self,
        positive: Any,
        negative: Any,
        vae: Any,
        image: Tensor,
        frame: int,
        strength: float,
        crf: int,
        blur_radius: int,
        interpolation: str,
        crop: str,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        latent: Any = None,
    ) -> tuple[Any, ...]:
        if latent is not None:
            _, across, down = vae.downscale_index_formula
            width, height = latent["samples"].shape[-1] * across, latent["samples"].shape[-2] * down
        method = "nearest-exact" if interpolation == "nearest" else interpolation
        scale = {"upscale_method": method, "width": width, "height": height, "crop": crop}
        frames = core_node("ImageScale", image=image, **scale)[0].clamp(0, 1)
        if crf:
            frames = core_node("LTXVPreprocess", image=frames, img_compression=crf)[0]
        if blur_radius:
            frames = core_node("ImageBlur", image=frames, blur_radius=blur_radius, sigma=0.3 * blur_radius)[0]
        conds = {"positive": positive, "negative": negative, "vae": vae, "image": frames, "strength": strength}
        if latent is None:
            size = {"width": width, "height": height, "length": length, "batch_size": batch_size}
            return core_node("LTXVImgToVideo", **conds, **size)[:3]
        return core_node("LTXVAddGuide", **conds, latent=latent, frame_idx=frame)[:3]


# ------------------------------------------------------------------------------------------------ latents, pictures


class AdaptLatent(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = "In the place of LTXVAdainLatent: gives a latent the colours of another, as Upscale Latent's `adain`."
    SEARCH_ALIASES = ["ltx", "ltxv", "LTXVAdainLatent", "adain"]
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The latent, moved to the other's colours.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "latent": link("LATENT", "The clip to change."),
                "reference": link("LATENT", "The clip whose colours it gets."),
                "factor": decimal(1.0, -10.0, 10.0, 0.01, "How far: 1 is all the way."),
            }
        }

    def run(self, latent: dict[str, Any], reference: dict[str, Any], factor: float) -> tuple[dict[str, Any]]:
        samples, other = sockets.latent_samples(latent), sockets.latent_samples(reference, "reference")
        moved = adain(samples.clone(), other.to(samples), factor)
        return ({**latent, "samples": moved},)


class AddFilmGrain(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = "In the place of LTXVFilmGrain: grain on frames from any node, as Decode Video's `film_grain`."
    SEARCH_ALIASES = ["ltx", "ltxv", "LTXVFilmGrain", "grain"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("The frames with grain.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": link("IMAGE", "Frames."),
                "film_grain": decimal(0.1, 0.0, 1.0, 0.01, "Strength of the grain."),
                "grain_saturation": decimal(0.5, 0.0, 1.0, 0.01, "Its colour; 0: grey."),
                "seed": seed("Seed of the grain."),
            }
        }

    def run(self, images: Tensor, film_grain: float, grain_saturation: float, seed: int) -> tuple[Tensor]:
        noise = stream(seed, "film grain")
        return (torch.cat([grain(each[None], film_grain, grain_saturation, noise) for each in images.cpu()]),)


class SetDecodeNoise(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "In the place of Set VAE Decoder Noise in graphs of July 2025: how ComfyUI's own VAE Decode finishes a clip. "
        "The VAE keeps it until another node changes it."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "Set VAE Decoder Noise", "decode_timestep"]
    RETURN_TYPES = ("VAE",)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The VAE, for VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": link("VAE", "ComfyUI's own VAE of LTX-Video."),
                "decode_timestep": decimal(0.05, 0.0, 1.0, 0.001, "As in Decode Video."),
                "decode_noise_scale": decimal(0.025, 0.0, 1.0, 0.001, "As in Decode Video."),
            }
        }

    def run(self, vae: Any, decode_timestep: float, decode_noise_scale: float) -> tuple[Any]:
        module: Any = getattr(vae, "first_stage_model", None)
        if not hasattr(module, "decode_timestep"):
            host().say("This VAE decodes without noise: nothing to set.")
            return (vae,)
        copied = copy.copy(vae)
        module.decode_timestep, module.decode_noise_scale = decode_timestep, decode_noise_scale
        return (copied,)


class PassOn(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = "In the place of a node of July 2025 that is not needed any more: it passes on what it receives."
    SEARCH_ALIASES = ["ltx", "ltxv", "LTXQ8Patch", "ImageToCPU", "ModifyLTXModel"]
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("value",)
    OUTPUT_TOOLTIPS = ("What it received.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "value": (ANY, {"tooltip": "Anything."}),
                "instead_of": text("", "The node that stood here."),
                "note": text("", "What is different now."),
            }
        }

    def run(self, value: Any, instead_of: str, note: str) -> tuple[Any]:
        if note:
            host().say(f"{instead_of}: {note}" if instead_of else note)
        return (value,)


class ReportMissing(sockets.Node):
    CATEGORY = CATEGORY
    DESCRIPTION = "In the place of a node of July 2025 that is not here: it says what to do instead, and stops."
    SEARCH_ALIASES = ["ltx", "ltxv", "FlowEdit", "RF edit"]
    RETURN_TYPES = (ANY, ANY, ANY)
    RETURN_NAMES = ("first", "second", "third")
    OUTPUT_TOOLTIPS = ("Nothing.", "Nothing.", "Nothing.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "instead_of": text("", "The node that stood here."),
                "remedy": text("", "What to do instead."),
            },
            "optional": {
                "first": (ANY, {"tooltip": "What was connected."}),
                "second": (ANY, {"tooltip": "What was connected."}),
            },
        }

    def run(self, instead_of: str, remedy: str, first: Any = None, second: Any = None) -> tuple[Any, ...]:  # noqa: ARG002
        raise UnsupportedError(
            f"got {instead_of}, an experiment of July 2025; expected a node that LTXKit has; {remedy}"
        )

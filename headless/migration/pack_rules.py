"""What becomes of the nodes of ComfyUI-LTXVideo as of July 2025.

Its samplers take everything as inputs and call native samplers; each becomes Sample or Long Video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...nodes.old_guidance import PRESETS, numbers
from .core_rules import decoded, empty, lora, picture, size, with_condition
from .graph import Blocked, Call, Rule, plain
from .sampling import (
    conditions_link,
    of_list,
    one_by_one,
    picture_link,
    sampled,
    sampler_name,
    schedule_link,
    step_guidance,
    stg_guidance,
)
from .values import (
    Clip,
    Condition,
    Guider,
    Latent,
    Link,
    Model,
    Noise,
    Other,
    Picture,
    Reference,
    Sampler,
    Sigmas,
    Text,
    Upscaled,
    Vae,
)

_COLUMNS = ("sigmas", "cfg_values", "stg_scale_values", "stg_rescale_values", "stg_layers_indices")
EXPERIMENT = "an experiment on core's model classes, which is not here"

# ------------------------------------------------------------------------------------------------ guiders


def _apply_stg(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    before = f"{model.stg_blocks}, " if model.stg_blocks else ""
    return (replace(model, stg_blocks=before + call.text("block_indices", "14, 19")),)


def _stg_guider(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    scales = call.number("cfg", 1.0), call.number("stg", 1.0), call.number("rescale", 0.7)
    if scales[1] and not model.stg_blocks:
        raise Blocked("it guides by blocks that no LTXVApplySTG names; add one before it")
    guidance = stg_guidance(call, *scales, model.stg_blocks)
    return (Guider(model, call.get("positive"), call.get("negative"), guidance),)


def _stg_advanced(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    preset = call.get("preset")
    name = preset.value if isinstance(preset, Other) else preset
    if name in PRESETS:
        threshold, columns = PRESETS[str(name)]
        lists = {**dict(zip(_COLUMNS, columns, strict=True)), "cfg_star_rescale": True}
        call.note(f"the lists of its preset {name}")
    elif name not in (None, "", "Custom"):
        raise Blocked(f"its preset is {name!r}; expected one of {', '.join(PRESETS)}; choose Custom")
    else:
        threshold = call.number("skip_steps_sigma_threshold", 0.998)
        lists = {**_lists(call, model), "cfg_star_rescale": call.switch("cfg_star_rescale", True)}
    guidance = step_guidance(call, lists)
    return (Guider(model, call.get("positive"), call.get("negative"), guidance, threshold),)


def _lists(call: Call, model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _COLUMNS[:-1]:
        try:
            found[name] = numbers(call.text(name))
        except ValueError as error:
            raise Blocked(f"its {name} are {call.text(name)!r}; expected numbers; correct them") from error
    said = call.text("stg_layers_indices")
    try:
        found["stg_layers_indices"] = tuple(
            tuple(int(number) for number in numbers(part.partition("[")[2])) for part in said.split("]")[:-1]
        )
    except ValueError as error:
        raise Blocked(
            f"its stg_layers_indices are {said!r}; expected lists such as [14], [14]; correct them"
        ) from error
    if not found["stg_layers_indices"] and model.stg_blocks:
        blocks = tuple(int(number) for number in numbers(model.stg_blocks))
        found["stg_layers_indices"] = (blocks,) * len(found["sigmas"])
    return found


def _presets(call: Call) -> tuple[Any, ...]:
    return (Other(call.text("preset", "Custom")),)


# ------------------------------------------------------------------------------------------------ samplers


def _parts(call: Call) -> tuple[Guider, Noise, Sampler, Sigmas]:
    return (
        call.needed("guider", Guider, "a guider with a model of LTX-Video"),
        call.needed("noise", Noise, "RandomNoise"),
        call.needed("sampler", Sampler, "KSamplerSelect"),
        call.needed("sigmas", Sigmas, "levels"),
    )


def _pass(call: Call, latent: Latent) -> Latent:
    guider, noise, sampler, sigmas = _parts(call)
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    return sampled(call, guider, replace(latent, vae=vae), noise, sampler, sigmas)


def _with_prompts(call: Call, latent: Latent) -> tuple[Any, ...]:
    guider: Guider = call.needed("guider", Guider, "a guider with a model of LTX-Video")
    return latent, guider.positive, guider.negative


def _frames(call: Call, name: str) -> list[int]:
    try:
        return [int(number) for number in numbers(call.text(name, "0") or "0")]
    except ValueError as error:
        raise Blocked(f"its {name} are {call.text(name)!r}; expected frames such as 0, 40; correct them") from error


def _shown(call: Call, image: Picture, strengths: list[Any], resize: str) -> list[Condition]:
    """One condition for each of the frames that `optional_cond_indices` lists."""
    frames = _frames(call, "optional_cond_indices")
    if image.count is not None and image.count != len(frames):
        raise Blocked(
            f"it shows {image.count} pictures at the frames {frames}; expected as many frames as pictures; correct "
            "optional_cond_indices"
        )
    pictures = one_by_one(call, image, len(frames))
    padded = [*strengths, *[strengths[-1]] * len(frames)]
    return [Condition(each, frame, strength, resize) for each, frame, strength in zip(pictures, frames, padded)]  # noqa: B905 - padded


def _base(call: Call) -> tuple[Any, ...]:
    latent = empty(call, *size(call, frames="num_frames"))
    if call.get("optional_cond_images") is not None:
        image = replace(picture(call, "optional_cond_images"), crf=call.whole("crf", 35))
        if call.whole("blur") or image.crf:
            call.note("Condition's compression blurs slightly, as Lightricks' script does; the blur has no own widget")
        resize = "crop" if call.text("crop", "disabled") == "center" else "stretch"
        shown = _shown(call, image, [call.get("strength", 0.9)], resize)
        latent = replace(latent, conditions=tuple(shown))
    return _with_prompts(call, _pass(call, latent))


def _tiled(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("latents", Latent, "a latent")
    if call.whole("horizontal_tiles", 1) > 1 or call.whole("vertical_tiles", 1) > 1:
        call.note("sampled in one piece: there are no tiles here; blocks are streamed where memory requires it")
    if call.switch("boost_latent_similarity") and call.get("optional_cond_images") is not None:
        call.note("boost_latent_similarity is left out; a lower first level keeps more of the clip")
    if call.get("optional_cond_images") is not None:
        try:
            strengths: list[Any] = list(numbers(call.text("images_cond_strengths", "0.9")))
        except ValueError as error:
            raise Blocked("its images_cond_strengths are no numbers; correct them") from error
        resize = "crop" if call.text("crop", "disabled") == "center" else "stretch"
        shown = _shown(call, picture(call, "optional_cond_images"), strengths or [0.9], resize)
        latent = replace(latent, conditions=(*latent.conditions, *shown))
    result = _pass(call, latent)
    return result, result


def _extend(call: Call) -> tuple[Any, ...]:
    """The end of the clip becomes the condition of a new one, and the new latent frames are appended."""
    old: Latent = call.needed("latents", Latent, "the latent to extend")
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    overlap, more = call.whole("frame_overlap", 16) // 8 * 8, call.whole("num_new_frames", 80)
    guiding = call.get("optional_guiding_latents")
    if more == -1:
        if not isinstance(guiding, Latent) or not isinstance(guiding.frames, int):
            raise Blocked("the number of its new frames is that of a clip of unknown length; write num_new_frames")
        more = guiding.frames - 1 - overlap
    more = more // 8 * 8
    old = _measured(call, old, vae)
    end = replace(decoded(call, old, vae), take=-(overlap + 1))
    conditions: list[Condition | Reference] = [Condition(end, 0, call.get("strength", 0.5), "stretch")]
    if isinstance(guiding, Latent):
        conditions.append(Reference(guiding.pixels or decoded(call, guiding, vae), 1.0))
    latent = replace(empty(call, old.width, old.height, overlap + 1 + more), conditions=tuple(conditions))
    new = _pass(call, latent)
    call.note("the new frames follow the old ones without a blend of the overlap, which the condition keeps")
    cut = {"samples": new.link, "dim": "t", "index": overlap // 8 + 1, "amount": max(more // 8, 1)}
    joined = {"samples1": old.link, "samples2": call.add("LatentCut", cut, title=""), "dim": "t"}
    frames = old.frames + more if isinstance(old.frames, int) else None
    latent = Latent(call.add("LatentConcat", joined, title=""), old.width, old.height, frames)
    return _with_prompts(call, latent)


def _measured(call: Call, latent: Latent, vae: Vae) -> Latent:
    """A latent with its size, which a node measures on its frames where no widget says it."""
    if None not in (latent.width, latent.height, latent.frames):
        return latent
    frames = latent.pixels or decoded(call, latent, vae)
    link = call.add("GetImageSize", {"image": picture_link(call, replace(frames, crf=0))}, title="")
    sides = [Link(link.node, index) for index in range(3)]
    width, height, count = (
        side if side is not None else measured
        for side, measured in zip((latent.width, latent.height, latent.frames), sides, strict=True)
    )
    return replace(latent, width=width, height=height, frames=count)


def _in_context(call: Call) -> tuple[Any, ...]:
    guiding: Latent = call.needed("guiding_latents", Latent, "the latent of a control video")
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    frames: Any = call.whole("num_frames", -1)
    frames = guiding.frames if frames == -1 else (frames - 1) // 8 * 8 + 1
    shown: list[Condition | Reference] = []
    if call.get("optional_cond_image") is not None:
        shown.append(Condition(picture(call, "optional_cond_image"), 0, 1.0, "stretch"))
    shown.append(Reference(guiding.pixels or decoded(call, guiding, vae), 1.0))
    if None in (guiding.width, guiding.height, frames):
        if call.whole("num_frames", -1) != -1:
            raise Blocked("the size of its control video is not known; scale the video to a size before it")
        call.note("the control video's latent is the canvas; noise replaces it, as the levels start at 1")
        latent = replace(guiding, guides=0, is_empty=True)
    else:
        latent = empty(call, guiding.width, guiding.height, frames)
    return _with_prompts(call, _pass(call, replace(latent, conditions=tuple(shown))))


# ------------------------------------------------------------------------------------------------ long clips


def _prompts(call: Call) -> tuple[Any, ...]:
    clip: Clip = call.needed("clip", Clip, "a T5 text encoder")
    windows = tuple(" ".join(part.split()) for part in call.text("prompts").split("|"))
    return (Text(clip.link, windows[0], windows=windows),)


def _looping(call: Call) -> tuple[Any, ...]:
    guider, noise, sampler, sigmas = _parts(call)
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    canvas: Latent = call.needed("latents", Latent, "the latent that gives the size")
    canvas = _measured(call, canvas, vae)
    if noise.seed is None:
        raise Blocked("a long clip starts from noise; expected RandomNoise; connect it")
    several = call.get("optional_positive_conditionings")
    positive = several if isinstance(several, Text) else guider.positive
    if not isinstance(positive, Text) or not isinstance(guider.negative, Text):
        raise Blocked("its prompts come from a node that stays; Long Video encodes them; write them into it")
    window = call.whole("temporal_tile_size", 80) // 8 * 8 + 1
    overlap = call.whole("temporal_overlap", 24) // 8 * 8 + 1
    said = {
        "model": guider.model.link,
        "vae": vae.link,
        "text_encoder": positive.encoder,
        "prompts": _lines(call, positive, canvas.frames, window, overlap),
        "negative": guider.negative.text,
        "width": canvas.width,
        "height": canvas.height,
        "frames": canvas.frames,
        "frame_rate": plain(guider.negative.frame_rate or positive.frame_rate or 25),
        "window_frames": window,
        "overlap_frames": overlap,
        "overlap_strength": plain(call.get("temporal_overlap_cond_strength", 0.5)),
        "adain": plain(call.get("adain_factor", 0.0)),
        "seed": noise.seed,
        "condition_noise": 0,
        "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
        "conditions": conditions_link(call, _long_conditions(call, vae)),
        "schedule": schedule_link(call, _from_noise(call, sigmas), guider.skip_above, fresh=True),
        "guidance": call.add(*guider.guidance, title="Guidance"),
        "sampler": sampler_name(call, sampler.name),
        "levels": "own",
        "tone_map": 0,
        "tile_size": 0,
    }
    link = call.add("LTXKitGenerateLongVideo", said)
    return (Latent(Link(link.node, 1), canvas.width, canvas.height, canvas.frames),)


def _from_noise(call: Call, sigmas: Sigmas) -> Sigmas:
    if sigmas.values and sigmas.values[0] < 1:
        call.note(f"the first level, {sigmas.values[0]:g}, became 1, with which a window starts")
        return of_list((1.0, *sigmas.values[1:]))
    return sigmas


def _long_conditions(call: Call, vae: Vae) -> list[Condition | Reference]:
    shown: list[Condition | Reference] = []
    if call.get("optional_cond_image") is not None:
        shown.append(Condition(picture(call, "optional_cond_image"), 0, 1.0, "stretch"))
    guiding = call.get("optional_guiding_latents")
    if isinstance(guiding, Latent):
        pixels = guiding.pixels or decoded(call, guiding, vae)
        shown.append(Reference(pixels, call.get("guiding_strength", 1.0)))
    if call.get("optional_negative_index_latents") is not None:
        call.note("the picture before the clip (negative index) is left out; a Condition in each window anchors it")
    if call.whole("horizontal_tiles", 1) > 1 or call.whole("vertical_tiles", 1) > 1:
        call.note("sampled in one piece: there are no tiles here; blocks are streamed where memory requires it")
    if (
        call.text("per_tile_seed_offsets", "0") not in ("0", "")
        or call.text("per_tile_use_negative_latents", "1") != "1"
    ):
        call.note("settings for single windows are left out")
    return shown


def _lines(call: Call, text: Text, frames: Any, window: int, overlap: int) -> Any:
    """The prompts, a line for each window: the last one serves all windows after it, as in the old node."""
    if len(text.windows) < 2:
        return text.windows[0] if text.windows else text.text
    if not isinstance(frames, int):
        call.note("Long Video needs one prompt for each window; the number of windows is not known here")
        return "\n".join(text.windows)
    windows = 1 + max(-(-(frames - window) // max(window - overlap, 1)), 0)
    lines = [*text.windows, *[text.windows[-1]] * windows][:windows]
    return lines[0] if len(set(lines)) == 1 else "\n".join(lines)


# ------------------------------------------------------------------------------------------------ latents


def _upsample(call: Call) -> tuple[Any, ...]:
    source: Latent = call.needed("samples", Latent, "a latent")
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    upscaler: Link = call.needed("upscale_model", Link, "the model of an upscaler")
    return (_upscaled(call, Upscaled(source, upscaler, vae.link), 0.0),)


def _upscaled(call: Call, parts: Upscaled, adain: Any) -> Latent:
    said = {"latent": parts.source.link, "upscaler": parts.upscaler, "vae": parts.vae, "adain": plain(adain)}
    link = call.add("LTXKitUpscaleLatent", {**said, "more_frames": "double the frame rate"}, title="Upscale")
    width, height = (2 * side if isinstance(side, int) else None for side in (parts.source.width, parts.source.height))
    return Latent(link, width, height, parts.source.frames, upscaled=parts)


def _adain(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("latents", Latent, "a latent")
    reference: Latent = call.needed("reference", Latent, "a latent")
    if latent.upscaled is None or latent.upscaled.source.link != reference.link:
        call.note("AdaIN between two clips is left out; Upscale Latent and Two-Stage have it as adain")
        return (latent,)
    return (_upscaled(call, latent.upscaled, call.get("factor", 1.0)),)


def _guide_advanced(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("latent", Latent, "a latent")
    shown = with_condition(call, latent, _prepared(call, call.get("frame_idx", 0), call.get("strength", 1.0)))
    return call.get("positive"), call.get("negative"), shown


def _image_advanced(call: Call) -> tuple[Any, ...]:
    latent = empty(call, *size(call), call.get("batch_size", 1))
    shown = with_condition(call, latent, _prepared(call, 0, call.get("strength", 0.9)))
    return call.get("positive"), call.get("negative"), replace(shown, guides=0)


def _prepared(call: Call, frame: Any, strength: Any) -> Condition:
    image = picture(call, "image")
    crf = max(call.whole("crf", 29), image.crf)
    if crf or call.whole("blur_radius"):
        call.note("Condition's compression blurs slightly, as Lightricks' script does; the blur has no own widget")
    resize = "crop" if call.text("crop", "disabled") == "center" else "stretch"
    return Condition(replace(image, crf=crf), frame, strength, resize)


def _latent_guide(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("latent", Latent, "a latent")
    guiding: Latent = call.needed("guiding_latent", Latent, "a latent")
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    index = call.whole("latent_idx")
    if index < 0:
        raise Blocked("a guide before the clip (a negative index) is not here; use Condition or Reference")
    frames = guiding.pixels or decoded(call, guiding, vae)
    frame = 0 if index == 0 else 8 * index
    shown = with_condition(call, latent, Condition(frames, frame, call.get("strength", 1.0), "stretch"))
    return call.get("positive"), call.get("negative"), shown


def _select(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("samples", Latent, "a latent")
    start, end = call.whole("start_index"), call.whole("end_index", -1)
    total = (latent.frames - 1) // 8 + 1 if isinstance(latent.frames, int) else None
    if (start < 0) != (end < 0):
        if total is None:
            raise Blocked("it counts from both ends of a clip of unknown length; use LatentCut")
        start, end = (index % total for index in (start, end))
    amount = end - start + 1
    if amount < 1:
        raise Blocked(f"it selects the frames {start} to {end}, which are none; correct them")
    link = call.add("LatentCut", {"samples": latent.link, "dim": "t", "index": start, "amount": amount})
    return (Latent(link, latent.width, latent.height, 8 * (amount - 1) + 1),)


def _append(call: Call) -> tuple[Any, ...]:
    one: Latent = call.needed("latents1", Latent, "a latent")
    other: Latent = call.needed("latents2", Latent, "a latent")
    link = call.add("LatentConcat", {"samples1": one.link, "samples2": other.link, "dim": "t"})
    both = isinstance(one.frames, int) and isinstance(other.frames, int)
    return (Latent(link, one.width, one.height, one.frames + other.frames + 7 if both else None),)  # type: ignore[operator]


def _noise_masks(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("samples", Latent, "a latent")
    link = call.add("SetLatentNoiseMask", {"samples": latent.link, "mask": call.get("masks")})
    return (replace(latent, link=link, is_empty=False),)


def _masks(call: Call) -> tuple[Any, ...]:
    unchanged = (
        not call.whole("grow_mask") and call.number("clamp_min", 0.5) == 0 and call.number("clamp_max", 1.0) == 1
    )
    if call.switch("invert_input_masks") or not unchanged or call.text("pooling_method", "max") != "max":
        raise Blocked(
            "it changes masks by its own rules; use mask nodes (InvertMask, GrowMask) and Set Latent Noise Mask, "
            "which takes a mask for each frame"
        )
    return (call.get("masks"),)


# ------------------------------------------------------------------------------------------------ the rest


def _decoder_noise(call: Call) -> tuple[Any, ...]:
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    noise = (call.get("timestep", 0.05), call.get("scale", 0.025), call.get("seed", 42))
    return (replace(vae, noise=noise),)


def _tiled_decode(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("latents", Latent, "a latent")
    call.note("Decode Video tiles by itself where memory requires it; its last frame needs no fix")
    return (decoded(call, latent, call.needed("vae", Vae, "the VAE of the model")),)


def _film_grain(call: Call) -> tuple[Any, ...]:
    """Grain belongs to Decode Video: the one that these frames come from gets it, before they are scaled."""
    source = picture(call, "images")
    chain: list[str] = []
    node_id = source.link.node
    while call.new.prompt[node_id]["class_type"] != "LTXKitDecodeVideo":
        before = call.new.prompt[node_id]["inputs"].get("image")
        if call.new.prompt[node_id]["class_type"] not in ("ImageScale", "ImageFromBatch") or not isinstance(
            before, list
        ):
            call.note("film grain is left out: its frames do not come from Decode Video, which adds it; add it there")
            return (source,)
        chain.append(node_id)
        node_id = before[0]
    said = {
        "film_grain": plain(call.get("grain_intensity", 0.1)),
        "grain_saturation": plain(call.get("saturation", 0.5)),
    }
    node = call.new.prompt[node_id]
    link = call.add(node["class_type"], {**node["inputs"], **said}, title="Decode")
    for each in reversed(chain):
        node = call.new.prompt[each]
        link = call.add(node["class_type"], {**node["inputs"], "image": link}, title="")
    if chain:
        call.note("Decode Video adds the grain, before the frames are scaled")
    return (replace(source, link=link),)


def _q8(call: Call) -> tuple[Any, ...]:
    call.note("the Q8 kernels belong to another library; Load Model has fp8_matmul for products in fp8")
    return (call.needed("model", Model, "a model of LTX-Video"),)


def _patched_vae(call: Call) -> tuple[Any, ...]:
    call.note("a VAE needs no patch here")
    return (call.needed("vae", Vae, "the VAE of the model"),)


def _enhancer(call: Call) -> tuple[Any, ...]:
    call.note("the prompt stays as it was written; a language-model node of another pack can extend it")
    return (call.get("prompt", ""),)


def _enhancer_loader(call: Call) -> tuple[Any, ...]:
    call.note("not needed: the prompt stays as it was written")
    return (Other(),)


def _same(name: str, note: str) -> Rule:
    def rule(call: Call) -> tuple[Any, ...]:
        call.note(note)
        return (call.get(name),)

    return rule


def _experiment(remedy: str) -> Rule:
    def rule(call: Call) -> tuple[Any, ...]:
        for name in call.inputs:
            call.get(name)
        raise Blocked(f"{EXPERIMENT}; {remedy}")

    return rule


_EDIT = "for a changed clip, use Encode Video into Sample with a Schedule of denoise_strength below 1"
RULES: Mapping[str, Rule] = {
    "LTXVApplySTG": _apply_stg,
    "STGGuider": _stg_guider,
    "STGGuiderAdvanced": _stg_advanced,
    "STGAdvancedPresets": _presets,
    "LTXVBaseSampler": _base,
    "LTXVTiledSampler": _tiled,
    "LTXVExtendSampler": _extend,
    "LTXVInContextSampler": _in_context,
    "LTXVLoopingSampler": _looping,
    "MultiPromptProvider": _prompts,
    "LTXVLatentUpsampler": _upsample,
    "LTXVAdainLatent": _adain,
    "LTXVAddGuideAdvanced": _guide_advanced,
    "LTXVImgToVideoAdvanced": _image_advanced,
    "LTXVAddLatentGuide": _latent_guide,
    "LTXVSelectLatents": _select,
    "LTXVAddLatents": _append,
    "LTXVSetVideoLatentNoiseMasks": _noise_masks,
    "LTXVPreprocessMasks": _masks,
    "LinearOverlapLatentTransition": _experiment(
        "windows overlap in Long Video, two clips in the template interpolate"
    ),
    "Set VAE Decoder Noise": _decoder_noise,
    "LTXVSetVAEDecoderNoise": _decoder_noise,
    "DecoderNoise": _decoder_noise,
    "LTXVTiledVAEDecode": _tiled_decode,
    "LTXVFilmGrain": _film_grain,
    "LTXQ8Patch": _q8,
    "LTXVQ8Patch": _q8,
    "LTXVQ8LoraModelLoader": lambda call: lora(call)[:1],
    "LTXVPatcherVAE": _patched_vae,
    "LTXVPromptEnhancer": _enhancer,
    "LTXVPromptEnhancerLoader": _enhancer_loader,
    "ImageToCPU": _same("image", "pictures are in main memory already"),
    "ModifyLTXModel": _same("model", "it prepares a model for experiments, and changes nothing by itself"),
    "LTXPerturbedAttention": _same("model", "perturbed attention is left out; Guidance has stg_scale and stg_blocks"),
    "LTXFetaEnhance": _same("model", "enhanced attention between frames is left out"),
    "LTXAttnOverride": lambda _: (Other(),),
    "LTXAttentioOverride": lambda _: (Other(),),
    "LTXAttentionBank": _experiment(_EDIT),
    "LTXPrepareAttnInjections": _experiment(_EDIT),
    "LTXForwardModelSamplingPred": _experiment(_EDIT),
    "LTXReverseModelSamplingPred": _experiment(_EDIT),
    "LTXRFForwardODESampler": _experiment(_EDIT),
    "LTXRFReverseODESampler": _experiment(_EDIT),
    "LTXFlowEditCFGGuider": _experiment(_EDIT),
    "LTXFlowEditSampler": _experiment(_EDIT),
    "AddLatentGuide": _experiment("use Condition"),
}

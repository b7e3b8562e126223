"""What becomes of ComfyUI's own nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...nodes.old_guidance import numbers
from .graph import Blocked, Call, Rule, plain
from .sampling import (
    MOST_LEVELS,
    constant_guidance,
    ltxv_levels,
    of_list,
    picture_link,
    sampled,
    scheduler_levels,
    split,
    step_count,
)
from .values import (
    Clip,
    Condition,
    Guider,
    Latent,
    Link,
    Model,
    Noise,
    Number,
    Picture,
    Sampler,
    Sigmas,
    Text,
    Vae,
)

# ------------------------------------------------------------------------------------------------ loaders


def load_model(call: Call, name: str, vae_name: str = "in the model file") -> tuple[Model, Vae]:
    said = {
        "model_name": name,
        "vae_name": vae_name,
        "dtype": "auto",
        "version": "from the file",
        "quantization": "as stored",
        "fp8_matmul": False,
        "resident_blocks": -1,
    }
    link = call.add("LTXKitLoadModel", said)
    return Model(link), Vae(Link(link.node, 1))


def _checkpoint(call: Call) -> tuple[Any, ...]:
    model, vae = load_model(call, call.text("ckpt_name"))
    if "ltx" not in call.text("ckpt_name").lower():
        call.note("is it a model of LTX-Video? Load Model takes no other")
    return model, None, vae


def _unet(call: Call) -> tuple[Any, ...]:
    return (load_model(call, call.text("unet_name"))[0],)


def _vae(call: Call) -> tuple[Any, ...]:
    """A VAE alone is loaded with the model: the loader of the model gets its name at the end."""
    name = call.text("vae_name")
    return (Vae(call.add("LTXKitLoadModel", {"vae_name": name})),)


def _clip(call: Call) -> tuple[Any, ...]:
    kind = call.text("type", "ltxv")
    if kind not in ("ltxv", "sd3", "flux", "pixart", "mochi", "wan"):
        call.note(f"type {kind} became a T5-XXL of LTX-Video")
    said = {
        "text_encoder_name": call.text("clip_name"),
        "dtype": "auto",
        "keep_on_device": False,
        "quantization": "as stored",
        "resident_blocks": -1,
    }
    return (Clip(call.add("LTXKitLoadTextEncoder", said)),)


def lora(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    said = {
        "model": model.link,
        "lora_name": call.text("lora_name"),
        "strength": plain(call.get("strength_model", 1.0)),
        "allow_partial": False,
        "settings": "those of the model",
    }
    if call.get("strength_clip") not in (None, 0, 0.0) and call.inputs.get("clip") is not None:
        call.note("the part of a LoRA for the text encoder is left out")
    return replace(model, link=call.add("LTXKitApplyLoRA", said)), call.get("clip")


def _upscaler(call: Call, name: str) -> tuple[Any, ...]:
    return (call.add("LTXKitLoadUpscaler", {"upscaler_name": name, "dtype": "auto"}),)


# ------------------------------------------------------------------------------------------------ prompts


def _text(call: Call) -> tuple[Any, ...]:
    clip: Clip = call.needed("clip", Clip, "a T5 text encoder")
    text = call.get("text", "")
    return (Text(clip.link, text if isinstance(text, Link) else str(text)),)


def _zero(call: Call) -> tuple[Any, ...]:
    text = call.needed("conditioning", (Text, Link), "a prompt")
    if isinstance(text, Text):
        call.note("zeros became an empty prompt; with guidance 1 it has no effect")
        text = replace(text, text="")
    return (text,)


def _frame_rate(call: Call) -> tuple[Any, ...]:
    rate = plain(call.get("frame_rate", 25.0))
    pair = (call.get("positive"), call.get("negative"))
    return tuple(replace(each, frame_rate=rate) if isinstance(each, Text) else each for each in pair)


# ------------------------------------------------------------------------------------------------ latents


def size(call: Call, width: str = "width", height: str = "height", frames: str = "length") -> tuple[Any, Any, Any]:
    """Sizes as ComfyUI's latents have them: multiples of 32, and 8k+1 frames; a link stays a link."""

    def rounded(name: str, default: int, step: int, rest: int) -> Number:
        value = call.get(name, default)
        if isinstance(value, Link):
            return value
        number = call.whole(name, default)
        return max((number - rest) // step, 1 - rest) * step + rest

    return rounded(width, 768, 32, 0), rounded(height, 512, 32, 0), rounded(frames, 97, 8, 1)


def empty(call: Call, width: Number, height: Number, frames: Number, batch_size: Any = 1) -> Latent:
    said = {
        "width": width,
        "height": height,
        "frames": frames,
        "seconds": 0,
        "frame_rate": call.frame_rate,
        "batch_size": batch_size,
    }
    link = call.add("LTXKitEmptyLatent", said, title="Empty latent")
    return Latent(link, width, height, frames, is_empty=True)


def _empty(call: Call) -> tuple[Any, ...]:
    return (empty(call, *size(call), call.get("batch_size", 1)),)


def with_condition(call: Call, latent: Latent, condition: Condition) -> Latent:
    """A latent in which the next sampler must show a picture."""
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    length = abs(condition.picture.take) or condition.picture.count or 1
    return replace(
        latent,
        vae=vae,
        conditions=(*latent.conditions, condition),
        guides=latent.guides + (length - 1) // 8 + 1,
    )


def _image_to_video(call: Call) -> tuple[Any, ...]:
    latent = empty(call, *size(call), call.get("batch_size", 1))
    shown = with_condition(call, latent, Condition(picture(call, "image"), 0, call.get("strength", 1.0), "crop"))
    return call.get("positive"), call.get("negative"), replace(shown, guides=0)


def _image_inplace(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("latent", Latent, "a latent")
    if call.switch("bypass"):
        return (latent,)
    shown = with_condition(call, latent, Condition(picture(call, "image"), 0, call.get("strength", 1.0), "crop"))
    return (replace(shown, guides=latent.guides),)


def _guide(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("latent", Latent, "a latent")
    frame, strength = call.get("frame_idx", 0), call.get("strength", 1.0)
    shown = with_condition(call, latent, Condition(picture(call, "image"), frame, strength, "stretch"))
    return call.get("positive"), call.get("negative"), shown


def _crop_guides(call: Call) -> tuple[Any, ...]:
    call.note("guides are conditions of Sample, which leaves nothing to crop")
    latent: Latent = call.needed("latent", Latent, "a latent")
    return call.get("positive"), call.get("negative"), replace(latent, conditions=(), guides=0)


def _encode(call: Call) -> tuple[Any, ...]:
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    frames = picture(call, "pixels")
    said = {"images": picture_link(call, frames), "vae": vae.link, "frame_rate": call.frame_rate}
    length = frames.count if frames.count is None else (frames.count - 1) // 8 * 8 + 1
    return (Latent(call.add("LTXKitEncodeVideo", said), frames.width, frames.height, length, pixels=frames),)


def decoded(call: Call, latent: Latent, vae: Vae, tile_size: int = 0) -> Picture:
    timestep, scale, seed = vae.noise or (0.05, 0.025, 0)
    said = {
        "latent": latent.link,
        "vae": vae.link,
        "decode_timestep": plain(timestep),
        "decode_noise_scale": plain(scale),
        "seed": seed,
        "tone_map": 0,
        "film_grain": 0,
        "grain_saturation": 0.5,
        "tile_size": tile_size,
    }
    frames = latent.frames if isinstance(latent.frames, int) else None
    link = call.add("LTXKitDecodeVideo", said)
    return Picture(link, count=frames, width=latent.width, height=latent.height)


def _decode(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("samples", Latent, "a latent")
    vae: Vae = call.needed("vae", Vae, "the VAE of the model")
    if call.type == "VAEDecodeTiled":
        call.note("Decode Video tiles by itself where memory requires it; tile_size overrides it")
    return (decoded(call, latent, vae),)


def _noise_mask(call: Call) -> tuple[Any, ...]:
    latent: Latent = call.needed("samples", Latent, "a latent")
    link = call.add("SetLatentNoiseMask", {"samples": latent.link, "mask": call.get("mask")})
    return (replace(latent, link=link, is_empty=False),)


# ------------------------------------------------------------------------------------------------ steps


def _scheduler(call: Call) -> tuple[Any, ...]:
    latent = call.get("latent")
    return (ltxv_levels(call, latent if isinstance(latent, Latent) else None),)


def _basic_scheduler(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    return (denoised(call, call.text("scheduler", "simple"), step_count(call), model.shift),)


def denoised(call: Call, name: str, steps: int, model_shift: float) -> Sigmas:
    """Levels for a denoise below 1: the last `steps` of int(steps / denoise)."""
    part = call.number("denoise", 1.0)
    if part >= 1:
        return scheduler_levels(call, name, steps, model_shift)
    if part <= 0:
        raise Blocked("its denoise is 0, which samples nothing; raise it, or connect the latent past this node")
    if steps / part > MOST_LEVELS:
        raise Blocked(f"its denoise is {part:g}, of a schedule of {steps / part:.0f} steps; raise it")
    whole = scheduler_levels(call, name, int(steps / part), model_shift)
    return of_list((whole.values or ())[-(steps + 1) :])


def _manual(call: Call) -> tuple[Any, ...]:
    try:
        return (of_list(numbers(call.text("sigmas"))),)
    except ValueError as error:
        raise Blocked(f"its sigmas are {call.text('sigmas')!r}; expected numbers; correct them") from error


def _split(call: Call) -> tuple[Any, ...]:
    return split(call.needed("sigmas", Sigmas, "levels"), call.whole("step"))


def _split_denoise(call: Call) -> tuple[Any, ...]:
    sigmas: Sigmas = call.needed("sigmas", Sigmas, "levels")
    steps = len(sigmas.values or ()) - 1
    return split(sigmas, steps - round(steps * call.number("denoise", 1.0)))


def _flip(_: Call) -> tuple[Any, ...]:
    raise Blocked("levels that rise belong to RF inversion, which is not here; use Sample from an encoded clip")


def _model_sampling(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    latent = call.get("latent")
    tokens = latent.tokens if isinstance(latent, Latent) and latent.tokens else 4096
    high, low = call.number("max_shift", 2.05), call.number("base_shift", 0.95)
    return (replace(model, shift=(high - low) / 3072 * (tokens - 1024) + low),)


# ------------------------------------------------------------------------------------------------ samplers


def _cfg_guider(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    guidance = constant_guidance(call, call.number("cfg", 8.0))
    return (Guider(model, call.get("positive"), call.get("negative"), guidance),)


def _basic_guider(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    prompt = call.get("conditioning")
    return (Guider(model, prompt, prompt, constant_guidance(call, 1.0)),)


def _sampler_advanced(call: Call) -> tuple[Any, ...]:
    guider: Guider = call.needed("guider", Guider, "a guider with a model of LTX-Video")
    latent: Latent = call.needed("latent_image", Latent, "a latent")
    noise: Noise = call.needed("noise", Noise, "RandomNoise or DisableNoise")
    sampler: Sampler = call.needed("sampler", Sampler, "KSamplerSelect")
    sigmas: Sigmas = call.needed("sigmas", Sigmas, "levels")
    return _two_outputs(call, guider, latent, noise, sampler, sigmas)


def _two_outputs(
    call: Call, guider: Guider, latent: Latent, noise: Noise, sampler: Sampler, sigmas: Sigmas
) -> tuple[Any, ...]:
    result = sampled(call, guider, latent, noise, sampler, sigmas)
    if sigmas.values and sigmas.values[-1] > 0:
        call.note("its second output, the clip as predicted at the last level, became the clip at that level")
    return result, result


def _sampler_custom(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    latent: Latent = call.needed("latent_image", Latent, "a latent")
    guidance = constant_guidance(call, call.number("cfg", 8.0))
    noise = Noise(call.get("noise_seed", 0) if call.switch("add_noise", True) else None)
    guider = Guider(model, call.get("positive"), call.get("negative"), guidance)
    sampler: Sampler = call.needed("sampler", Sampler, "KSamplerSelect")
    return _two_outputs(call, guider, latent, noise, sampler, call.needed("sigmas", Sigmas, "levels"))


def _ksampler(call: Call) -> tuple[Any, ...]:
    model: Model = call.needed("model", Model, "a model of LTX-Video")
    latent: Latent = call.needed("latent_image", Latent, "a latent")
    guider = Guider(model, call.get("positive"), call.get("negative"), constant_guidance(call, call.number("cfg", 8.0)))
    sigmas = denoised(call, call.text("scheduler", "simple"), step_count(call), model.shift)
    sampler = Sampler(call.text("sampler_name", "euler"))
    return _two_outputs(call, guider, latent, Noise(call.get("seed", 0)), sampler, sigmas)[:1]


# ------------------------------------------------------------------------------------------------ pictures


def picture(call: Call, name: str) -> Picture:
    value = call.needed(name, (Picture, Link), "a picture")
    return value if isinstance(value, Picture) else Picture(value)


def _load_image(call: Call) -> tuple[Any, ...]:
    link = call.add("LoadImage", {"image": call.text("image")})
    return Picture(link, count=1), Link(link.node, 1)


def _preprocess(call: Call) -> tuple[Any, ...]:
    return (replace(picture(call, "image"), crf=call.whole("img_compression", 35)),)


def _batch(call: Call) -> tuple[Any, ...]:
    one, other = picture(call, "image1"), picture(call, "image2")
    count = None if one.count is None or other.count is None else one.count + other.count
    parts = tuple(part for each in (one, other) for part in (each.parts or (each,)))
    said = {"image1": picture_link(call, replace(one, crf=0)), "image2": picture_link(call, replace(other, crf=0))}
    link = call.add("ImageBatch", said)
    singles = parts if all(part.count == 1 for part in parts) else ()
    return (Picture(link, max(one.crf, other.crf), count=count, parts=singles, width=one.width, height=one.height),)


def scaled(call: Call, source: Picture, width: Any, height: Any, method: str, crop: str) -> Picture:
    """ImageScale; a batch of single pictures stays one."""

    def one(each: Picture) -> Picture:
        said = {"upscale_method": method, "width": width, "height": height, "crop": crop}
        link = call.add("ImageScale", {"image": each.link, **said})
        return replace(each, link=link, width=width, height=height, parts=())

    return replace(one(source), parts=tuple(one(part) for part in source.parts))


def _scale(call: Call) -> tuple[Any, ...]:
    method, crop = call.text("upscale_method", "bilinear"), call.text("crop", "disabled")
    return (scaled(call, picture(call, "image"), call.get("width", 0), call.get("height", 0), method, crop),)


def _from_batch(call: Call) -> tuple[Any, ...]:
    source = picture(call, "image")
    said = {"batch_index": call.get("batch_index", 0), "length": call.get("length", 1)}
    link = call.add("ImageFromBatch", {"image": picture_link(call, replace(source, crf=0)), **said})
    length = said["length"]
    return (Picture(link, source.crf, count=length if isinstance(length, int) else None),)


def _components(call: Call) -> tuple[Any, ...]:
    link = call.add("GetVideoComponents", {"video": call.get("video")})
    return Picture(link), Link(link.node, 1), Link(link.node, 2)


def save_video(call: Call, frames: Any, rate: Any, prefix: str, audio: Any = None) -> None:
    said = {"images": picture_link(call, frames), "fps": plain(rate), "audio": audio}
    video = call.add("CreateVideo", said, title="")
    inputs = {"video": video, "filename_prefix": prefix, "format": "auto", "codec": "auto"}
    call.show("SaveVideo", inputs)


def _animation(call: Call) -> tuple[Any, ...]:
    if call.type != "SaveWEBM":
        call.note("an animated picture became a video file")
    save_video(call, call.get("images"), call.get("fps", 24.0), call.text("filename_prefix", "ComfyUI"))
    return ()


def _save(call: Call) -> tuple[Any, ...]:
    said: dict[str, Any] = {"images": picture_link(call, call.get("images"))}
    if call.type == "SaveImage":
        said["filename_prefix"] = call.text("filename_prefix", "ComfyUI")
    call.show(call.type, said)
    return ()


def _sampler_select(call: Call) -> tuple[Any, ...]:
    return (Sampler(call.text("sampler_name", "euler")),)


def _random(call: Call) -> tuple[Any, ...]:
    return (Noise(call.get("noise_seed", 0)),)


def _no_noise(call: Call) -> tuple[Any, ...]:
    call.note("a pass without noise continues from the level of its latent")
    return (Noise(None),)


def _primitive(call: Call) -> tuple[Any, ...]:
    return (call.get("value"),)


RULES: Mapping[str, Rule] = {
    "CheckpointLoaderSimple": _checkpoint,
    "UNETLoader": _unet,
    "UnetLoaderGGUF": _unet,
    "VAELoader": _vae,
    "CLIPLoader": _clip,
    "CLIPLoaderGGUF": _clip,
    "LoraLoaderModelOnly": lora,
    "LoraLoader": lora,
    "LatentUpscaleModelLoader": lambda call: _upscaler(call, call.text("model_name")),
    "LTXVLatentUpsamplerModelLoader": lambda call: _upscaler(call, call.text("upscale_model")),
    "CLIPTextEncode": _text,
    "ConditioningZeroOut": _zero,
    "LTXVConditioning": _frame_rate,
    "EmptyLTXVLatentVideo": _empty,
    "LTXVImgToVideo": _image_to_video,
    "LTXVImgToVideoInplace": _image_inplace,
    "LTXVAddGuide": _guide,
    "LTXVCropGuides": _crop_guides,
    "VAEEncode": _encode,
    "VAEEncodeTiled": _encode,
    "VAEDecode": _decode,
    "VAEDecodeTiled": _decode,
    "SetLatentNoiseMask": _noise_mask,
    "LTXVScheduler": _scheduler,
    "BasicScheduler": _basic_scheduler,
    "ManualSigmas": _manual,
    "SplitSigmas": _split,
    "SplitSigmasDenoise": _split_denoise,
    "FlipSigmas": _flip,
    "KSamplerSelect": _sampler_select,
    "ModelSamplingLTXV": _model_sampling,
    "CFGGuider": _cfg_guider,
    "BasicGuider": _basic_guider,
    "RandomNoise": _random,
    "DisableNoise": _no_noise,
    "SamplerCustomAdvanced": _sampler_advanced,
    "SamplerCustom": _sampler_custom,
    "KSampler": _ksampler,
    "LoadImage": _load_image,
    "LTXVPreprocess": _preprocess,
    "ImageBatch": _batch,
    "ImageScale": _scale,
    "ImageFromBatch": _from_batch,
    "GetVideoComponents": _components,
    "SaveAnimatedWEBP": _animation,
    "SaveAnimatedPNG": _animation,
    "SaveWEBM": _animation,
    "SaveImage": _save,
    "PreviewImage": _save,
    "PrimitiveInt": _primitive,
    "PrimitiveFloat": _primitive,
    "PrimitiveString": _primitive,
    "PrimitiveStringMultiline": _primitive,
    "PrimitiveBoolean": _primitive,
}

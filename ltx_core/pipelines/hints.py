"""Names of other libraries, and what is written here in their place.

A call with a name that does not exist here is answered in one sentence, as every other error.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from ..errors import WrongNameError

_RECEIVERS = ("self", "cls")
_Called = TypeVar("_Called", bound=Callable[..., Any])

LOAD = {
    "torch_dtype": "dtype=",
    "precision": "dtype=",
    "device_map": "device=, which takes a list of devices too",
    "quantization_config": "quantization= and text_quantization=, such as 'int8', 'nf4' or 'fp8'",
    "load_in_8bit": "quantization='int8'",
    "load_in_4bit": "quantization='nf4'",
    "transformer": "the first argument: the file of the transformer",
    "ckpt_path": "the first argument: the file of the model",
    "checkpoint": "the first argument: the file of the model",
    "model_path": "the first argument: the file of the model",
    "t5": "text_encoder=",
    "lora": "loras=",
    "lora_path": "loras=",
    "spatial_upscaler": "upscaler=",
    "upsampler": "upscaler=",
    "offload": "resident_blocks=, or nothing: blocks that do not fit are streamed by themselves",
    "recipe": "settings=, the name of a release; or recipe= of ltx.generate",
    "disable_mmap": "copy=True",
    "low_cpu_mem_usage": "nothing: weights stay in the file until they are used",
    "variant": "dtype=",
    "subfolder": "the path of the folder itself",
}

GENERATE = {
    "num_frames": "frames=",
    "length": "frames=",
    "frame_rate": "fps=",
    "num_inference_steps": "steps=",
    "cfg": "guidance_scale=",
    "cfg_scale": "guidance_scale=",
    "guidance": "guidance_scale=",
    "negative": "negative_prompt=",
    "image": "conditions=ltxkit.Condition(image)",
    "images": "conditions=[ltxkit.Condition(image, frame=0), ...]",
    "video": "conditions=ltxkit.Condition(video), or start=video with denoise_strength=",
    "condition": "conditions=",
    "reference": "conditions=ltxkit.Reference(video)",
    "strength": "ltxkit.Condition(image, strength=...), or denoise_strength= with start=",
    "frame_index": "ltxkit.Condition(image, frame=...)",
    "conditioning_media_paths": "conditions=[ltxkit.Condition(path), ...]",
    "conditioning_strengths": "ltxkit.Condition(path, strength=...)",
    "conditioning_start_frames": "ltxkit.Condition(path, frame=...)",
    "input_media_path": "start=path with denoise_strength=",
    "image_cond_noise_scale": "condition_noise=",
    "generator": "seed=, a whole number",
    "noise_seed": "seed=",
    "num_videos_per_prompt": "seed= with a list: one clip for each seed",
    "batch_size": "seed= with a list: one clip for each seed",
    "latents": "start=",
    "latent": "start=",
    "prompt_embeds": "ltx.encode(prompt), or an EncodedPrompt of your own, as the prompt",
    "prompt_attention_mask": "an EncodedPrompt(embeddings, mask) as the prompt",
    "negative_prompt_embeds": "an EncodedPrompt(embeddings) as negative_prompt=",
    "negative_prompt_attention_mask": "an EncodedPrompt(embeddings, mask) as negative_prompt=",
    "max_sequence_length": "nothing: always 256 tokens, as in the training of the models",
    "adain_factor": "adain=",
    "teacache": "step_cache='careful', or 'fast'",
    "easycache": "step_cache='careful', or 'fast'",
    "cache_threshold": "step_cache=, a word or a number from 0 to 1",
    "tone_map_compression_ratio": "tone_map=",
    "cfg_star_rescale": "cfg_star=",
    "rescaling_scale": "stg_rescale=",
    "skip_block_list": "stg_blocks=",
    "skip_layers": "stg_blocks=",
    "skip_initial_inference_steps": "skip_initial_steps=",
    "skip_final_inference_steps": "skip_final_steps=",
    "stochastic_sampling": "sampler='stochastic'",
    "schedule": "timesteps= or sigmas=",
    "output_type": "clip.to_pil(), clip.to_numpy(), clip.to_tensor() or clip.latent of the result",
    "return_dict": "nothing: a clip comes back",
    "callback": "progress=",
    "callback_on_step_end": "progress=, which receives every step",
    "callback_on_step_end_tensor_inputs": "progress=, whose event has the current estimate as `denoised`",
    "attention_kwargs": "nothing: there are none",
    "loras": "ltx.loras = [ltxkit.LoRA(path, strength)]",
    "size": "width= and height=",
    "resolution": "width= and height=",
    "output_path": "clip.save(path)",
    "mask_image": "mask=",
}

RECIPE = {name: hint for name, hint in GENERATE.items() if re.fullmatch(r"\w+=", hint)}

CONDITION = {
    "image": "the frames as the first argument",
    "video": "the frames as the first argument",
    "path": "the path as the first argument",
    "frame_index": "frame=",
    "frame_idx": "frame=",
    "start_frame": "frame=",
    "index": "frame=",
    "media": "the frames as the first argument",
    "conditioning_strength": "strength=",
    "weight": "strength=",
}

MODELS = {  # attributes of what `load` returns
    "to": "ltxkit.load(..., device=...)",
    "cuda": "ltxkit.load(..., device='cuda')",
    "cpu": "ltxkit.load(..., device='cpu')",
    "half": "ltxkit.load(..., dtype=torch.float16)",
    "load_lora_weights": "ltx.loras = [ltxkit.LoRA(path, strength)]",
    "set_adapters": "ltx.loras = [ltxkit.LoRA(path, strength), ...]",
    "unload_lora_weights": "ltx.loras = []",
    "disable_lora": "ltx.loras = []",
    "delete_adapters": "ltx.loras = [] or those that stay",
    "fuse_lora": "nothing: a LoRA is applied while the transformer runs, and leaves its weights as they are",
    "unfuse_lora": "ltx.loras = []",
    "enable_model_cpu_offload": "nothing: one model at a time is on the device, and blocks are streamed where needed",
    "enable_sequential_cpu_offload": "ltxkit.load(..., resident_blocks=0)",
    "enable_group_offload": "ltxkit.load(..., resident_blocks=...)",
    "enable_vae_tiling": "nothing: decoding is cut to fit the memory; ltxkit.load(..., tile=...) says how",
    "enable_vae_slicing": "nothing: clips are decoded one by one, a few frames at a time",
    "enable_attention_slicing": "nothing: attention needs no memory for its scores",
    "enable_xformers_memory_efficient_attention": "nothing: attention is efficient already",
    "set_progress_bar_config": "progress=False in ltx.generate",
    "encode_prompt": "ltx.encode(prompt)",
    "save_pretrained": "ltxkit.convert(path, folder, 'diffusers')",
    "from_pretrained": "ltxkit.load(folder)",
    "scheduler": "timesteps=, sigmas= or steps= in ltx.generate",
    "tokenizer": "ltx.text_encoder.tokenizer",
    "pipe": "ltx.generate(prompt)",
    "sample": "ltx.generate(prompt)",
    "run": "ltx.generate(prompt)",
    "upsample": "ltxkit.load(..., upscaler=...), which makes two passes",
    "eval": "nothing: models are loaded for inference",
    "compile": "nothing: it is not supported",
    "enable_cache": "step_cache='careful' in ltx.generate",
}

CLIP = {  # attributes of a clip
    "images": "clip.to_pil()",
    "pil": "clip.to_pil()",
    "numpy": "clip.to_numpy()",
    "tensor": "clip.to_tensor()",
    "videos": "clip.to_tensor()",
    "video": "clip.to_tensor()",
    "latents": "clip.latent",
    "save_video": "clip.save(path)",
    "export": "clip.save(path)",
    "export_to_video": "clip.save(path)",
    "write": "clip.save(path)",
    "show": "the clip alone in the last line of a notebook's cell, or clip.save(path)",
    "shape": "clip.size",
    "seed": "clip.settings['seed']",
    "prompt": "clip.settings['prompt']",
    "metadata": "clip.settings",
}


def wrong_name(kind: str, name: str, where: str, hints: Mapping[str, str], known: tuple[str, ...]) -> WrongNameError:
    """The error for a name that does not exist. kind: "argument" or "attribute". known: the names that do."""
    if name in hints:
        return WrongNameError(f"got the {kind} {name} of {where}; expected a name of LTXKit; write {hints[name]}")
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return WrongNameError(f"got the {kind} {name} of {where}; expected a name that it has; {remedy}")


def hinted(hints: Mapping[str, str], where: str, also: Iterable[str] = ()) -> Callable[[_Called], _Called]:
    """A function, or the constructor of a class, that answers unknown keywords with a hint.

    where: its name in messages. also: names that its `**knobs` may have.

    Raises:
        WrongNameError: a keyword that the function does not have, or arguments that do not fit it.
    """

    def decorate(called: _Called) -> _Called:
        function: Any = called.__init__ if isinstance(called, type) else called
        signature = inspect.signature(function)
        bags = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        own = (name for name, each in signature.parameters.items() if name not in _RECEIVERS and each.kind not in bags)
        names = (*own, *also)

        @functools.wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name not in names:
                    raise wrong_name("argument", name, where, hints, names)
            try:
                signature.bind(*arguments, **keywords)
            except TypeError as error:
                raise WrongNameError(
                    f"got a call of {where} that does not fit ({error}); expected "
                    f"{where}({', '.join(_shown(signature))}); change it"
                ) from None
            return function(*arguments, **keywords)

        if isinstance(called, type):
            constructed: Any = called
            constructed.__init__ = checked
            return constructed
        return cast(_Called, checked)

    return decorate


def _shown(signature: inspect.Signature) -> list[str]:
    """The parameters without defaults, and dots for the others."""
    needed = [
        name
        for name, parameter in signature.parameters.items()
        if name not in _RECEIVERS
        and parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return [*needed, "..."]

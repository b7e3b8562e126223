"""A plugin for vLLM-Omni (0.30), whose server then makes LTX-Video's clips with LTXKit.

vLLM-Omni finds `register` by its entry point, and calls it in each of its processes. Of its model folders, LTXKit makes
those of diffusers' LTX-Video, and those whose `model_index.json` names `LTXKitPipeline`, see docs/serve.md. A request
goes the way of one to `ltxkit serve`: it is checked by `requests`, and made by `making`.
"""

# Nothing of vLLM-Omni is needed before it loads the plugin, and type checks run without it.
# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import json
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..ltx_core.errors import ConfigError, LTXKitError, reason_of
from ..ltx_core.progress import ProgressEvent
from ..ltx_core.values import shown
from .catalog import Catalog, Model
from .making import clip_of
from .requests import Limits, read_request

PIPELINE = "LTXKitPipeline"
ARCHITECTURES = (PIPELINE, "LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
"""What `_class_name` in a `model_index.json` may be; the last three are diffusers'."""

INDEX, SAID = "model_index.json", "ltxkit"
FILES = ("model", "text_encoder", "vae", "upscaler")
WORDS = ("version", "quantization", "text_quantization")

_LARGEST = Limits(pixels=10**12)  # whoever starts the server sets its limits there
_GENERIC_RATE = 24  # with which vLLM-Omni turns `seconds` into frames where a request has no rate

_ONE = (
    *("pipeline_parallel_size", "data_parallel_size", "tensor_parallel_size", "sequence_parallel_size"),
    *("ulysses_degree", "ring_degree", "allgather_degree", "cfg_parallel_size", "vae_patch_parallel_size"),
    "text_encoder_tp_size",
)
_OFF = (
    "use_hsdp",
    *("enable_cpu_offload", "enable_layerwise_offload", "enable_distributed_layerwise_offload"),
    *("diffusion_offload_config", "vae_use_slicing", "vae_use_tiling", "quantization_config", "lora_path"),
    *("cache_backend", "step_execution", "streaming_output", "enable_prompt_embed_cache"),
)
_NOT_TAKEN = (
    *("quality", "latents", "image_latent", "timesteps", "sigmas", "boundary_ratio", "guidance_rescale", "strength"),
    *("decode_timestep", "decode_noise_scale", "eta", "true_cfg_scale", "num_outputs_per_prompt", "lora_request"),
    *("enable_frame_interpolation", "prompt_template", "max_sequence_length", "extra_step_kwargs"),
    *("return_trajectory_latents", "return_trajectory_decoded"),
)
_OF_THE_SERVER = ("duration", "video_codec_options")  # parts of `extra_args` that it acts on itself


def register() -> None:
    """Tell vLLM-Omni which models LTXKit makes. It may be called again, and leaves others' models alone."""
    registry: Any = importlib.import_module("vllm_omni.diffusion.registry")
    metadata: Any = importlib.import_module("vllm_omni.diffusion.model_metadata")
    known = registry.DiffusionModelRegistry.get_supported_archs()
    for architecture in ARCHITECTURES:
        if architecture not in known:
            registry.register_diffusion_model(
                architecture, __name__, PIPELINE, post_process_func_name=post_process_func.__name__
            )
    # 0.30 has no other way to say that a pipeline from outside makes videos, without which it offers no /v1/videos.
    metadata._DIFFUSION_MODEL_METADATA.setdefault(PIPELINE, metadata.DiffusionModelMetadata(final_output_type="video"))


def post_process_func(od_config: Any) -> Any:  # noqa: ARG001
    """A function that makes arrays of what `LTXKitPipeline.forward` returns, in the process of the server."""

    def process(output: Mapping[str, Any]) -> dict[str, Any]:
        video: Tensor = output["payload"]["video"]
        return {"payload": {"video": video.cpu().numpy()}, "metadata": output["metadata"]}

    return process


class LTXKitPipeline(nn.Module):
    """LTXKit as vLLM-Omni calls a pipeline. The modules are no part of it: LTXKit places and streams them itself.

    od_config: an `OmniDiffusionConfig`. Its `dtype`, if it is not vLLM-Omni's own bfloat16, is that of all weights.
    prefix: of names of weights, which nothing here has.

    Raises:
        ConfigError: an option that LTXKit decides itself, or a folder that says nothing that can be loaded.
        CheckpointError: files that are no LTX-Video.
    """

    support_image_input = True
    supports_request_batch = False
    supports_request_cancellation = True
    dummy_run_num_frames = 9

    def __init__(self, *, od_config: Any, prefix: str = "") -> None:  # noqa: ARG002
        super().__init__()
        from ..ltx_core.pipelines.library import Components

        _check_options(od_config)
        self.od_config = od_config
        self.catalog = catalog_of(Path(od_config.model))
        distributed: Any = importlib.import_module("vllm_omni.diffusion.distributed.utils")
        self.device = torch.device(distributed.get_local_device())
        dtype = None if od_config.dtype is torch.bfloat16 else od_config.dtype
        with _own_defaults():
            files = self.catalog.model(None).files()
            self._ltx = (Components.load(**files, dtype=dtype, device=self.device, progress=False),)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:  # noqa: ARG002
        """The files were read when the pipeline was made, and none of its parameters is vLLM-Omni's to fill."""
        return set()

    def forward(self, batch: Any) -> Any:
        """A clip, as a `DiffusionOutput` with uint8 frames (1 f h w 3) and their rate.

        batch: a `DiffusionRequestBatch` of one request.

        Raises:
            OmniClientError: the request is wrong, or does not fit, which the server answers with status 400.
        """
        data: Any = importlib.import_module("vllm_omni.diffusion.data")
        errors: Any = importlib.import_module("vllm_omni.errors")
        (request,) = batch.requests
        (ltx,) = self._ltx
        with _own_defaults():
            try:
                wanted = read_request(said_of(request), self.catalog, _LARGEST, str(self.device))
                clip = clip_of(wanted, reference_of(request), ltx, self.catalog, progress=_until_cancelled)
                frames = torch.from_numpy(clip.to_numpy())[None].contiguous()
            except LTXKitError as error:
                raise errors.OmniClientError(str(error)) from error
        metadata = {"video": {"fps": float(wanted["fps"])}}
        return data.DiffusionOutput(output={"payload": {"video": frames}, "metadata": metadata})


def _until_cancelled(_: ProgressEvent) -> None:
    """Progress of a clip. Raises vLLM-Omni's DiffusionRequestAbortedError: its client has left."""
    cancellation: Any = importlib.import_module("vllm_omni.diffusion.cancellation")
    cancellation.check_request_cancellation()


@contextlib.contextmanager
def _own_defaults() -> Generator[None]:
    """torch's defaults, in place of those in which vLLM-Omni makes a pipeline: its device and its dtype."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


# --- settings ---------------------------------------------------------------------------------------------------------


def _check_options(od_config: Any) -> None:
    both = (od_config, od_config.parallel_config)
    given = [name for name in _OFF if any(getattr(each, name, None) not in (None, False, "none") for each in both)]
    given += [name for name in _ONE if getattr(od_config.parallel_config, name, None) not in (None, 1)]
    if given:
        raise ConfigError(
            f"got the options {', '.join(given)} for LTXKit; expected none of them, because it plans memory itself and "
            f"runs on one device; leave them out (quantization and LoRAs are named in {INDEX})"
        )


def catalog_of(folder: Path) -> Catalog:
    """What a model folder offers: its own files, or those that `ltxkit` in its `model_index.json` names.

    Paths are from the folder; what is no file there is left as it is, such as the name of a release.

    Raises:
        ConfigError: no such folder, or not of this form.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"got the model {shown(str(folder))}, whose {INDEX} cannot be read ({reason_of(error)}); expected a folder "
            "on this machine with one; download the model, or write it as docs/serve.md says"
        ) from error
    said = index.get(SAID, {}) if isinstance(index, dict) else None
    if not isinstance(said, dict):
        raise ConfigError(f"got {shown(said)} as {SAID!r} in {folder / INDEX}; expected a JSON object; correct it")
    known = (*FILES, *WORDS, "loras")
    for name, value in said.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise ConfigError(f"got {shown(name)} in {folder / INDEX}; expected {', '.join(known)}; {hint}")
        if not isinstance(value, dict if name == "loras" else str):
            expected = "an object of names and files" if name == "loras" else "text"
            raise ConfigError(f"got {name}={shown(value)} in {folder / INDEX}; expected {expected}; correct it")

    def found(value: str) -> str:
        return str(folder / value) if (folder / value).exists() else value

    files = {name: found(said[name]) for name in FILES if name in said}
    words = {name: said[name] for name in WORDS if name in said}
    model = Model(folder.name or SAID, **{"model": str(folder), **files, **words})
    loras = said.get("loras", {})
    if not all(isinstance(file, str) for file in loras.values()):
        raise ConfigError(f"got loras={shown(loras)} in {folder / INDEX}; expected names and files; correct it")
    return Catalog({model.name: model}, {name: found(file) for name, file in loras.items()})


# --- requests ---------------------------------------------------------------------------------------------------------


def said_of(request: Any) -> dict[str, Any]:
    """The fields of `requests.FIELDS` that an `OmniDiffusionRequest` says; what it does not say is the recipe's.

    Raises:
        ConfigError: it says something that LTXKit does not take.
    """
    asked, prompt = request.sampling_params, request.prompt
    fields = type(asked).__dataclass_fields__
    given = [name for name in _NOT_TAKEN if _is_said(getattr(asked, name), fields[name])]
    if asked.guidance_scale_2_provided:
        given.append("guidance_scale_2")
    if asked.output_type == "latent":
        given.append("output_type")
    if given:
        raise ConfigError(
            f"got {', '.join(given)}; expected what LTXKit takes: a prompt, size, frames, rate, steps, guidance_scale, "
            "seed and negative_prompt; say everything else in extra_params"
        )
    said: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else prompt.get("prompt")}
    if not isinstance(prompt, str):
        said["negative_prompt"] = prompt.get("negative_prompt")
    if (asked.width is None) != (asked.height is None):
        raise ConfigError(f"got width={asked.width}, height={asked.height}; expected both or none; name the other")
    if asked.width is not None:
        said["size"] = f"{asked.width}x{asked.height}"
    said["fps"] = asked.resolved_frame_rate
    said["num_inference_steps"] = asked.num_inference_steps
    said["guidance_scale"] = asked.guidance_scale if asked.guidance_scale_provided else None
    said["seed"] = _seed(asked)
    extra = dict(asked.extra_args or {})
    if request.is_dummy_run():  # with settings of other models
        return {**said, "num_frames": asked.num_frames}
    seconds = extra.get("duration")
    if asked.num_frames not in (None, 1):  # 1 is what requests without a number have
        is_derived = seconds is not None and asked.num_frames == int(seconds * (said["fps"] or _GENERIC_RATE))
        said |= {"seconds": seconds} if is_derived else {"num_frames": asked.num_frames}
    elif seconds is not None:
        said["seconds"] = seconds
    if "lora" in extra:
        said["lora"] = extra.pop("lora")
    said["extra_params"] = {name: value for name, value in extra.items() if name not in _OF_THE_SERVER}
    return said


def _is_said(value: Any, field: dataclasses.Field[Any]) -> bool:
    """Whether a field of a dataclass has another value than its default."""
    if field.default is dataclasses.MISSING:
        return bool(value)  # of a list or dict
    return value is not field.default and (isinstance(value, Tensor) or value != field.default)


def _seed(asked: Any) -> int:
    if asked.seed is not None:
        return asked.seed
    generators = asked.generator if isinstance(asked.generator, list) else [asked.generator]
    if len(generators) != 1:
        raise ConfigError(f"got {len(generators)} generators; expected one, or a seed; name a seed")
    return generators[0].initial_seed()


def reference_of(request: Any) -> Any:
    """The picture or clip with which a request begins, as `Condition` takes it; None: there is none.

    Raises:
        ConfigError: several, or of another kind.
    """
    data = {} if isinstance(request.prompt, str) else request.prompt.get("multi_modal_data") or {}
    given = {name: value for name, value in data.items() if value is not None}
    picture = given.get("image")
    if isinstance(picture, list) and len(picture) == 1:
        (picture,) = picture
    if set(given) - {"image", "video"} or len(given) > 1 or isinstance(picture, list):
        raise ConfigError(
            f"got {', '.join(given)} as references; expected one picture or one clip, with which the result begins; "
            "leave the others out"
        )
    return picture if "image" in given else given.get("video")

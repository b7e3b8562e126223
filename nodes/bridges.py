"""Between our handles and ComfyUI's own: its MODEL, CLIP and VAE as ours, our model and VAE as its own.

The weights are shared: both sides have parameters of their own over the same storage. Beside `host.py` this is the only
file that knows ComfyUI; nothing on the way of our own nodes needs it, and where a core lacks what a bridge needs, that
bridge says so.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..ltx_core.config import CheckpointConfig, TransformerConfig
from ..ltx_core.errors import UnsupportedError
from ..ltx_core.models.text_encoder import TextEncoder
from ..ltx_core.models.transformer import LTXTransformer
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.placing.merging import unmerged
from ..ltx_core.releases import RELEASES
from ..ltx_core.shapes import ScaleFactors
from ..ltx_core.weights.adapters import Change, Factors, merged
from ..ltx_core.weights.build import Opened, open_tensors
from ..ltx_core.weights.bundled import T5_TOKENIZER
from ..ltx_core.weights.lora import WeightedLoRA, fit_lora
from ..ltx_core.weights.metadata import format_config
from ..ltx_core.weights.text_encoder import text_encoder_from
from . import sockets
from .host import host
from .patches import OURS, refuse, refuse_patches, refuse_quantized

_PREFIX = "diffusion_model."  # of a transformer's weights in a ModelPatcher
_CAUSAL = "causal_temporal_positioning"
_NATIVE_SCALE = ScaleFactors(8, 32, 32)  # what core's VAE nodes assume of LTXV (comfy/sd.py)
_NATIVE_CHANNELS = 128


def outside_comfyui() -> str | None:
    """Why there is nothing to connect with here; None in ComfyUI."""
    if "folder_paths" in sys.modules:
        return None
    return (
        "got a node that connects LTXKit with ComfyUI's own models, outside ComfyUI; expected LTXKit's nodes alone; "
        "run the graph in ComfyUI, or put LTXKit's own loaders and Sample in their place"
    )


def _core(name: str, *members: str) -> ModuleType:
    """A module of the ComfyUI that runs us. Raises UnsupportedError outside ComfyUI, or where this core lacks it."""
    outside = outside_comfyui()
    if outside is not None:
        raise UnsupportedError(outside)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise _lacking(name, error) from error
    missing = [member for member in members if not hasattr(module, member)]
    if missing:
        raise _lacking(name, f"no {', '.join(missing)}")
    return module


def _lacking(what: str, reason: object) -> UnsupportedError:
    return UnsupportedError(
        f"got a ComfyUI whose {what} is not as this node needs it ({reason}); expected one of the versions that LTXKit "
        "is tested with; use the nodes of one side only (all others of LTXKit work as before)"
    )


# ------------------------------------------------------------------------------------------------ ours to ComfyUI's


def to_native_model(handle: sockets.Model) -> Any:
    """ComfyUI's MODEL (a ModelPatcher over its own LTXV modules) with the weights of ours; our LoRAs as its patches.

    Handles of one transformer give clones of one MODEL: on the device its weights exist once.

    Raises:
        UnsupportedError: the weights are quantized, the architecture is one that this core does not have, or a LoRA
            has no form there.
    """
    transformer = handle.transformer
    refuse_quantized(transformer)
    host().release(transformer)  # the weights in main memory are shared, not copies of them on a device
    unmerged(transformer)  # nor, where ComfyUI was told to keep those, copies with LoRAs in them
    made = transformer.__dict__.get("_ltxkit_native")
    if made is None or made[0] != handle.scale:
        made = transformer.__dict__["_ltxkit_native"] = (handle.scale, _native_model(transformer, handle.scale))
    patcher = made[1].clone()
    for item in handle.loras:
        _patch(patcher, item, transformer)
    return patcher


def _native_model(transformer: LTXTransformer, scale: ScaleFactors, *, disable_dynamic: bool = False) -> Any:
    detection = _core("comfy.model_detection", "model_config_from_unet")
    management = _core("comfy.model_management", "unet_manual_cast", "get_torch_device", "unet_offload_device")
    patching = _core("comfy.model_patcher", "ModelPatcher")
    native_class = _core("comfy.ldm.lightricks.model", "LTXVModel").LTXVModel
    tensors = {name: tensor.detach() for name, tensor in transformer.state_dict().items()}
    section = json.loads(format_config(CheckpointConfig(transformer=transformer.config, vae=None, scheduler=None)))
    section["transformer"]["vae_scale_factors"] = list(scale)
    config = detection.model_config_from_unet(tensors, "", metadata={"config": json.dumps(section)})
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    cast = management.unet_manual_cast(transformer.dtype, load_device, config.supported_inference_dtypes)
    config.set_inference_dtype(transformer.dtype, cast)
    model = config.get_model(tensors, "", device=torch.device("meta"))  # no memory for weights that are replaced
    native = model.diffusion_model
    if type(native) is not native_class:
        raise _lacking("model detection", f"it takes an LTX-Video transformer for {type(native).__name__}")
    _check_computes(native, transformer.config)
    try:
        native.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise _lacking("LTXV model", error) from error
    left = [name for name, tensor in (*native.named_parameters(), *native.named_buffers()) if tensor.is_meta]
    if left:
        raise _lacking("LTXV model", f"it has weights of its own: {', '.join(left[:3])}")
    native.requires_grad_(False)
    model.device = torch.device("cpu")
    if torch.device(offload_device).type != "cpu":
        model.to(offload_device)
        model.device = offload_device
    dynamic = patching.ModelPatcher if disable_dynamic else getattr(patching, "CoreModelPatcher", patching.ModelPatcher)
    patcher = dynamic(model, load_device=load_device, offload_device=offload_device)

    def again(disable_dynamic: bool = False) -> Any:
        return _native_model(transformer, scale, disable_dynamic=disable_dynamic)

    # How newer cores make a MODEL without dynamic memory, or for another card.
    patcher.cached_patcher_init = (again, ())
    _share_after_unloading(patcher, native, tensors)
    return patcher


# Values of our config that core's module has as attributes, in the cores that do not fix them. Those that fix them have
# the values of every release, which `TransformerConfig.of_size` spells out too.
_CONFIGURABLE = ("positional_embedding_theta", "positional_embedding_max_pos", "timestep_scale_multiplier")


def _check_computes(native: nn.Module, config: TransformerConfig) -> None:
    """Raises UnsupportedError for values of the config with which this core would compute something else."""
    usual = TransformerConfig.of_size(
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        channels=config.in_channels,
        captions=config.caption_channels,
        causal=config.causal_temporal_positioning,
    )
    for name, value in asdict(config).items():
        fixed = value if name in _CONFIGURABLE and hasattr(native, name) else getattr(usual, name)
        if value != fixed:
            raise UnsupportedError(
                f"got a model with {name} = {value}; expected {fixed}, the only value in ComfyUI's own model; sample "
                "with LTXKit's nodes"
            )


def _share_after_unloading(patcher: Any, native: nn.Module, shared: Mapping[str, Tensor]) -> None:
    """Core moves weights by copying them: once it has unloaded the model, they are ours again instead of a copy."""
    events = _core("comfy.patcher_extension", "CallbacksMP").CallbacksMP
    shared_with = weakref.ref(native)

    def share(_: Any, unpatch_all: bool) -> None:
        module = shared_with()
        if not unpatch_all or module is None:
            return
        for name, parameter in module.named_parameters():
            original = shared.get(name)
            if (
                original is not None
                and not parameter.is_meta
                and parameter.device == original.device
                and (parameter.dtype, parameter.shape) == (original.dtype, original.shape)
            ):
                parameter.data = original

    patcher.remove_callbacks_with_key(events.ON_DETACH, OURS)
    patcher.add_callback_with_key(events.ON_DETACH, OURS, share)


def _patch(patcher: Any, item: WeightedLoRA, transformer: LTXTransformer) -> None:
    """Our LoRA as patches of core, which merges them while it samples: factors where it has nothing else for a weight,
    and otherwise what it makes of that weight, as a difference."""
    native = _core("comfy.lora", "load_lora")
    fit = fit_lora(item.lora, transformer, allow_partial=item.allow_partial)
    if not item.strength:
        return
    parameters = dict(transformer.named_parameters())
    for slot, changes in fit.changes.items():
        ours = f"{slot.module}.{slot.parameter}".removeprefix(".")
        factors = [part for change in changes for part in change.parts if isinstance(part, Factors)]
        if all(_is_low_rank(change) for change in changes):
            patches, strength = [_factors(ours, part) for part in factors], item.strength
        else:
            weight = parameters[ours].detach().float().cpu()
            difference = merged(weight, [(change, item.strength) for change in changes]) - weight
            patches, strength = [{f"{ours}.diff": difference}], 1.0
        for tensors in patches:
            key = f"{_PREFIX}{ours}"
            if key not in patcher.add_patches(native.load_lora(tensors, {ours: key}, log_missing=False), strength):
                raise UnsupportedError(
                    f"got {item.lora.path.name}, of which ComfyUI takes no patch for {key}; expected all; sample with "
                    "LTXKit's nodes"
                )


def _is_low_rank(change: Change) -> bool:
    """Whether factors are all that it adds, whatever the weight is."""
    others = (change.replacement, change.on_input, change.rotation, change.magnitude)
    return all(other is None for other in others) and all(isinstance(part, Factors) for part in change.parts)


def _factors(name: str, part: Factors) -> dict[str, Tensor]:
    """Low-rank factors in core's names. alpha: what core divides by the rank."""
    return {
        f"{name}.lora_up.weight": part.up,
        f"{name}.lora_down.weight": part.down,
        f"{name}.alpha": torch.tensor(part.scale * part.down.shape[0]),
    }


def to_native_vae(vae: VideoVAE) -> Any:
    """ComfyUI's VAE with the weights of ours, in their type, padding as ours does.

    Raises:
        UnsupportedError: a VAE of another scale or width than core's nodes and modules assume.
    """
    sd = _core("comfy.sd", "VAE")
    config = vae.config
    if config.scale_factors != _NATIVE_SCALE or config.latent_channels != _NATIVE_CHANNELS:
        raise UnsupportedError(
            f"got a VAE of {config.latent_channels} channels that scales by {tuple(config.scale_factors)}; expected "
            f"{_NATIVE_CHANNELS} and {tuple(_NATIVE_SCALE)}, the only one in ComfyUI; decode with LTXKit's nodes"
        )
    host().release(vae)
    tensors = {name: tensor.detach() for name, tensor in vae.state_dict().items()}
    metadata = {"config": format_config(CheckpointConfig(transformer=None, vae=config, scheduler=None))}
    dtype = next(vae.decoder.parameters()).dtype
    try:
        native = sd.VAE(sd=dict(tensors), metadata=metadata, dtype=dtype)
    except RuntimeError as error:  # sizes: some cores build one width only
        raise _lacking("VAE", str(error).splitlines()[-1].strip()) from error
    module = native.first_stage_model
    unknown = sorted(tensors.keys() - module.state_dict().keys())
    if unknown:
        raise _lacking("VAE", f"it has no {', '.join(unknown[:3])}")
    for name, parameter in module.named_parameters():
        if name in tensors and parameter.device == tensors[name].device:
            parameter.data = tensors[name]
    _share_after_unloading(native.patcher, module, tensors)
    return native


# ------------------------------------------------------------------------------------------------ ComfyUI's to ours


def from_native_model(model: Any, version: str | None, resident_blocks: int | None = None) -> sockets.Model:
    """Our handle of a native MODEL. Patched weights are merged into copies, all others are shared.

    version: the release, where the tensors do not show it.

    Raises:
        UnsupportedError: not an LTX-Video model of core's own class, patches other than of weights, or weights in a
            quantization of core's.
    """
    what = "MODEL"
    base = _core("comfy.model_base", "LTXV")
    native_class = _core("comfy.ldm.lightricks.model", "LTXVModel").LTXVModel
    inner: Any = getattr(model, "model", None)
    native: Any = getattr(inner, "diffusion_model", None)
    if not isinstance(inner, base.LTXV) or type(native) is not native_class:
        found = type(native if isinstance(inner, base.LTXV) else inner).__name__
        raise UnsupportedError(
            f"got a {what} of the class {found}; expected ComfyUI's LTXV, the LTX-Video models up to 0.9.8; load an "
            "LTX-Video checkpoint (LTX-2 and other families are not LTXKit's)"
        )
    refuse_patches(model, what)
    _unload(model)
    stated = _built_from(inner, native_class)
    scale = ScaleFactors(*stated.pop("vae_scale_factors"))
    tensors = _weights(model, _PREFIX, what)

    def opened(values: Mapping[str, Any]) -> Opened:
        metadata = {"config": json.dumps({"transformer": values})}
        return open_tensors(f"the {what} of ComfyUI", tensors, metadata, version=version)

    transformer, info = opened(stated).transformer(progress=host().progress())
    if _CAUSAL not in inner.model_config.unet_config:  # core's default says nothing about which release it is
        said = opened({name: value for name, value in stated.items() if name != _CAUSAL}).description
        info = replace(info, versions=said.versions, scheduler=said.scheduler())
        _say_positions(transformer.config, said.versions)
    _share_again(model, native, transformer)
    for note in info.notes:
        host().say(note)
    return sockets.Model(transformer, info, scale, resident_blocks=resident_blocks)


def from_native_text_encoder(clip: Any) -> TextEncoder:
    """Our text encoder of the T5 in a native CLIP, which may have been loaded for another model (Flux, SD3, ...).

    Raises:
        UnsupportedError: no T5 v1.1 in it, or a CLIP with hooks, a chosen layer or options of its tokenizer.
    """
    what = "CLIP"
    native_class = _core("comfy.text_encoders.t5", "T5").T5
    stage, patcher = getattr(clip, "cond_stage_model", None), getattr(clip, "patcher", None)
    if not isinstance(stage, nn.Module) or patcher is None:
        raise UnsupportedError(f"got {type(clip).__name__}; expected a {what}; connect Load CLIP")
    found = {name: module for name, module in stage.named_modules() if isinstance(module, native_class)}
    if len(found) != 1 or type(next(iter(found.values()))) is not native_class:
        inside = ", ".join(sorted({type(part).__name__ for part in stage.children()})) or type(stage).__name__
        raise UnsupportedError(
            f"got a {what} with {len(found)} T5 encoders ({inside}); expected one T5 v1.1 XXL; load "
            "t5xxl_fp16.safetensors (Load CLIP of type ltxv, or Load Text Encoder of LTXKit)"
        )
    ((prefix, native),) = found.items()
    refuse_patches(patcher, what, default=("manual_cast_dtype",))
    options = {
        "a layer (CLIP Set Last Layer)": clip.layer_idx is not None,
        "options of the tokenizer": bool(getattr(clip, "tokenizer_options", None)),
        "hooks": bool(getattr(clip, "apply_hooks_to_conds", None)) or bool(getattr(clip, "use_clip_schedule", None)),
    }
    refuse(what, [name for name, present in options.items() if present])
    _unload(patcher)
    opened = open_tensors(f"the {what} of ComfyUI", _weights(patcher, f"{prefix}.", what), {})
    encoder = text_encoder_from(opened, tokenizer=_tokenizer_of(clip), progress=host().progress())
    _share_again(patcher, native, encoder.model)
    return encoder


def _tokenizer_of(clip: Any) -> Path:
    """The file of the T5 tokenizer of a CLIP; where it shows none, that of the host, then that of the pack."""
    for name, part in vars(clip.tokenizer).items():
        folder = Path(str(getattr(getattr(part, "tokenizer", None), "name_or_path", "")))
        for file in (folder / "tokenizer.json", folder / "spiece.model"):
            if "t5" in name and file.is_file():
                return file
    return next(iter(host().tokenizers()), T5_TOKENIZER)


def from_native_vae(vae: Any) -> VideoVAE:
    """Our VAE of a native one, padding as that does.

    Raises:
        UnsupportedError: another VAE than that of LTX-Video, or patches other than of weights.
    """
    what = "VAE"
    autoencoder = _core("comfy.ldm.lightricks.vae.causal_video_autoencoder", "VideoVAE")
    native: Any = getattr(vae, "first_stage_model", None)
    if type(native) is not autoencoder.VideoVAE:
        raise UnsupportedError(
            f"got a {what} of the class {type(native).__name__}; expected ComfyUI's VAE of LTX-Video (VideoVAE); load "
            "the VAE of an LTX-Video checkpoint"
        )
    refuse_patches(vae.patcher, what)
    _unload(vae.patcher)
    encoder, decoder = native.encoder, native.decoder
    stated = {
        "latent_channels": encoder.latent_channels,
        "patch_size": encoder.patch_size,
        "norm_layer": encoder.norm_layer,
        "latent_log_var": encoder.latent_log_var,
        "encoder_blocks": encoder.blocks_desc,
        "decoder_blocks": decoder.blocks_desc,
        "causal_decoder": decoder.causal,
        "timestep_conditioning": native.timestep_conditioning,
        "spatial_padding_mode": _padding(decoder),
    }
    opened = open_tensors(
        f"the {what} of ComfyUI", _weights(vae.patcher, "", what), {"config": json.dumps({"vae": stated})}
    )
    ours = opened.vae(progress=host().progress())
    ours.pad_encoder(_padding(encoder))
    _share_again(vae.patcher, native, ours)
    return ours


def _padding(half: nn.Module) -> Any:
    """How the convolutions of core's encoder or decoder pad pictures."""
    modes = {part.padding_mode for part in half.modules() if isinstance(part, nn.Conv3d) and max(part.kernel_size) > 1}
    if len(modes) != 1:
        raise UnsupportedError(
            f"got a VAE of ComfyUI whose convolutions pad in {len(modes)} ways ({', '.join(sorted(modes))}); expected "
            "one; decode with ComfyUI's nodes"
        )
    return modes.pop()


def _built_from(inner: Any, native_class: type[nn.Module]) -> dict[str, Any]:
    """The values that core's transformer was built with, of those that change what it computes.

    Raises:
        UnsupportedError: one that only later models of the family have.
    """
    given: Mapping[str, Any] = inner.model_config.unet_config
    parameters = inspect.signature(native_class.__init__).parameters
    defaults = {
        name: value.default for name, value in parameters.items() if value.default is not inspect.Parameter.empty
    }
    values = {**defaults, **given}
    technical = ("dtype", "device", "operations", "image_model")
    strange = sorted(
        name for name, default in defaults.items() if name not in (*_FIELDS, *technical) and values[name] != default
    )
    if strange:
        raise UnsupportedError(
            f"got a MODEL with {', '.join(f'{name} = {values[name]}' for name in strange)}; expected a model up to "
            "0.9.8, which has none of these; load another checkpoint"
        )
    known = {name: values[name] for name in (*_FIELDS, *_LATER) if name in values}
    usual = TransformerConfig.of_size(layers=1, heads=1, head_dim=2, channels=1, captions=1)
    # Core ignores what its signature does not have.
    fixed = {"norm_eps": usual.norm_eps, "timestep_scale_multiplier": usual.timestep_scale_multiplier}
    for name, value in fixed.items():
        known[name] = known[name] if name in parameters else value
    return {**known, "out_channels": inner.diffusion_model.out_channels}


_FIELDS = (
    "in_channels",
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "cross_attention_dim",
    "caption_channels",
    "positional_embedding_theta",
    "positional_embedding_max_pos",
    "timestep_scale_multiplier",
    _CAUSAL,
    "vae_scale_factors",
)
# Of later models; refused on reading unless they have the values of these.
_LATER = ("frequencies_precision", "rope_type", "use_middle_indices_grid")


def _say_positions(config: TransformerConfig, versions: tuple[str, ...]) -> None:
    """Tell the user where core's default is not what a release was trained with: it is kept."""
    causal = config.causal_temporal_positioning
    others = [name for name in versions if RELEASES[name].causal_temporal_positioning != causal]
    if others:
        host().say(
            f"The file did not say {_CAUSAL} to ComfyUI, which then takes {causal}, and so does this model. "
            f"{', '.join(others)}: trained with {not causal}, as Load Model (LTXKit) has it."
        )


# ------------------------------------------------------------------------------------------------ weights


def _unload(patcher: Any) -> None:
    """Bring the weights of a patcher and its clones back to main memory, unpatched."""
    management = _core("comfy.model_management", "current_loaded_models")
    for loaded in list(management.current_loaded_models):
        other = loaded.model
        if other is not None and other.model is patcher.model:
            loaded.model_unload()
            management.current_loaded_models.remove(loaded)
    patcher.detach()


def _weights(patcher: Any, prefix: str, what: str) -> dict[str, Tensor]:
    """The weights under a prefix, without it; patched ones as copies with the patches merged.

    Raises:
        UnsupportedError: patches of weights that are not plain floating-point numbers.
    """
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in patcher.model.state_dict(keep_vars=True).items()
        if name.startswith(prefix)
    }
    for key, patches in patcher.patches.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name not in tensors or not patches:
            continue  # of another part, such as the CLIP-L beside a T5
        tensor = tensors[name]
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype.itemsize < 2:
            raise UnsupportedError(
                f"got a {what} with a LoRA on quantized weights ({name}); expected the LoRA on plain ones; connect the "
                f"{what} from before it, and LoRA (LTXKit) after this node"
            )
        merged = _core("comfy.lora", "calculate_weight").calculate_weight(patches, tensor.float().clone(), key)
        tensors[name] = merged.to(tensor.dtype)
    merged = [key for key, patches in patcher.patches.items() if key.startswith(prefix) and patches]
    if merged:
        size = sum(tensors[key.removeprefix(prefix)].nbytes for key in merged if key.removeprefix(prefix) in tensors)
        host().say(f"{len(merged)} patched weights of the {what} merged into copies ({size / 1e9:.2f} GB).")
    return tensors


def _share_again(patcher: Any, native: nn.Module, ours: nn.Module) -> None:
    """After core has unloaded its model, it takes the weights from ours, as long as that exists."""
    theirs = {name: parameter.data_ptr() for name, parameter in native.named_parameters()}
    originals = {name: tensor for name, tensor in ours.state_dict().items() if theirs.get(name) == tensor.data_ptr()}
    _share_after_unloading(patcher, native, originals)

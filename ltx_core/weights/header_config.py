"""Where the config is in a file's header: as Lightricks writes it, or as other programs do.

The official files keep one JSON string under `config`; an upscaler's is flat, the others have one object per part.
Other programs write it in base64 under `config_base64`, one part alone, in diffusers' names, or under a key of their
own. What the values mean is said in `metadata`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, cast

from ..errors import CheckpointError
from .headers import parse_json
from .layer_formats import ENTRY as LAYER_FORMATS

# Where the config is expected: an error in it is fatal. mmgp (WanGP) writes base64 (deepbeepmeep/mmgp safetensors2.py).
_CONFIG_KEYS = ("config", "config_base64")
# Which release the file is, as `ltxkit convert --version` was told.
RELEASE_KEY = "ltxkit_version"
DESCRIPTIONS = ("modelspec.", "ltxkit_")  # of what a file is for, who made it and how: nothing is read from them

ALLOWED_STEPS = "allowed_inference_steps"
# What shows that an object is the config of one part alone: its class, or keys that no other part has together.
PART_SIGNS: Mapping[str, tuple[frozenset[str], tuple[frozenset[str], ...]]] = {
    "transformer": (
        frozenset(("Transformer3DModel", "LTXVideoTransformer3DModel")),
        (frozenset(("num_layers", "num_attention_heads")),),
    ),
    "vae": (
        frozenset(("CausalVideoAutoencoder", "AutoencoderKLLTXVideo")),
        (
            frozenset(("latent_channels", "decoder_blocks")),
            frozenset(("latent_channels", "blocks")),
            frozenset(("latent_channels", "block_out_channels")),
        ),
    ),
    "scheduler": (
        frozenset(("RectifiedFlowScheduler", "FlowMatchEulerDiscreteScheduler")),
        (frozenset(("num_train_timesteps", "sampler")), frozenset(("num_train_timesteps", "use_dynamic_shifting"))),
    ),
    "upscaler": (
        frozenset(("LatentUpsampler", "LTXLatentUpsamplerModel")),
        (frozenset(("mid_channels", "num_blocks_per_stage")),),
    ),
}
_SECTION_NAMES = {**{name: name for name in PART_SIGNS}, "latent_upsampler": "upscaler"}


def sections_in(metadata: Mapping[str, str], *, upscaler: bool) -> tuple[dict[str, object], list[str]]:
    """The config of each part ("transformer", "vae", "scheduler", "upscaler") by its name, and the other keys.

    A key that is not the usual one counts where its content is the config of a part that no key before it describes.

    Raises:
        CheckpointError: `config` or `config_base64` is not a JSON object.
    """
    sections: dict[str, object] = {}
    unknown: list[str] = []
    for key in sorted(metadata, key=_by_precedence):
        config = _config_at(metadata, key) or {}
        entries = _sections_of(config)
        if config and not entries and key in _CONFIG_KEYS:
            entries = {"upscaler": config} if upscaler else config
        fresh = {name: value for name, value in entries.items() if name not in sections}
        sections |= fresh
        said = key in (*_CONFIG_KEYS, RELEASE_KEY, LAYER_FORMATS, "format") or key.startswith(DESCRIPTIONS)
        if not fresh and not said:
            unknown.append(key)
    return sections, unknown


def _by_precedence(key: str) -> int:
    return _CONFIG_KEYS.index(key) if key in _CONFIG_KEYS else len(_CONFIG_KEYS)


def _config_at(metadata: Mapping[str, str], key: str) -> dict[str, Any] | None:
    """The JSON object under a key of the header; None: there is none, and none is expected."""
    text = metadata[key]
    try:
        if key.endswith("_base64"):
            text = base64.b64decode(text, validate=True).decode("utf-8")
        elif key not in _CONFIG_KEYS and key != ALLOWED_STEPS and not text.lstrip().startswith("{"):
            return None
        config: Any = parse_json(text, f"metadata whose `{key}`")
    except (ValueError, CheckpointError) as error:
        if key not in _CONFIG_KEYS:
            return None
        raise CheckpointError(
            f"got metadata whose `{key}` is not JSON ({error}); expected a JSON object; download the file again"
        ) from error
    if key == ALLOWED_STEPS:
        return {key: config}
    if isinstance(config, dict):
        return cast("dict[str, Any]", config)
    if key in _CONFIG_KEYS:
        raise CheckpointError(
            f"got metadata whose `{key}` is {text[:40]!r}; expected a JSON object; download the file again"
        )
    return None


def _sections_of(config: Mapping[str, Any]) -> Mapping[str, object]:
    """The parts that a JSON object describes, with what else it has beside them; empty where it describes none."""
    alone = _part_of(config)
    if alone is not None:
        return {alone: config}
    sections: dict[str, object] = {}
    for name in sorted(config, key=lambda name: name not in _SECTION_NAMES):
        part = _SECTION_NAMES.get(name) or _part_of(config[name]) or name
        sections[part if part not in sections else name] = config[name]
    known = any(isinstance(sections.get(part), dict) for part in PART_SIGNS)
    return sections if known or ALLOWED_STEPS in config else {}


def _part_of(config: object) -> str | None:
    """The part that an object describes all by itself."""
    if not isinstance(config, dict):
        return None
    entries = cast("dict[str, Any]", config)
    for name, (classes, key_sets) in PART_SIGNS.items():
        if str(entries.get("_class_name")) in classes or any(keys <= entries.keys() for keys in key_sets):
            return name
    return None


def is_from_diffusers(name: str, entries: Mapping[str, Any]) -> bool:
    """Whether one part's config has the class or the keys that diffusers writes."""
    if name == "scheduler":
        return "use_dynamic_shifting" in entries
    classes = ("LTXVideoTransformer3DModel", "AutoencoderKLLTXVideo")
    across_heads = entries.get("qk_norm") == "rms_norm_across_heads"
    own_keys = across_heads or "patch_size_t" in entries or "block_out_channels" in entries
    return name in ("transformer", "vae") and (entries.get("_class_name") in classes or own_keys)


def shared_blocks(entries: dict[str, Any]) -> dict[str, Any]:
    """0.9.0 has a single list `blocks` for encoder and decoder."""
    if "blocks" not in entries:
        return entries
    rest = {key: value for key, value in entries.items() if key != "blocks"}
    return {"encoder_blocks": entries["blocks"], "decoder_blocks": entries["blocks"], **rest}


def is_official_form(text: str) -> bool:
    """Whether the text is a `config` as Lightricks writes it, which other programs can read too."""
    config = _object_in(text)
    return any(isinstance(config.get(name), dict) for name in ("transformer", "vae"))


def completed_config(own: str, text: str) -> str:
    """A file's own `config`, with the values of `text` (by `metadata.format_config`) where it says nothing."""
    ours, theirs = _object_in(text), _object_in(own)
    if not is_official_form(own):
        return text
    for name, entries in ours.items():
        said = theirs.get(name)
        if not isinstance(said, dict) or not isinstance(entries, dict):
            theirs[name] = said or entries
        elif is_from_diffusers(name, said := cast("dict[str, Any]", said)):
            theirs[name] = entries
        else:
            theirs[name] = {**entries, **shared_blocks(said)}
    return json.dumps(theirs)


def _object_in(text: str) -> dict[str, Any]:
    """The JSON object of a text; an empty one where it is none."""
    try:
        config: Any = parse_json(text, "a config")
    except CheckpointError:
        return {}
    return cast("dict[str, Any]", config) if isinstance(config, dict) else {}

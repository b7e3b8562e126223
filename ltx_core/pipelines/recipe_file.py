"""Recipes in files: LTXKit's own YAML or JSON, and the YAML of Lightricks' inference.py.

Ours has the fields of `Overrides`, those of `PassSettings` under `first` and `second`, and beside them `width`,
`height`, `frames`, `fps` and `negative_prompt`; a clip's metadata has the former under "settings". Theirs is recognised
from its keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import ConfigError, UnsupportedError, reason_of
from ..files import parse_yaml
from ..releases import DOWNSCALE_FACTOR
from ..sampling.guidance import Guidance
from ..values import check_frame_rate, check_kind, check_number, check_text, check_whole, shown
from .settings import NO_OVERRIDES, Overrides, PassSettings

_T = TypeVar("_T")

_PASSES = ("first", "second")
_RUN = ("width", "height", "frames", "fps", "negative_prompt")

# --- keys of Lightricks/LTX-Video, configs/*.yaml and inference.py ---
_OF_PASS = (
    *("guidance_scale", "stg_scale", "rescaling_scale", "skip_block_list", "guidance_timesteps", "cfg_star_rescale"),
    *("num_inference_steps", "timesteps", "skip_initial_inference_steps", "skip_final_inference_steps"),
    "tone_map_compression_ratio",
)
_OF_RUN = ("stg_mode", "decode_timestep", "decode_noise_scale", "stochastic_sampling", "downscale_factor")
_DEFAULTS = ("height", "width", "num_frames", "frame_rate", "negative_prompt", "image_cond_noise_scale")
_ELSEWHERE = (  # names of files, number formats, the prompt enhancer: nothing that a recipe decides here
    *("pipeline_type", "checkpoint_path", "spatial_upscaler_model_path", "text_encoder_model_name_or_path"),
    *("precision", "sampler", "first_pass", "second_pass", "prompt_enhancement_words_threshold"),
    *("prompt_enhancer_image_caption_model_name_or_path", "prompt_enhancer_llm_model_name_or_path"),
)
_THEIRS = {*_OF_PASS, *_OF_RUN, *_ELSEWHERE}
_OURS = {*_PASSES, *(field.name for field in dataclasses.fields(Overrides)), *_RUN}


@dataclass(frozen=True)
class RecipeFile:
    """The content of a recipe's file; None where it says nothing.

    passes: 2 where it is made for two passes, 1 for one; None: for either. model, upscaler: the names of files.
    """

    overrides: Overrides = NO_OVERRIDES
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    negative_prompt: str | None = None
    passes: int | None = None
    model: str | None = None
    upscaler: str | None = None

    def __post_init__(self) -> None:
        for name in ("width", "height", "frames"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, advice="change the value")
        if self.fps is not None:
            check_frame_rate("fps", self.fps)
        for name in ("negative_prompt", "model", "upscaler"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))


def read_recipe(path: Path) -> RecipeFile:
    """The recipe in a file.

    Raises:
        ConfigError: the file cannot be read, has a key that does not exist, or a value that cannot be.
        UnsupportedError: YAML without PyYAML, or something of Lightricks' that LTXKit does not do.
    """
    tree = _tree(path)
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"got {path}, which holds {shown(tree)}; expected keys and their values; correct it")
    tree = cast(Mapping[str, Any], tree)
    try:
        return _theirs(tree) if _is_theirs(tree) else _ours(tree)
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from error


def _tree(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"got the recipe {path}, which cannot be read ({reason_of(error)}); expected YAML; correct it"
        ) from error
    try:
        return parse_yaml(text)
    except ImportError as error:
        raise UnsupportedError(
            "got no PyYAML; expected it to read a recipe; do pip install pyyaml, or write the recipe as JSON"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"got {path}, which is not YAML ({error}); expected a recipe; correct it") from error


def _is_theirs(tree: Mapping[str, Any]) -> bool:
    only_theirs = _THEIRS - _OURS
    return any(key in only_theirs for key in tree)


def _check_keys(keys: Iterable[str], known: Iterable[str], where: str = "") -> None:
    known = sorted(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)[0]
            raise ConfigError(
                f"got the key {shown(where + str(key))}; expected one of {', '.join(known)}; did you mean {near}?"
            )


# --- ours -------------------------------------------------------------------------------------------------------------


def _ours(tree: Mapping[str, Any]) -> RecipeFile:
    _check_keys(tree, _OURS)
    passes = {name: _our_pass(tree[name], name) for name in _PASSES if tree.get(name) is not None}
    run = {field.name: tree[field.name] for field in dataclasses.fields(Overrides) if field.name in tree}
    overrides = _built(Overrides, {**run, **passes})
    return _built(RecipeFile, {"overrides": overrides, **{name: tree.get(name) for name in _RUN}})


def _our_pass(values: Any, name: str) -> PassSettings:
    check_kind(name, values, dict)
    _check_keys(values, (field.name for field in dataclasses.fields(PassSettings)), f"{name}.")
    given = {key: _tuples(value) for key, value in values.items()}
    if given.get("step_cache") is False:  # YAML reads the word off so
        given["step_cache"] = "off"
    if isinstance(given.get("guidance"), dict):
        guidance = given["guidance"]
        _check_keys(guidance, (field.name for field in dataclasses.fields(Guidance)), f"{name}.guidance.")
        given["guidance"] = _guidance(guidance)
    return _built(PassSettings, given)


def _guidance(values: Mapping[str, Any]) -> Guidance:
    lists = ("scale", "stg_scale", "rescaling_scale")
    given = {key: _list(value) if key in lists else _tuples(value) for key, value in values.items()}
    if "skip_blocks" in given:
        given["skip_blocks"] = _blocks(values["skip_blocks"])
    return _built(Guidance, {key: value for key, value in given.items() if value is not None})


# --- Lightricks' ------------------------------------------------------------------------------------------------------


def _theirs(tree: Mapping[str, Any]) -> RecipeFile:
    _check_keys(tree, (*_THEIRS, *_DEFAULTS))
    kind = tree.get("pipeline_type", "multi-scale" if "first_pass" in tree else "base")
    if kind not in ("base", "multi-scale"):
        raise ConfigError(f"got pipeline_type {shown(kind)}; expected base or multi-scale; change it")
    two = kind == "multi-scale"
    factor = tree.get("downscale_factor", DOWNSCALE_FACTOR)
    check_number("downscale_factor", factor, 0, 1, above=0, advice=f"the official value is {DOWNSCALE_FACTOR}")
    if abs(factor - DOWNSCALE_FACTOR) > 1e-4:
        raise UnsupportedError(
            f"got downscale_factor {factor}; expected {DOWNSCALE_FACTOR}, that of every released recipe; change it"
        )
    mode = tree.get("stg_mode", "attention_values")
    sections = [tree.get("first_pass"), tree.get("second_pass")] if two else [tree]
    for section, name in zip(sections, ("first_pass", "second_pass"), strict=False):
        check_kind(name, section, dict)
        if two:
            _check_keys(cast(dict[str, Any], section), _OF_PASS, f"{name}.")
    passes = [_their_pass(cast(Mapping[str, Any], section), mode) for section in sections]
    last = cast(Mapping[str, Any], sections[-1])
    overrides = _built(
        Overrides,
        {
            **dict(zip(_PASSES, passes, strict=False)),
            "sampler": "stochastic" if tree.get("stochastic_sampling") else "euler",
            "condition_noise": tree.get("image_cond_noise_scale"),
            "decode_timestep": tree.get("decode_timestep"),
            "decode_noise_scale": tree.get("decode_noise_scale"),
            "tone_map": last.get("tone_map_compression_ratio"),
        },
    )
    return RecipeFile(
        overrides,
        tree.get("width"),
        tree.get("height"),
        tree.get("num_frames"),
        tree.get("frame_rate"),
        tree.get("negative_prompt"),
        2 if two else 1,
        tree.get("checkpoint_path"),
        tree.get("spatial_upscaler_model_path"),
    )


def _their_pass(values: Mapping[str, Any], mode: str) -> PassSettings:
    guidance = _guidance(
        {
            "scale": values.get("guidance_scale", 1),
            "stg_scale": values.get("stg_scale", 0),
            "rescaling_scale": values.get("rescaling_scale", 1),
            "skip_blocks": values.get("skip_block_list") or [],
            "guidance_timesteps": values.get("guidance_timesteps"),
            "stg_mode": mode,
            "cfg_star": bool(values.get("cfg_star_rescale", False)),
        }
    )
    initial, final = (values.get(f"skip_{end}_inference_steps") for end in ("initial", "final"))
    if values.get("timesteps") is not None:
        levels = _list(values["timesteps"])
        for name, count in (("skip_initial_inference_steps", initial), ("skip_final_inference_steps", final)):
            check_whole(name, count or 0, 0, len(levels) - 1, advice="leave a step")
        return _built(PassSettings, {"sigmas": levels[initial or 0 : len(levels) - (final or 0)], "guidance": guidance})
    said = {"steps": values.get("num_inference_steps"), "skip_initial_steps": initial, "skip_final_steps": final}
    return _built(PassSettings, {**said, "guidance": guidance})


# --- values -----------------------------------------------------------------------------------------------------------


def _built(kind: Callable[..., _T], values: Mapping[str, Any]) -> _T:
    """A value of these fields; what its own checks do not expect from YAML, such as text for a list, is refused too."""
    try:
        return kind(**values)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, (ConfigError, UnsupportedError)):
            raise
        given = ", ".join(f"{key}={shown(value)}" for key, value in values.items() if value is not None)
        raise ConfigError(f"got {given}; expected numbers and lists of numbers ({error}); change the values") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _list(value: Any) -> tuple[Any, ...]:
    return _tuples(value) if isinstance(value, list) else (value,)


def _blocks(value: Any) -> tuple[tuple[Any, ...], ...]:
    """One list of blocks, or one for each entry."""
    lists = _list(value)
    return cast(
        tuple[tuple[Any, ...], ...],
        lists if lists and all(isinstance(item, tuple) for item in lists) else (lists,),
    )

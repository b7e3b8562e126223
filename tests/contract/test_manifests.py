"""Every released file holds exactly the tensors of the models that we build (data: tests/data/manifests)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.ltx_core.config import TextEncoderConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.text_encoder import build_t5
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.releases import RELEASES, UPSCALERS
from ltxkit.ltx_core.weights.containers import Checkpoint, TensorInfo
from ltxkit.ltx_core.weights.infer import Description, describe
from ltxkit.ltx_core.weights.layouts import (
    TRANSFORMER_FROM_DIFFUSERS,
    UNUSED_TENSORS,
    KeyMap,
    detect_layout,
    vae_from_diffusers,
)

DATA = Path(__file__).parents[1] / "data" / "manifests"
_STORED: dict[str, Any] = json.loads((DATA / "variants.json").read_text(encoding="utf-8"))
VARIANTS: dict[str, dict[str, Any]] = {
    name: _STORED[entry] if isinstance(entry, str) else entry for name, entry in _STORED.items()
}
MODELS = [name for name in VARIANTS if name in RELEASES]
BUILDERS = {"transformer": LTXTransformer, "vae": VideoVAE, "upscaler": LatentUpsampler}


@cache
def manifest(variant: str, layout: str) -> dict[str, list[int]]:
    merged: dict[str, list[int]] = {}
    for part in VARIANTS[variant]["parts"]:
        merged |= json.loads((DATA / f"{part}.{layout}.json").read_text(encoding="utf-8"))
    return merged


def header(shapes: Mapping[str, list[int]], config: str = "", configs: Mapping[str, Any] | None = None) -> Checkpoint:
    """A checkpoint of these tensors whose data must never be read."""
    tensors = {name: TensorInfo(tuple(shape), "BF16", 0, 0) for name, shape in shapes.items()}
    metadata = {"config": config} if config else {}
    container = "safetensors" if configs is None else "folder"
    return Checkpoint(
        Path("released"), container, metadata, configs or {}, tensors, (), lambda key: pytest.fail(f"read {key}")
    )


@cache
def described(checkpoint: Checkpoint, version: str | None = None) -> Description:
    return describe(checkpoint, detect_layout(checkpoint.tensors), version)


@cache
def single_file(variant: str, *, metadata: bool) -> Checkpoint:
    config = VARIANTS[variant]["config"]
    text = json.dumps(config.get("upscaler", config)) if metadata else ""
    return header(manifest(variant, "single_file"), text)


@cache
def diffusers_folder(variant: str) -> Checkpoint:
    return header(manifest(variant, "diffusers"), configs=VARIANTS[variant].get("diffusers", {}))


@cache
def built(part: str, config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return BUILDERS[part](config)


def on_meta(part: str, config: Any) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in built(part, config).state_dict().items()}


def test_the_data_knows_every_release() -> None:
    assert {*RELEASES, *(name for names in UPSCALERS.values() for name in names)} == set(VARIANTS)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_models_on_meta_have_the_tensors_of_the_released_files(variant: str) -> None:
    description = described(single_file(variant, metadata=True))
    unused, count = 0, 0
    models: dict[str, dict[str, list[int]]] = {}
    for layout in ("single_file", "diffusers"):
        expected = manifest(variant, layout)
        for part in detect_layout(expected).parts.values():
            if part.name not in models:
                models[part.name] = on_meta(part.name, getattr(description, part.name)())
            needed = {ours: expected[theirs] for ours, theirs in part.keys.items() if ours not in UNUSED_TENSORS}
            assert models[part.name] == needed, (layout, part.name)
            unused += len(part.keys) - len(needed)
            count += len(part.keys)
        assert detect_layout(expected).rest == ()
    assert count == len(manifest(variant, "single_file")) + len(manifest(variant, "diffusers"))
    assert unused == (0 if "upscaler" in models else len(UNUSED_TENSORS))


@pytest.mark.parametrize("variant", MODELS)
def test_our_names_become_exactly_those_of_a_diffusers_folder(variant: str) -> None:
    """The maps are one-to-one, and the VAE's can be derived from our names as well as from the official ones."""
    description = described(single_file(variant, metadata=True))
    vae = on_meta("vae", description.vae())
    maps: dict[str, tuple[dict[str, list[int]], KeyMap]] = {
        "transformer": (on_meta("transformer", description.transformer()), TRANSFORMER_FROM_DIFFUSERS.inverse()),
        "vae": (vae, vae_from_diffusers(vae).inverse()),
    }
    renamed = {
        f"{part}/{key_map.rename(name)}": shape
        for part, (shapes, key_map) in maps.items()
        for name, shape in shapes.items()
    }
    assert renamed == manifest(variant, "diffusers")
    for shapes, key_map in maps.values():
        assert [key_map.inverse().rename(str(key_map.rename(name))) for name in shapes] == list(shapes)


@pytest.mark.parametrize("variant", MODELS)
def test_metadata_shapes_and_diffusers_configs_give_one_architecture(variant: str) -> None:
    stated = described(single_file(variant, metadata=True))
    from_shapes = described(single_file(variant, metadata=False))
    from_folder = described(diffusers_folder(variant))
    asked = described(single_file(variant, metadata=False), version=variant)
    for other in (from_shapes, from_folder, asked):
        assert other.transformer() == stated.transformer()
        assert other.vae() == stated.vae()
    assert asked.scheduler() == stated.scheduler()
    for description in (stated, from_shapes, from_folder, asked):
        assert variant in description.versions
        assert description.unknown == ()
    # Without metadata dev and distilled look alike: both remain candidates, and the allowed steps remain unknown.
    distilled = {RELEASES[name].distilled for name in from_shapes.versions}
    assert (len(distilled) == 2) == ("scheduler.allowed_inference_steps" in from_shapes.missing)
    assert {item.origin for item in from_shapes.values.values()} <= {"shapes", "version default"}
    assert asked.values["transformer.causal_temporal_positioning"].origin == "given"


@pytest.mark.parametrize("variant", MODELS)
def test_a_transformer_alone_without_metadata_is_asked_about_where_versions_differ(variant: str) -> None:
    shapes = {name: shape for name, shape in manifest(variant, "single_file").items() if not name.startswith("vae.")}
    alone = described(header(shapes))
    expected = described(single_file(variant, metadata=True)).transformer()
    if variant.startswith("13b"):  # every 13B uses causal positions
        assert alone.transformer() == expected
    else:
        with pytest.raises(
            ConfigError, match=r"causal_temporal_positioning.*pass version=, one of 2b-0\.9\.0, 2b-0\.9\.1"
        ):
            alone.transformer()
    assert described(header(shapes), version=variant).transformer() == expected


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_transformers_saved_by_comfyui_are_recognised(prefix: str) -> None:
    official = manifest("13b-0.9.8-dev", "single_file")
    stripped = {
        name.replace("model.diffusion_model.", prefix): shape for name, shape in official.items() if name[:4] != "vae."
    }
    layout = detect_layout(stripped)
    assert (layout.kind, layout.parts["transformer"].prefix, layout.rest) == ("transformer", prefix, ())
    vae = {name.removeprefix("vae."): shape for name, shape in official.items() if name.startswith("vae.")}
    layout = detect_layout(vae)
    assert (layout.kind, layout.parts["vae"].prefix, layout.rest) == ("vae", "", ())


@pytest.mark.parametrize(("variant", "version"), [(name, name) for name in MODELS if name in ("2b-0.9.0", "2b-0.9.1")])
def test_versions_with_a_vae_of_their_own_are_recognised(variant: str, version: str) -> None:
    assert described(single_file(variant, metadata=False)).versions == (version,)


@pytest.mark.parametrize(
    ("kind", "versions"), [("spatial-0.9.8", UPSCALERS[True, False]), ("temporal-0.9.7", UPSCALERS[False, True])]
)
def test_upscalers_need_no_metadata(kind: str, versions: tuple[str, ...]) -> None:
    bare = described(single_file(kind, metadata=False))
    assert bare.upscaler() == described(single_file(kind, metadata=True)).upscaler()
    assert bare.versions == versions


def test_t5_on_meta_has_the_tensors_of_the_released_encoder() -> None:
    t5 = json.loads((DATA / "t5xxl.json").read_text(encoding="utf-8"))
    fields = TextEncoderConfig.__dataclass_fields__
    model = build_t5(TextEncoderConfig(**{name: value for name, value in t5["config"].items() if name in fields}))
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == t5["transformers"]
    assert detect_layout(t5["transformers"]).kind == "text_encoder"
    assert detect_layout(t5["comfyui_single_file"]).kind == "text_encoder"


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_are_the_published_ones(variant: str) -> None:
    description = described(single_file(variant, metadata=True))
    counts = VARIANTS[variant]["parameters"]
    expected = (
        {"upscaler": counts}
        if isinstance(counts, int)
        else {"transformer": counts["transformer"], "vae": counts["vae_total"]}
    )
    for part, count in expected.items():
        model = built(part, getattr(description, part)())
        assert sum(parameter.numel() for parameter in model.parameters()) == count

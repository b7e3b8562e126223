"""The configs of a checkpoint: from its metadata, else from its shapes, else from the version's defaults.

Where metadata and shapes leave several released versions, the file's name chooses among them, and the user is told.
Every value keeps its origin. What none of them says is not guessed: the error says what to pass. A scheduler that
leaves keys out is the exception: it takes the official scheduler's own defaults, and the user is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, cast

from ..config import (
    SchedulerConfig,
    TransformerConfig,
    UpsamplerConfig,
    VAEBlock,
    VideoVAEConfig,
)
from ..errors import CheckpointError, ConfigError
from ..quant.scales import weight_name
from ..releases import (
    FAMILY_OF_LAYERS,
    RELEASES,
    SCHEDULER_DEFAULTS,
    UPSCALERS,
    VAE_DEFAULTS,
    Release,
    VAEGeneration,
    releases_named,
)
from ..releases import release as released
from .containers import COMPONENTS, Checkpoint
from .counts import check_counts
from .header_config import RELEASE_KEY
from .layouts import Layout, Part
from .metadata import Section, read_file_metadata, read_folder_configs
from .shape_config import SHAPE_READERS, Shapes

Origin = Literal["metadata", "shapes", "version default", "file name", "given", "official default"]

NAME_THE_RELEASE = "name the release: --version of the commands, version= in Python, the widget version of Load Model"


@dataclass(frozen=True)
class Value:
    value: object
    origin: Origin


@dataclass(frozen=True)
class Description:
    """Everything that is known about the models in one file (for text encoders see `text_encoder`).

    versions: released versions that the file can be, most likely first; empty when it is none of them.
    possible: those that the content of the file leaves; `versions` are those among them that its name fits.
    generation: of its VAE, by the tensors; None without one.
    values: config field ("transformer.num_layers") -> value and origin.
    missing: config fields of the file's parts without a value.
    unknown: metadata keys that LTXKit does not read.
    """

    path: str
    versions: tuple[str, ...]
    possible: tuple[str, ...]
    generation: VAEGeneration | None
    values: Mapping[str, Value]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    def release_note(self) -> str | None:
        """A sentence for the user where the name of the file decided which release it is."""
        if self.versions == self.possible:
            return None
        return (
            f"{self.path} does not say which release it is: it can be {_either(self.possible)}. By its name it is "
            f"taken for {_either(self.versions)}. If that is wrong, {NAME_THE_RELEASE}."
        )

    def transformer(self) -> TransformerConfig:
        return self._build("transformer", TransformerConfig)

    def vae(self) -> VideoVAEConfig:
        return self._build("vae", VideoVAEConfig)

    def upscaler(self) -> UpsamplerConfig:
        return self._build("upscaler", UpsamplerConfig)

    def scheduler(self) -> SchedulerConfig | None:
        """The scheduler, or None where neither the file nor its version has one.

        Only distilled checkpoints name the steps that they were trained for.
        """
        known = {name: item.value for name, item in self.values.items() if name.startswith("scheduler.")}
        known.setdefault(_STEPS, None)
        return _config(SchedulerConfig, known) if len(known) == len(_fields("scheduler", SchedulerConfig)) else None

    def _build(self, part: str, config: type[_C]) -> _C:
        missing = [name for name in self.missing if name.startswith(f"{part}.")]
        if missing:
            of_a_version = any(name in release.values() for release in RELEASES.values() for name in missing)
            choices = ", ".join(self.versions or tuple(RELEASES))
            advice = f"pass version=, one of {choices}" if of_a_version else "use the original file, with its metadata"
            raise ConfigError(
                f"got {self.path}, whose metadata and tensors do not say {', '.join(missing)}; expected one of the "
                f"two to say it; {advice}"
            )
        return _config(config, {name: self.values[name].value for name in _fields(part, config)})


_C = TypeVar("_C")
_STEPS = "scheduler.allowed_inference_steps"


def _fields(part: str, config: type[Any]) -> list[str]:
    return [f"{part}.{field.name}" for field in fields(config)]


def _config(config: type[_C], values: Mapping[str, Any]) -> _C:
    return config(**{name.partition(".")[2]: value for name, value in values.items()})


_PART_CONFIGS: Mapping[str, type[Any]] = {
    "transformer": TransformerConfig,
    "vae": VideoVAEConfig,
    "upscaler": UpsamplerConfig,
}


def describe(checkpoint: Checkpoint, layout: Layout, version: str | None = None) -> Description:
    """Gather what the file says about its models.

    Args:
        version: a released version ("13b-0.9.8-dev") where the user knows better than the file.

    Raises:
        ConfigError: a known metadata key holds a value that LTXKit does not implement; `version` was not released or
            is of the other family.
        CheckpointError: the metadata is damaged, or says other sizes than the tensors have.
    """
    shown: dict[str, object] = {}
    parts = [part for part in layout.parts.values() if part.name in SHAPE_READERS]
    for part in parts:
        shown.update(SHAPE_READERS[part.name](Shapes(checkpoint, part)))
    stated = _stated(checkpoint, layout, shown)
    _check_agreement(checkpoint, stated.values, shown)

    generation = _vae_generation(layout.parts.get("vae"))
    written, unknown = _told(checkpoint, stated.unknown)
    origin: Origin = "given" if version else "metadata" if written else "version default"
    version = version or written
    possible = _candidates(version, stated.values, shown, generation)
    candidates = _fitting_name(checkpoint, possible) if "transformer" in layout.parts else possible
    defaults = _defaults(possible)
    values = {name: Value(value, "version default") for name, value in VAE_DEFAULTS.items() if "vae" in layout.parts}
    # For keys that the file's scheduler leaves out. A file without a scheduler does not get one.
    if SCHEDULER_DEFAULTS.keys() & stated.values.keys():
        values |= {name: Value(value, "official default") for name, value in SCHEDULER_DEFAULTS.items()}
    values |= {name: Value(value, "file name") for name, value in _defaults(candidates).items()}
    values |= {name: Value(value, origin) for name, value in defaults.items()}
    values |= {name: Value(value, "shapes") for name, value in shown.items()}
    values |= {name: Value(value, "metadata") for name, value in stated.values.items()}
    _complete(str(checkpoint.path), values, generation)
    check_counts(
        str(checkpoint.path),
        {name: item.value for name, item in values.items()},
        {part.name: len(part.keys) for part in parts},
    )

    wanted = [name for part in parts for name in _fields(part.name, _PART_CONFIGS[part.name])]
    if "transformer" in layout.parts:
        wanted += _fields("scheduler", SchedulerConfig)
    versions, remaining = (tuple(release.name for release in releases) for releases in (candidates, possible))
    if "upscaler" in layout.parts:
        doubles = (shown["upscaler.spatial_upsample"], shown["upscaler.temporal_upsample"])
        versions = remaining = UPSCALERS.get(cast("tuple[bool, bool]", doubles), ())
    return Description(
        path=str(checkpoint.path),
        versions=versions,
        possible=remaining,
        generation=generation,
        values={name: values[name] for name in wanted if name in values},
        missing=tuple(name for name in wanted if name not in values),
        unknown=unknown,
    )


def _stated(checkpoint: Checkpoint, layout: Layout, shown: Mapping[str, object]) -> Section:
    try:
        return _read_stated(checkpoint, layout, shown)
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{error} (the file: {checkpoint.path})") from error


def _read_stated(checkpoint: Checkpoint, layout: Layout, shown: Mapping[str, object]) -> Section:
    # torchao describes every tensor in the header; what of it counts, the tensors show.
    of_tensors = {"tensor_names", *map(weight_name, checkpoint.tensors)}
    metadata = {key: text for key, text in checkpoint.metadata.items() if key not in of_tensors}
    header = read_file_metadata(metadata, upscaler=layout.kind == "upscaler")
    if not checkpoint.configs:
        return header
    # A folder that LTXKit wrote has the single file's config in its headers, which say more than the JSON can.
    folder = read_folder_configs(checkpoint.configs)
    if checkpoint.container != "folder" and _disagreeing(folder.values, shown):
        # Folders of many models hold the config of one of them.
        return Section(header.values, (*header.unknown, "config.json beside the file, which is of another model"))
    return Section({**folder.values, **header.values}, (*folder.unknown, *header.unknown))


def _check_agreement(checkpoint: Checkpoint, stated: Mapping[str, object], shown: Mapping[str, object]) -> None:
    """Raises CheckpointError: the metadata and the tensors have different sizes."""
    for name in _disagreeing(stated, shown):
        raise CheckpointError(
            f"got {checkpoint.path}, whose metadata says {name} = {stated[name]} and whose tensors have {shown[name]}; "
            "expected them to agree; the file is damaged, or its metadata belongs to another file"
        )


def _disagreeing(stated: Mapping[str, object], shown: Mapping[str, object]) -> list[str]:
    """Sizes that the metadata and the tensors have both, and not the same."""
    return [name for name, value in shown.items() if isinstance(value, int) and stated.get(name, value) != value]


def _complete(path: str, values: dict[str, Value], generation: VAEGeneration | None) -> None:
    """Fields that follow from several others."""
    hidden = values.pop("transformer.hidden_size", None)
    heads = values.get("transformer.num_attention_heads")
    of_head = values.get("transformer.attention_head_dim")
    if hidden is not None and heads is not None and of_head is not None:
        _check_width(path, cast(int, hidden.value), cast(int, heads.value), cast(int, of_head.value))
    if hidden is not None and heads is not None and "transformer.attention_head_dim" not in values:
        width, count = cast(int, hidden.value), cast(int, heads.value)
        if width % count:
            raise ConfigError(
                f"got a transformer of width {width}; expected a multiple of {count} heads; pass another version="
            )
        values["transformer.attention_head_dim"] = Value(width // count, heads.origin)
    residual = values.pop("vae.upsample_residual", None)
    blocks = values.get("vae.decoder_blocks")
    if blocks is not None and blocks.origin == "shapes":
        # Whether an upsampler has a residual path is not visible in its tensors. The released ones do, except in 0.9.0.
        has_path = cast(bool, residual.value) if residual is not None else generation != "0.9.0"
        stored = cast("tuple[VAEBlock, ...]", blocks.value)
        paths = tuple(replace(block, residual=has_path and block.kind.startswith("compress")) for block in stored)
        values["vae.decoder_blocks"] = Value(paths, "shapes")


def _check_width(path: str, hidden: int, heads: int, of_head: int) -> None:
    if heads * of_head != hidden:
        raise CheckpointError(
            f"got {path}, whose config has {heads} heads of {of_head} for tensors of width {hidden}; expected heads "
            "that add up to the width; the file is damaged, or its config belongs to another file"
        )


# --- which version ----------------------------------------------------------------------------------------------------


def _told(checkpoint: Checkpoint, unknown: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The release that `convert` was told and wrote into the file, and the metadata that LTXKit does not read."""
    written = checkpoint.metadata.get(RELEASE_KEY)
    if written is not None and written not in RELEASES:  # of a later version of LTXKit
        return None, (*unknown, RELEASE_KEY)
    return written, unknown


def _fitting_name(checkpoint: Checkpoint, possible: list[Release]) -> list[Release]:
    """The candidates that the file's name leaves, or, where that says nothing, its repository's name."""
    for name in _names_of(checkpoint):
        fitting = releases_named(name, possible)
        if fitting != possible:
            return fitting
    return possible


def _names_of(checkpoint: Checkpoint) -> Iterator[str]:
    path = checkpoint.path.absolute()
    if path.is_file():
        yield path.name
        if not path.name.startswith("diffusion_pytorch_model") and not (path.parent / "config.json").is_file():
            return
        path = path.parent
    folder = path.parent if path.name in COMPONENTS else path
    yield folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def _candidates(
    version: str | None, stated: Mapping[str, object], shown: Mapping[str, object], generation: VAEGeneration | None
) -> list[Release]:
    """Released versions that the file can be, most likely first. Dev and distilled tensors look the same.

    stated, shown: config fields from the metadata and from the shapes.
    """
    layers = stated.get("transformer.num_layers", shown.get("transformer.num_layers"))
    family = FAMILY_OF_LAYERS.get(cast(int, layers)) if layers is not None else None
    if version is not None:
        release = released(version)
        if family is not None and release.family != family:
            raise ConfigError(
                f"got version {version} for a file with {layers} layers; expected a {family} version; leave it out"
            )
        return [release]
    if (layers is None and generation is None) or (layers is not None and family is None):
        return []
    candidates = [
        release
        for release in RELEASES.values()
        if (family is None or release.family == family) and (generation is None or release.vae == generation)
    ]
    # Evidence from the metadata narrows the list. Values that no release has say nothing about which one it is.
    for name in ("transformer.causal_temporal_positioning", "scheduler.shifting", "scheduler.sampler"):
        if name in stated:
            candidates = [release for release in candidates if release.values()[name] == stated[name]] or candidates
    if stated.get(_STEPS):
        return [release for release in candidates if release.distilled] or candidates
    return sorted(candidates, key=lambda release: release.distilled)


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _defaults(candidates: list[Release]) -> dict[str, object]:
    """What all candidates have in common."""
    if not candidates:
        return {}
    first, *others = [release.values() for release in candidates]
    return {name: value for name, value in first.items() if all(other[name] == value for other in others)}


def _vae_generation(part: Part | None) -> VAEGeneration | None:
    """Source of the rules: huggingface/diffusers loaders/single_file_utils.py, Comfy-Org/ComfyUI sd.py."""
    if part is None:
        return None
    if "encoder.down_blocks.1.conv.conv.weight" in part.keys:
        return "0.9.5"
    return "0.9.1" if "decoder.last_scale_shift_table" in part.keys else "0.9.0"


def part_or_error(
    checkpoint: Checkpoint, layout: Layout, name: Literal["transformer", "vae", "upscaler", "text_encoder"]
) -> Part:
    """The part to load, or an error that names what the file is instead."""
    if name in layout.parts:
        return layout.parts[name]
    wanted = {
        "transformer": "an LTX-Video transformer or checkpoint",
        "vae": "an LTX-Video VAE or checkpoint",
        "upscaler": "an LTX-Video latent upscaler",
        "text_encoder": "a T5 v1.1 text encoder",
    }[name]
    advice = {
        "transformer": "choose another file",
        "vae": "choose the file with the VAE, or the original checkpoint, which holds both",
        "upscaler": "choose a file such as ltxv-spatial-upscaler-0.9.8.safetensors",
        "text_encoder": "choose a file such as t5xxl_fp16.safetensors or a text_encoder folder",
    }[name]
    label = f", labelled {checkpoint.label!r}" if layout.kind == "unknown" and checkpoint.label else ""
    raise CheckpointError(
        f"got {checkpoint.path}, which is {layout.what}{label}; expected {wanted}; {layout.instead or advice}"
    )

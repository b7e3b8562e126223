"""Layouts: what a tensor is called in each kind of file, and which kind a file is.

A module's attribute names are those of the official single file (`models/`), so a layout is a prefix and a `KeyMap`
from the file's names to the module's. Nothing is decided from a file name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import CheckpointError
from ..quant.scales import weight_name
from .counts import FEW
from .foreign import foreign_lora, foreign_model
from .lora_keys import is_lora

PartName = Literal["transformer", "vae", "upscaler", "text_encoder"]
Naming = Literal["single_file", "diffusers", "transformers", "llama.cpp"]
FileKind = Literal["checkpoint", "transformer", "vae", "upscaler", "text_encoder", "lora", "unknown"]


# --- key maps ---------------------------------------------------------------------------------------------------------


class KeyMap:
    """A one-to-one renaming of keys by anchored templates.

    Each rule is a pair (source, target). `{}` stands for one number, `{*}` for the rest of the name; both sides hold
    the same placeholders in the same order. A key is renamed by the one rule that matches it as a whole.
    """

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        self.rules = tuple(rules)
        self._patterns = [(re.compile(_pattern(source)), _format(target)) for source, target in self.rules]

    def rename(self, key: str) -> str | None:
        """The other side's name of `key`, or None where no rule matches.

        Raises:
            CheckpointError: two rules match, so the map is not one-to-one (a mistake in the map, not in the file).
        """
        names = [
            target.format(*match.groups()) for source, target in self._patterns if (match := source.fullmatch(key))
        ]
        if len(names) > 1:
            raise CheckpointError(f"got {key!r}, which {len(names)} rules rename; expected exactly one")
        return names[0] if names else None

    def inverse(self) -> KeyMap:
        return KeyMap((target, source) for source, target in self.rules)


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{\}", r"(\d+)").replace(r"\{\*\}", "(.+)")


def _format(template: str) -> str:
    return template.replace("{*}", "{}")


IDENTITY = KeyMap([("{*}", "{*}")])

CROSS_ATTENTION = "attn2"  # of a transformer block, in every layout

# diffusers -> ours. Source: huggingface/diffusers scripts/convert_ltx_to_diffusers.py (TRANSFORMER_KEYS_RENAME_DICT).
TRANSFORMER_FROM_DIFFUSERS = KeyMap(
    [
        ("scale_shift_table", "scale_shift_table"),
        ("proj_in.{*}", "patchify_proj.{*}"),
        ("proj_out.{*}", "proj_out.{*}"),
        ("time_embed.{*}", "adaln_single.{*}"),
        ("caption_projection.{*}", "caption_projection.{*}"),
        ("transformer_blocks.{}.scale_shift_table", "transformer_blocks.{}.scale_shift_table"),
        ("transformer_blocks.{}.ff.{*}", "transformer_blocks.{}.ff.{*}"),
        *(
            (f"transformer_blocks.{{}}.{attention}.{theirs}.{{*}}", f"transformer_blocks.{{}}.{attention}.{ours}.{{*}}")
            for attention in ("attn1", CROSS_ATTENTION)
            for theirs, ours in (
                ("norm_q", "q_norm"),
                ("norm_k", "k_norm"),
                ("to_q", "to_q"),
                ("to_k", "to_k"),
                ("to_v", "to_v"),
                ("to_out", "to_out"),
            )
        ),
    ]
)

# llama.cpp -> transformers, T5 encoders. Source: ggml-org/llama.cpp, gguf-py/gguf/tensor_mapping.py.
T5_FROM_LLAMA_CPP = KeyMap(
    [
        ("token_embd.weight", "shared.weight"),
        ("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
        *(
            (f"enc.blk.{{}}.{theirs}.weight", f"encoder.block.{{}}.layer.{ours}.weight")
            for theirs, ours in (
                ("attn_norm", "0.layer_norm"),
                ("attn_q", "0.SelfAttention.q"),
                ("attn_k", "0.SelfAttention.k"),
                ("attn_v", "0.SelfAttention.v"),
                ("attn_o", "0.SelfAttention.o"),
                ("attn_rel_b", "0.SelfAttention.relative_attention_bias"),
                ("ffn_norm", "1.layer_norm"),
                ("ffn_gate", "1.DenseReluDense.wi_0"),
                ("ffn_up", "1.DenseReluDense.wi_1"),
                ("ffn_down", "1.DenseReluDense.wo"),
            )
        ),
        # Files of whole models have a decoder too; these names mark its tensors.
        ("dec.{*}", "decoder.{*}"),
        ("output.weight", "lm_head.weight"),
    ]
)

# What a VAE block's tensors show: residual blocks, a change of resolution, or a residual block that changes the width
_BlockRole = Literal["res", "compress", "widen"]


def vae_from_diffusers(keys: Iterable[str]) -> KeyMap:
    """The map diffusers -> ours of one VAE, made from its keys in either naming.

    diffusers gathers our flat block lists into stages. In the encoder a stage is residual blocks, then an optional
    `downsamplers.0`, then an optional `conv_out`; in the decoder an optional `conv_in`, an optional `upsamplers.0`,
    then residual blocks. The encoder's last block and the decoder's first are `mid_block`. That gives the published
    maps of every generation (huggingface/diffusers, VAE_KEYS_RENAME_DICT, VAE_091_..., VAE_095_...) and those of any
    other block list.
    """
    keys = list(keys)
    # Every key is compared with every rule, and every block makes rules. No VAE has so many blocks: as they stand, the
    # names are refused.
    if any(len(block_groups(keys, blocks)) > FEW for blocks in ("encoder.down_blocks.", "decoder.up_blocks.")):
        return IDENTITY
    rules: list[tuple[str, str]] = [
        ("latents_mean", "per_channel_statistics.mean-of-means"),
        ("latents_std", "per_channel_statistics.std-of-means"),
        ("decoder.timestep_scale_multiplier", "decoder.timestep_scale_multiplier"),
        ("decoder.scale_shift_table", "decoder.last_scale_shift_table"),
        ("decoder.time_embedder.{*}", "decoder.last_time_embedder.{*}"),
        *(
            (f"{half}.{end}.{{*}}", f"{half}.{end}.{{*}}")
            for half in ("encoder", "decoder")
            for end in ("conv_in", "conv_out")
        ),
    ]
    encoder = list(_encoder_names(_block_roles(keys, "encoder")))
    decoder = list(_decoder_names(_block_roles(keys, "decoder")))
    for theirs, ours, role in encoder + decoder:
        if role == "res":
            rules.append((f"{theirs}.resnets.{{}}.{{*}}", f"{ours}.res_blocks.{{}}.{{*}}"))
            rules.append((f"{theirs}.time_embedder.{{*}}", f"{ours}.time_embedder.{{*}}"))
        elif role == "compress":
            rules.append((f"{theirs}.{{*}}", f"{ours}.{{*}}"))
        else:
            rules.append((f"{theirs}.conv1.{{*}}", f"{ours}.conv1.{{*}}"))
            rules.append((f"{theirs}.conv2.{{*}}", f"{ours}.conv2.{{*}}"))
            rules.append((f"{theirs}.conv_shortcut.conv.{{*}}", f"{ours}.conv_shortcut.{{*}}"))
            rules.append((f"{theirs}.norm3.{{*}}", f"{ours}.norm3.norm.{{*}}"))
    return KeyMap(rules)


def _encoder_names(roles: list[_BlockRole]) -> Iterator[tuple[str, str, _BlockRole]]:
    stage = -1
    for index, role in enumerate(roles):
        if role == "res":
            stage += 1
            theirs = "encoder.mid_block" if index == len(roles) - 1 else f"encoder.down_blocks.{stage}"
        else:
            theirs = f"encoder.down_blocks.{stage}.{'downsamplers.0' if role == 'compress' else 'conv_out'}"
        yield theirs, f"encoder.down_blocks.{index}", role


def _decoder_names(roles: list[_BlockRole]) -> Iterator[tuple[str, str, _BlockRole]]:
    stage = 0
    for index, role in enumerate(roles):
        if role == "res":
            theirs = "decoder.mid_block" if index == 0 else f"decoder.up_blocks.{stage}"
            stage += index > 0
        else:
            theirs = f"decoder.up_blocks.{stage}.{'upsamplers.0' if role == 'compress' else 'conv_in'}"
        yield theirs, f"decoder.up_blocks.{index}", role


def _block_roles(keys: list[str], half: Literal["encoder", "decoder"]) -> list[_BlockRole]:
    """Roles of the blocks of one half in the order in which they run, from keys in either naming."""
    blocks = "down_blocks" if half == "encoder" else "up_blocks"
    if any(".resnets." in key for key in keys):
        return list(_roles_from_diffusers(keys, half, blocks))
    return [_role(group) for group in block_groups(keys, f"{half}.{blocks}.").values()]


_MAX_DIGITS = 10  # of a module's number in a list


def block_groups(keys: Iterable[str], prefix: str) -> dict[int, list[str]]:
    """Keys `<prefix><i>.<rest>` gathered by i, as the rests, in the order of i."""
    groups: dict[int, list[str]] = {}
    for key in keys:
        if key.startswith(prefix):
            number, _, rest = key[len(prefix) :].partition(".")
            # Digits of other scripts are none here, and int() refuses thousands of them.
            if number.isascii() and number.isdecimal() and len(number) < _MAX_DIGITS:
                groups.setdefault(int(number), []).append(rest)
    return dict(sorted(groups.items()))


def _role(names: list[str]) -> _BlockRole:
    if any(name.startswith("res_blocks.") for name in names):
        return "res"
    return "widen" if any(name.startswith("conv1.") for name in names) else "compress"


def _roles_from_diffusers(keys: list[str], half: str, blocks: str) -> Iterator[_BlockRole]:
    stages = block_groups(keys, f"{half}.{blocks}.")
    parts: tuple[tuple[str, _BlockRole], ...] = (
        (("resnets.", "res"), ("downsamplers.", "compress"), ("conv_out.", "widen"))
        if half == "encoder"
        else (("conv_in.", "widen"), ("upsamplers.", "compress"), ("resnets.", "res"))
    )
    if half == "decoder":
        yield "res"
    for stage in stages.values():
        for start, role in parts:
            if any(name.startswith(start) for name in stage):
                yield role
    if half == "encoder":
        yield "res"


# --- what a file holds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One model in a file. keys: name in the module -> name in the file."""

    name: PartName
    naming: Naming
    prefix: str
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    kind: one of the kinds that `ltxkit inspect` reports; "checkpoint" holds a transformer and a VAE.
    what: in words, for messages ("a LoRA", "a Stable Diffusion XL checkpoint", ...).
    rest: keys that belong to none of the parts.
    instead: what to do with a model of others, or with a LoRA for one, as the end of a message; "" for ours.
    """

    kind: FileKind
    what: str
    parts: Mapping[PartName, Part]
    rest: tuple[str, ...]
    instead: str = ""


# Prefixes under which each part is found: official single file, ComfyUI's exports, folders, bare.
# A key that must be there under one of them says which part it is; longest prefix first.
_PREFIXES: Mapping[PartName, tuple[str, ...]] = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", "transformer/", "transformer.", "model/", ""),
    "vae": ("first_stage_model.", "vae/", "vae.", "model/", ""),
    "upscaler": ("latent_upsampler/", "latent_upsampler.", "model/", ""),
    "text_encoder": (
        "text_encoders.t5xxl.transformer.",
        "text_encoders.t5xxl.",
        "t5xxl.transformer.",
        "t5xxl.",
        "text_encoder/",
        "text_encoder.",
        "transformer.",
        "model/",
        "",
    ),
}
# What programs put around a model, in front of all its names or between such a prefix and them, several at a time:
# torch.compile, DistributedDataParallel, FSDP, PEFT, Lightning and trainers' own modules; "model/" is a folder.
_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.", "model.", "model/")
# torch.compile of single blocks, FSDP and activation checkpointing put theirs into the middle of a name.
_WRAPPER_INSIDE = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_SIGNATURES: tuple[tuple[PartName, Naming, tuple[str, ...]], ...] = (
    ("transformer", "single_file", ("patchify_proj.weight", "transformer_blocks.0.attn1.to_q.weight")),
    ("transformer", "diffusers", ("proj_in.weight", "time_embed.linear.weight", "caption_projection.linear_1.weight")),
    ("vae", "single_file", ("decoder.conv_in.conv.weight", "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight")),
    ("vae", "diffusers", ("decoder.conv_in.conv.weight", "decoder.mid_block.resnets.0.conv1.conv.weight")),
    ("upscaler", "single_file", ("initial_conv.weight", "upsampler.0.weight", "final_conv.weight")),
    ("text_encoder", "transformers", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("text_encoder", "llama.cpp", ("enc.blk.0.attn_q.weight",)),
)

# Tensors that files carry and nothing uses (Lightricks/LTX-Video vae_encode.py reads the first two statistics only).
UNUSED_TENSORS = frozenset(
    f"per_channel_statistics.{name}" for name in ("mean-of-stds", "mean-of-stds_over_std-of-means", "channel")
)


def detect_layout(
    keys: Iterable[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    metadata: Mapping[str, str] | None = None,
    file_name: str = "",
) -> Layout:
    """What these keys are. A file that is nothing we know has kind "unknown" and says in words what it is.

    Args:
        shapes: of the tensors; without them, models of others that have our names are taken for ours.
        metadata, file_name: of a LoRA, which may say there what it is for.
    """
    keys = list(keys)
    known = shapes or {}
    sized = {key: known.get(key, ()) for key in keys}
    if is_lora(keys):
        other = foreign_lora(sized, metadata or {}, file_name)
        return Layout("lora", "a LoRA", {}, ()) if other is None else Layout("lora", other.what, {}, (), other.instead)

    found: dict[PartName, tuple[Naming, str]] = {}
    present = {weight_name(_WRAPPER_INSIDE.sub("", key)) for key in keys}
    for name, naming, signature in _SIGNATURES:
        for prefix in _prefixes(name, signature[0], present):
            if name not in found and all(prefix + key in present for key in signature):
                found[name] = naming, prefix
    parts: dict[PartName, Part] = {
        name: _part(name, naming, prefix, keys, found) for name, (naming, prefix) in found.items()
    }
    bare = {_WRAPPER_INSIDE.sub("", key): shape for key, shape in sized.items()}
    other = foreign_model(bare, beside_ours=bool(parts))
    if other is not None:
        return Layout("unknown", other.what, {}, (), other.instead)
    claimed = {key for part in parts.values() for key in part.keys.values()}
    kind, what = _kind(parts)
    return Layout(kind, what, parts, tuple(key for key in keys if key not in claimed))


def parts_named_in(header: bytes) -> frozenset[PartName]:
    """The parts whose names are all in a header, which is only searched: for long lists of files."""
    return frozenset(name for name, _, keys in _SIGNATURES if all(key.encode() in header for key in keys))


def _prefixes(name: PartName, key: str, present: Iterable[str]) -> list[str]:
    """Prefixes under which a part may be found: those that some file has, in the order of `_PREFIXES`."""
    there = {found[: -len(key)] for found in present if found.endswith(key)}
    ranked = [(rank, prefix) for prefix in there if (rank := _rank(name, prefix)) is not None]
    return [prefix for _, prefix in sorted(ranked)]


def _rank(name: PartName, prefix: str) -> int | None:
    """Place in `_PREFIXES` of what remains of a prefix without wrappers; None: it is no prefix of this part."""
    known = _PREFIXES[name]
    if prefix in known:
        return known.index(prefix)
    for wrapper in _WRAPPERS:
        inner = prefix.removesuffix(wrapper) if prefix.endswith((f".{wrapper}", f"/{wrapper}")) else prefix
        for rest in (prefix.removeprefix(wrapper), inner):
            if rest != prefix and (rank := _rank(name, rest)) is not None:
                return rank
    return None


def _part(
    name: PartName, naming: Naming, prefix: str, keys: list[str], found: Mapping[PartName, tuple[Naming, str]]
) -> Part:
    """found: prefix of every part; a name that starts with several belongs to the part with the longest."""
    longer = tuple(other for _, other in found.values() if len(other) > len(prefix) and other.startswith(prefix))
    inner: dict[str, str] = {}
    for key in keys:
        bare = _WRAPPER_INSIDE.sub("", key)
        if bare.startswith(prefix) and not bare.startswith(longer):
            ours = bare[len(prefix) :]
            # The same name with and without a wrapper: the second one keeps it, and is unexpected.
            inner[ours if ours not in inner else key] = key
    if naming == "diffusers":
        key_map = TRANSFORMER_FROM_DIFFUSERS if name == "transformer" else vae_from_diffusers(inner)
    else:
        key_map = T5_FROM_LLAMA_CPP if naming == "llama.cpp" else IDENTITY
    # A key without a rule keeps its name: the strict check after loading then reports it as unexpected. Other programs'
    # names for the numbers of a weight come down to `weight`, as long as there is none beside them.
    names = {key: key_map.rename(key) or key for key in inner}
    taken = set(names.values())
    plain = {name: name if weight_name(name) in taken else weight_name(name) for name in taken}
    return Part(name, naming, prefix, {plain[names[key]]: stored for key, stored in inner.items()})


def _kind(parts: Mapping[PartName, Part]) -> tuple[FileKind, str]:
    if "transformer" in parts and "vae" in parts:
        return "checkpoint", "an LTX-Video checkpoint"
    words: tuple[tuple[FileKind, PartName, str], ...] = (
        ("transformer", "transformer", "an LTX-Video transformer without a VAE"),
        ("vae", "vae", "an LTX-Video VAE without a transformer"),
        ("upscaler", "upscaler", "an LTX-Video latent upscaler"),
        ("text_encoder", "text_encoder", "a T5 text encoder"),
    )
    for kind, name, what in words:
        if name in parts:
            return kind, what
    return "unknown", "a file of an unknown kind"

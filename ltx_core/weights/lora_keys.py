"""What the names in a LoRA file mean: which target, which adapter, which part of it.

Endings are those of Comfy-Org/ComfyUI (comfy/weight_adapter, comfy/lora.py), KohakuBlueleaf/LyCORIS (`weight_list` of
its modules), peft and diffusers. Before a target's path stand any number of prefixes and wrappers, and inside it those
of torch.compile, FSDP and peft.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lora", "loha", "lokr", "glora", "oft", "difference", "set", "target"]


@dataclass(frozen=True)
class LoRAKey:
    """One tensor of a LoRA file.

    target: the module or parameter, as the file names it.  kind: the adapter that it is a part of; "target": it belongs
    to all adapters of its target.  spelling: tells adapters of one kind at one target apart: those that programs spell
    differently, or to which peft gave names.  role: the part.
    """

    target: str
    kind: Kind
    spelling: str
    role: str


_ADAPTER = r"(?:\.(?P<adapter>[^.]+))?"  # the name that peft puts behind a parameter or module
_HALVES = {"A": "down", "a": "down", "down": "down", "B": "up", "b": "up", "up": "up", "mid": "mid"}
_PAIR = re.compile(
    rf"(?P<before>[._]lora(?:_linear_layer)?[._])(?P<half>A|a|down|B|b|up|mid){_ADAPTER}"
    r"\.(?P<tensor>weight|bias|weight_scale|scale_weight)$"
)
_BARE_PAIR = re.compile(r"(?P<before>\.lora_)(?P<half>A|a|B|b)$")
_OF_HALF = {"weight": "", "bias": "_bias", "weight_scale": "_scale", "scale_weight": "_scale"}
_MAGNITUDE = re.compile(r"\.(?:dora_scale|lora_magnitude_vector(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?)$")
_ALPHA = re.compile(r"\.(?:lora_)?alpha$")
_PARTS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("loha", re.compile(rf"\.hada_(?P<role>w1_a|w1_b|w2_a|w2_b|t1|t2){_ADAPTER}$")),
    ("lokr", re.compile(rf"\.lokr_(?P<role>w1_a|w1_b|w1|w2_a|w2_b|w2|t2){_ADAPTER}$")),
    ("glora", re.compile(r"\.(?P<role>a1|a2|b1|b2)\.weight$")),
    ("oft", re.compile(r"\.(?P<role>oft_blocks|rescale)$")),
)
_DIRECT: dict[str, tuple[Kind, str]] = {
    "diff": ("difference", "weight"),
    "w_norm": ("difference", "weight"),
    "diff_b": ("difference", "bias"),
    "b_norm": ("difference", "bias"),
    "set_weight": ("set", "weight"),
    "reshape_weight": ("target", "shape"),
}
_NEVER_IN_MODELS = frozenset({"diff", "diff_b", "w_norm", "b_norm", "set_weight"})

MAX_NAME = 400  # no parameter of a transformer has a longer name, with all prefixes

# Tensors without numbers, which only mark a file.
MARKERS = frozenset({"scaled_fp8"})


def parse(key: str) -> LoRAKey | None:
    """What the tensor of this name is, or None where the name has no ending of a LoRA."""
    for pattern in (_PAIR, _BARE_PAIR):
        match = pattern.search(key)
        if match is not None:
            return _pair(key, match)
    for kind, pattern in _PARTS:
        match = pattern.search(key)
        if match is not None:
            spelling = match.groupdict().get("adapter") or ""
            return LoRAKey(key[: match.start()], kind, spelling, match["role"])
    for role, pattern in (("magnitude", _MAGNITUDE), ("alpha", _ALPHA)):
        match = pattern.search(key)
        if match is not None:
            return LoRAKey(key[: match.start()], "target", "", role)
    target, _, last = key.rpartition(".")
    if target and last in _DIRECT:
        kind, role = _DIRECT[last]
        return LoRAKey(target, kind, last, role)
    return None


def _pair(key: str, match: re.Match[str]) -> LoRAKey | None:
    parts = match.groupdict()
    role = _HALVES[parts["half"]] + _OF_HALF[parts.get("tensor") or "weight"]
    if role in ("down_bias", "mid_bias", "mid_scale"):
        return None  # nobody writes them
    names = "A" if parts["half"] in "AB" else "a" if parts["half"] in "ab" else "down"
    return LoRAKey(key[: match.start()], "lora", f"{parts['before']}{names}.{parts.get('adapter') or ''}", role)


def is_lora(keys: Iterable[str]) -> bool:
    """Whether a file with these names is a LoRA, of whatever kind."""
    glora: dict[str, set[str]] = {}
    for key in keys:
        parsed = parse(key)
        if parsed is None:
            continue
        if (
            parsed.kind in ("lora", "loha", "lokr")
            or parsed.role == "oft_blocks"
            or key.rpartition(".")[2] in _NEVER_IN_MODELS
        ):
            return True
        if parsed.kind == "glora":
            glora.setdefault(parsed.target, set()).add(parsed.role)
    return any(len(roles) == 4 for roles in glora.values())  # one of them alone is an everyday name


# --- targets ----------------------------------------------------------------------------------------------------------

# Wrappers that add their name to a module's path, wherever they stand; peft's modules_to_save is followed by the
# adapter's name.
_INNER = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "original_module"})
_SAVED = "modules_to_save"
_ORIGINAL = ".original_module."

# Beginnings of targets with all dots as underscores. One after the other is taken away.
_PREFIXES = (
    "lora_", "lycoris_", "base_model_", "model_", "diffusion_model_", "transformer_", "module_", "unet_", "dit_",
    "pipe_", "_orig_mod_", "_",
)  # fmt: skip
_TEXT_ENCODER = re.compile(
    r"(?:prior_)?te\d?_|text_encoders?(?:_\d)?_|t5xxl_|t5_|clip_[lgh]_|text_model_|encoder_block_|bundle_emb_|shared_"
)


def spellings(target: str) -> Iterator[str]:
    """The path of a target with dots as underscores, without one prefix after the other, wrappers left out."""
    if len(target) > MAX_NAME:
        return
    flat = "_".join(_without_wrappers(target.split("."))).replace("__orig_mod_", "_")
    yield flat
    while (prefix := next((prefix for prefix in _PREFIXES if flat.startswith(prefix)), None)) is not None:
        flat = flat.removeprefix(prefix)
        yield flat


def dotted(target: str) -> str:
    """The path of a target in its model, as peft has it: no prefix and no wrapper, dots kept."""
    parts = _without_wrappers(target[:MAX_NAME].split("."))
    while len(parts) > 1 and f"{parts[0]}_" in _PREFIXES:
        parts = parts[1:]
    return ".".join(parts)


def superseded(key: str, keys: Container[str]) -> bool:
    """Whether a tensor is peft's copy of a module as it was before training, beside the trained one."""
    if _ORIGINAL not in key:
        return False
    stem, _, name = key.partition(_ORIGINAL)
    return any(f"{stem}.{_SAVED}.{adapter}{name}" in keys for adapter in ("", "default."))


def in_text_encoder(target: str) -> bool:
    return any(_TEXT_ENCODER.match(flat) is not None for flat in spellings(target))


def _without_wrappers(parts: list[str]) -> list[str]:
    kept: list[str] = []
    for index, part in enumerate(parts):
        named = index > 0 and parts[index - 1] == _SAVED and index < len(parts) - 1
        if part not in _INNER and part != _SAVED and part != "processor" and not named:
            kept.append(part)
    return kept

"""LoRA files of every key style, and which module of a model each of their targets means.

A LoRA says, for a Linear of the model, W' = W + strength * (alpha / rank) * up @ down. It is kept as these factors
(`placing.lora` applies them).

Key styles: huggingface/diffusers and peft (`transformer.X.lora_A.weight`), Lightricks/LTX-Video-Trainer and ComfyUI
(`diffusion_model.X.lora_A.weight`), finetrainers (bare or `base_model.model.`), Kohya (`lora_unet_X` with underscores,
`lora_down`); alpha as a tensor of a target or in the header; DoRA as `dora_scale` or `lora_magnitude_vector`; full
differences as `diff` and `diff_b`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..errors import CheckpointError
from ..quant.linear import QuantizedLinear
from ..values import LARGEST_STRENGTH, check_number
from .build import layout_of
from .containers import Checkpoint, open_checkpoint
from .layouts import TRANSFORMER_FROM_DIFFUSERS

# Endings of the tensors of one target -> what they are (Comfy-Org/ComfyUI comfy/weight_adapter/lora.py, and peft).
_ROLES = (
    ("down", r"[._]lora[._](?:A|down)(?:\.default)?\.weight|\.lora\.down\.weight"),
    ("up", r"[._]lora[._](?:B|up)(?:\.default)?\.weight|\.lora\.up\.weight"),
    ("alpha", r"\.alpha"),
    ("magnitude", r"\.dora_scale|\.lora_magnitude_vector(?:\.default)?(?:\.weight)?"),
    ("diff", r"\.diff"),
    ("diff_b", r"\.diff_b"),
)
_ROLE_PATTERN = re.compile("|".join(f"(?P<{role}>{pattern})$" for role, pattern in _ROLES))

# Prefixes before the module's path; keys that start with one of these are meant for the transformer.
_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lora_transformer_",
)
_TEXT_ENCODER_PREFIXES = ("lora_te", "text_encoder", "t5xxl", "text_encoders.")

DISTILLED_RANK = 128  # of ltxv-13b-0.9.7-distilled-lora128


@dataclass(frozen=True, eq=False)
class LoRA:
    """A LoRA file.

    targets: for each target, as the file names it, the tensors by role ("down", "up", "diff", ...).
    scales: for each target with factors, what their product is multiplied by (alpha / rank).
    """

    path: Path
    targets: Mapping[str, Mapping[str, Tensor]]
    scales: Mapping[str, float]

    @property
    def is_distilled(self) -> bool:
        """Whether it makes a distilled model of a dev model, by its rank and the name of its file.

        The only place where a name decides: the tensors of Lightricks' distilled LoRA look like those of any other of
        its rank, and its header is empty, so the name breaks the tie. The caller tells the user (`versions_with`) and
        lets the user overrule it (`settings`). The rank is asked for as well, since LoRAs that were trained for a
        distilled model often have the word in their names, and are smaller.
        """
        ranks = (len(roles["down"]) for roles in self.targets.values() if "down" in roles)
        return "distill" in self.path.name.lower() and max(ranks, default=0) >= DISTILLED_RANK


@dataclass(frozen=True, eq=False)
class WeightedLoRA:
    """A LoRA at a strength (0: not at all). allow_partial: leave out what the model does not have.

    Raises:
        ConfigError: a strength that is no finite number, or far beyond what LoRAs are made for.
    """

    lora: LoRA
    strength: float
    allow_partial: bool = False

    def __post_init__(self) -> None:
        check_number("strength", self.strength, -LARGEST_STRENGTH, LARGEST_STRENGTH, advice="1 is what it is made for")


@dataclass(frozen=True)
class LoRAReport:
    """What of a LoRA fits the model: targets by the file's names.

    modules: for each target that fits, the path of its module in the model.
    """

    modules: Mapping[str, str]
    unmatched: tuple[str, ...]
    text_encoder: tuple[str, ...]

    @property
    def matched(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def __str__(self) -> str:
        text = f"{len(self.matched)} of {len(self.matched) + len(self.unmatched)} transformer targets matched"
        if self.unmatched:
            text += f", not in the model: {', '.join(self.unmatched[:3])}{', ...' if len(self.unmatched) > 3 else ''}"
        if self.text_encoder:
            text += f"; {len(self.text_encoder)} targets in a text encoder are not used"
        return text


def load_lora(path: Path | str) -> LoRA:
    """Open a LoRA file; its tensors stay memory-mapped.

    Raises:
        CheckpointError: the file is damaged, holds no LoRA, or half of a pair is missing.
    """
    checkpoint = open_checkpoint(path)
    refuse_foreign(checkpoint)
    targets: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in checkpoint.tensors:
        match = _ROLE_PATTERN.search(key)
        if match is not None and match.lastgroup is not None:
            targets[key[: match.start()]][match.lastgroup] = checkpoint.tensor(key)
    if not targets:
        raise CheckpointError(
            f"got {checkpoint.path}, which holds no LoRA; expected keys that end in lora_A / lora_B, "
            "lora_down / lora_up, diff or diff_b; load a model file with the model loader"
        )
    for target, tensors in targets.items():
        if ("down" in tensors) != ("up" in tensors):
            have, lack = ("down", "up") if "down" in tensors else ("up", "down")
            raise CheckpointError(
                f"got {checkpoint.path} with the {have} half of {target} and no {lack} half; expected both; "
                "download the file again"
            )
    settings = _peft_settings(checkpoint)
    scales = {target: _scale(target, tensors, settings) for target, tensors in targets.items() if "down" in tensors}
    return LoRA(checkpoint.path, targets, scales)


def refuse_foreign(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError: it is a LoRA for another model, or another model, by name."""
    layout = layout_of(checkpoint)
    if layout.instead:
        raise CheckpointError(
            f"got {checkpoint.path}, which is {layout.what}; expected a LoRA for LTX-Video; {layout.instead}"
        )


def _peft_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """peft's `LoraConfig`, which diffusers and finetrainers store in the header; empty where there is none.

    Raises:
        CheckpointError: they are not JSON.
    """
    text = checkpoint.metadata.get("lora_adapter_metadata") or checkpoint.metadata.get("lora_config") or "{}"
    try:
        settings = cast("dict[str, Any]", json.loads(text))
    except ValueError as error:
        raise CheckpointError(
            f"got {checkpoint.path} with unreadable LoRA settings in its header ({error}); expected JSON; download it "
            "again"
        ) from error
    return {key.removeprefix("transformer."): value for key, value in settings.items()}


def _scale(target: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """alpha / rank: alpha as a tensor of the file, or as peft has it (tuners/lora/layer.py); 1 where there is none."""
    rank = tensors["down"].shape[0]
    if "alpha" in tensors:
        return float(tensors["alpha"]) / rank
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|\.)({pattern})$", target):
            alpha = value
            break
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


# --- what the file's names mean in the model --------------------------------------------------------------------------


class _Names:
    """Finds the model's module for a target in any naming."""

    def __init__(self, model: nn.Module) -> None:
        to_diffusers = TRANSFORMER_FROM_DIFFUSERS.inverse()
        self._modules: dict[str, str] = {}
        owners = {key.rpartition(".")[0] for key, _ in model.named_parameters()}
        owners |= {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
        for name in owners:
            # The rules rename keys; a module's key is its name with any last part.
            theirs = (to_diffusers.rename(f"{name}.weight") or f"{name}.weight").removesuffix(".weight")
            for spelling in (name, theirs):
                self._modules[spelling] = name
                self._modules[spelling.replace(".", "_")] = name

    def find(self, target: str) -> str | None:
        name = target
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        return self._modules.get(name)


def match_lora(lora: LoRA, model: nn.Module, *, allow_partial: bool = False) -> LoRAReport:
    """Which targets of the LoRA are modules of the model.

    Raises:
        CheckpointError: a transformer target is not in the model (unless `allow_partial`), none is, or a shape differs:
            the LoRA is for another model.
    """
    names = _Names(model)
    text = tuple(target for target in lora.targets if target.startswith(_TEXT_ENCODER_PREFIXES))
    modules = {target: names.find(target) for target in lora.targets if target not in text}
    matched = {target: module for target, module in modules.items() if module is not None}
    report = LoRAReport(matched, tuple(target for target in modules if target not in matched), text)
    for target, name in matched.items():
        _check_shapes(lora, target, name, model.get_submodule(name))
    if not matched or (report.unmatched and not allow_partial):
        raise CheckpointError(
            f"got the LoRA {lora.path}, of which {report}; expected a LoRA for this model; use the right one"
            + (", or set allow_partial to apply the rest" if matched else "")
        )
    return report


def _check_shapes(lora: LoRA, target: str, name: str, module: nn.Module) -> None:
    tensors = lora.targets[target]
    if not isinstance(module, nn.Linear | QuantizedLinear):
        if "down" in tensors:
            raise CheckpointError(
                f"got the LoRA {lora.path} with factors for {name}, which is not a Linear; expected factors for "
                "Linears only; use another file"
            )
        parameters = dict(module.named_parameters(recurse=False))
        for role, parameter in (("diff", "weight"), ("diff_b", "bias")):
            there = parameters[parameter].shape if parameter in parameters else None
            if role in tensors and tensors[role].shape != there:
                raise _another_size(lora, f"{target}.{role}", tensors[role], there)
        return
    for role in ("diff_b", "magnitude"):
        if role in tensors and tensors[role].numel() != module.out_features:
            raise _another_size(lora, f"{target}.{role}", tensors[role], (module.out_features,))
    for role in ("down", "up", "diff"):
        if role in tensors and tensors[role].ndim != 2:
            raise _another_size(lora, f"{target}.{role}", tensors[role], (module.out_features, module.in_features))
    if "down" in tensors:
        (rank_down, columns), (rows, rank_up) = tensors["down"].shape, tensors["up"].shape
        if rank_down != rank_up:
            raise CheckpointError(
                f"got the LoRA {lora.path} with ranks {rank_down} and {rank_up} for {target}; expected the same rank "
                "in both halves; download the file again"
            )
    elif "diff" in tensors:
        rows, columns = tensors["diff"].shape
    else:
        return
    if (rows, columns) != (module.out_features, module.in_features):
        raise CheckpointError(
            f"got the LoRA {lora.path} for a Linear of {rows}x{columns} ({target}); this model has "
            f"{module.out_features}x{module.in_features} there; expected a LoRA for the same model size (2B or 13B); "
            "use the one for this model"
        )


def _another_size(lora: LoRA, what: str, got: Tensor, expected: Sequence[int] | None) -> CheckpointError:
    there = "nothing" if expected is None else f"{list(expected)}"
    return CheckpointError(
        f"got the LoRA {lora.path} with {what} of shape {list(got.shape)}; this model has {there} there; expected a "
        "LoRA for the same model size (2B or 13B); use the one for this model"
    )

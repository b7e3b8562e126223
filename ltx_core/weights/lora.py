"""LoRA files of every key style, applied beside the base weights and never to them.

A LoRA says, for a Linear of the model, W' = W + strength * (alpha / rank) * up @ down. It is kept as these factors:
while `applied` is active a hook on each Linear adds up(down(x)) to its result, whatever the Linear's weights are stored
as; afterwards the model is what it was, to the last bit.

Key styles: huggingface/diffusers and peft (`transformer.X.lora_A.weight`), Lightricks/LTX-Video-Trainer and ComfyUI
(`diffusion_model.X.lora_A.weight`), finetrainers (bare or `base_model.model.`), Kohya (`lora_unet_X` with underscores,
`lora_down`); alpha beside a target or in the header; DoRA as `dora_scale` or `lora_magnitude_vector`; full differences
as `diff` and `diff_b`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CheckpointError
from ..quant.linear import QuantizedLinear
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

# Prefixes before the module's path; what stands under one of these is meant for the transformer.
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
        """Whether it makes a distilled model of a dev model, by name and rank; nothing else in the file says so.

        The name alone would take in what somebody has trained for a distilled model.
        """
        ranks = (len(roles["down"]) for roles in self.targets.values() if "down" in roles)
        return "distill" in self.path.name.lower() and max(ranks, default=0) >= DISTILLED_RANK


@dataclass(frozen=True, eq=False)
class WeightedLoRA:
    """A LoRA at a strength (0: not at all). allow_partial: leave out what the model does not have."""

    lora: LoRA
    strength: float
    allow_partial: bool = False


@dataclass(frozen=True)
class LoRAReport:
    """What of a LoRA fits the model: targets by the file's names."""

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    text_encoder: tuple[str, ...]

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


def _peft_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """peft's `LoraConfig`, which diffusers and finetrainers store in the header; empty where there is none.

    Raises CheckpointError: it is no JSON.
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
            the LoRA was made for another model.
    """
    return _match(lora, model, _Names(model), allow_partial)[0]


def _match(lora: LoRA, model: nn.Module, names: _Names, allow_partial: bool) -> tuple[LoRAReport, dict[str, str]]:
    """The report, and the module for every matched target; errors as `match_lora`."""
    text = tuple(target for target in lora.targets if target.startswith(_TEXT_ENCODER_PREFIXES))
    found = {target: names.find(target) for target in lora.targets if target not in text}
    matched = {target: name for target, name in found.items() if name is not None}
    report = LoRAReport(tuple(matched), tuple(target for target in found if target not in matched), text)
    for target, name in matched.items():
        _check_shapes(lora, target, name, model.get_submodule(name))
    if not matched or (report.unmatched and not allow_partial):
        raise CheckpointError(
            f"got the LoRA {lora.path}, of which {report}; expected a LoRA for this model; use the right one"
            + (", or set allow_partial to apply the rest" if matched else "")
        )
    return report, matched


def _check_shapes(lora: LoRA, target: str, name: str, module: nn.Module) -> None:
    tensors = lora.targets[target]
    if not isinstance(module, nn.Linear | QuantizedLinear):
        if "down" in tensors:
            raise CheckpointError(
                f"got the LoRA {lora.path} with factors for {name}, which is no Linear; use another file"
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


# --- application ------------------------------------------------------------------------------------------------------


@contextmanager
def applied(model: nn.Module, loras: Sequence[WeightedLoRA]) -> Generator[tuple[LoRAReport, ...], None, None]:
    """The model with LoRAs, until the block is left. Strength 0 is the identity.

    Text must be prepared inside (`LTXTransformer.prepare_text`): its keys and values go through LoRAs too.

    Raises:
        CheckpointError: as `match_lora`; the model is unchanged then.
    """
    if not loras:
        yield ()
        return
    names = _Names(model)
    matches = [_match(one.lora, model, names, one.allow_partial) for one in loras]
    updates: dict[str, list[_Update]] = defaultdict(list)
    for one, (_, matched) in zip(loras, matches, strict=True):
        for target, name in matched.items() if one.strength != 0 else ():
            updates[name].append(_Update(one.lora.targets[target], one.lora.scales.get(target, 1.0), one.strength))
    with ExitStack() as stack:
        for name, of_module in updates.items():
            module = model.get_submodule(name)
            if isinstance(module, nn.Linear | QuantizedLinear):
                handle: RemovableHandle = module.register_forward_hook(_LinearHook(module, of_module))
                stack.callback(handle.remove)
            else:
                stack.enter_context(_replaced_parameters(module, of_module))
        yield tuple(report for report, _ in matches)


def device_bytes(loras: Sequence[WeightedLoRA], itemsize: int) -> int:
    """What applied LoRAs take on the device, in numbers of `itemsize` bytes: their tensors, brought there once."""
    return itemsize * sum(
        tensor.numel()
        for one in loras
        if one.strength
        for tensors in one.lora.targets.values()
        for tensor in tensors.values()
    )


@dataclass(frozen=True, eq=False)
class _Update:
    """What one LoRA does to one module."""

    tensors: Mapping[str, Tensor]
    scale: float
    strength: float

    def added_to(self, weight: Tensor) -> Tensor:
        """weight: float32 (out, in). Returns it with the change at strength 1, on its device."""
        tensors = {role: self.tensors[role].to(weight) for role in ("down", "up", "diff") if role in self.tensors}
        if "down" in tensors:
            return torch.addmm(weight, tensors["up"], tensors["down"], alpha=self.scale)
        return weight + tensors["diff"] if "diff" in tensors else weight


class _LinearHook:
    """Adds what the LoRAs say to the result of one Linear. Factors go to the device and dtype of the input, once."""

    def __init__(self, linear: nn.Linear | QuantizedLinear, updates: Sequence[_Update]) -> None:
        self._linear = linear
        self._updates = updates
        self._key: tuple[torch.device, torch.dtype] | None = None
        self._ready: list[_Ready] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        x = inputs[0]
        if self._key != (x.device, x.dtype):
            self._ready = [_Ready(update, self._linear, x) for update in self._updates]
            self._key = (x.device, x.dtype)
        base = output
        for ready in self._ready:
            output = output + ready(x, base)
        return output


class _Ready:
    """One update on the device of the input."""

    def __init__(self, update: _Update, linear: nn.Linear | QuantizedLinear, x: Tensor) -> None:
        tensors = update.tensors
        self.strength = update.strength
        self.factors: tuple[Tensor, ...] = ()
        if "down" in tensors:
            self.factors = tensors["down"].to(x), (update.scale * tensors["up"].float()).to(x)
        elif "diff" in tensors:
            self.factors = (tensors["diff"].to(x),)
        self.diff_b = tensors["diff_b"].to(x) if "diff_b" in tensors else None
        self.linear = linear  # and not its bias: of a streamed block that is another one every time
        self.row_scale: Tensor | None = None
        if "magnitude" in tensors:
            # DoRA (arXiv 2402.09353): rows of W + dW get the stored lengths.
            weight = linear.dequantized(torch.float32) if isinstance(linear, QuantizedLinear) else linear.weight.float()
            lengths = update.added_to(weight).norm(dim=1)
            self.row_scale = (tensors["magnitude"].to(lengths).flatten() / lengths).to(x)

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        """output: what the Linear gave. Returns the change of it, or what adds like it."""
        change = x if self.factors else output.new_zeros(())
        for factor in self.factors:
            change = F.linear(change, factor)
        if self.row_scale is not None:
            bias = self.linear.bias
            product = output if bias is None else output - bias.to(output)  # x W^T
            change = (product + change) * self.row_scale - product
        if self.diff_b is not None:
            change = change + self.diff_b
        return self.strength * change


@contextmanager
def _replaced_parameters(module: nn.Module, updates: Sequence[_Update]) -> Generator[None, None, None]:
    """A norm or table with its differences added, as new parameters; the old ones come back."""
    originals = dict(module.named_parameters(recurse=False))
    try:
        for role, name in (("diff", "weight"), ("diff_b", "bias")):
            differences = [
                update.strength * update.tensors[role].float() for update in updates if role in update.tensors
            ]
            if differences and name in originals:
                base = originals[name]
                changed = base.float() + torch.stack(differences).sum(0).to(base.device)
                setattr(module, name, nn.Parameter(changed.to(base.dtype), requires_grad=False))
        yield
    finally:
        for name, parameter in originals.items():
            setattr(module, name, parameter)

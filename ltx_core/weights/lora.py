"""LoRA files of every key style, applied beside the base weights and never to them.

A LoRA says, for a Linear of the model, W' = W + strength * (alpha / rank) * up @ down. It is kept as these factors:
while `applied` is active a hook on each Linear adds up(down(x)) to its result, whatever the Linear's weights are stored
as; afterwards the model is what it was, to the last bit.

Key styles: huggingface/diffusers and peft (`transformer.X.lora_A.weight`), Lightricks/LTX-Video-Trainer and ComfyUI
(`diffusion_model.X.lora_A.weight`), finetrainers (bare or `base_model.model.`), Kohya (`lora_unet_X` with underscores,
`lora_down`, `alpha`); DoRA as `dora_scale` or `lora_magnitude_vector`; full differences as `diff` and `diff_b`.
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


@dataclass(frozen=True, eq=False)
class LoRA:
    """A LoRA file: for each target, as the file names it, the tensors by role ("down", "up", "alpha", ...)."""

    path: Path
    targets: Mapping[str, Mapping[str, Tensor]]
    default_alpha: float | None


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
    return LoRA(checkpoint.path, targets, _default_alpha(checkpoint))


def _default_alpha(checkpoint: Checkpoint) -> float | None:
    """peft's `lora_alpha`, which diffusers stores in the header (`lora_adapter_metadata`)."""
    text = checkpoint.metadata.get("lora_adapter_metadata")
    if text is None:
        return None
    settings = cast("dict[str, Any]", json.loads(text))
    alpha = settings.get("transformer.lora_alpha", settings.get("lora_alpha"))
    return None if alpha is None else float(alpha)


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
        listed = ", ".join(report.unmatched[:3]) + (", ..." if len(report.unmatched) > 3 else "")
        raise CheckpointError(
            f"got the LoRA {lora.path}, of which {report}, missing in the model: {listed or 'all'}; expected a LoRA "
            "for this model; use the right one" + (", or set allow_partial to apply the rest" if matched else "")
        )
    return report, matched


def _check_shapes(lora: LoRA, target: str, name: str, module: nn.Module) -> None:
    tensors = lora.targets[target]
    if not isinstance(module, nn.Linear | QuantizedLinear):
        if "down" in tensors:
            raise CheckpointError(
                f"got the LoRA {lora.path} with factors for {name}, which is no Linear; use another file"
            )
        return
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
            updates[name].append(_Update(one.lora.targets[target], one.lora.default_alpha, one.strength))
    with ExitStack() as stack:
        for name, of_module in updates.items():
            module = model.get_submodule(name)
            if isinstance(module, nn.Linear | QuantizedLinear):
                handle: RemovableHandle = module.register_forward_hook(_LinearHook(module, of_module))
                stack.callback(handle.remove)
            else:
                stack.enter_context(_replaced_parameters(module, of_module))
        yield tuple(report for report, _ in matches)


class _Update:
    """What one LoRA does to one module."""

    def __init__(self, tensors: Mapping[str, Tensor], default_alpha: float | None, strength: float) -> None:
        self.tensors = tensors
        self.strength = strength
        self.scale = 1.0
        if "down" in tensors:
            alpha = float(tensors["alpha"]) if "alpha" in tensors else default_alpha
            self.scale = 1.0 if alpha is None else alpha / tensors["down"].shape[0]

    def weight(self) -> Tensor | None:
        """The change of the weight at strength 1, float32 (out, in)."""
        if "down" in self.tensors:
            return self.scale * (self.tensors["up"].float() @ self.tensors["down"].float())
        return self.tensors["diff"].float() if "diff" in self.tensors else None


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
        self.bias = linear.bias
        self.row_scale: Tensor | None = None
        if "magnitude" in tensors:
            # DoRA (arXiv 2402.09353): rows of W + dW get the stored lengths.
            change = update.weight()
            weight = linear.dequantized(torch.float32) if isinstance(linear, QuantizedLinear) else linear.weight.float()
            changed = weight.cpu() if change is None else weight.cpu() + change
            self.row_scale = (tensors["magnitude"].float().flatten() / changed.norm(dim=1)).to(x)

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        """output: what the Linear gave. Returns the change of it, or what adds like it."""
        change = x if self.factors else output.new_zeros(())
        for factor in self.factors:
            change = F.linear(change, factor)
        if self.row_scale is not None:
            product = output if self.bias is None else output - self.bias.to(output)  # x W^T
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

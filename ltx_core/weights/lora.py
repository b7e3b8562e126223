"""LoRA files of every kind and key style, and what each changes in a model.

Kinds: LoRA with alpha, Tucker's middle factor, a bias and DoRA's lengths; LoHa, LoKr, GLoRA, OFT and BOFT of LyCORIS;
full differences (`diff`, `diff_b`, `w_norm`, `b_norm`); whole tensors in the place of the model's (`set_weight`, peft's
modules_to_save, plain parameters). `lora_keys` has their names, `lora_settings` reads alpha, `adapters` has the math,
`lora_fit` finds what they change, and `placing.lora` applies them.

The shape of each tensor decides what it is, and nothing in a file goes unread: what cannot be applied is refused by its
name, or left out and reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
from ..files import is_folder
from ..values import LARGEST_STRENGTH, check_number
from .adapters import Change
from .build import layout_of
from .bundled import find_model
from .containers import Checkpoint, copied, open_checkpoint
from .lora_fit import MisfitError, Slot, Slots, Stored, Target, changes_of, whole_change
from .lora_keys import MARKERS, MAX_NAME, Kind, in_text_encoder, is_lora, parse, superseded
from .lora_settings import PeftSettings, read_settings
from .mapping import MappedFile

DISTILLED_RANK = 128  # of ltxv-13b-0.9.7-distilled-lora128

# What trainers call the weights in the folder that they write (huggingface/diffusers, huggingface/peft).
_FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True, eq=False)
class LoRA:
    """A LoRA file.

    targets: what it has for each module or parameter.  whole: tensors without an ending of a LoRA, which are whole
    parameters if the model has them.  settings: alpha and rank where no tensor says them.  files: that the tensors are
    mapped from.
    """

    path: Path
    targets: tuple[Target, ...]
    whole: tuple[Stored, ...]
    settings: PeftSettings
    files: tuple[MappedFile, ...] = ()

    @property
    def is_distilled(self) -> bool:
        """Whether it makes a distilled model of a dev model, by its rank and the name of its file.

        The only place where a name decides: the tensors of Lightricks' distilled LoRA look like those of any other of
        its rank, and its header is empty, so the name breaks the tie. The caller tells the user (`versions_with`) and
        lets the user overrule it (`settings`). The rank is asked for as well, since LoRAs that were trained for a
        distilled model often have the word in their names, and are smaller.
        """
        ranks = (
            len(roles["down"].tensor)
            for target in self.targets
            for roles in target.adapters.values()
            if "down" in roles and roles["down"].tensor.ndim
        )
        return "distill" in self.path.name.lower() and max(ranks, default=0) >= DISTILLED_RANK


@dataclass(frozen=True, eq=False)
class WeightedLoRA:
    """A LoRA at a strength (0: not at all). allow_partial: leave out what cannot be applied to the model.

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
    """What of a LoRA fits the model, by the file's names.

    modules: for each target that fits, the path of its module in the model.  unmatched: targets and tensors that the
    model does not have.  refused: those that it has, and that cannot be applied there, with the reason.
    """

    modules: Mapping[str, str]
    unmatched: tuple[str, ...]
    text_encoder: tuple[str, ...]
    refused: tuple[str, ...] = ()

    @property
    def matched(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def __str__(self) -> str:
        count = len(self.matched) + len(self.unmatched) + len(self.refused)
        text = f"{len(self.matched)} of {count} transformer targets matched"
        if self.unmatched:
            text += f", not in the model: {_some(self.unmatched)}"
        if self.refused:
            text += f", not applicable: {_some(self.refused)}"
        if self.text_encoder:
            text += f"; {len(self.text_encoder)} targets in a text encoder are not used"
        return text


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(name[:MAX_NAME] for name in names[:3])}{', ...' if len(names) > 3 else ''}"


@dataclass(frozen=True, eq=False)
class Fit:
    """What a LoRA changes in a model: the changes of each parameter, and the report for the user."""

    changes: Mapping[Slot, tuple[Change, ...]]
    report: LoRAReport


# --- loading ----------------------------------------------------------------------------------------------------------


def load_lora(path: Path | str, *, copy: bool = False) -> LoRA:
    """Open a LoRA file, the folder that a trainer wrote, or the bundled LoRA by its name; its tensors stay
    memory-mapped.

    copy: they are read into memory instead.

    Raises:
        CheckpointError: the file is damaged, holds no LoRA, a part of an adapter is missing, or its settings are wrong.
        UnsupportedError: its settings ask for something that LTXKit does not do.
    """
    checkpoint = open_checkpoint(_weights_file(find_model(path, "loras")))
    if copy:
        checkpoint = copied(checkpoint)
    refuse_foreign(checkpoint)
    keys = [key for key in checkpoint.tensors if key not in MARKERS]
    if not is_lora(keys):
        raise CheckpointError(
            f"got {checkpoint.path}, which holds no LoRA; expected keys that end in lora_A / lora_B, lora_down / "
            "lora_up, lokr_w1, hada_w1_a, oft_blocks, diff or diff_b; load a model file with the model loader"
        )
    adapters: dict[str, dict[tuple[Kind, str], dict[str, Stored]]] = defaultdict(lambda: defaultdict(dict))
    own: dict[str, dict[str, Stored]] = defaultdict(dict)
    whole: list[Stored] = []
    for key in keys:
        parsed, stored = parse(key), Stored(key, checkpoint.tensor(key))
        _check_finite(stored, checkpoint.path)
        if parsed is None:
            if not superseded(key, checkpoint.tensors):
                whole.append(stored)
            continue
        shared = parsed.kind == "target"
        roles = own[parsed.target] if shared else adapters[parsed.target][parsed.kind, parsed.spelling]
        if roles.setdefault(parsed.role, stored) is not stored:
            whole.append(stored)  # a second tensor for one role has no meaning
    targets: list[Target] = []
    for name in dict.fromkeys([*adapters, *own]):
        alpha = _alpha(own[name].pop("alpha", None), checkpoint.path)
        targets.append(Target(name, adapters[name], own[name], alpha))
        _check_complete(targets[-1], checkpoint.path)
    settings = read_settings(checkpoint.path, checkpoint.metadata)
    return LoRA(checkpoint.path, tuple(targets), tuple(whole), settings, checkpoint.files)


def refuse_foreign(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError: it is a LoRA for another model, or another model, by name."""
    layout = layout_of(checkpoint)
    if layout.instead:
        raise CheckpointError(
            f"got {checkpoint.path}, which is {layout.what}; expected a LoRA for LTX-Video; {layout.instead}"
        )


def _weights_file(path: Path) -> Path:
    """The weights in a folder; a path that is no folder as it is."""
    if not is_folder(path):
        return path
    for folder in (path, *sorted(child for child in path.iterdir() if child.is_dir())):
        found = [folder / name for name in _FOLDER_FILES if (folder / name).is_file()]
        if found:
            return found[0]
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files) or "no safetensors file"
    raise CheckpointError(
        f"got the folder {path} with {names}; expected {' or '.join(_FOLDER_FILES)}, or one safetensors file; pass the "
        "path of the LoRA to use"
    )


def _check_finite(stored: Stored, path: Path) -> None:
    tensor = stored.tensor.float() if stored.tensor.element_size() == 1 else stored.tensor
    if not math.isfinite(tensor.sum(dtype=torch.float32)):
        raise CheckpointError(
            f"got {path} with {stored.key}, which holds NaN or infinity; expected finite numbers; use another file"
        )


def _alpha(stored: Stored | None, path: Path) -> float | None:
    if stored is None:
        return None
    alpha = float(stored.tensor.float()) if stored.tensor.numel() == 1 else math.nan
    if not math.isfinite(alpha):
        raise CheckpointError(
            f"got {path} with {stored.key} of shape {list(stored.tensor.shape)} and value "
            f"{stored.tensor.flatten()[:2].tolist()}; expected one finite number; download the file again"
        )
    return alpha


# Roles that an adapter must have: each entry is a choice between sets of roles.
_COMPLETE: Mapping[Kind, tuple[tuple[frozenset[str], ...], ...]] = {
    "lora": ((frozenset({"down"}),), (frozenset({"up"}),)),
    "loha": tuple((frozenset({role}),) for role in ("w1_a", "w1_b", "w2_a", "w2_b")),
    "lokr": tuple((frozenset({f"w{n}"}), frozenset({f"w{n}_a", f"w{n}_b"})) for n in "12"),
    "glora": tuple((frozenset({role}),) for role in ("a1", "a2", "b1", "b2")),
    "oft": ((frozenset({"oft_blocks"}),),),
}


def _check_complete(target: Target, path: Path) -> None:
    for (kind, _), roles in target.adapters.items():
        for choices in _COMPLETE.get(kind, ()):
            if not any(choice <= roles.keys() for choice in choices):
                lack = " or ".join(" and ".join(sorted(choice)) for choice in choices)
                have = ", ".join(sorted(roles))
                halves = f"the {have} half of {target.name} and no {lack} half"
                parts = f"{', '.join(part.key for part in roles.values())} and no {lack}"
                raise CheckpointError(
                    f"got {path} with {halves if kind == 'lora' else parts}; expected both; download the file again"
                )


# --- fitting ----------------------------------------------------------------------------------------------------------


def match_lora(lora: LoRA, model: nn.Module, *, allow_partial: bool = False) -> LoRAReport:
    """Which targets of the LoRA are modules of the model.

    Raises:
        CheckpointError: as `fit_lora`.
    """
    return fit_lora(lora, model, allow_partial=allow_partial).report


def fit_lora(lora: LoRA, model: nn.Module, *, allow_partial: bool = False) -> Fit:
    """What the LoRA changes in the model; the model may be on `meta`.

    allow_partial: leave out what cannot be applied, and report it.

    Raises:
        CheckpointError: a target or tensor for the transformer is not in the model, or is of another shape or of a kind
            that cannot be applied (unless `allow_partial`), or nothing fits: the LoRA is for another model.
    """
    slots = Slots(model)
    changes: dict[Slot, list[Change]] = defaultdict(list)
    modules: dict[str, str] = {}
    unmatched: list[str] = []
    text: list[str] = []
    misfits: list[MisfitError] = []

    def take(name: str, found: Mapping[Slot, Change] | None, shown: str) -> None:
        if found is None:
            unmatched.append(shown)
            return
        for slot, change in found.items():
            changes[slot].append(change)
            modules[name] = slot.module

    for target in lora.targets:
        if in_text_encoder(target.name):
            text.append(target.name)
            continue
        try:
            take(target.name, changes_of(target, slots, lora.settings), _shown(target))
        except MisfitError as misfit:
            misfits.append(misfit)
    for stored in lora.whole:
        slot = slots.parameter(stored.key)
        if slot is None and in_text_encoder(stored.key):
            text.append(stored.key)
            continue
        try:
            take(stored.key, whole_change(stored, slot), stored.key)
        except MisfitError as misfit:
            misfits.append(misfit)

    report = LoRAReport(modules, tuple(unmatched), tuple(text), tuple(misfit.key for misfit in misfits))
    if misfits and not (allow_partial and modules):
        raise _refusal(lora, misfits[0], others=bool(modules))
    if not modules or (unmatched and not allow_partial):
        raise CheckpointError(
            f"got the LoRA {lora.path}, of which {report}; expected a LoRA for this model; use the right one"
            + (", or set allow_partial to apply the rest" if modules else "")
        )
    return Fit({slot: tuple(found) for slot, found in changes.items()}, report)


def _shown(target: Target) -> str:
    """How a target that the model lacks is named: factors by their module, anything else by its tensor."""
    plain = all(kind == "lora" for kind, _ in target.adapters)
    return target.name if plain or not target.keys else target.keys[0]


def _refusal(lora: LoRA, misfit: MisfitError, *, others: bool) -> CheckpointError:
    rest = "; set allow_partial to apply the rest" if others else ""
    return CheckpointError(f"got the LoRA {lora.path} {misfit.got[:1000]}; expected {misfit.expected}{rest}")

"""What each target of a LoRA changes in a model, by the shapes of its tensors and of the model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..quant.linear import QuantizedLinear
from .adapters import Change, Difference, Factors, Hadamard, Kronecker, Orthogonal, Part
from .layouts import TRANSFORMER_FROM_DIFFUSERS
from .lora_keys import Kind, spellings
from .lora_settings import PeftSettings

_PARAMETERS = (".weight", ".bias", "scale_shift_table")  # what the names of a transformer's parameters end with

SAME_SIZE = "a LoRA for the same model size (2B or 13B); use the one for this model"


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of the file, memory-mapped, and its name there."""

    key: str
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """What a LoRA file has for one module or parameter.

    name: as the file has it.  adapters: for each kind and spelling (`lora_keys.LoRAKey`), tensors by role.  own: those
    that belong to all adapters, by role ("magnitude", "shape").  alpha: from the file's tensor; None without one.
    """

    name: str
    adapters: Mapping[tuple[Kind, str], Mapping[str, Stored]]
    own: Mapping[str, Stored]
    alpha: float | None

    @property
    def keys(self) -> tuple[str, ...]:
        parts = [part for roles in self.adapters.values() for part in roles.values()]
        return tuple(part.key for part in (*parts, *self.own.values()))


class MisfitError(Exception):
    """A target that the model cannot take.

    key: the tensor or target to name.  got: what follows the file's name in a message.  expected: with what to do.
    """

    def __init__(self, key: str, got: str, expected: str) -> None:
        super().__init__(got)
        self.key, self.got, self.expected = key, got, expected


# --- places in a model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A parameter of a model: its module's path, its name there, its shape. linear: whether the module is a Linear."""

    module: str
    parameter: str
    shape: tuple[int, ...]
    linear: bool


class Slots:
    """The parameters of a transformer by any name that a LoRA gives them."""

    def __init__(self, model: nn.Module) -> None:
        to_diffusers = TRANSFORMER_FROM_DIFFUSERS.inverse()
        self._slots: dict[str, Slot] = {}
        for slot in _slots(model):
            name = f"{slot.module}.{slot.parameter}".removeprefix(".")
            for spelling in (name, to_diffusers.rename(name) or name):
                self._slots[spelling.replace(".", "_")] = slot

    def parameter(self, name: str) -> Slot | None:
        """The parameter that has this name in some spelling."""
        return next((self._slots[flat] for flat in spellings(name) if flat in self._slots), None)

    def target(self, name: str) -> Slot | None:
        """The weight of a target, or the parameter that the target is."""
        for flat in spellings(name):
            for path in (f"{flat}_weight", f"{flat}_0_weight" if flat.endswith("to_out") else flat, flat):
                if path in self._slots:
                    return self._slots[path]
        return None

    def bias(self, weight: Slot) -> Slot | None:
        """The bias beside a weight. A Linear without one can get one."""
        if weight.parameter != "weight":
            return None
        there = self._slots.get(f"{weight.module}.bias".replace(".", "_"))
        return there or (Slot(weight.module, "bias", weight.shape[:1], True) if weight.linear else None)


def _slots(model: nn.Module) -> list[Slot]:
    slots: list[Slot] = []
    for path, module in model.named_modules():
        linear = isinstance(module, nn.Linear | QuantizedLinear)
        if isinstance(module, QuantizedLinear):
            slots.append(Slot(path, "weight", (module.out_features, module.in_features), linear))
        slots += [
            Slot(path, name, tuple(parameter.shape), linear)
            for name, parameter in module.named_parameters(recurse=False)
        ]
    return slots


# --- what a target changes --------------------------------------------------------------------------------------------


def changes_of(target: Target, slots: Slots, settings: PeftSettings) -> dict[Slot, Change] | None:
    """What a target changes, by parameter; None where the model has no such module or parameter.

    Raises:
        MisfitError: a tensor is of a shape, type or kind that cannot be applied there.
    """
    weight = slots.target(target.name)
    if weight is None:
        return None
    building = _Building(target, weight, slots.bias(weight), settings)
    for (kind, _), roles in target.adapters.items():
        _BUILDERS[kind](building, roles)
    building.finish()
    return building.changes()


def whole_change(stored: Stored, slot: Slot | None) -> dict[Slot, Change] | None:
    """A whole tensor in the place of the model's; None where the model has no such parameter.

    Raises:
        MisfitError: it has another shape, or its name is neither that of an adapter's part nor of a parameter.
    """
    if slot is not None:
        return {slot: Change(replacement=_whole(stored, slot))}
    if stored.key.endswith(_PARAMETERS):
        return None
    raise MisfitError(
        stored.key,
        f"with {stored.key}, which is no part of an adapter that LTXKit knows",
        "LoRA, DoRA, LoHa, LoKr, GLoRA, OFT, BOFT and whole tensors; use another file",
    )


@dataclass(eq=False)
class _Building:
    """The changes of one target's weight and bias, as its tensors are read one after the other."""

    target: Target
    weight: Slot
    bias: Slot | None
    settings: PeftSettings
    parts: list[Part] = field(default_factory=list)
    bias_parts: list[Part] = field(default_factory=list)
    replacement: Tensor | None = None
    on_input: Factors | None = None
    rotation: Orthogonal | None = None
    magnitude: Tensor | None = None

    def scale(self, rank: int | None) -> float:
        """alpha / rank. rank None: two whole factors, to which a file's alpha does not apply."""
        if self.target.alpha is not None:
            return 1.0 if rank is None else self.target.alpha / rank
        return self.settings.scale(self.target.name, rank)

    def add(self, part: Part, rows: int, columns: int) -> None:
        """Raises MisfitError where a matrix of this size is no change of the weight."""
        shape = self.weight.shape
        vector = len(shape) == 1 and 1 in (rows, columns) and rows * columns == shape[0]
        if (rows, columns) != shape and not vector:
            there = "x".join(str(size) for size in shape)
            raise MisfitError(
                self.target.name,
                f"for a Linear of {rows}x{columns} ({self.target.name}); this model has {there} there",
                SAME_SIZE,
            )
        self.parts.append(part)

    def add_bias(self, stored: Stored, scale: float = 1.0) -> None:
        if self.bias is None:
            raise _another_shape(stored, None)
        self.bias_parts.append(Difference(scale * _whole(stored, self.bias).float()))

    def needs_linear(self, stored: Stored) -> None:
        if not self.weight.linear or self.weight.parameter != "weight":
            raise MisfitError(
                stored.key,
                f"with {stored.key} for {self.weight.module or self.weight.parameter}, which is not a Linear",
                "one for Linears only; use another file",
            )

    def finish(self) -> None:
        """What belongs to all adapters of the target."""
        own = self.target.own
        if "shape" in own:
            wanted = [int(size) for size in own["shape"].tensor.flatten().tolist()]
            if wanted != list(self.weight.shape):
                raise MisfitError(
                    own["shape"].key,
                    f"with {own['shape'].key}, which makes the weight one of {wanted}; this model has "
                    f"{list(self.weight.shape)} there",
                    "a LoRA that leaves the shapes of the model; use another file",
                )
        if "magnitude" in own:
            self.magnitude = self._lengths(own["magnitude"])
        elif self.settings.has_magnitudes and any(kind == "lora" for kind, _ in self.target.adapters):
            raise MisfitError(
                self.target.name,
                f"with {self.target.name} without lora_magnitude_vector, though {self.settings.source} says use_dora",
                "both; download the file again",
            )

    def _lengths(self, stored: Stored) -> Tensor:
        """DoRA's lengths of rows (out, 1) or columns (1, in)."""
        self.needs_linear(stored)
        rows, columns = self.weight.shape
        tensor = _floating(stored).squeeze() if stored.tensor.ndim > 2 else _floating(stored)
        if tensor.numel() == rows and tensor.shape[0] == rows:
            return tensor.reshape(rows, 1)
        if tensor.ndim == 2 and tensor.shape == (1, columns):
            return tensor
        raise _another_shape(stored, (rows, 1))

    def changes(self) -> dict[Slot, Change]:
        changes: dict[Slot, Change] = {}
        if self.parts or self.on_input or self.rotation or self.magnitude is not None or self.replacement is not None:
            changes[self.weight] = Change(
                self.replacement, tuple(self.parts), self.on_input, self.rotation, self.magnitude
            )
        if self.bias is not None and self.bias_parts:
            changes[self.bias] = Change(parts=tuple(self.bias_parts))
        if not changes:
            raise MisfitError(
                self.target.name,
                f"with nothing for {self.target.name} but a scale",
                "factors or a difference as well; download the file again",
            )
        return changes


def _add_lora(building: _Building, roles: Mapping[str, Stored]) -> None:
    down, up = _matrix(roles["down"]), _matrix(roles["up"])
    if "mid" in roles:
        middle = _matrix(roles["mid"])
        if middle.shape != (up.shape[1], down.shape[0]):
            raise _another_shape(roles["mid"], (up.shape[1], down.shape[0]))
        rank, down = down.shape[0], middle.float() @ down.float()
    else:
        down, up = _oriented(down, up, building.weight.shape)
        rank = down.shape[0]
    if down.shape[0] != up.shape[1]:
        raise MisfitError(
            building.target.name,
            f"with ranks {down.shape[0]} and {up.shape[1]} for {building.target.name}",
            "the same rank in both halves; download the file again",
        )
    scale = building.scale(rank)
    down, scale = _scaled(down, roles.get("down_scale"), scale)
    up, scale = _scaled(up, roles.get("up_scale"), scale)
    building.add(Factors(down, up, scale), up.shape[0], down.shape[1])
    if "up_bias" in roles:
        building.add_bias(roles["up_bias"], building.scale(rank))


def _oriented(down: Tensor, up: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The factors as (rank, in) and (out, rank): those of libraries that write x @ a @ b are transposed."""
    fits = (up.shape[0], down.shape[1]) == tuple(shape) and down.shape[0] == up.shape[1]
    transposed = (up.shape[1], down.shape[0]) == tuple(shape) and down.shape[1] == up.shape[0]
    return (down.T, up.T) if transposed and not fits else (down, up)


def _scaled(factor: Tensor, stored: Stored | None, scale: float) -> tuple[Tensor, float]:
    """A factor of 8 bits with the scale that belongs to it: one for all, or one for each row."""
    if stored is None:
        return factor, scale
    scales = _floating(stored).float()
    if scales.numel() == 1:
        return factor, scale * float(scales)
    if scales.numel() != factor.shape[0]:
        raise _another_shape(stored, (factor.shape[0], 1))
    return factor.float() * scales.reshape(-1, 1), scale


def _add_loha(building: _Building, roles: Mapping[str, Stored]) -> None:
    halves: list[Factors] = []
    for number in ("1", "2"):
        up, down = _matrix(roles[f"w{number}_a"]), _matrix(roles[f"w{number}_b"])
        if f"t{number}" in roles:  # Tucker: up is (rank, out)
            up = _tucker(up, _matrix(roles[f"t{number}"]), roles[f"t{number}"])
        halves.append(_factors(down, up, roles[f"w{number}_b"]))
    first, second = halves
    if first.shape != second.shape:
        raise _another_shape(roles["w2_a"], None)
    building.add(Hadamard(first, second, building.scale(_matrix(roles["w1_b"]).shape[0])), *first.shape)


def _add_lokr(building: _Building, roles: Mapping[str, Stored]) -> None:
    rank: int | None = None
    if "w1" in roles:
        outer = _matrix(roles["w1"])
    else:
        pair = _factors(_matrix(roles["w1_b"]), _matrix(roles["w1_a"]), roles["w1_b"])
        outer, rank = pair.dense(), pair.down.shape[0]
    if "w2" in roles:
        inner: Difference | Factors = Difference(_matrix(roles["w2"]))
    else:
        down, up = _matrix(roles["w2_b"]), _matrix(roles["w2_a"])
        if "t2" in roles:
            up = _tucker(up, _matrix(roles["t2"]), roles["t2"])
        inner, rank = _factors(down, up, roles["w2_b"]), down.shape[0]
    part = Kronecker(outer, inner, building.scale(rank))
    building.add(part, *part.shape)


def _add_glora(building: _Building, roles: Mapping[str, Stored]) -> None:
    building.needs_linear(roles["a1"])
    rows, columns = building.weight.shape
    a1, a2, b1, b2 = (_matrix(roles[role]) for role in ("a1", "a2", "b1", "b2"))
    if a1.shape[0] != columns or b1.shape[0] != rows:  # LyCORIS before version 2 had them the other way round
        a1, a2, b1, b2 = a2, a1, b2, b1
    rank = a2.shape[0]
    expected = ((columns, rank), (rank, columns), (rows, rank), (rank, columns))
    if tuple(tuple(part.shape) for part in (a1, a2, b1, b2)) != expected:
        raise MisfitError(
            building.target.name,
            f"with a GLoRA for another Linear ({building.target.name}); this model has {rows}x{columns} there",
            SAME_SIZE,
        )
    scale = building.scale(rank)
    building.on_input = Factors(a2, a1, scale)
    building.add(Factors(b2, b1, scale), rows, columns)


def _add_oft(building: _Building, roles: Mapping[str, Stored]) -> None:
    stored = roles["oft_blocks"]
    building.needs_linear(stored)
    blocks, rows = _floating(stored), building.weight.shape[0]
    butterfly = blocks.ndim == 4
    stages = blocks if butterfly else blocks.unsqueeze(0)
    if stages.ndim != 4 or stages.shape[2] != stages.shape[3] or 0 in stages.shape:
        raise _another_shape(stored, None)
    count, number, size, _ = stages.shape
    span = size * 2 ** (count - 1) if count < 32 else 0
    if number * size != rows or (butterfly and (size % 2 or span == 0 or rows % span)):
        raise MisfitError(
            stored.key,
            f"with {stored.key} of shape {list(blocks.shape)}; this model has {rows} rows there",
            SAME_SIZE,
        )
    rescale = None
    if "rescale" in roles:
        if roles["rescale"].tensor.numel() != rows:
            raise _another_shape(roles["rescale"], (rows, 1))
        rescale = _floating(roles["rescale"]).reshape(rows)
    # OFT's alpha is no scale: it limits the norm, as comfy/weight_adapter/oft.py reads it.
    building.rotation = Orthogonal(stages, building.target.alpha or 0.0, butterfly, rescale)


def _add_difference(building: _Building, roles: Mapping[str, Stored]) -> None:
    if "weight" in roles:
        whole = _whole(roles["weight"], building.weight, building.target.name)
        building.parts.append(Difference(whole))
    if "bias" in roles:
        building.add_bias(roles["bias"])


def _set(building: _Building, roles: Mapping[str, Stored]) -> None:
    building.replacement = _whole(roles["weight"], building.weight)


_BUILDERS: Mapping[Kind, Callable[[_Building, Mapping[str, Stored]], None]] = {
    "lora": _add_lora,
    "loha": _add_loha,
    "lokr": _add_lokr,
    "glora": _add_glora,
    "oft": _add_oft,
    "difference": _add_difference,
    "set": _set,
}


# --- tensors ----------------------------------------------------------------------------------------------------------


def _floating(stored: Stored) -> Tensor:
    if not stored.tensor.is_floating_point():
        raise MisfitError(
            stored.key,
            f"with {stored.key} of type {str(stored.tensor.dtype).removeprefix('torch.')}",
            "floating-point numbers; use a LoRA in bf16, fp16, fp32 or fp8",
        )
    return stored.tensor


def _matrix(stored: Stored) -> Tensor:
    """A factor as a matrix: those of 1x1 convolutions have more axes."""
    tensor = _floating(stored)
    if tensor.ndim < 2 or 0 in tensor.shape or math.prod(tensor.shape[2:]) != 1:
        raise _another_shape(stored, None)
    return tensor.reshape(tensor.shape[:2])


def _factors(down: Tensor, up: Tensor, stored: Stored) -> Factors:
    if down.shape[0] != up.shape[1]:
        raise MisfitError(
            stored.key,
            f"with ranks {down.shape[0]} and {up.shape[1]} at {stored.key}",
            "the same rank in both factors; download the file again",
        )
    return Factors(down, up)


def _tucker(up: Tensor, core: Tensor, stored: Stored) -> Tensor:
    """The upper factor (out, rank) of a Tucker decomposition, from (rank, out) and the core (rank, rank)."""
    if core.shape[0] != up.shape[0]:
        raise _another_shape(stored, (up.shape[0], up.shape[0]))
    return up.float().T @ core.float()


def _whole(stored: Stored, slot: Slot, target: str | None = None) -> Tensor:
    """A tensor in the shape of a parameter; axes of one element make no difference."""
    tensor = _floating(stored)
    if _sizes(tensor.shape) != _sizes(slot.shape):
        if target is not None and tensor.ndim == len(slot.shape) == 2:
            got, there = ("x".join(str(size) for size in shape) for shape in (tensor.shape, slot.shape))
            raise MisfitError(
                stored.key, f"for a Linear of {got} ({stored.key}); this model has {there} there", SAME_SIZE
            )
        raise _another_shape(stored, slot.shape)
    return tensor.reshape(slot.shape)


def _sizes(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _another_shape(stored: Stored, expected: Sequence[int] | None) -> MisfitError:
    there = "nothing" if expected is None else f"{list(expected)}"
    return MisfitError(
        stored.key,
        f"with {stored.key} of shape {list(stored.tensor.shape)}; this model has {there} there",
        SAME_SIZE,
    )

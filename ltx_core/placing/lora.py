"""LoRAs while a model runs: merged into copies of its weights, or added beside its Linears; never in its own weights.

Where weights are plain numbers a LoRA is merged (`merging`) and costs nothing. Where they are quantized, in training,
and on a CPU without room for copies, a hook on each Linear adds what the LoRAs change, all of them as one pair of
factors. Afterwards the model is unchanged to the last bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError
from ..kernels.active import PLAINLY, Active
from ..kernels.products import product
from ..quant.linear import QuantizedLinear
from ..weights.adapters import Change, Factors, Part, Rotation, factors_of, merged, merging_bytes, replaced
from ..weights.lora import LoRAReport, WeightedLoRA, fit_lora
from ..weights.mapping import watch
from .merging import Changes, Merge, has_room, is_plain, merged_into

LoRAMode = Literal["auto", "merged", "beside"]
LORA_MODES: tuple[LoRAMode, ...] = get_args(LoRAMode)
"""merged: into all weights that are plain, beside the others. beside: all. auto: merged where there is room."""


@dataclass(frozen=True)
class Application:
    """How LoRAs were applied. merged, beside: numbers of Linears. no_room: whether they would be merged otherwise."""

    merged: int
    beside: int
    no_room: bool = False

    @property
    def mode(self) -> LoRAMode:
        """What gives the same numbers again."""
        return "merged" if self.merged else "beside"

    def __str__(self) -> str:
        why = ", for want of main memory to merge them" if self.no_room else ""
        weights = "weight" if self.merged == 1 else "weights"
        beside = "quantized one" if self.merged else "Linear"
        parts = [
            f"merged into {self.merged} {weights}" if self.merged else "",
            f"added beside {self.beside} {beside}{'' if self.beside == 1 else 's'}{why}" if self.beside else "",
        ]
        return f"LoRAs are {', '.join(filter(None, parts))}."


@contextmanager
def applied(
    model: nn.Module,
    loras: Sequence[WeightedLoRA],
    mode: LoRAMode = "auto",
    note: Callable[[Application], None] = lambda _: None,
) -> Generator[tuple[LoRAReport, ...], None, None]:
    """Inside, the model has the LoRAs; the value is their reports, in order. Strength 0 is the identity.

    Each LoRA adds strength times its change of the model's own weight, so their order does not matter. A whole tensor
    of a LoRA stands in the place of the model's at every strength but 0; the last one counts.

    The model must be placed already: a placement that begins inside makes copies of its own weights.
    Text must be prepared inside (`LTXTransformer.prepare_text`): its keys and values go through LoRAs too. Copies that
    stay on a device keep what is merged into them for the next call, which merges only what it has otherwise.

    note: receives how they are applied, if there are any.

    Raises:
        CheckpointError: as `fit_lora`; the model is then unchanged. Or a LoRA's file was written to meanwhile, which
            each pass finds out.
        ConfigError: mode "merged", and all weights that the LoRAs change are quantized.
    """
    files = [file for item in loras for file in item.lora.files if item.strength]
    for file in files:
        file.check_unchanged()
    fits = [fit_lora(item.lora, model, allow_partial=item.allow_partial) for item in loras]
    by_module: dict[str, dict[str, Changes]] = defaultdict(lambda: defaultdict(list))
    keys: dict[tuple[str, str], list[tuple[object, float]]] = defaultdict(list)
    for item, fit in zip(loras, fits, strict=True):
        for slot, changes in fit.changes.items() if item.strength != 0 else ():
            by_module[slot.module][slot.parameter] += [(change, item.strength) for change in changes]
            keys[slot.module, slot.parameter].append((item.lora, item.strength))
    linears = {
        name: module
        for name, module in ((name, model.get_submodule(name)) for name in by_module)
        if isinstance(module, nn.Linear | QuantizedLinear)
    }
    merges = [] if mode == "beside" else _merges(linears, by_module, keys)
    _check_mode(mode, list(linears.values()))
    no_room = mode == "auto" and not has_room(model, merges)
    if no_room:
        merges = []
    if linears:
        count = len({id(each.module) for each in merges})
        note(Application(count, len(linears) - count, no_room))
    done = {(id(each.module), each.parameter) for each in merges}
    with ExitStack() as stack:
        for handle in watch(model, files):
            stack.callback(handle.remove)
        stack.enter_context(merged_into(model, merges))
        for name, parameters in by_module.items():
            module = model.get_submodule(name)
            if isinstance(module, nn.Linear | QuantizedLinear):
                left = {key: each for key, each in parameters.items() if (id(module), key) not in done}
                if left:
                    hook = _LinearHook(module, left.get("weight", []), left.get("bias", []))
                    handle: RemovableHandle = module.register_forward_hook(hook)
                    stack.callback(handle.remove)
                    if isinstance(module, QuantizedLinear):
                        handle = module.register_forward_pre_hook(hook.before)
                        stack.callback(handle.remove)
                        stack.callback(hook.leave_weight)
            else:
                stack.enter_context(_replaced_parameters(module, parameters))
        yield tuple(fit.report for fit in fits)


def check_mode(mode: LoRAMode, loras: Sequence[WeightedLoRA], model: nn.Module) -> None:
    """Raises ConfigError: as `applied`; CheckpointError: as `fit_lora`. The model may be on meta."""
    if mode == "merged":
        fits = [fit_lora(item.lora, model, allow_partial=item.allow_partial) for item in loras if item.strength]
        _check_mode(mode, [model.get_submodule(slot.module) for fit in fits for slot in fit.changes if slot.linear])


def _check_mode(mode: LoRAMode, linears: Sequence[nn.Module]) -> None:
    if mode == "merged" and linears and all(isinstance(linear, QuantizedLinear) for linear in linears):
        raise ConfigError(
            "got the mode merged for LoRAs that change quantized weights alone; expected weights that are plain "
            "numbers; use auto or beside, or load a bf16 file"
        )


def _merges(
    linears: Mapping[str, nn.Module],
    changes: Mapping[str, Mapping[str, Changes]],
    keys: Mapping[tuple[str, str], Sequence[tuple[object, float]]],
) -> list[Merge]:
    """What can be merged: everything that plain Linears have."""
    return [
        Merge(module, parameter, found, tuple(keys[name, parameter]))
        for name, module in linears.items()
        if is_plain(module)
        for parameter, found in changes[name].items()
        if getattr(module, parameter) is not None  # a bias that the Linear does not have is added beside it
    ]


def device_bytes(loras: Sequence[WeightedLoRA], itemsize: int) -> int:
    """Bytes of applied LoRAs on the device: one copy of their tensors, in numbers of `itemsize` bytes, and the largest
    matrix that one of them makes for a moment. Those that are merged need less: their factors, for streamed blocks."""
    held = work = 0
    for item in loras:
        for target in item.lora.targets if item.strength else ():
            for (kind, _), roles in target.adapters.items():
                size = 4 if kind == "loha" else itemsize
                held += size * sum(stored.tensor.numel() for stored in roles.values())
                if kind == "loha":
                    first, second = roles["w1_a"].tensor, roles["w1_b"].tensor
                    work = max(work, 12 * first.numel() * second.numel() // len(second) ** 2)
        held += itemsize * sum(stored.tensor.numel() for stored in item.lora.whole if item.strength)
    return held + work


def copied_bytes(model: nn.Module, loras: Sequence[WeightedLoRA], mode: LoRAMode) -> int:
    """Bytes of the copies into which these LoRAs are merged where a model computes with the weights of its file.

    Raises:
        CheckpointError: as `fit_lora`.
    """
    merged_into = {
        (slot.module, slot.parameter)
        for item in loras
        if item.strength and mode != "beside"
        for slot in fit_lora(item.lora, model, allow_partial=item.allow_partial).changes
        if is_plain(model.get_submodule(slot.module))
    }
    parameters = [getattr(model.get_submodule(module), name) for module, name in merged_into]
    return sum(parameter.nbytes for parameter in parameters if parameter is not None)


def merging_work(model: nn.Module, loras: Sequence[WeightedLoRA], mode: LoRAMode) -> int:
    """Bytes that merging these LoRAs into the model takes on its device for a moment.

    Raises:
        CheckpointError: as `fit_lora`.
    """
    changes: dict[tuple[str, int], Changes] = defaultdict(list)
    for item in loras if mode != "beside" else ():
        for slot, found in fit_lora(item.lora, model, allow_partial=item.allow_partial).changes.items():
            if slot.parameter == "weight" and is_plain(model.get_submodule(slot.module)):
                changes[slot.module, math.prod(slot.shape)] += [(change, item.strength) for change in found]
    return max((merging_bytes(elements, found) for (_, elements), found in changes.items()), default=0)


class _LinearHook:
    """Adds the changes to the result of one Linear. What they need moves once to the device and dtype of the input."""

    def __init__(self, linear: nn.Linear | QuantizedLinear, weight: Changes, bias: Changes) -> None:
        self._linear = linear
        self._weight, self._bias = weight, bias
        self._key: tuple[torch.device, torch.dtype] | None = None
        self._base: Tensor | None = None  # what stands in the place of the weight
        self._pair: tuple[Tensor, Tensor] | None = None  # down (r, in), up (out, r): all products of two factors
        self._ready: list[_ChangeOnDevice] = []
        self._shift: Tensor | None = None  # of the bias
        self._is_in_weight = False  # of the product that is being made

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """For many tokens a change of the weight that is unpacked anyway is less work than two more products."""
        x, linear = inputs[0], self._linear
        many = x.numel() // x.shape[-1] * (linear.in_features + linear.out_features)
        if many <= linear.in_features * linear.out_features or torch.is_grad_enabled():
            return
        self._ready_for(x)
        alone = self._pair is not None and self._base is None and not self._ready
        if alone and isinstance(linear, QuantizedLinear) and linear.unpacks(x):
            self._is_in_weight, module.__dict__["change"] = True, self._add_to

    def leave_weight(self) -> None:
        """The next product is one with the Linear's own weight."""
        if "change" in self._linear.__dict__:
            del self._linear.change

    def _add_to(self, weight: Tensor) -> Tensor:
        assert self._pair is not None
        down, up = self._pair
        return weight.addmm_(up, down)

    def _ready_for(self, x: Tensor) -> None:
        if self._key != (x.device, x.dtype):
            self._prepare(x)
            self._key = (x.device, x.dtype)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        self._ready_for(x)
        if self._base is not None:
            output = F.linear(x, self._base) + self._own_bias(x)

        def product(of: Tensor) -> Tensor:
            return output - self._own_bias(x) if of is x else self._product(of)

        result = output
        for change in self._ready:
            result = result + change(x, product)
        if self._pair is not None and not self._is_in_weight:
            result = _add_product(result, x, self._pair, getattr(module, "active", PLAINLY))
        self._is_in_weight = False
        self.leave_weight()
        return result if self._shift is None else result + self._shift

    def _prepare(self, x: Tensor) -> None:
        replacements = [change.replacement for change, _ in self._weight if change.replacement is not None]
        self._base = replacements[-1].to(x) if replacements else None
        factors = factors_of(self._weight)
        self._pair = None
        if factors:
            down = torch.cat([factor.down.to(x) for factor, _ in factors])
            # Strengths go into one factor before it is rounded.
            up = torch.cat([strength * factor.scale * factor.up.float() for factor, strength in factors], dim=1)
            self._pair = down, up.to(x)
        self._ready = [
            _ChangeOnDevice(change, strength, x, self._float_weight)
            for change, strength in self._weight
            if change.changes_weight and not change.is_low_rank
        ]
        self._shift = None
        if self._bias:
            own = self._linear.bias
            base = torch.zeros(self._linear.out_features, device=x.device) if own is None else own.float()
            self._shift = (merged(base, self._bias) - base).to(x)

    def _own_bias(self, like: Tensor) -> Tensor | float:
        """The Linear's own bias; a streamed block has another tensor every time."""
        return 0.0 if self._linear.bias is None else self._linear.bias.to(like)

    def _product(self, x: Tensor) -> Tensor:
        """x W^T of the weight that the changes are relative to."""
        if self._base is not None:
            return F.linear(x, self._base)
        return self._linear.forward(x) - self._own_bias(x)  # without hooks

    def _float_weight(self) -> Tensor:
        """The weight that the changes are relative to, (out, in) float32."""
        linear = self._linear
        weight = linear.dequantized(torch.float32) if isinstance(linear, QuantizedLinear) else linear.weight.float()
        return replaced(weight, self._weight)


def _add_product(result: Tensor, x: Tensor, pair: tuple[Tensor, Tensor], active: Active) -> Tensor:
    """result + x down^T up^T, in the memory of the result unless autograd may need it."""
    down, up = pair
    small = product(x, down, None, active)
    if torch.is_grad_enabled() or result.dtype != x.dtype or not result.is_contiguous():
        return result + F.linear(small, up)
    result.view(-1, result.shape[-1]).addmm_(small.flatten(0, -2), up.T)
    return result


class _ChangeOnDevice:
    """A change of a Linear's weight, ready on the device and in the dtype of its input."""

    def __init__(self, change: Change, strength: float, x: Tensor, weight: Callable[[], Tensor]) -> None:
        """weight: gives what the change is relative to, for the lengths of DoRA."""
        self._strength = strength
        self._parts: list[Part] = [part.to(x) for part in change.parts]
        self._on_input: Factors | None = None if change.on_input is None else change.on_input.to(x)
        self._rotation: Rotation | None = None if change.rotation is None else change.rotation.to(x)
        self._rows: Tensor | None = None
        self._columns: Tensor | None = None
        if change.magnitude is not None:
            lengths = change.relative_lengths(replace(change, magnitude=None).changed(weight())).to(x)
            if lengths.shape[1] == 1:
                self._rows = lengths.flatten()
            else:
                self._columns = lengths.flatten()

    def __call__(self, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """What the change adds to the Linear's result. product: (..., in) -> x W^T."""
        scaled = x if self._columns is None else x * self._columns
        changes = [part(scaled) for part in self._parts]
        if self._on_input is not None:
            changes.append(product(self._on_input(scaled)))
        if self._rotation is not None:
            base = product(scaled)
            changes.append(self._rotation(base) - base)
        if self._rows is not None:
            base = product(scaled)
            changes = [sum(changes, start=base) * self._rows - base]
        if self._columns is not None:
            changes.append(product(scaled) - product(x))
        return self._strength * sum(changes[1:], start=changes[0])


@contextmanager
def _replaced_parameters(module: nn.Module, changes: Mapping[str, Changes]) -> Generator[None, None, None]:
    """Inside, a norm or table has new parameters with the changes in them; afterwards its own."""
    originals = {name: parameter for name, parameter in module.named_parameters(recurse=False) if name in changes}
    try:
        for name, base in originals.items():
            # In main memory, where the LoRA is: the same numbers, wherever the model is.
            changed = merged(base.cpu(), changes[name]).to(base.device, base.dtype)
            setattr(module, name, nn.Parameter(changed, requires_grad=False))
        yield
    finally:
        for name, parameter in originals.items():
            setattr(module, name, parameter)

"""LoRAs while a model runs: added to the results of its Linears, never to its weights.

While `applied` is active, a hook on each Linear adds up(down(x)) to its result, in whatever form its weights are
stored; afterwards the model is unchanged to the last bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..quant.linear import QuantizedLinear
from ..weights.lora import LoRAReport, WeightedLoRA, match_lora


@contextmanager
def applied(model: nn.Module, loras: Sequence[WeightedLoRA]) -> Generator[tuple[LoRAReport, ...], None, None]:
    """Inside, the model has the LoRAs; the value is their reports, in order. Strength 0 is the identity.

    Text must be prepared inside (`LTXTransformer.prepare_text`): its keys and values go through LoRAs too.

    Raises:
        CheckpointError: as `match_lora`; the model is then unchanged.
    """
    if not loras:
        yield ()
        return
    reports = [match_lora(item.lora, model, allow_partial=item.allow_partial) for item in loras]
    changes: dict[str, list[_Change]] = defaultdict(list)
    for item, report in zip(loras, reports, strict=True):
        for target, name in report.modules.items() if item.strength != 0 else ():
            changes[name].append(_Change(item.lora.targets[target], item.lora.scales.get(target, 1.0), item.strength))
    with ExitStack() as stack:
        for name, module_changes in changes.items():
            module = model.get_submodule(name)
            if isinstance(module, nn.Linear | QuantizedLinear):
                handle: RemovableHandle = module.register_forward_hook(_LinearHook(module, module_changes))
                stack.callback(handle.remove)
            else:
                stack.enter_context(_replaced_parameters(module, module_changes))
        yield tuple(reports)


def device_bytes(loras: Sequence[WeightedLoRA], itemsize: int) -> int:
    """Bytes of applied LoRAs on the device: one copy of their tensors, in numbers of `itemsize` bytes."""
    return itemsize * sum(
        tensor.numel()
        for item in loras
        if item.strength
        for tensors in item.lora.targets.values()
        for tensor in tensors.values()
    )


@dataclass(frozen=True, eq=False)
class _Change:
    """The change that one LoRA makes to one module."""

    tensors: Mapping[str, Tensor]
    scale: float
    strength: float

    def added_to(self, weight: Tensor) -> Tensor:
        """`weight`, float32 (out, in), with the change at strength 1, on its device."""
        tensors = {role: self.tensors[role].to(weight) for role in ("down", "up", "diff") if role in self.tensors}
        if "down" in tensors:
            return torch.addmm(weight, tensors["up"], tensors["down"], alpha=self.scale)
        return weight + tensors["diff"] if "diff" in tensors else weight


class _LinearHook:
    """Adds the changes to the result of one Linear. Factors move once to the device and dtype of the input."""

    def __init__(self, linear: nn.Linear | QuantizedLinear, changes: Sequence[_Change]) -> None:
        self._linear = linear
        self._changes = changes
        self._key: tuple[torch.device, torch.dtype] | None = None
        self._ready: list[_ChangeOnDevice] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        x = inputs[0]
        if self._key != (x.device, x.dtype):
            self._ready = [_ChangeOnDevice(change, self._linear, x) for change in self._changes]
            self._key = (x.device, x.dtype)
        base = output
        for change in self._ready:
            output = output + change(x, base)
        return output


class _ChangeOnDevice:
    """A change of a Linear, ready on the device and in the dtype of its input."""

    def __init__(self, change: _Change, linear: nn.Linear | QuantizedLinear, x: Tensor) -> None:
        tensors = change.tensors
        self.strength = change.strength
        self.factors: tuple[Tensor, ...] = ()
        if "down" in tensors:
            self.factors = tensors["down"].to(x), (change.scale * tensors["up"].float()).to(x)
        elif "diff" in tensors:
            self.factors = (tensors["diff"].to(x),)
        self.diff_b = tensors["diff_b"].to(x) if "diff_b" in tensors else None
        self.linear = linear  # not its bias: a streamed block has another bias tensor every time
        self.row_scale: Tensor | None = None
        if "magnitude" in tensors:
            # DoRA (arXiv 2402.09353): rows of W + dW get the stored lengths.
            weight = linear.dequantized(torch.float32) if isinstance(linear, QuantizedLinear) else linear.weight.float()
            lengths = change.added_to(weight).norm(dim=1)
            self.row_scale = (tensors["magnitude"].to(lengths).flatten() / lengths).to(x)

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        """The change to `output`, the result of the Linear without LoRAs."""
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
def _replaced_parameters(module: nn.Module, changes: Sequence[_Change]) -> Generator[None, None, None]:
    """Inside, a norm or table has new parameters with the differences added; afterwards its own."""
    originals = dict(module.named_parameters(recurse=False))
    try:
        for role, name in (("diff", "weight"), ("diff_b", "bias")):
            differences = [
                change.strength * change.tensors[role].float() for change in changes if role in change.tensors
            ]
            if differences and name in originals:
                base = originals[name]
                changed = base.float() + torch.stack(differences).sum(0).to(base.device)
                setattr(module, name, nn.Parameter(changed.to(base.dtype), requires_grad=False))
        yield
    finally:
        for name, parameter in originals.items():
            setattr(module, name, parameter)

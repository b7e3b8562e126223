"""The memory that training takes, counted before it starts.

The sizes of weights, gradients and optimizer state are known. Activations are counted by running one step, forward and
backward, on tensors with shapes and dtypes but no data (torch's FakeTensorMode), while a dispatch mode adds up the
storages that are alive. This takes about a second, allocates nothing, and counts autocast, checkpointing and whatever
the models keep for the backward pass as they are.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .distributed import local

log = logging.getLogger("ltxkit")

GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """Bytes in one process. trained: number of parameters. activations: at the peak of a step; None if they could
    not be counted."""

    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int | None

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer and averages": self.optimizer}
        if self.activations is not None:
            parts["activations"] = self.activations
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return (
            f"about {self.total / GIB:.2f} GiB ({listed}{'' if self.activations is not None else '; and activations'})"
        )


def kept_share(accumulation: int, processes: int = 1) -> float:
    """The share of each gradient of a piece of a batch that a process adds to what it holds: the gradients of earlier
    pieces are there already. processes: among which gradients are split."""
    return 0 if accumulation > 1 else 1 / processes


def beyond_gradients(peak: int | None, gradients: int, accumulation: int) -> int | None:
    """Bytes at the peak of a step beside the gradients, most of which do not exist yet then, unless earlier pieces of
    the batch have left them. peak: from `step_bytes`."""
    return peak if peak is None or accumulation > 1 else max(0, peak - gradients)


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operators allocate and that are alive: `now`, and at the peak (`most`).

    levels: the number of values that `unique` is taken to return, which without data cannot be known.
    """

    def __init__(self, levels: int | None = None) -> None:
        super().__init__()
        self.levels = levels
        self.now = self.most = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An unseen input existed before; neither a view of it nor an in-place result is an allocation.
        self._note(args, existed=True)
        self._note(kwargs, existed=True)
        out = self._without_data(func, args) if self.levels is not None else None
        if out is None:
            out = func(*args, **(kwargs or {}))
        self._note(out, existed=False)
        return out

    def _without_data(self, func: Any, args: tuple[Any, ...]) -> Any:
        """The results of operators that need data, or have no fake version; None for the others."""
        if func is torch.ops.aten._unique2.default:
            values = args[0].flatten()
            index = torch.empty_like(args[0], dtype=torch.long)
            return values[: self.levels], index, index.new_empty(0)
        if func is torch.ops.aten.mkldnn_convolution.default:
            x, weight, bias, padding, stride, dilation, groups = args
            zeros = [0] * len(stride)
            return torch.ops.aten.convolution.default(x, weight, bias, stride, padding, dilation, False, zeros, groups)
        return None

    def _note(self, value: Any, *, existed: bool) -> None:
        """The tensors in arguments or a result. torch's own trees take longer than the operators."""
        if isinstance(value, (tuple, list)):
            for each in cast("Sequence[Any]", value):
                self._note(each, existed=existed)
        elif isinstance(value, dict):
            self._note(list(cast("dict[str, Any]", value).values()), existed=existed)
        elif isinstance(value, Tensor):
            self._note_storage(value.untyped_storage(), existed=existed)

    def _note_storage(self, storage: torch.UntypedStorage, *, existed: bool) -> None:
        key = id(storage)  # torch keeps the Python object as long as the memory
        if key in self._seen:
            return
        size = 0 if existed else storage.nbytes()

        def forget(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, forget)
        self.now += size
        self.most = max(self.most, self.now)


def step_bytes(
    loss: Callable[..., Tensor],
    modules: Sequence[nn.Module],
    levels: int,
    device: torch.device | None = None,
    *,
    backward: bool = True,
    kept: float = 1,
) -> int | None:
    """Bytes at the peak of the forward and backward pass of `loss`, with gradients, without weights.

    loss: takes one function per module, which calls that module, makes its inputs and returns the loss. levels: number
    of distinct values that `unique` will find. device: where weights on meta are taken to be. backward: False: of
    the forward pass alone, in which nothing is kept. kept: the share of each gradient that stays, see
    `kept_share`. Nothing is computed, and the modules stay as they are.

    Returns None if an operator of this version of torch has no fake version.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shares: list[Tensor] = []

    def keep_share(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            shares.append(gradient.new_empty(math.ceil(gradient.numel() * kept)))

    def without_data(tensor: Tensor) -> Tensor:
        if tensor.is_meta and device is not None:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            fake.requires_grad_(tensor.requires_grad)
        else:
            fake = mode.from_tensor(tensor)
        if kept < 1 and fake.requires_grad:
            fake.register_post_accumulate_grad_hook(keep_share)
        return fake

    try:
        with mode, ExitStack() as stack:
            for module in modules:
                stack.enter_context(_substituted(module, without_data))
            with Alive(levels) as alive, torch.set_grad_enabled(backward):
                counted = loss(*modules)
                if backward:
                    counted.backward()
    except Exception:  # whatever torch's inner parts raise in another version: a count must not stop a training
        log.debug("the memory of a step could not be counted", exc_info=True)
        return None
    return alive.most


@contextmanager
def _substituted(module: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Inside, other tensors are in the place of a module's own: in the backward pass too, where checkpoints call parts
    of it again. A tensor that has several places gets one stand-in."""
    parts = [
        part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)
    ]  # which cannot be changed
    stores = [store for part in parts for store in (part._parameters, part._buffers)]  # pyright: ignore[reportPrivateUsage]
    before = [(store, dict(store)) for store in stores]
    made: dict[int, Tensor] = {}
    try:
        for store, own in before:
            for name, tensor in own.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = stand_in(tensor)
                    store[name] = made[id(tensor)]  # pyright: ignore[reportArgumentType]
        yield
    finally:
        for store, own in before:
            store.update(own)  # pyright: ignore[reportArgumentType, reportCallIssue]


def local_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the tensors, or of this process's shards; shared memory counts once."""
    mine = [local(tensor) for tensor in tensors]
    return sum({t.data_ptr() or id(t): t.numel() * t.element_size() for t in mine}.values())

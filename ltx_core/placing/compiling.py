"""The blocks of a transformer, compiled: one function for all of them, for any number of tokens.

torch.compile fuses what a block does between its products. It compiles a block once for each way in which lanes run
through it (their number, and where a perturbed one forks), and keeps the kernels in the user's cache folder. Whatever
Linears do, such as unpacking weights or adding a LoRA, is traced like the rest.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ..cache import cache_folder
from ..errors import ConfigError
from ..kernels.cards import Capabilities
from ..models.blocks import block_stack
from ..progress import Notes, log_note
from ..quant.linear import QuantizedLinear

FIRST_TRITON = (7, 0)  # compute capability from which Triton has kernels
VARIANTS = 64  # of one block at most: three lanes, forks, conditions, dtypes; beyond, torch would run it uncompiled
DEEP: dict[str, Any] = {"realize_opcount_threshold": 128, "realize_acc_reads_threshold": 16}
"""Options of torch's compiler for blocks of quantized weights: a weight is some sixty operations on ten bytes, which by
its own limits of 30 and 8 would become two kernels with float32 numbers between them."""
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_COMPILERS = ("c++", "g++", "clang++", "cl")


def compiles(model: nn.Module) -> bool:
    """Whether `compiled` has an effect on a model: text encoders run once, VAEs in pieces of many shapes."""
    return bool(getattr(type(model), "COMPILES", False))


def compile_where_placed(model: nn.Module) -> None:
    """Have the blocks of a model compiled wherever it is placed, as every placement with `compile` does."""
    for part in model.modules():  # a half of a VAE is placed by itself
        part.__dict__["is_to_be_compiled"] = True


def is_to_be_compiled(model: nn.Module) -> bool:
    """Whether `compile_where_placed` was called for a model."""
    return bool(model.__dict__.get("is_to_be_compiled", False))


def check_streaming(model: nn.Module, resident: int | None) -> None:
    """Raises ConfigError: blocks of a model that is to be compiled are streamed."""
    stack = block_stack(model)
    if resident is not None and stack is not None and compiles(model):
        raise ConfigError(
            f"got compile for a model of which {len(stack.blocks) - resident} of {len(stack.blocks)} blocks are "
            "streamed; expected one that stays on the device; turn compile off, or make room: a smaller size, fewer "
            "bits (quantization)"
        )


def no_compiler(device: torch.device) -> str | None:
    """Why this machine cannot compile for a device, as a clause; None: it can."""
    if device.type == "cpu":
        has_one = "CXX" in os.environ or any(shutil.which(name) for name in _COMPILERS)
        return None if has_one else "there is no C++ compiler"
    facts = Capabilities.of(device)
    if facts.kind not in ("cuda", "rocm", "xpu"):
        return f"torch has no compiler for {facts.kind} that LTXKit uses"
    if facts.compute is not None and facts.compute < FIRST_TRITON:
        return f"Triton has no kernels for compute capability {facts.compute[0]}.{facts.compute[1]}"
    return None if importlib.util.find_spec("triton") is not None else "the package triton is not installed"


@contextmanager
def compiled(
    model: nn.Module, device: torch.device, say: Notes = log_note, *, backend: str | Callable[..., Any] = "inductor"
) -> Generator[None]:
    """Inside, the blocks of `model` are compiled, as by `compile_blocks`."""
    compile_blocks(model, device, say, backend=backend)
    try:
        yield
    finally:
        stack = block_stack(model)
        if stack is not None and model.__dict__.get("is_compiled", False):
            model.__dict__["is_compiled"] = False
            for block in stack.blocks:
                block.__dict__.pop("forward", None)


def compile_blocks(
    model: nn.Module, device: torch.device, say: Notes = log_note, *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Have the blocks of `model` compiled for a device; where that is impossible they are not, and it is said.

    Gradients pass through them, also where each is a checkpoint. backend: of torch.compile.
    """
    stack = block_stack(model)
    if stack is None or not compiles(model):
        return
    reason = no_compiler(device)
    if reason is not None:
        say(f"The model is not compiled: {reason}.")
        return
    _keep_kernels()
    is_quantized = any(isinstance(part, QuantizedLinear) for part in stack.blocks[0].modules())
    function = _function_of(type(stack.blocks[0]), backend, deep=is_quantized and backend == "inductor")
    runs = _Runs(function, say)
    for block in stack.blocks:
        block.__dict__["forward"] = partial(runs, block)
    model.__dict__["is_compiled"] = True


class _Runs:
    """Calls the compiled function, or once it cannot be compiled the plain one."""

    def __init__(self, function: Callable[..., Any], say: Notes) -> None:
        self._function = function
        self._say = say
        self._failed = False

    def __call__(self, block: nn.Module, *given: Any) -> Any:
        if not self._failed:
            import torch._dynamo

            dynamo: Any = torch._dynamo
            try:
                with dynamo.config.patch(cache_size_limit=VARIANTS):
                    return self._function(block, *given)
            except dynamo.exc.TorchDynamoException as error:
                self._failed = True
                first = str(error).strip().splitlines()
                self._say(f"The model is not compiled: {type(error).__name__}: {first[0] if first else ''}")
        return type(block).forward(block, *given)


_functions: dict[tuple[type[nn.Module], Any, bool], Callable[..., Any]] = {}
"""What is compiled stays compiled for the process, as torch keeps it: for each kind of block, backend and depth."""


def _function_of(kind: type[nn.Module], backend: str | Callable[..., Any], *, deep: bool = False) -> Callable[..., Any]:
    key = kind, backend, deep
    if key not in _functions:
        options = DEEP if deep else None
        _functions[key] = cast(Any, torch.compile)(kind.forward, dynamic=True, backend=backend, options=options)
    return _functions[key]


def _keep_kernels() -> None:
    """Let torch keep its kernels in the user's cache folder, unless the user says where: its own is a temporary one."""
    folder = cache_folder()
    if folder is not None:
        os.environ.setdefault(_CACHE_VARIABLE, str(folder / "compiled"))

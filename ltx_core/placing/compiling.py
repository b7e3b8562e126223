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
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ..cache import cache_folder
from ..errors import ConfigError, LTXKitError
from ..kernels.cards import Capabilities
from ..models.blocks import block_stack
from ..progress import Notes, log_note
from ..quant.linear import QuantizedLinear
from .devices import is_out_of_memory
from .graphs import OPTIONS, in_steps, no_graphs

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


def compile_where_placed(model: nn.Module, *, cuda_graphs: bool = False) -> None:
    """Have the blocks of a model compiled wherever it is placed, as every placement with `compile` does.

    cuda_graphs: and recorded, as every placement with `cuda_graphs` does.
    """
    for part in model.modules():  # a half of a VAE is placed by itself
        part.__dict__["is_to_be_compiled"] = True
        part.__dict__["is_to_be_recorded"] = cuda_graphs


def is_to_be_compiled(model: nn.Module) -> bool:
    """Whether `compile_where_placed` was called for a model."""
    return bool(model.__dict__.get("is_to_be_compiled", False))


def is_to_be_recorded(model: nn.Module) -> bool:
    """Whether `compile_where_placed` was called for a model with `cuda_graphs`."""
    return bool(model.__dict__.get("is_to_be_recorded", False))


def check_streaming(model: nn.Module, resident: int | None) -> None:
    """Raises ConfigError: blocks of a model that is to be compiled are streamed."""
    stack = block_stack(model)
    if resident is not None and stack is not None and compiles(model):
        asked = "cuda_graphs" if is_to_be_recorded(model) else "compile"
        raise ConfigError(
            f"got {asked} for a model of which {len(stack.blocks) - resident} of {len(stack.blocks)} blocks are "
            f"streamed; expected one that stays on the device; turn {asked} off, or make room: a smaller size, fewer "
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
    model: nn.Module,
    device: torch.device,
    say: Notes = log_note,
    *,
    cuda_graphs: bool = False,
    backend: str | Callable[..., Any] = "inductor",
) -> Generator[None]:
    """Inside, the blocks of `model` are compiled, as by `compile_blocks`.

    cuda_graphs: and recorded as CUDA graphs, see `graphs`; where there are none, it is said.
    """
    runs = _compile(model, device, say, backend, cuda_graphs=cuda_graphs)
    stack = block_stack(model)
    if runs is None or stack is None:
        yield
        return
    try:
        with in_steps(model, runs, say) if runs.may_record else nullcontext():
            yield
    finally:
        model.__dict__["is_compiled"] = False
        for block in stack.blocks:
            block.__dict__.pop("forward", None)


def compile_blocks(
    model: nn.Module, device: torch.device, say: Notes = log_note, *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Have the blocks of `model` compiled for a device; where that is impossible they are not, and it is said.

    Gradients pass through them, also where each is a checkpoint. backend: of torch.compile.
    """
    _compile(model, device, say, backend, cuda_graphs=False)


def _compile(
    model: nn.Module, device: torch.device, say: Notes, backend: str | Callable[..., Any], *, cuda_graphs: bool
) -> _Runs | None:
    """What now calls the blocks of a model; None: nothing has changed."""
    stack = block_stack(model)
    if stack is None or not compiles(model):
        return None
    reason = no_compiler(device)
    if reason is not None:
        say(f"The model is not compiled: {reason}.")
        return None
    _keep_kernels()
    left_out = no_graphs(device) if cuda_graphs else None
    if left_out is not None:
        say(f"CUDA graphs are left out: {left_out}.")
    records = cuda_graphs and left_out is None
    kind, is_inductor = type(stack.blocks[0]), backend == "inductor"
    is_quantized = any(isinstance(part, QuantizedLinear) for part in stack.blocks[0].modules())
    deep = is_quantized and is_inductor
    recorded = _function_of(kind, backend, deep=deep, graphs=is_inductor) if records else None
    runs = _Runs(_function_of(kind, backend, deep=deep), say, recorded)
    for block in stack.blocks:
        block.__dict__["forward"] = partial(runs, block)
    model.__dict__["is_compiled"] = True
    return runs


class _Runs:
    """Calls the compiled function, or once it cannot be compiled the plain one.

    recorded: the function that records graphs, called where `records` is set.
    """

    def __init__(self, function: Callable[..., Any], say: Notes, recorded: Callable[..., Any] | None = None) -> None:
        self._function, self._recorded = function, recorded
        self._say = say
        self._failed = False
        self.records = False

    @property
    def may_record(self) -> bool:
        """Whether graphs were asked for, and can be recorded."""
        return self._recorded is not None

    def __call__(self, block: nn.Module, *given: Any) -> Any:
        if not self._failed:
            import torch._dynamo

            dynamo: Any = torch._dynamo
            try:
                with dynamo.config.patch(cache_size_limit=VARIANTS):
                    return self._of_block(block, given)
            except dynamo.exc.TorchDynamoException as error:
                self._failed = True
                self._say(f"The model is not compiled: {type(error).__name__}: {_first_line(error)}")
        return type(block).forward(block, *given)

    def _of_block(self, block: nn.Module, given: tuple[Any, ...]) -> Any:
        if self.records and self._recorded is not None:
            import torch._dynamo

            try:
                return self._recorded(block, *given)
            except (RuntimeError, AssertionError) as error:  # of a kernel that cannot be recorded, or of torch's trees
                dynamo: Any = torch._dynamo
                if isinstance(error, dynamo.exc.TorchDynamoException | LTXKitError) or is_out_of_memory(error):
                    raise
                self._recorded = None
                self._say(f"CUDA graphs are left out: {type(error).__name__}: {_first_line(error)}")
        return self._function(block, *given)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


_functions: dict[tuple[type[nn.Module], Any, bool, bool], Callable[..., Any]] = {}
"""What is compiled stays compiled for the process, as torch keeps it: by kind of block, backend, depth and graphs."""


def _function_of(
    kind: type[nn.Module], backend: str | Callable[..., Any], *, deep: bool = False, graphs: bool = False
) -> Callable[..., Any]:
    key = kind, backend, deep, graphs
    if key not in _functions:
        options = (DEEP if deep else {}) | (OPTIONS if graphs else {})
        _functions[key] = cast(Any, torch.compile)(kind.forward, dynamic=True, backend=backend, options=options or None)
    return _functions[key]


def _keep_kernels() -> None:
    """Let torch keep its kernels in the user's cache folder, unless the user says where: its own is a temporary one."""
    folder = cache_folder()
    if folder is not None:
        os.environ.setdefault(_CACHE_VARIABLE, str(folder / "compiled"))

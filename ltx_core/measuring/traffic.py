"""What operations beside products, convolutions and attention read and write: what fused kernels save.

Counted by a dispatch mode on any device, the CPU too: a kernel of a card reads each of its inputs once and writes each
of its outputs once. A norm counts as one kernel, as it is on cards, and so does an operation of another package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Names of operators without their overload, by how they begin.
_PRODUCTS = (
    "mm",
    "addmm",
    "_addmm",
    "bmm",
    "baddbmm",
    "linear",
    "_linear",
    "dot",
    "mv",
    "addmv",
    "_int_mm",
    "_scaled_mm",
)
_ATTENTION = ("_scaled_dot_product", "scaled_dot_product", "_flash_attention", "_efficient_attention")
_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "slow_conv", "conv")
_LAYOUT = ("_reorder", "int8_linear", "convrot_w4a4_linear", "w4a8_int8_linear")  # products of other packages, packing
_VIEWS = (
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "permute", "unsqueeze", "squeeze", "expand"),
    *(
        "slice",
        "select",
        "split",
        "unbind",
        "detach",
        "alias",
        "as_strided",
        "unflatten",
        "flatten",
        "chunk",
        "movedim",
    ),
    *(
        "empty",
        "new_empty",
        "lift",
        "real",
        "imag",
        "size",
        "_local_scalar_dense",
        "resize",
        "set",
        "unfold",
        "diagonal",
    ),
)
_SKIPPED = (*_PRODUCTS, *_ATTENTION, *_CONVOLUTIONS, *_LAYOUT, *_VIEWS)
_NORMS = frozenset({"rms_norm", "layer_norm", "group_norm"})


class Traffic:
    """bytes, kernels: of what was counted. by_operator: bytes of each, "namespace.name"."""

    def __init__(self) -> None:
        self.bytes = 0
        self.kernels = 0
        self.by_operator: Counter[str] = Counter()

    def add(self, name: str, nbytes: int) -> None:
        self.bytes += nbytes
        self.kernels += 1
        self.by_operator[name] += nbytes


@contextmanager
def counting(least: int = 0) -> Generator[Traffic]:
    """Counts what runs inside. least: bytes below which an operation is none: levels, rows of a table, scalars."""
    traffic = Traffic()
    dispatch = _Dispatch(traffic, least)
    with dispatch, _Norms(traffic, least, dispatch):
        yield traffic


class _Dispatch(TorchDispatchMode):
    def __init__(self, traffic: Traffic, least: int) -> None:
        super().__init__()
        self._traffic, self._least = traffic, least
        self.is_paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.__name__.partition(".")[0]
        if not self.is_paused and not _is_skipped(name) and not _is_alias(name, args, result):
            nbytes = _read(func, args, kwargs) + sum(map(touched, _tensors(_written(func, args, kwargs, result))))
            if nbytes >= max(1, self._least):
                self._traffic.add(f"{func.namespace}.{name}", nbytes)
        return result


class _Norms(TorchFunctionMode):
    """On CPUs a norm is many operations; here it is the kernel that it is on cards."""

    def __init__(self, traffic: Traffic, least: int, dispatch: _Dispatch) -> None:
        super().__init__()
        self._traffic, self._least, self._dispatch = traffic, least, dispatch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._dispatch.is_paused or getattr(func, "__name__", "") not in _NORMS:
            return func(*args, **kwargs)
        with self._paused():
            result = func(*args, **kwargs)
        nbytes = touched(args[0] if args else kwargs["input"]) + touched(result)
        if nbytes >= max(1, self._least):
            self._traffic.add(f"norm.{func.__name__}", nbytes)
        return result

    @contextmanager
    def _paused(self) -> Generator[None]:
        self._dispatch.is_paused = True
        try:
            yield
        finally:
            self._dispatch.is_paused = False


def _is_skipped(name: str) -> bool:
    # "t" and "mm" would begin many names: a short one has to be the whole of it.
    return name in ("t", *_SKIPPED) or any(name.startswith(each) for each in _SKIPPED if len(each) > 4)


def _is_alias(name: str, args: Any, result: Any) -> bool:
    """Whether an operation had nothing to do: a conversion to what there is, dropout outside of training."""
    return name in ("to", "contiguous", "dropout") and result.data_ptr() == args[0].data_ptr()


def touched(x: Tensor) -> int:
    """Bytes of a tensor's memory; what is broadcast is there once."""
    numbers = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        numbers *= 1 if stride == 0 and size else size
    return numbers * x.element_size()


def _read(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """What is an argument of the name `out`, or is filled, is written and not read."""
    name = func.__name__
    inputs = [*args, *(value for key, value in kwargs.items() if key not in ("out", "out0", "out1"))]
    if name.startswith(("copy_", "fill_", "zero_", "normal_", "uniform_")):
        inputs = inputs[1:]
    return sum(map(touched, _tensors(inputs)))


def _written(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    """The results; where there are none, the arguments that the operator's schema says it changes."""
    if _tensors(result):
        return result
    schema: Any = getattr(func, "_schema", None)
    if schema is None:
        return []
    named = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    changed = [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    return [named[name] for name in changed if name in named]


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]

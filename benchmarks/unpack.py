"""What unpacking GGUF weights costs: bytes of memory traffic per weight, which a card pays, and time on a CPU.

An 8192x2048 matrix to bfloat16, in every type of block. Bytes are counted by a dispatch mode: what each kernel reads
and writes, an `out=` argument twice, of the form for CUDA devices where there is one beside that for CPUs. Results of
both are shown equal to the gguf package's to the last bit before.
"Fused" is what torch's compiler makes of the form for `--compile`: bytes by its own count, without a card for a CPU.
One thread, CPU time; with --against the same with another checkout's `ltx_core/quant/ggml_blocks.py`, round by round.

python benchmarks/unpack.py [--tiny] [--against DIR] [--kinds KIND,...: the rows of others stay as they are]
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import torch
from protocol import Row, another, arguments, publish
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ltxkit.ltx_core.measuring.inductor import compiled_once
from ltxkit.ltx_core.measuring.machine import peak_bytes
from ltxkit.ltx_core.measuring.protocol import Rounds, timed
from ltxkit.ltx_core.placing.compiling import DEEP
from ltxkit.ltx_core.quant import ggml_blocks, ggml_fused

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS")
SHAPE, TINY = (8192, 2048), (64, 512)
VIEWS = (
    "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select", "split", "unbind",
    "detach", "alias", "as_strided", "_unsafe_view", "empty", "unflatten",
)  # fmt: skip
FUSED_SHAPE = (512, 2048)
NOT_COUNTED = 20_000  # bytes: constants


class Traffic(TorchDispatchMode):
    """Bytes that kernels read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.__name__.startswith(VIEWS):
            tensors = [each for each in tree_flatten((args, kwargs, result))[0] if isinstance(each, Tensor)]
            size = sum(
                each.untyped_storage().nbytes() if 0 in each.stride() else each.numel() * each.element_size()
                for each in tensors
            )
            if size > NOT_COUNTED:
                self.bytes, self.kernels = self.bytes + size, self.kernels + 1
        return result


def blocks(kind: str, shape: tuple[int, int]) -> Tensor:
    """Random blocks with small scales."""
    per, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    torch.manual_seed(0)
    packed = torch.randint(0, 256, (shape[0] * shape[1] // per, size), dtype=torch.uint8)
    last = {"Q6_K": (size - 2,), "Q3_K": (size - 2,), "Q2_K": (size - 4, size - 2)}
    two = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
    for start in last.get(kind, (0, 2) if kind in two else (0,)):
        scale = (torch.rand(len(packed), 1) * 0.02).half()
        packed[:, start : start + 2] = scale.view(torch.uint8)
    return packed.flatten()


def other(checkout: Path) -> ModuleType:
    """`ggml_blocks` of another checkout, in its place within this package."""
    name = f"{ggml_blocks.__package__}._other_ggml_blocks"
    spec = importlib.util.spec_from_file_location(name, checkout / "ltx_core/quant/ggml_blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(kind: str, shape: tuple[int, int], modules: Mapping[str, ModuleType], *, tiny: bool) -> list[Row]:
    count, packed = shape[0] * shape[1], blocks(kind, shape)

    def unpacks(
        module: ModuleType, dtype: torch.dtype = torch.bfloat16, *, on_card: bool = False
    ) -> Callable[[], Tensor]:
        block_type = module.BLOCK_TYPES[kind]
        if on_card and getattr(block_type, "on_card", None) is not None:  # the other checkout may have none
            block_type = replace(block_type, unpack=block_type.on_card)
        return lambda: module.dequantize(packed, block_type, shape, dtype)

    runs = {name: unpacks(module) for name, module in modules.items()}
    exact = gguf.quants.dequantize(packed.numpy(), gguf.GGMLQuantizationType[kind])
    with torch.inference_mode():
        ours = unpacks(ggml_blocks, torch.float32)().numpy()
        if not np.array_equal(ours.ravel().view(np.uint32), exact.ravel().view(np.uint32)):
            raise ValueError(f"{kind}: the weights differ from the gguf package's")
        rounded = torch.from_numpy(exact).bfloat16().view(shape)
        for name, run in runs.items():
            if not torch.equal(run(), rounded):
                raise ValueError(f"{kind}: {name} differs")
        for name, module in modules.items():
            if not torch.equal(unpacks(module, on_card=True)(), rounded):
                raise ValueError(f"{kind}: {name} differs as it is on a card")
    counted: dict[str, Traffic] = {}
    for name, module in modules.items():
        with Traffic() as counted[name]:
            unpacks(module, on_card=True)()
    times = timed(runs, Rounds(0.0, 1, 0) if tiny else Rounds(0.0, 7, 1), torch.device("cpu"))
    peer = next((name for name in runs if name != "ltxkit"), None)
    traffic = Row(
        case=f"{kind}, traffic",
        unit="bytes/weight",
        ours=counted["ltxkit"].bytes / count,
        peer_name=peer,
        peer=None if peer is None else counted[peer].bytes / count,
        note=f"{counted['ltxkit'].kernels} kernels",
    )
    memory = {name: peak_bytes(run, torch.device("cpu")) for name, run in runs.items()}
    timing = Row(
        case=f"{kind}, one CPU thread",
        unit="ns/weight",
        ours=1e9 * times.median("ltxkit") / count,
        memory=memory["ltxkit"],
        threads=1,
    )
    if peer is not None:
        of_peer = 1e9 * times.median(peer) / count
        timing = replace(
            timing,
            peer_name=peer,
            peer=of_peer,
            speedup=times.speedup("ltxkit", peer),
            peer_memory=memory[peer],
        )
    return [traffic, timing]


def fused(kind: str, *, tiny: bool) -> Row:
    """Bytes and kernels of the compiled form; the weights are shown equal to the eager ones. tiny: not compiled."""
    case = f"{kind}, traffic, fused"
    if tiny:
        return Row(case, "bytes/weight", None, note="not compiled in a rehearsal")
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        return Row(case, "bytes/weight", None, note="no C++ compiler here")
    packed, block_type = blocks(kind, FUSED_SHAPE), ggml_blocks.BLOCK_TYPES[kind]
    with torch.inference_mode():
        expected = ggml_blocks.dequantize(packed, block_type, FUSED_SHAPE, torch.bfloat16)
        made = compiled_once(lambda: ggml_fused.dequantized(packed, block_type, FUSED_SHAPE, torch.bfloat16), DEEP)
    if not torch.equal(made.result, expected):
        raise ValueError(f"{kind}: the compiled weights differ")
    note = f"{made.kernels} kernel{'s' * (made.kernels > 1)}, by inductor's count"
    return Row(case, "bytes/weight", made.bytes / expected.numel(), note=note)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    modules = {"ltxkit": ggml_blocks}
    if options.against is not None:
        modules[another(options.against)] = other(options.against)
    shape = TINY if options.tiny else SHAPE
    found: list[Row] = []
    for kind in options.kinds.split(","):
        eager, timing = rows(kind, shape, modules, tiny=options.tiny)
        found += [eager, fused(kind, tiny=options.tiny), timing]
    some = options.kinds != parser.get_default("kinds")
    publish("unpack", "What does unpacking GGUF weights cost?", found, tiny=options.tiny, some=some)


if __name__ == "__main__":
    main()

"""What tests of the core share: random blocks of ggml's types and files of them; a device that computes nothing."""

from __future__ import annotations

import json
import math
import struct
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer

# Where the float16 scales lie in a block of each type; all other bytes may have any value.
HALF_OFFSETS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


@pytest.fixture(scope="session")
def random_blocks() -> Callable[..., np.ndarray]:
    """random_blocks("Q4_K", count, seed=7, spread=None): (count, bytes per block) uint8, with finite scales.

    spread: standard deviation of the weights that they hold; None: whatever random scales give.
    """
    import gguf

    def get(name: str, count: int, seed: int = 7, spread: float | None = None) -> np.ndarray:
        rng = np.random.default_rng(seed)
        kind = gguf.GGMLQuantizationType[name]
        blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        halves = [rng.standard_normal(count).astype(np.float16) for _ in HALF_OFFSETS[name]]

        def put(factor: float) -> None:
            for offset, scales in zip(HALF_OFFSETS[name], halves, strict=True):
                blocks[:, offset : offset + 2] = (scales * np.float16(factor))[:, None].view(np.uint8)

        put(1.0)
        if spread is not None:  # weights are linear in the scales
            put(spread / float(gguf.quants.dequantize(blocks, kind).std()))
        return blocks

    return get


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """write_gguf(path, architecture, {name: (array, type)}, {key: text}): packed arrays are (rows, bytes) uint8."""
    import gguf

    def write(
        path: Path,
        architecture: str,
        tensors: Mapping[str, tuple[np.ndarray, str]],
        texts: Mapping[str, str] | None = None,
    ) -> Path:
        writer = gguf.GGUFWriter(path, architecture)
        for key, text in (texts or {}).items():
            writer.add_string(key, text)
        for name, (array, kind) in tensors.items():
            writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def velocity() -> Callable[[LTXTransformer], Tensor]:
    """velocity(transformer): what a model of any width makes of six tokens and a prompt, always the same: (1 6 c)."""

    @torch.no_grad()
    def run(model: LTXTransformer) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 6, model.config.in_channels, generator=generator)
        positions = torch.rand(1, 3, 6, generator=generator) * 10
        text = torch.randn(5, model.config.caption_channels, generator=generator)
        branch = Branch(model.prepare_text([text]))
        return model(x, torch.full((1, 1, 1), 0.7), model.prepare_positions(positions), (branch,))[0].float()

    return run


@pytest.fixture(scope="session")
def lora_and_merged() -> Callable[[Mapping[str, Tensor], float], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """lora_and_merged(weights, strength): the tensors of a LoRA in ComfyUI's key style, and the weights with it added.

    It has factors for every Linear of the blocks, every third with DoRA, differences for the output, and an alpha.
    """

    def make(weights: Mapping[str, Tensor], strength: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(8)
        merged = {key: tensor.clone() for key, tensor in weights.items()}
        tensors: dict[str, Tensor] = {}

        def add(key: str, change: Tensor) -> None:
            merged[key] = merged[key] + strength * change

        blocks = [key for key in weights if "transformer_blocks." in key and weights[key].ndim == 2]
        for number, key in enumerate(key for key in blocks if key.endswith(".weight")):
            weight, stem = weights[key], f"diffusion_model.{key.removesuffix('.weight')}"
            down = torch.randn(3, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5
            up = torch.randn(weight.shape[0], 3, generator=generator) * 0.3
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up, f"{stem}.alpha": torch.tensor(1.5)}
            changed = weight + 0.5 * up @ down
            if number % 3 == 0:
                magnitude = changed.norm(dim=1, keepdim=True) * 1.1
                tensors[f"{stem}.dora_scale"] = magnitude
                changed = changed * 1.1
            add(key, changed - weight)
        for key, role in (("proj_out.weight", "diff"), ("proj_out.bias", "diff_b"), ("patchify_proj.bias", "diff_b")):
            name = f"diffusion_model.{key.rpartition('.')[0]}.{role}"
            tensors[name] = torch.randn(weights[key].shape, generator=generator) * 0.1
            add(key, tensors[name])
        return tensors, merged

    return make


@pytest.fixture(scope="session")
def true_size(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """true_size("2b-0.9.8-distilled" | ... | "t5xxl" | "spatial-0.9.8"): the header of a released file, with holes for
    weights.
    """
    data = repository / "tests" / "data" / "manifests"
    stored = json.loads((data / "variants.json").read_text())
    variants = {name: stored[entry] if isinstance(entry, str) else entry for name, entry in stored.items()}
    folder = tmp_path_factory.mktemp("true-size")

    def write(path: Path, shapes: Mapping[str, list[int]], dtype: str, metadata: Mapping[str, str]) -> Path:
        header: dict[str, object] = {"__metadata__": metadata}
        offset = 0
        for name, shape in shapes.items():
            end = offset + 2 * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
        return path

    def get(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        if path.exists():
            return path
        if name == "t5xxl":
            return write(path, json.loads((data / "t5xxl.json").read_text())["transformers"], "BF16", {})
        shapes: dict[str, list[int]] = {}
        for part in variants[name]["parts"]:
            shapes |= json.loads((data / f"{part}.single_file.json").read_text())
        config = variants[name]["config"]
        return write(path, shapes, "BF16", {"config": json.dumps(config.get("upscaler", config))})

    return get


class MetaDevice(TorchDispatchMode):
    """Meta stands for an accelerator: operations on it are seen one by one, in the shapes of real models, for nothing.

    What is read back to the CPU is zeros. peak: most bytes of tensors that were there at once, the copies of a weight
    that cuDNN makes with channels last included, the weights of `given` not. look: called with every operation that
    touches the device, its arguments and its results.
    """

    def __init__(self, *given: nn.Module, look: Callable[[Any, list[Tensor]], None] = lambda *_: None) -> None:
        super().__init__()
        self.look = look
        self.now = self.peak = 0
        self._there: dict[int, int] = {}
        self._given = [tensor for model in given for tensor in (*model.parameters(), *model.buffers())]
        for tensor in self._given:
            self._there[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = kwargs.get("device")
        if name == "_to_copy" and args[0].is_meta and target is not None and target.type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "copy_" and args[1].is_meta and not args[0].is_meta:
            return args[0]
        if name == "index" and args[1][0].is_meta and args[1][0].dtype == torch.bool:
            return args[0]  # as if all of it were chosen
        if name == "_local_scalar_dense" and args[0].is_meta:
            return True
        if "unique" in name and args[0].is_meta:  # levels of noise, of which there are two
            index = torch.empty(args[0].shape, dtype=torch.int64, device="meta")
            result: Any = (torch.empty(2, device="meta"), index, index.new_empty(0))
        else:
            result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in (*given, *made)):
            self.look(func, [*given, *made])
        for tensor in made:
            if tensor.is_meta:
                self._count(tensor)
        if name == "convolution" and args[1].is_meta:
            self.peak = max(self.peak, self.now + args[1].nbytes)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._there:
            self._there[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._there.pop(key)


@pytest.fixture
def meta_device(monkeypatch: pytest.MonkeyPatch) -> type[MetaDevice]:
    """`MetaDevice`, with attention in one kernel as accelerators have it."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        if not query.is_meta:
            return one_kernel(query, key, value)
        b, heads, n, _ = query.shape
        torch.empty(b, heads, n, device="meta")  # the sums that the kernel keeps
        return query.new_empty(b, n, heads, value.shape[-1]).transpose(1, 2)

    one_kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    return MetaDevice


@pytest.fixture
def peak_bytes() -> Callable[[Callable[[], object]], int]:
    """peak_bytes(work): most bytes that torch and oneDNN held at once on the CPU while `work()` ran."""

    def measure(work: Callable[[], object]) -> int:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            work()
        now = peak = 0
        for event in recorded.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        return peak

    return measure

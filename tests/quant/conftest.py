"""Shared by the tests of quantized weights: random blocks of ggml's types, and GGUF files of such blocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))  # for the modules of this folder; not the repository root

# The offsets of the float16 scales in a block of each type; all other bytes may have any value.
HALF_OFFSETS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


@pytest.fixture(scope="session")
def random_blocks() -> Callable[..., np.ndarray]:
    """random_blocks("Q4_K", count, seed=7, spread=None): (count, bytes per block) uint8, with finite scales.

    spread: standard deviation of the resulting weights; None: whatever the random scales give.
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

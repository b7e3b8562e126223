"""What all tests share: one thread, no network, and tiny complete model sets, made once per run.

`ltxkit` comes from the editable installation and from nothing else (CONTRIBUTING.md says why): `make test` makes one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Before torch is imported anywhere. Tiny models are slower on several threads, and sums depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from typing import TYPE_CHECKING, Any

import pytest

import ltxkit

if TYPE_CHECKING:
    from torch import Tensor

    from ltxkit.ltx_core.config import VideoVAEConfig

ROOT = Path(__file__).resolve().parents[1]


def pytest_sessionstart() -> None:
    installed = Path(ltxkit.__file__).resolve().parent
    if installed != ROOT:
        pytest.exit(f"got ltxkit from {installed}; expected this checkout, {ROOT}; use its own .venv (make test)", 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return ROOT


@pytest.fixture(scope="session")
def relative() -> Callable[[Tensor, Tensor], float]:
    """relative(ours, expected): the largest difference, as a share of the largest value that is expected."""

    def difference(ours: Tensor, expected: Tensor) -> float:
        assert ours.shape == expected.shape
        ours, expected = ours.double(), expected.double()
        return float((ours - expected).abs().max() / expected.abs().max())

    return difference


@pytest.fixture(scope="session")
def rms() -> Callable[[Tensor, Tensor], float]:
    """rms(ours, expected): the root mean square of the difference, as a share of that of what is expected."""

    def difference(ours: Tensor, expected: Tensor) -> float:
        assert ours.shape == expected.shape
        ours, expected = ours.double(), expected.double()
        return float((ours - expected).norm() / expected.norm())

    return difference


@pytest.fixture(scope="session")
def rounding_bound() -> Callable[..., float]:
    """rounding_bound(run, dtype, weights=0): how far half precision may be from float64, in rms relative to the result.

    run() takes the model on the meta device, in `dtype`: there no kernel decides how much is rounded, so the bound is
    the same on every machine. It counts the operations that round their result to `dtype`. weights: how many layers
    have weights that are rounded, where the float64 run has them unrounded.

    With a spacing of `eps` between 1 and 2, one rounding errs by at most eps / 2 of the value, evenly spread: eps / 2 /
    sqrt(3) rms when every value lies just above a power of two, and two thirds of that over many values. Errors of
    different roundings are independent, so the squares add up: n roundings in a row give sqrt(n) times as much. Random
    matrices and norms change a relative error by little (SiLU by 3 %), which those two thirds make up for; residual
    sums and branches that run side by side make it less. Order of summation and kernel change sums in float32, which
    are exact to 2^-24.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    moves = {"cat", "clone", "_unsafe_view", "constant_pad_nd", "index", "index_select", "repeat", "stack"}

    class Roundings(TorchDispatchMode):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype, self.count = dtype, 0

        def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            result = operation(*arguments, **(options or {}))
            first, name = result[0] if isinstance(result, tuple) else result, operation.overloadpacket.__name__
            rounds = isinstance(first, torch.Tensor) and first.dtype == self.dtype and not operation.is_view
            if rounds and name not in moves and not (name == "_to_copy" and arguments[0].dtype == self.dtype):
                self.count += 2 if "attention" in name else 1  # its probabilities are rounded as well
            return result

    def bound(run: Callable[[], object], dtype: torch.dtype, weights: int = 0) -> float:
        with torch.no_grad(), Roundings(dtype) as roundings:
            run()
        assert roundings.count, "nothing was rounded: the model is not on the meta device, or not in this dtype"
        return torch.finfo(dtype).eps / 2 * ((roundings.count + weights) / 3) ** 0.5

    return bound


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_models(family="2b", vae="0.9.5", compression="32x8", seed=0): folder of a complete random model set.

    The folder holds checkpoints/, latent_upscale_models/ and text_encoders/, as `ltxkit make-tiny` writes them. It is
    shared by all tests of a run: read only.
    """
    from ltxkit.ltx_core.weights.tiny import make_tiny

    made: dict[tuple[str, str, str, int], Path] = {}

    def get(family: str = "2b", vae: str = "0.9.5", compression: str = "32x8", seed: int = 0) -> Path:
        key = (family, vae, compression, seed)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{family}-{vae}-{compression}-{seed}")
            make_tiny(folder, family=family, vae=vae, compression=compression, seed=seed)
            made[key] = folder
        return made[key]

    return get


@pytest.fixture(scope="session")
def vae_config() -> Callable[..., VideoVAEConfig]:
    """vae_config("0.9.0" | "0.9.1" | "0.9.5" | "16x4", latent_channels=16, width=8): the config of a narrow VAE.

    The first three have the block lists of the released generations with fewer layers, or as many in the decoder with
    `released_depth=True`; the last is a 16x16x4 model.
    """
    from dataclasses import replace

    from ltxkit.ltx_core.config import VAEBlock, VideoVAEConfig

    def block(kind: str, layers: int = 1, multiplier: int = 1, *, noise: bool = False) -> VAEBlock:
        up = kind.startswith("compress") and not kind.endswith("_res") and multiplier > 1
        return VAEBlock(kind=kind, num_layers=layers, multiplier=multiplier, residual=up, inject_noise=noise)

    def widening(
        kinds: tuple[str, ...], layers: tuple[int, ...], *, noise: tuple[bool, ...] = ()
    ) -> tuple[VAEBlock, ...]:
        """res_x, kind, res_x, kind, ..., res_x, as from 0.9.5 on."""
        noise = noise or (False,) * len(layers)
        blocks = [block("res_x", layers[0], noise=noise[0])]
        for kind, count, noisy in zip(kinds, layers[1:], noise[1:], strict=True):
            blocks += [block(kind, multiplier=2), block("res_x", count, noise=noisy)]
        return tuple(blocks)

    first = (
        *(block("res_x", 2), block("compress_all"), block("res_x_y", multiplier=2), block("res_x", 1)),
        *(block("compress_all"), block("res_x_y", multiplier=2), block("res_x", 1)),
        *(block("compress_all"), block("res_x", 1), block("res_x", 2)),
    )
    up = ("compress_all",) * 3
    encoders = {
        "0.9.0": first,
        "0.9.1": first,
        "0.9.5": widening(
            ("compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res"), (1, 2, 1, 1, 1)
        ),
        "16x4": widening(("compress_all_res", "compress_all_res"), (1, 1, 1)),
    }
    decoders = {
        "0.9.0": first,
        "0.9.1": widening(up, (1, 2, 1, 2), noise=(True, True, True, False)),
        "0.9.5": widening(up, (1, 1, 2, 1)),
        "16x4": widening(up[:2], (1, 1, 1)),
    }

    depths = {"0.9.0": (4, 3, 3, 3, 4), "0.9.1": (5, 6, 7, 8), "0.9.5": (5, 5, 5, 5), "16x4": (4, 4, 4)}

    def deepened(generation: str) -> tuple[VAEBlock, ...]:
        depth = iter(depths[generation])
        return tuple(replace(b, num_layers=next(depth)) if b.kind == "res_x" else b for b in decoders[generation])

    def get(
        generation: str, latent_channels: int = 16, width: int = 8, *, released_depth: bool = False
    ) -> VideoVAEConfig:
        return VideoVAEConfig(
            in_channels=3,
            out_channels=3,
            latent_channels=latent_channels,
            patch_size=4,
            encoder_base_channels=width,
            decoder_base_channels=width,
            encoder_blocks=encoders[generation],
            decoder_blocks=deepened(generation) if released_depth else decoders[generation],
            timestep_conditioning=generation != "0.9.0",
            causal_decoder=False,
            spatial_padding_mode="zeros",
        )

    return get

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

import pytest

import ltxkit

ROOT = Path(__file__).parents[1]


def pytest_sessionstart() -> None:
    installed = Path(ltxkit.__file__).parent
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

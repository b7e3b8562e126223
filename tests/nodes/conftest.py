"""Shared by the tests of the nodes: a host that records messages, the tiny models, loaded parts.

A module that needs other models or another host overrides the fixture of that name; the other fixtures follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.headless.host import PlainHost
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder
from ltxkit.nodes.text import EncodePrompt


@pytest.fixture(scope="session")
def link_models(tiny_models: Callable[..., Path]) -> Callable[[Path], Path]:
    """link_models(folder): links to the tiny set in a new folder, to which a test may add files."""

    def link(folder: Path) -> Path:
        for part in tiny_models().iterdir():
            (folder / part.name).mkdir(parents=True)
            for path in part.iterdir():
                (folder / part.name / path.name).symlink_to(path)
        (folder / "loras").mkdir()
        return folder

    return link


@pytest.fixture(scope="module")
def models(link_models: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def lora_pair() -> Callable[..., dict[str, Tensor]]:
    """lora_pair(block, width=64, rank=4): a random LoRA on one Linear of the tiny transformer, which is 64 wide."""

    def make(block: int, width: int = 64, rank: int = 4) -> dict[str, Tensor]:
        stem = f"diffusion_model.transformer_blocks.{block}.attn1.to_v"
        return {f"{stem}.lora_A.weight": torch.randn(rank, width), f"{stem}.lora_B.weight": torch.randn(width, rank)}

    return make


@pytest.fixture(scope="module")
def said() -> list[str]:
    """The messages of the nodes during this test, each as `title of the node: text`."""
    return []


@pytest.fixture(autouse=True)
def forget(said: list[str]) -> None:
    said.clear()


@pytest.fixture(scope="module")
def host(models: Path, said: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainHost]:
    folder = tmp_path_factory.mktemp("folders")
    plain = PlainHost(models, folder, folder, device=torch.device("cpu"), notes=said.append)
    with use_host(plain), torch.inference_mode():
        yield plain


@pytest.fixture(scope="module")
def loaded(host: Any) -> tuple[Any, Any]:
    """Model and VAE, loaded as a distilled release with a single pass."""
    return LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.8-distilled")


@pytest.fixture(scope="module")
def prompts(host: Any) -> tuple[Any, Any]:
    """Positive and negative CONDITIONING."""
    (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", False)
    return EncodePrompt().run(encoder, "a temple", "blurry", 24.0)

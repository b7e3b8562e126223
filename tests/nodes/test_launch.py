"""Where a loader's widget says auto, the host's launch flags decide; a choice in the widget wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.weights.build import Opened, open_models
from ltxkit.nodes import launch
from ltxkit.nodes.host import use_host
from ltxkit.nodes.launch import Storage
from ltxkit.nodes.loaders import AS_STORED, LoadModel, held_as


class Launched(PlainHost):
    """A host that was started with flags for the transformer."""

    storage = Storage(torch.float16, "fp8")

    def launched_with(self, part: object) -> Storage:
        return self.storage if part == "transformer" else Storage()


@pytest.fixture
def opened(tiny_models: Callable[..., Path]) -> Opened:
    return open_models(tiny_models() / "checkpoints/ltxv-tiny.safetensors")


@pytest.fixture
def launched(tiny_models: Callable[..., Path], tmp_path: Path) -> Iterator[None]:
    """The host of the nodes is a Launched."""
    with use_host(Launched(tiny_models(), tmp_path, tmp_path, device=torch.device("cpu"))):
        yield


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("widgets", "expected"),
    [
        (("auto", AS_STORED), Storage(torch.float16, "fp8")),
        (("auto", "nf4"), Storage(torch.float16, "nf4")),
        (("fp32", AS_STORED), Storage(torch.float32)),
        (("bf16", "int8"), Storage(torch.bfloat16, "int8")),
    ],
)
def test_a_choice_wins_over_the_flags(opened: Opened, widgets: tuple[str, str], expected: Storage):
    assert held_as("transformer", opened, *widgets) == expected
    assert held_as("vae", opened, "auto") == Storage()  # of which the flags say nothing


@pytest.mark.usefixtures("launched")
def test_a_file_with_quantized_weights_stays_as_it_is(tiny_models: Callable[..., Path], tmp_path: Path):
    source = tiny_models() / "checkpoints/ltxv-tiny.safetensors"
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for key, tensor in tensors.items():
        if "transformer_blocks" in key and key.endswith(("to_q.weight", "to_k.weight")):
            tensors[key] = tensor.to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "fp8.safetensors", metadata)
    assert held_as("transformer", open_models(tmp_path / "fp8.safetensors"), "auto") == Storage(torch.float16)


@pytest.mark.usefixtures("launched")
def test_the_loader_follows():
    model, vae = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "auto", "from the file")
    assert model.info.quantization == "fp8"
    assert next(vae.parameters()).dtype == torch.bfloat16  # as stored


def test_the_page_has_every_flag_that_is_read(repository: Path):
    tables = (*launch._DTYPES.values(), *launch._QUANTIZATIONS.values(), launch._WITHOUT_EFFECT)
    page = (repository / "docs/comfyui.md").read_text()
    flags = [launch._flag(option) for table in tables for option in table]
    assert len(flags) > 20
    assert [flag for flag in flags if f"`{flag}`" not in page] == []

"""Which host the nodes use, and the placements that they request for a handle."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import UnsupportedError
from ltxkit.nodes import sockets
from ltxkit.nodes.host import host as current_host
from ltxkit.nodes.host import use_host


def test_outside_comfyui_a_host_has_to_be_chosen(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="`ltxkit run`"):
        current_host()
    chosen = PlainHost(tmp_path, tmp_path, tmp_path)
    with use_host(chosen):
        assert current_host() is chosen
    with pytest.raises(UnsupportedError):
        current_host()


def test_each_handle_brings_its_own_number_of_resident_blocks():
    placed: list[tuple[nn.Module, int, int | None]] = []

    class Host:
        bfloat16 = True
        say = spare_memory = progress = staticmethod(lambda *_: None)

        def place(self, module: nn.Module, *, memory_required: int = 0, resident_blocks: int | None = None) -> Any:
            placed.append((module, memory_required, resident_blocks))
            return nullcontext(torch.device("cpu"))

    first, second, vae = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    wanted = ((first, 2), (second, None))
    handles = [sockets.Encoder(SimpleNamespace(model=module), False, blocks) for module, blocks in wanted]
    with use_host(Host()):
        place = sockets.stage_host(*handles).place
        for module in (first, second, vae):
            with place(module, memory_required=5):
                pass
    assert placed == [(first, 5, 2), (second, 5, None), (vae, 5, None)]

"""Which host the nodes use, and the placements that they request for a handle."""

from __future__ import annotations

import sys
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
from ltxkit.nodes.host import ComfyUIHost, use_host
from ltxkit.nodes.host import host as current_host


def test_outside_comfyui_a_host_has_to_be_chosen(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="`ltxkit run`"):
        current_host()
    chosen = PlainHost(tmp_path, tmp_path, tmp_path)
    with use_host(chosen):
        assert current_host() is chosen
    with pytest.raises(UnsupportedError):
        current_host()


def test_names_from_files_are_no_markup_on_a_node(monkeypatch: pytest.MonkeyPatch):
    """Older front ends of ComfyUI put the text of a node into the page as HTML."""
    shown: list[tuple[str, str]] = []
    server = SimpleNamespace(
        last_node_id="7", client_id="a", send_progress_text=lambda text, node: shown.append((text, node))
    )
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    comfyui = ComfyUIHost()
    comfyui.say("<img src=x onerror=alert(1)>.safetensors: 2 of 2\x1b[2J targets matched.")
    comfyui.say("a < b")
    assert shown == [
        ("‹img src=x onerror=alert(1)›.safetensors: 2 of 2\\x1b[2J targets matched.", "7"),
        ("‹img src=x onerror=alert(1)›.safetensors: 2 of 2\\x1b[2J targets matched.\na ‹ b", "7"),
    ]


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

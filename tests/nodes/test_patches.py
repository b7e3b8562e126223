"""ComfyUI's own step caches on a native MODEL: refused by name before they could meet ours, whatever shape they have.

Patchers as core 0.33 makes them (comfy_extras/nodes_easycache.py); a real core is asked in tests/host/test_bridges.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ltxkit.ltx_core.errors import UnsupportedError
from ltxkit.nodes.patches import refuse_patches


def patcher(options: dict[str, Any] | None = None, **attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"model_options": {"transformer_options": options or {}}, "object_patches": {}, **attributes}
    )


def wrapper() -> None:
    """A function that a node adds."""


HOLDER = SimpleNamespace(reuse_threshold=0.2)
WRAPPED = {"wrappers": {"diffusion_model": {"easycache": [wrapper]}}}
LAZY = {"wrappers": {"predict_noise": {"lazycache": [wrapper]}}}


@pytest.mark.parametrize(
    ("patched", "named"),
    [
        (patcher({"easycache": HOLDER}), r"transformer_options\['easycache'\]"),
        (patcher({"easycache": HOLDER, **WRAPPED}), "easycache"),
        (patcher(wrappers={"diffusion_model": {"easycache": [wrapper]}}), r"wrappers \(easycache\)"),
        (patcher(LAZY), r"transformer_options\['wrappers'\] \(lazycache\)"),
        (patcher(wrappers={"outer_sample": {"lazycache": [wrapper]}}), r"wrappers \(lazycache\)"),
        (
            patcher(object_patches={"diffusion_model.forward": wrapper}),
            "diffusion_model.forward",
        ),  # as TeaCache packs do
        (patcher({"model_function_wrapper": wrapper}), "model_function_wrapper"),
        (
            SimpleNamespace(model_options={"model_function_wrapper": wrapper}, object_patches={}),
            r"model_function_wrapper \(wrapper\)",
        ),
    ],
)
def test_a_native_model_with_a_step_cache_is_refused_in_one_sentence(patched: Any, named: str) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"got a MODEL with .*{named}.*; expected .*; connect the MODEL from bef"
    ):
        refuse_patches(patched, "MODEL")


def test_one_without_is_not() -> None:
    refuse_patches(patcher(), "MODEL")
    refuse_patches(patcher({"wrappers": {"diffusion_model": {}}}, wrappers={"outer_sample": {}}), "MODEL")
    refuse_patches(patcher(callbacks={"on_load": {"ltxkit": [wrapper]}}), "MODEL")

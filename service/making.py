"""How a request becomes a clip, in a worker of the server and in an actor of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..ltx_core.progress import Notes, log_note
from .catalog import Catalog

if TYPE_CHECKING:
    from ..ltx_core.pipelines.bar import Shown
    from ..ltx_core.pipelines.clip import Clip
    from ..ltx_core.pipelines.library import Components

_SAID = ("negative_prompt", "width", "height", "frames", "fps", "seed")


def clip_of(
    request: Mapping[str, Any],
    reference: Any,
    ltx: Components,
    catalog: Catalog,
    *,
    progress: Shown,
    notes: Notes = log_note,
) -> Clip:
    """The clip of a request.

    request: what `requests.read_request` returns. reference: the picture or clip that it begins with, as `Condition`
        takes it; None: none. ltx: the models that it names. progress, notes: as `Components.generate` has them.

    Raises:
        As `Components.generate`.
    """
    from ..ltx_core.pipelines.condition import Condition
    from ..ltx_core.pipelines.front import LoRA

    ltx.loras = tuple(LoRA(catalog.lora(each["name"]), each["scale"]) for each in request["loras"])
    return ltx.generate(
        request["prompt"],
        **{name: request[name] for name in _SAID},
        conditions=() if reference is None else Condition(reference),
        progress=progress,
        notes=notes,
        **request["knobs"],
    )

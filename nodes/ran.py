"""What was decided while a clip was made: how its LoRAs were applied, how many blocks stayed unpacked.

Sample keeps it in its LATENT, so that it is there too when ComfyUI takes Sample from its cache. The node that decodes
puts it among what ComfyUI's Save nodes write into a file: in ComfyUI all nodes of one prompt receive the same
dictionary of such texts. A client that sends none gets files without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RAN = "ltxkit_ran"  # key of a LATENT, and of the metadata of a file
FILE_TEXTS = {"extra_pnginfo": "EXTRA_PNGINFO"}  # the hidden input of a node that calls `into_file`
_AND = ", "


def ran_before(latent: Mapping[str, Any]) -> dict[str, str]:
    """What earlier nodes noted in a LATENT, to go on with."""
    noted = latent.get(RAN)
    return dict(noted) if isinstance(noted, Mapping) else {}


def note(ran: dict[str, str], name: str, value: str) -> None:
    """Several passes, or clips, may differ: then all of their values are there, in order."""
    before = ran[name].split(_AND) if name in ran else []
    ran[name] = _AND.join(dict.fromkeys([*before, *value.split(_AND)]))


def into_file(extra_pnginfo: Any, ran: Mapping[str, str]) -> None:
    """extra_pnginfo: what a node receives for `EXTRA_PNGINFO`; None where the client sent nothing."""
    if ran and isinstance(extra_pnginfo, dict):
        texts: dict[str, str] = extra_pnginfo.setdefault(RAN, {})
        for name, value in ran.items():
            note(texts, name, value)

"""Every quantization that LTXKit knows, in one list; loaders, reports, options and help texts follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError, ConfigError, UnsupportedError
from .bitsandbytes import BitsAndBytes
from .comfy_quant import ComfyQuant
from .foreign import FOREIGN
from .gguf import GGUF
from .linear import Quantization, StoredTensor
from .on_load import QuantizeOnLoad
from .scaled import ScaledInt8, StoredFP8
from .unread import FORMATS, Unread

QUANTIZATIONS: tuple[Quantization, ...] = (StoredFP8(), GGUF(), BitsAndBytes(), ComfyQuant(), ScaledInt8(), *FOREIGN)

# Formats that are recognised to be refused by name.
UNREAD: tuple[Unread, ...] = FORMATS

# What a loader's `quantization` option takes.
QUANTIZATION_NAMES = tuple(name for quantization in QUANTIZATIONS for name in quantization.on_load)


def stored_quantization(stored: Mapping[str, StoredTensor], source: Path | str) -> Quantization | None:
    """The quantization in which the tensors of a part, by their state-dict keys, are stored; None for plain weights.

    source: where they come from, for the message.

    Raises:
        CheckpointError: several quantizations claim them.
        UnsupportedError: they are in a format that LTXKit does not read.
    """
    unread = [known for known in UNREAD if known.claims(stored)]
    claiming = [known for known in QUANTIZATIONS if known.claims(stored)]
    if unread:  # their scales have names that others have, too
        known_names = ", ".join(known.name for known in QUANTIZATIONS)
        raise UnsupportedError(
            f"got {source}, whose weights are stored as {unread[0].describe(stored)}; expected plain weights or one of "
            f"{known_names}; {unread[0].instead}"
        )
    names = [known.name for known in claiming]
    if len(names) > 1:
        raise CheckpointError(
            f"got {source}, whose weights are stored as {' and as '.join(names)}; expected one quantization; "
            "use a file with a single one"
        )
    return claiming[0] if claiming else None


def quantization_by_name(name: str, only: str) -> QuantizeOnLoad:
    """What makes quantized Linears of those whose path has `only` in it, by a name of `QUANTIZATION_NAMES`.

    Raises:
        ConfigError: there is no such quantization.
    """
    for quantization in QUANTIZATIONS:
        if name in quantization.on_load:
            return QuantizeOnLoad(name, quantization.on_load[name], only)
    raise ConfigError(f"got quantization {name!r}; expected one of {', '.join(QUANTIZATION_NAMES)}")

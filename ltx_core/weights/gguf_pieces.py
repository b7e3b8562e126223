"""GGUF files that llama.cpp's `gguf-split` cut into pieces: any of them stands for the whole model.

Pieces are called `<name>-00001-of-00003.gguf` and so on; each has a header for its own tensors, and only the first has
the values that describe the model. Source: ggml-org/llama.cpp tools/gguf-split/gguf-split.cpp.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from .gguf import GGUFHeader, read_gguf_header

_PIECE = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)?")
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


def read_gguf(path: Path) -> Mapping[Path, GGUFHeader]:
    """The headers of the file, or of all pieces of its model, in their order.

    Raises:
        CheckpointError, UnsupportedError: as `read_gguf_header`; a piece is missing, or is of another model.
    """
    header, match = read_gguf_header(path), _PIECE.fullmatch(path.name)
    count = int(header.values.get(_COUNT, 1))
    if match is None and count > 1:
        raise CheckpointError(
            f"got {path}, which is one of {count} pieces of a model, under a name that does not say which; expected "
            f"names such as model-00001-of-{count:05}.gguf; give the pieces their names back, or join them with "
            "llama.cpp's `gguf-split --merge`"
        )
    total = int(match[3]) if match is not None else 1
    if match is None or total < 2:
        return {path: header}
    pieces = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}{match[4] or ''}") for number in range(1, total + 1)]
    missing = [piece.name for piece in pieces if not piece.is_file()]
    if missing:
        raise CheckpointError(
            f"got {path}, one of {total} pieces of a model, without {', '.join(missing)}; expected all pieces in one "
            "folder; download what is missing"
        )
    first = header if path == pieces[0] else read_gguf_header(pieces[0])
    headers = {pieces[0]: first, **{piece: read_gguf_header(piece, first.values) for piece in pieces[1:]}}
    _check_same_model(path, headers)
    return headers


def _check_same_model(path: Path, headers: Mapping[Path, GGUFHeader]) -> None:
    advice = "expected the pieces of one model; download them again"
    for number, (piece, header) in enumerate(headers.items()):
        says = header.values.get(_NUMBER, number) + 1, header.values.get(_COUNT, len(headers))
        if says != (number + 1, len(headers)):
            raise CheckpointError(f"got {piece}, whose header says that it is piece {says[0]} of {says[1]}; {advice}")
    names = Counter(name for header in headers.values() for name in header.tensors)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        raise CheckpointError(f"got {path} with the tensor {twice[0]!r} in several pieces; {advice}")
    stated = next(iter(headers.values())).values.get(_TENSORS, len(names))
    if stated != len(names):
        raise CheckpointError(f"got {path}, whose pieces hold {len(names)} tensors of {stated}; {advice}")

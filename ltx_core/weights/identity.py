"""Which file it is, without reading all of it: for what is kept of a file's results."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path

from .headers import MAX_HEADER_BYTES

_SAMPLES, _SAMPLE_BYTES = 64, 4096


def identity_of(files: Iterable[Path]) -> str | None:
    """A text that is another one for other files: of their headers, sizes and times of change, and of samples of their
    data, because all files of an archive or image often have one time. Names do not matter. None: a file cannot be
    read, or changes meanwhile.
    """
    whole = hashlib.sha256()
    try:
        for path in files:
            with path.open("rb") as file:
                before = path.stat()
                whole.update(struct.pack("<QQ", before.st_size, before.st_mtime_ns))
                head = file.read(8)
                length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
                whole.update(head)
                # Of a GGUF, whose header does not begin with its length, the samples have to do, and its first bytes.
                whole.update(file.read(length if length <= min(MAX_HEADER_BYTES, before.st_size) else 1 << 20))
                for number in range(_SAMPLES):
                    file.seek(max(before.st_size - _SAMPLE_BYTES, 0) * number // (_SAMPLES - 1))
                    whole.update(file.read(_SAMPLE_BYTES))
                after = path.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                return None
    except OSError:
        return None
    return whole.hexdigest()

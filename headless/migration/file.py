"""`ltxkit migrate`: a file in, a file and a report out."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...ltx_core.errors import ConfigError
from ...ltx_core.files import whole
from ...ltx_core.locks import claimed
from ...nodes import NODE_DISPLAY_NAME_MAPPINGS
from ...nodes.host import use_host
from ..exports import read_export
from ..graph import Kinds
from ..host import PlainHost
from ..runner import all_nodes
from .convert import Migrated, convert
from .editor import editor_graph
from .known import DECLARED

Format = Literal["ui", "api"]


@dataclass(frozen=True)
class MigratedFile:
    """path: what was written. muted: titles of nodes that the old graph had muted or bypassed."""

    path: Path
    migrated: Migrated
    muted: tuple[str, ...]


def migrate_file(
    source: Path, target: Path | None = None, *, form: Format | None = None, overwrite: bool = False
) -> MigratedFile:
    """Write our graph for a workflow file: the editor's format, API format, or what a picture or clip contains.

    Args:
        target: without it, `NAME-ltxkit.json` beside the source.
        form: of the new file; without it, that of the source (of a picture or a clip: ui).
        overwrite: replace `target` if it exists, even if it is the source.

    Raises:
        ConfigError: the file has no graph, nothing of it can be converted, or `target` exists.
        OSError: `target` cannot be written.
    """
    target = source.with_name(f"{source.stem}-ltxkit.json") if target is None else target
    if target.is_dir():
        raise ConfigError(f"got the folder {target} as output; expected a file; name one in it")
    _refuse_existing(source, target, overwrite)
    with tempfile.TemporaryDirectory() as empty, use_host(PlainHost(*[Path(empty)] * 3)):
        kinds = Kinds({**DECLARED, **all_nodes()}, NODE_DISPLAY_NAME_MAPPINGS)
        found = read_export(source, kinds)
        migrated = convert(found.prompt)
        wanted = form or ("api" if _is_api(source) else "ui")
        data: Any = migrated.prompt if wanted == "api" else editor_graph(migrated.prompt)
    with claimed(target):
        _refuse_existing(source, target, overwrite)  # of a command that has ended since
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        with whole(target) as temporary:
            # Half of a surrogate pair, which JSON's escapes can spell, is no text: a mark stands for it.
            temporary.write_bytes(text.encode("utf-8", "replace"))
    return MigratedFile(target, migrated, found.left_out)


def _refuse_existing(source: Path, target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        what = "is the file to migrate" if source.exists() and target.samefile(source) else "exists already"
        raise ConfigError(f"got {target}, which {what}; expected a new name; choose another -o, or pass --overwrite")


def _is_api(source: Path) -> bool:
    """Whether a file has nodes by id; those of the editor list them."""
    try:
        data = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and not isinstance(data.get("nodes"), list) and "workflow" not in data

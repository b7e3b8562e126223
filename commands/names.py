"""Names of results: made from the prompt and the seed, or from a name with fields such as {seed}."""

from __future__ import annotations

import datetime
import difflib
import re
import string
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from ..ltx_core.errors import ConfigError
from ..ltx_core.filenames import is_device, same_file_key
from ..ltx_core.locks import Claims
from ..ltx_core.values import shown

FIELDS = ("prompt", "seed", "number", "date")
_LONGEST = 48  # characters of a prompt in a name
_BYTES = 120  # of them; most file systems allow 255 for the whole name


def slug(prompt: str) -> str:
    """The first words of a prompt, as part of a file's name."""
    plain = unicodedata.normalize("NFKC", prompt).casefold().encode("utf-8", "ignore").decode()
    made = ""
    for word in re.findall(r"\w+", plain):
        longer = f"{made}-{word}" if made else word[: min(_LONGEST, _BYTES // 4)]
        if len(longer) > _LONGEST or len(longer.encode()) > _BYTES:
            break
        made = longer
    return f"{made}-clip" if is_device(made) else made or "clip"


def values_of(prompt: str, seed: int, number: int) -> dict[str, str]:
    """The fields of a clip's name."""
    today = datetime.datetime.now(tz=datetime.timezone.utc).astimezone().date()
    return {"prompt": slug(prompt), "seed": str(seed), "number": f"{number:03d}", "date": today.isoformat()}


def has_fields(template: Path | str) -> bool:
    """Whether a name has a field, which makes a name of its own for each clip. Raises as `filled`."""
    return bool(_fields(str(template)))


def filled(template: Path | str, values: Mapping[str, str]) -> Path:
    """A name with the values of its fields; `{{` is a brace.

    Raises:
        ConfigError: braces that hold no field.
    """
    _fields(str(template))
    return Path(str(template).format_map(values))


def _fields(template: str) -> list[str]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError:
        parsed = [("", "", "", None)]
    fields = [name for _, name, _, _ in parsed if name is not None]
    for _, name, form, conversion in parsed:
        if name is not None and (name not in FIELDS or form or conversion):
            near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise ConfigError(
                f"got the name {shown(template)}; expected {known} in braces; "
                + (f"did you mean {{{near[0]}}}?" if near else "write {{ and }} for braces of the name itself")
            )
    return fields


def free(path: Path, taken: set[str], claims: Claims | None) -> Path:
    """The name itself, or with the next number: name-2, name-3. It is claimed.

    taken: keys of names that exist only in this run's plan (`same_file_key`). claims: None: names are only looked at.
    """
    number, name = 2, path
    while not is_free(name, taken, claims):
        name = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return name


def is_free(path: Path, taken: set[str], claims: Claims | None) -> bool:
    """Whether nothing has the name, and no other run has claimed it; then this one has."""
    if same_file_key(path) in taken or path.exists() or (claims is not None and not claims.take(path)):
        return False
    if claims is not None and path.exists():  # by a run that has ended since the first look
        claims.release(path)
        return False
    return True

"""The choice of this machine: what the user says, else what was measured here once and kept in the user's cache folder.

It is kept because a seed is to stay one clip on a machine, and two measurements may end differently.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..cache import VARIABLE as CACHE_VARIABLE
from ..cache import cache_folder
from ..errors import reason_of
from ..files import temporary
from ..progress import Notes, log_note
from . import private
from .choice import PLAIN, PLAIN_FORM, Kernels, Kind, Operation, check_device, parse_kernels
from .measure import measure

VARIABLE = "LTXKIT_KERNELS"
_OPERATORS: dict[Kind, str] = {"products": "products", "attention": "products", "convolutions": "convolutions"}
_RULES = 3  # raised when what is measured, or how it is read, changes


def kernels_here(asked: str | None = None, say: Notes = log_note) -> Kernels:
    """The choice for the CPU of this machine.

    asked: what the user says, as `parse_kernels`; None: what the environment variable LTXKIT_KERNELS says, else the
        measured choice, which takes up to a second the first time on a machine. Where this processor has no kernels for
        a dtype, the form that was asked for is plain in it.
    say: hears what was measured, and why nothing was.

    Raises:
        ConfigError: a text that names no kernels, or a card's.
    """
    chosen = asked_kernels(asked)
    check_device(chosen, torch.device("cpu"))
    return _as_far_as_it_works(chosen) if chosen is not None else measured_here(say)


def _as_far_as_it_works(chosen: Kernels) -> Kernels:
    """Without forms for dtypes that this processor's oneDNN does not compute: they would be plain, unsaid."""
    operations: dict[Kind, Operation] = {}
    for kind, needed in _OPERATORS.items():
        operation = chosen.of(kind)
        forms = {d: form for d, form in operation.forms.items() if form == PLAIN_FORM or private.works(needed, d)}
        operations[kind] = replace(operation, forms=forms)
    return replace(chosen, **operations)


def asked_kernels(asked: str | None = None) -> Kernels | None:
    """What the user says, or else the environment variable LTXKIT_KERNELS; None: the best there is.

    Raises:
        ConfigError: a text that names no kernels.
    """
    if asked is not None:
        return parse_kernels(asked, "asked for")
    return parse_kernels(os.environ.get(VARIABLE, ""), f"by {VARIABLE}")


def measured_here(say: Notes = log_note) -> Kernels:
    """The measured choice, from the cache folder where it is known; plain where it cannot be kept, and says so."""
    machine = {"processor": processor(), "torch": torch.__version__, "rules": _RULES}
    try:
        folder = cache_folder()
        if folder is None:
            raise FileNotFoundError("there is no cache folder")
        file = folder / f"kernels-{_digest(machine)}.json"
        is_new = not file.exists()
        if is_new:
            _keep(file, machine)
        kernels = _read(file, machine)
    # No folder, one that cannot be written, or a file that is damaged (which is a ValueError, as JSON's are).
    except (OSError, ValueError) as error:
        say(
            f"This CPU computes by plain torch in the dtype of each file: what is fastest here could not be kept, and "
            f"without that a seed would not stay one clip ({reason_of(error)}). Name a folder in {CACHE_VARIABLE}."
        )
        return PLAIN
    if is_new:
        say(f"Measured what is fastest on this CPU, and kept it in {file}: {kernels.in_words()}.")
    return kernels


def _keep(file: Path, machine: dict[str, Any]) -> None:
    """Measure, and write the file: whole or not at all, and never over that of a process that was faster."""
    with temporary(file.parent, ".json") as part:
        part.touch(exist_ok=False)  # before the work whose result could not be kept
        kernels = measure()
        part.write_text(json.dumps({**machine, "kernels": kernels.to_json()}, indent=1) + "\n", encoding="utf-8")
        try:
            os.link(part, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            part.replace(file)


def _read(file: Path, machine: dict[str, Any]) -> Kernels:
    """Raises ValueError: the file is damaged, or another machine's. OSError: it cannot be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or any(values.get(name) != value for name, value in machine.items()):
            raise ValueError("it is not this machine's")
        return Kernels.from_json(values.get("kernels"), "measured")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it to measure again") from error


def _digest(machine: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]


def processor() -> str:
    """The processor's model, as the system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer", "CPU part")
        lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines())
        found = {name.strip(): value.strip() for name, _, value in lines if name.strip() in wanted}
        if found:
            return "; ".join(f"{name} {value}" for name, value in sorted(found.items()))
    return platform.processor() or platform.machine()

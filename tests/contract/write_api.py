"""Write `docs/api.md`: the public names of `import ltxkit`, with their signatures, from their docstrings.

    .venv/bin/python tests/contract/write_api.py

Run it after changing one of them; `test_api.py` compares the page with what this makes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ltxkit
from ltxkit.ltx_core.pipelines.library import Components

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
HEADINGS = {"Args:": "Arguments", "Raises:": "Raises", "Returns:": "Returns", "Yields:": "Yields"}
INTRODUCTION = """# The library

```python
import ltxkit

ltx = ltxkit.load("ltxv-13b-0.9.8-dev.safetensors", "t5xxl_fp16.safetensors")
ltx.generate("A lighthouse in a storm", seed=1).save("lighthouse.mp4")
```

This page is made from the docstrings by `tests/contract/write_api.py`. These names stay; all others may change.

Every error is a `ValueError` (a setting or a size that cannot be) or a `RuntimeError` (a file, a device, too little
memory), says what LTXKit got, what it expected and what to do, and derives from `LTXKitError` in
`ltxkit.ltx_core.errors`. A call with a name of another library is answered with the one to write here.

Names of types in the signatures:

| type | what it is |
|---|---|
| `Path_` | a path, as text or `pathlib.Path` |
| `Frames` | a path, a Pillow image, an array or tensor (h w 3) or (f h w 3), uint8 or 0 to 1, or a list |
| `Text`, `Texts` | a prompt: text, or what `ltx.encode` returns; a list of texts |
| `Given` | a `Condition` or `Reference`, `Frames`, or a list of these |
| `Starting` | a `Clip`, a latent (1 c f h w), or `Frames` |
| `Values` | a number for every step, or a list |
| `PassKnobs`, `Knobs` | a mapping of the names of a pass, or of a run, as `Recipe` explains them |
| `Shown` | a function of a progress event (`stage`, `step`, `total`, `denoised`), None for a bar, False for nothing |
| `Notes` | a function of one sentence |
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name in public_names():
        parts += described(f"ltxkit.{name}", getattr(ltxkit, name))
        if name == "load":
            parts += ["## What `load` returns\n", *members("ltx", Components)]
    parts.append("## `ltxkit.__version__`\n\nThe version of LTXKit, as text.\n")
    return "\n".join(parts)


def public_names() -> list[str]:
    """`load` first, then the others in their order."""
    names = [name for name in ltxkit.__all__ if not name.isupper() and not name.startswith("_")]
    return ["load", *(name for name in names if name != "load")]


def described(title: str, value: Any) -> Iterator[str]:
    yield f"## `{title}`\n"
    yield fence(f"{title}{signature(value)}")
    yield text(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        yield from members(f"{value.__name__.lower()}", value, heading="###", with_doc=False)


def members(receiver: str, kind: type, heading: str = "###", *, with_doc: bool = True) -> Iterator[str]:
    """The docstring of a class, and its public methods and properties."""
    if with_doc:
        yield text(inspect.getdoc(kind) or "")
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") or isinstance(value, classmethod) or not inspect.getdoc(value):
            continue
        if isinstance(value, property):
            yield f"{heading} `{receiver}.{name}`\n"
            yield text(inspect.getdoc(value) or "")
        elif inspect.isfunction(value):
            yield f"{heading} `{receiver}.{name}`\n"
            yield fence(f"{receiver}.{name}{signature(value)}")
            yield text(inspect.getdoc(value) or "")


def fence(code: str) -> str:
    return f"```python\n{code}\n```\n"


def signature(called: Callable[..., Any]) -> str:
    """The parameters, one a line where they are many."""
    found = inspect.signature(called)
    parts: list[str] = []
    keyword_only = False
    for name, parameter in found.parameters.items():
        if name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {shown(parameter.default)}"
        parts.append(f"{stars}{name}{annotation}{default}")
    ends = "" if found.return_annotation in (found.empty, None, "None") else f" -> {found.return_annotation}"
    line = f"({', '.join(parts)}){ends}"
    return line if len(line) < 100 else "(\n    " + ",\n    ".join(parts) + f",\n){ends}"


def shown(default: object) -> str:
    """A default value, the same on every machine."""
    if inspect.isfunction(default):
        return default.__name__
    return repr(default) if isinstance(default, str | int | float | tuple | None | bool) else "..."


def text(docstring: str) -> str:
    """A docstring as Markdown: its sections as lists, with an item for each line that begins one."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if line.strip() in HEADINGS:
            inside = True
            lines += [f"**{HEADINGS[line.strip()]}**", ""]
        elif (inside and re.match(r" {4}\S", line)) or (not inside and re.match(r"\w+(, \w+)*: ", line)):
            listed = bool(lines) and lines[-1].startswith("- ")
            lines += ["", f"- {line.strip()}"] if lines and lines[-1] and not listed else [f"- {line.strip()}"]
        elif lines and lines[-1].startswith("- ") and line.startswith("    "):
            lines[-1] += f" {line.strip()}"
        else:
            inside = inside and not line.strip()
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

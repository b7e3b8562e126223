"""Write `docs/cli.md`: every command with its options and examples, from the parser itself.

    .venv/bin/python tests/contract/write_cli_reference.py

Run it after a change to a command; `test_cli_reference.py` fails where the page says something else.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from ltxkit.cli import COMMANDS, parser
from ltxkit.commands.command import Command

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = """# The command line

Written by `tests/contract/write_cli_reference.py` from the commands themselves; `ltxkit COMMAND --help` says the
same.

Results go to stdout, one line each; everything else goes to stderr. In a terminal each stage of work is a bar,
elsewhere one line. The exit status is 0; 1 for a failing disk or a measurement below its bar; 2 for what you can
correct, in one sentence; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; 141 where the reader of stdout has
gone.

**Where models are found.** `ltxkit generate` takes the model that `--model` names. Without it, the first of these
that has one: `$LTXKIT_MODEL`; the config file; ComfyUI's folders; the cache of the Hugging Face hub. If that place
has several, they are listed, and you choose one. The text encoder is found likewise (`$LTXKIT_TEXT_ENCODER`), and so
is the VAE of a file without one (`$LTXKIT_VAE`). A name works wherever a file does: that of a file in these places,
or of a release that `ltxkit fetch` brought (`--model 2b-0.9.8-distilled`).

ComfyUI's folders are those of `--models DIR` or `$LTXKIT_MODELS`; else `models` here, that of the ComfyUI in which
this pack is installed, those of `$COMFYUI_PATH` and of `comfyui` in the config file, and `ComfyUI`, `~/ComfyUI`,
`~/comfy/ComfyUI` and `~/Documents/ComfyUI`, each with what its `extra_model_paths.yaml` adds.

The config file is `~/.config/ltxkit/config.ini` (`$XDG_CONFIG_HOME`), on macOS `~/Library/Application
Support/ltxkit/config.ini`, on Windows `%APPDATA%\\ltxkit\\config.ini`. Every line is optional:

```ini
[models]
model = /data/models/ltxv-2b-0.9.8-distilled.safetensors
text_encoder = /data/models/t5xxl_fp16.safetensors
vae =
upscaler =
comfyui = ~/ComfyUI
```

**Names of results.** Without `-o` a clip is called after its prompt and seed, `a-lighthouse-0.mp4`, in the current
folder; without `--seed`, the seed is the first from 0 whose name is free, so that the same command again makes
another clip. With `--seed`, a name that is taken gets a number: `a-lighthouse-7-2.mp4`. A name that you give is used
as it is; if it exists, the command refuses unless you add `--overwrite`. `{prompt}`, `{seed}`, `{number}` and
`{date}` in it stand for the values of each clip.

**Recipes in files.** `--recipe FILE` takes YAML or JSON: LTXKit's own, with the keys of `--set` (`first` and `second`
are sections) and `width`, `height`, `frames`, `fps`, `negative_prompt`; or Lightricks' `configs/*.yaml` as they are.
Options and `--set` overrule it.

| key of `--set` | |
|---|---|
"""


def page() -> str:
    """The whole page."""
    top = parser()
    (subs,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    sections = [section(command, subs.choices[command.name]) for command in COMMANDS]
    return HEAD + "\n".join(knobs()) + "\n" + "".join(f"\n{text}" for text in sections)


def knobs() -> Iterator[str]:
    from ltxkit.commands.settings import _knobs

    written: set[str] = set()
    for key, option in _knobs().items():
        name = key.replace("second.", "first.")
        if option.field in written:
            continue
        written.add(option.field)
        both = f"`{name}`, `{name.replace('first.', 'second.')}`" if name.startswith("first.") else f"`{name}`"
        yield f"| {both} | {cell(option.help)} |"


def section(command: Command, sub: argparse.ArgumentParser) -> str:
    lines = [f"## ltxkit {command.name}", "", command.help, ""]
    if command.examples:
        lines += ["```", *(f"ltxkit {example}" for example in command.examples), "```", ""]
    for group in sub._action_groups:
        actions = [
            action for action in group._group_actions if action.dest != "help" and action.help != argparse.SUPPRESS
        ]
        if not actions:
            continue
        titled = group.title if group.title not in ("positional arguments", "options", "optional arguments") else None
        if titled:
            lines += [
                f"**{titled[0].upper()}{titled[1:]}**" + (f": {group.description}" if group.description else ""),
                "",
            ]
        lines += ["| | |", "|---|---|", *(row(action) for action in actions), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def row(action: argparse.Action) -> str:
    value = str(action.metavar or "") if action.nargs != 0 else ""
    if not value and action.choices and action.option_strings:
        value = ",".join(map(str, action.choices))
    elif (
        not value
        and action.nargs != 0
        and action.option_strings
        and not isinstance(action, argparse.BooleanOptionalAction)
    ):
        value = action.dest.upper()
    named = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if isinstance(action, argparse.BooleanOptionalAction):
        value = ""
    choices = f" One of {', '.join(map(str, action.choices))}." if action.choices and not action.option_strings else ""
    required = " Required." if action.required and action.option_strings else ""
    return f"| `{' '.join(filter(None, (named, value)))}` | {cell(action.help or '')}{choices}{required} |"


def cell(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("|", "\\|").replace("%%", "%")).strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""The files that put a service on a machine say what the command understands."""

from __future__ import annotations

import shlex
from pathlib import Path

from ltxkit import cli


def serve_options(arguments: list[str]) -> None:
    """Parses, or raises SystemExit."""
    cli.parser().parse_args(["serve", *arguments])


def test_the_dockerfile_starts_the_server(repository: Path) -> None:
    import json

    text = (repository / "deploy/Dockerfile").read_text(encoding="utf-8")
    lines = {line.partition(" ")[0]: line.partition(" ")[2] for line in text.splitlines()}
    entry = json.loads(lines["ENTRYPOINT"])
    assert entry[:2] == ["ltxkit", "serve"]
    serve_options([*entry[2:], *json.loads(lines["CMD"])])
    assert lines["EXPOSE"] == "8190"
    assert lines["USER"] == "ltxkit"


def test_the_unit_starts_the_server(repository: Path) -> None:
    lines = (repository / "deploy/ltxkit.service").read_text(encoding="utf-8").splitlines()
    command = next(line.partition("=")[2] for line in lines if line.startswith("ExecStart="))
    options = next(line.partition("LTXKIT_OPTIONS=")[2] for line in lines if "LTXKIT_OPTIONS=" in line)
    words = shlex.split(command.replace("$LTXKIT_OPTIONS", options))
    assert words[1:3] == ["ltxkit", "serve"]
    serve_options(words[3:])

"""What SECURITY.md promises of the public CI: actions that cannot change."""

from __future__ import annotations

import re
from pathlib import Path


def test_actions_are_pinned_to_commits(repository: Path) -> None:
    """A tag can be moved to other code by whoever has the action."""
    workflows = list((repository / ".github" / "workflows").glob("*.yml"))
    used = [line for path in workflows for line in re.findall(r"uses:\s*(.+)", path.read_text())]
    assert used
    assert not [line for line in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}  # .+", line)]

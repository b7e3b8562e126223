"""Contract tests share the modules that stand with them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # this folder; never the repository root

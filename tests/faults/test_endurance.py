"""A process that makes clip after clip stays as it is; `make endurance` does the same with 200 runs of ten kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # 21 runs of three kinds, and three processes that make one clip each
@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_memory_files_and_threads_stay_level_and_clips_equal_those_of_fresh_processes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("endurance.py")
    done = subprocess.run(
        [sys.executable, str(script), "--count", "21", "--requests", "one frame", "lora", "fp8", "--models", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "nothing grows, and every clip is that of a fresh process"

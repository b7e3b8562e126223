"""What a worker of pytest-xdist takes at a time: a whole file, or all files that share a server; the longest first.

xdist begins with the files of most tests. The longest files have few, so at the end one worker would be left with one
of them while the others rest. The conftest makes this the scheduler wherever xdist would distribute files.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

SERVERS = "ComfyUI servers"
# Each of these starts some of the same three servers, which live as long as their worker.
TOGETHER: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            *("tests/host/test_after_run.py", "tests/host/test_comfyui.py", "tests/host/test_comfyui_next.py"),
            *("tests/host/test_exports.py", "tests/host/test_native.py", "tests/host/test_native_values.py"),
            *("tests/host/test_old_graphs.py", "tests/host/test_sound.py", "tests/host/test_stand_ins.py"),
        ),
        SERVERS,
    )
)
# Seconds on two cores, roughly: only the order matters. Files without an entry are ordered by their number of tests.
SECONDS: Mapping[str, float] = MappingProxyType(
    {
        SERVERS: 350.0,
        "tests/host/test_bridges.py": 150.0,
        "tests/contract/test_benchmarks.py": 120.0,
        "tests/faults/test_faults.py": 120.0,
        "tests/host/test_memory.py": 90.0,
        "tests/contract/test_recipes.py": 80.0,
        "tests/training/test_runs.py": 70.0,
        "tests/host/test_workflows.py": 60.0,
        "tests/service/test_ray.py": 60.0,
        "tests/service/test_serve.py": 55.0,
        "tests/pipelines/test_group.py": 50.0,
        "tests/nodes/test_train.py": 50.0,
        "tests/commands/test_generate.py": 50.0,
        "tests/placing/test_compiling.py": 45.0,
        "tests/commands/test_requests.py": 45.0,
        "tests/quant/test_gguf.py": 45.0,
        "tests/pipelines/test_bundled.py": 40.0,
        "tests/service/test_batch.py": 40.0,
        "tests/fuzz/test_fuzz.py": 35.0,
        "tests/faults/test_endurance.py": 33.0,
        "tests/contract/test_imports.py": 30.0,
        "tests/commands/test_cli.py": 30.0,
        "tests/placing/test_memory_runs.py": 30.0,
        "tests/training/test_ic_lora.py": 27.0,
        "tests/pipelines/test_long_video.py": 25.0,
        "tests/contract/test_readme.py": 24.0,
        "tests/training/test_lora.py": 24.0,
        "tests/host/test_quantized_files.py": 20.0,
        "tests/models/test_tokenizer.py": 18.0,
        "tests/host/test_frontend.py": 18.0,
        "tests/host/test_launched.py": 16.0,
        "tests/contract/test_security.py": 16.0,
        "tests/pipelines/test_nothing_twice.py": 15.0,
        "tests/contract/test_packaging.py": 12.0,
    }
)
USUAL = 0.1  # seconds of a test elsewhere


class WorkUnits(LoadScopeScheduling):
    """As xdist's own for whole files, but for what belongs together, and for the order."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        longest = max(self.workqueue, key=lambda unit: seconds_of(unit, len(self.workqueue[unit])))
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)


def unit_of(nodeid: str) -> str:
    file = nodeid.split("::", 1)[0]
    return TOGETHER.get(file, file)


def seconds_of(unit: str, tests: int) -> float:
    return SECONDS.get(unit, USUAL * tests)

"""The demo graphs on the bundled model: from the command to the finished video, and the sampling alone.

Each run is `ltxkit run` in a fresh process on two threads, so that Python, torch and the weights are loaded within the
time. It is wall-clock time, since it is what the user waits for: the median of some runs, each of which has to meet the
bar, on a machine that should be quiet. Sampling is timed inside a process that has run the graph before.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from protocol import Row, publish

from ltxkit.headless.runner import run_workflow
from ltxkit.ltx_core.media import read_video
from ltxkit.ltx_core.progress import ProgressEvent

ROOT = Path(__file__).resolve().parents[1]
THREADS = 2
RUNS = 5
BAR = 20.0  # seconds that a clip may take
CASES = {"demo-text": "a prompt, one pass at 64x64", "demo-two-stage": "a first frame, two passes, 128x128"}


def whole(name: str, folder: Path) -> float:
    """Seconds of one `ltxkit run`, which must have left its clip."""
    command = [sys.executable, str(ROOT), "run", str(ROOT / f"workflows/api/{name}.json"), "--models", str(folder)]
    command += ["--input", str(ROOT / "assets/examples"), "--output", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    seconds = time.perf_counter() - start
    clip = read_video(Path(done.stdout.splitlines()[-1])).frames
    if len(clip) != 25 or not float(clip.std()) > 0.05:
        raise ValueError(f"{name}: made {tuple(clip.shape)} with a spread of {float(clip.std()):.3f}; nothing to time")
    return seconds


def sampling(name: str, folder: Path) -> float:
    """Seconds of its passes of sampling, without the first step's preparations."""
    marks: list[tuple[int, float]] = []

    def report(event: ProgressEvent) -> None:
        if event.stage == "sample":
            marks.append((event.step, time.perf_counter()))

    run_workflow(
        ROOT / f"workflows/api/{name}.json",
        models=folder,
        input_folder=ROOT / "assets/examples",
        output_folder=folder,
        progress=report,
    )
    return sum(later - sooner for (step, sooner), (next_step, later) in pairwise(marks) if next_step > step)


def main() -> None:
    torch.set_num_threads(THREADS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, what in CASES.items():
            times = [whole(case, folder) for _ in range(RUNS)]
            print(f"{case}: {', '.join(f'{seconds:.1f}' for seconds in times)} s", file=sys.stderr, flush=True)
            sampling(case, folder)  # a warm-up
            alone = statistics.median(sampling(case, folder) for _ in range(RUNS))
            if max(times) > BAR:
                raise ValueError(f"{case}: took {max(times):.1f} s; it may take {BAR:.0f}")
            steps = json.loads((ROOT / f"workflows/api/{case}.json").read_text())
            passes = sum(node["class_type"] == "LTXKitSampleVideo" for node in steps.values())
            rows += [
                Row(
                    f"{case}: the command, loading included",
                    "s",
                    statistics.median(times),
                    note=f"{what}; {min(times):.1f} to {max(times):.1f} s in {RUNS} runs; may take {BAR:.0f}",
                ),
                Row(
                    f"{case}: sampling alone",
                    "s",
                    alone,
                    note=f"{passes} {'pass' if passes == 1 else 'passes'}, models loaded",
                ),
            ]
    publish("demo_cpu", "How long does the demo take, 25 frames by the bundled model on two threads of a CPU?", rows)


if __name__ == "__main__":
    main()

"""The demo graphs on the bundled model: from the command to the finished video, and the sampling alone.

Each run is `ltxkit run` in a fresh process on two threads, and on one; its time includes loading Python, torch and the
weights. The figure is the user's wait, wall-clock time on a quiet machine: the median of several runs, none of which
may exceed the limit on two. Sampling is timed inside a process that has run the graph before.

With --against, a checkout of another commit runs the same graphs in turn with this one; the figures are then the
processor time of the whole command, which neighbours on the machine do not lengthen. Graphs cache no prompts; the first
run, which is not counted, measures which kernels this processor is fastest with.

python benchmarks/demo_cpu.py [--tiny] [--against FOLDER]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from protocol import Row, another, arguments, publish

from ltxkit.headless.runner import run_workflow
from ltxkit.ltx_core.media import read_video
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.nodes.templates import template

ROOT = Path(__file__).resolve().parents[1]
THREADS = 2
RUNS, RUNS_ALONE = 5, 3  # on all threads, and on one
LIMIT = 20.0  # seconds that a clip may take
CASES = {"demo-text": "a prompt, one pass at 64x64", "demo-two-stage": "a first frame, two passes, 128x128"}
FRAMES = 25
TINY = ("Canvas.frames=9", "First schedule.steps=1", "Second schedule.levels=0.125")  # of demo-two-stage


class Taken(NamedTuple):
    """By one command: seconds by the clock and of the processor, and the most main memory in bytes."""

    seconds: float
    of_processor: float
    memory: int


def whole(name: str, folder: Path, changes: Sequence[str], checkout: Path = ROOT, threads: int = THREADS) -> Taken:
    """What one `ltxkit run` takes; the clip that it saves must be complete and show something."""
    command = [sys.executable, str(checkout), "run", str(template(name)), "--models", str(folder)]
    command += ["--input", str(ROOT / "assets/examples"), "--output", str(folder)]
    command += [word for change in changes for word in ("--set", change)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "LTXKIT_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        said = running.stdout.read()
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    clip = read_video(Path(said.splitlines()[-1])).frames
    if len(clip) != (9 if changes else FRAMES) or not float(clip.std()) > 0.05:
        raise ValueError(f"{name}: made {tuple(clip.shape)} with a spread of {float(clip.std()):.3f}; nothing to time")
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return Taken(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * kilobyte)


def runs_in(checkout: Path, name: str, folder: Path, changes: Sequence[str]) -> bool:
    """Whether another checkout has the nodes of a graph; an older one may lack some."""
    try:
        whole(name, folder, changes, checkout)
    except subprocess.CalledProcessError:
        print(f"{name} does not run in {checkout.name}: not paired", file=sys.stderr)
        return False
    return True


def paired(name: str, folder: Path, changes: Sequence[str], other: Path, runs: int) -> Row:
    """This checkout and another one in turn; the first run of each warms the disk's cache and does not count."""
    pairs = [[whole(name, folder, changes, root) for root in (ROOT, other)] for _ in range(runs + 1)]
    taken, others = zip(*pairs[1:], strict=True)
    ours, theirs = ([each.of_processor for each in side] for side in (taken, others))
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return Row(
        f"{name}: the command, in processor time",
        "s",
        statistics.median(ours),
        peer_name=another(other),
        peer=statistics.median(theirs),
        speedup=(statistics.median(ratios), min(ratios), max(ratios)),
        note=f"{CASES[name]}; {runs} runs in turn",
        memory=max(each.memory for each in taken),
        peer_memory=max(each.memory for each in others),
        threads=THREADS,
    )


def sampling(name: str, folder: Path, changes: Sequence[str]) -> float:
    """Seconds of all sampling passes, without the preparations of the first step."""
    marks: list[tuple[int, float]] = []

    def report(event: ProgressEvent) -> None:
        if event.stage == "sample":
            marks.append((event.step, time.perf_counter()))

    run_workflow(
        template(name),
        models=folder,
        input_folder=ROOT / "assets/examples",
        output_folder=folder,
        assignments=changes,
        progress=report,
    )
    return sum(later - sooner for (step, sooner), (next_step, later) in pairwise(marks) if next_step > step)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of another commit")
    options = parser.parse_args()
    tiny = options.tiny
    cases = ("demo-two-stage",) if tiny else tuple(CASES)
    runs, changes = (1, TINY) if tiny else (RUNS, ())
    torch.set_num_threads(THREADS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases:
            if not tiny:
                whole(case, folder, changes)  # measures the kernels, once per machine
            commands = [whole(case, folder, changes) for _ in range(runs)]
            alone = [whole(case, folder, changes, threads=1) for _ in range(1 if tiny else RUNS_ALONE)]
            times = [each.seconds for each in commands]
            print(f"{case}: {', '.join(f'{seconds:.1f}' for seconds in times)} s", file=sys.stderr, flush=True)
            if not tiny:
                sampling(case, folder, changes)  # warm-up
            sampled = statistics.median(sampling(case, folder, changes) for _ in range(runs))
            if max(times) > LIMIT and not tiny:
                raise ValueError(f"{case}: took {max(times):.1f} s; the limit is {LIMIT:.0f}")
            steps = json.loads(template(case).read_text())
            passes = sum(node["class_type"] == "LTXKitSampleVideo" for node in steps.values())
            rows += [
                Row(
                    f"{case}: the command, loading included",
                    "s",
                    statistics.median(times),
                    note=f"{CASES[case]}; {min(times):.1f} to {max(times):.1f} s in {runs} runs; may take {LIMIT:.0f}",
                    memory=max(each.memory for each in commands),
                    threads=THREADS,
                ),
                Row(
                    f"{case}: the command on one thread, loading included",
                    "s",
                    statistics.median(each.seconds for each in alone),
                    note=f"{CASES[case]}; {len(alone)} runs",
                    memory=max(each.memory for each in alone),
                    threads=1,
                ),
                Row(
                    f"{case}: sampling alone",
                    "s",
                    sampled,
                    note=f"{passes} {'pass' if passes == 1 else 'passes'}, models loaded",
                    threads=THREADS,
                ),
            ]
            if options.against is not None and runs_in(options.against.resolve(), case, folder, changes):
                rows.append(paired(case, folder, changes, options.against.resolve(), runs))
    question = "How long does the demo take, 25 frames by the bundled model on a CPU?"
    publish("demo_cpu", question, rows, tiny=tiny)


if __name__ == "__main__":
    main()

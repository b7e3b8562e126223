"""`ltxkit train --find-lr`: the learning rate to train with, from a short test in which it rises.

Source: the range test of Smith (arXiv 1506.01186, section 3.3). The loss of one batch says little about the weights: a
noise level alone changes it tenfold. Every batch is therefore computed twice, by the weights of the start and in the
test, and the ratio of the two losses is what is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..files import whole
from ..progress import Progress, ProgressEvent, silent
from .config import Training
from .curves import svg_curve
from .distributed import World
from .loop import Task
from .page import POLICY, STYLE

STEPS = 100
LOWEST, HIGHEST = 1e-7, 1.0  # rates of the first and the last step
SMOOTHING = 0.9  # of the ratio, over the steps
DIVERGED = 1.5  # a smoothed ratio that ends the test
GAIN = 0.01  # a smaller fall of the smoothed ratio is noise
BELOW_MINIMUM = 10  # the rate is this far below the one at which the loss was lowest: there it is about to diverge
NAME = "find_lr.html"


def rate_at(step: int) -> float:
    """Of the test's steps, evenly spaced on a logarithmic scale."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))


def find_rate(
    task: Task,
    config: Training,
    world: World,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
) -> float | None:
    """The learning rate for `task`, which is trained by the way; None if no rate lowers the loss, or if stopped.

    Writes find_lr.html into the run's folder: the ratio of the losses over the rate.
    """
    start = task.state()
    at_start: list[float] = []
    in_test: list[float] = []
    updater = task.updater
    try:
        for losses, curve in ((at_start, lambda _: 0.0), (in_test, rate_at)):
            updater.curve = curve
            for step in range(STEPS):
                if world.any(stop()):
                    return None
                done = len(at_start) + len(in_test)
                progress(ProgressEvent("find the learning rate", done, 2 * STEPS))
                metrics = task.update(step)
                loss = metrics.get("loss", math.nan)
                losses.append(loss)
                if not math.isfinite(loss) or metrics.get("skipped_steps", 0):
                    break
                if losses is in_test and smoothed(at_start, in_test)[-1] > DIVERGED:
                    break
            if losses is at_start:
                task.load(start)  # the weights are the same, but the optimizer has seen gradients
        progress(ProgressEvent("find the learning rate", 2 * STEPS, 2 * STEPS))
    finally:
        updater.curve = None
        task.load(start)
    ratios = smoothed(at_start, in_test)
    found = suggested(ratios)
    if world.first:
        _draw(config, ratios, found)
    return found


def smoothed(at_start: Sequence[float], in_test: Sequence[float]) -> list[float]:
    """The ratios of the losses of the same batches, as a mean that forgets, corrected for its start. Ends where one of
    the losses is not finite."""
    ratios: list[float] = []
    mean = weight = 0.0
    for before, after in zip(at_start, in_test, strict=False):
        if not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * after / before
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        ratios.append(mean / weight)
    return ratios


def suggested(ratios: Sequence[float]) -> float | None:
    """A tenth of the rate at which the smoothed ratio was lowest."""
    if not ratios or min(ratios) > 1 - GAIN:
        return None
    lowest = min(range(len(ratios)), key=ratios.__getitem__)
    return rate_at(lowest) / BELOW_MINIMUM


def _draw(config: Training, ratios: Sequence[float], found: float | None) -> None:
    points = [(rate_at(step), ratio) for step, ratio in enumerate(ratios)]
    said = f"take {found:.2g}" if found is not None else "no rate lowers the loss"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>learning rate</title>'
        f"<style>{STYLE}</style></head><body><h1>Learning rate: {said}</h1>"
        f"{svg_curve('loss / loss of the start on the same clips, over the learning rate', points, log_x=True)}"
        f"</body></html>\n"
    )
    config.output.mkdir(parents=True, exist_ok=True)
    with whole(config.output / NAME) as part:
        part.write_text(page, encoding="utf-8")

"""The logs of a run: JSONL always, curves as a picture, TensorBoard or W&B on request."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..files import whole
from ..progress import accessory
from ..run_log import read_log
from .config import Logging


class Log:
    """log.jsonl in a run's folder: one line {"step": n, name: value, ...} per call. Lines after `start`
    belong to steps that a resumed run repeats, and are dropped."""

    def __init__(self, folder: Path, config: Logging, start: int) -> None:
        self.folder = folder
        path = folder / "log.jsonl"
        kept = [entry for entry in read_log(path) if entry["step"] <= start] if path.is_file() else []
        with whole(path) as part:
            part.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._boards = _boards(folder, config, start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        entry = {"step": step} | {name: round(value, 7) for name, value in values.items()}
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self._file.name} ({error.strerror or error})") from error
        for board in list(self._boards):
            with accessory("a board of the log") as outcome:
                board[0](step, values)
            if outcome.failed:  # it would at every step
                self._boards.remove(board)

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which `write` has said
            self._file.close()
        for _, end in self._boards:
            with accessory("a board of the log"):
                end()
        with accessory("curves.png"):
            draw_curves(self.folder / "log.jsonl", self.folder / "curves.png")


Board = tuple[Callable[[int, Mapping[str, float]], Any], Callable[[], Any]]  # write the values of a step; close
WANDB_RUN = "wandb.txt"  # in a run's folder: the run's name at W&B, which a resumed run goes on with


def check_boards(config: Logging) -> None:
    """Refuse boards that are not installed or cannot be reached.

    Raises:
        UnsupportedError: TensorBoard or W&B is not installed.
        ConfigError: W&B knows no account to write to.
    """
    if config.tensorboard:
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UnsupportedError(
                "got logging.tensorboard without TensorBoard; expected it to be installed; do pip install tensorboard"
            ) from error
    if config.wandb:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UnsupportedError(
                "got logging.wandb without W&B; expected it to be installed; do pip install wandb"
            ) from error
        online = os.environ.get("WANDB_MODE", "") in ("", "online", "run")
        if online and not getattr(wandb.api, "api_key", None):
            raise ConfigError(
                "got logging.wandb without an account; expected one to write to; do `wandb login`, or set WANDB_MODE="
                "offline"
            )


def _boards(folder: Path, config: Logging, start: int) -> list[Board]:
    """A board that does not start costs the run nothing; `check_boards` has refused what can be known before."""
    boards: list[Board] = []
    if config.tensorboard:
        with accessory("TensorBoard"):
            boards.append(_tensorboard(folder, start))
    if config.wandb:
        with accessory("W&B"):
            boards.append(_wandb(folder))
    return boards


def _tensorboard(folder: Path, start: int) -> Board:
    from torch.utils.tensorboard import SummaryWriter

    # What an interrupted run wrote of the steps that are repeated is not shown.
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return add, writer.close


def _wandb(folder: Path) -> Board:
    import wandb  # pyright: ignore[reportMissingImports]

    known = folder / WANDB_RUN
    name = known.read_text(encoding="utf-8").strip() if known.is_file() else None
    run = wandb.init(project="ltxkit", name=folder.name, dir=str(folder), id=name, resume="allow" if name else None)
    with whole(known) as part:
        part.write_text(f"{run.id}\n", encoding="utf-8")
    return (lambda step, values: run.log(dict(values), step=step), run.finish)


def draw_curves(log: Path, picture: Path) -> None:
    """Every quantity of a log over the steps, one small plot each. Writes nothing without matplotlib or entries."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    entries = read_log(log)
    names = sorted({name for entry in entries for name in entry} - {"step"})
    if not names:
        return
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, number)
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        positive = all(value > 0 for _, value in points)
        if positive and name.startswith("loss"):
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    with whole(picture) as part:
        figure.savefig(part, dpi=80)


def draw_rate(points: Sequence[tuple[int, float]], picture: Path) -> None:
    """The learning rate that a run will have, over its steps. Writes nothing without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(5, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), linewidth=1)
    axes.set_title("learning rate over the steps", fontsize=9)
    axes.tick_params(labelsize=7)
    with whole(picture) as part:
        figure.savefig(part, dpi=80)

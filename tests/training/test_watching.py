"""What can be seen of a run while it goes on, when it ends early, and what stays of its best step."""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from ltxkit.cli import main
from ltxkit.ltx_core.errors import ConfigError, TrainingError, UnsupportedError
from ltxkit.ltx_core.media import write_image
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training import find_rate as finding
from ltxkit.ltx_core.training import logs, loop
from ltxkit.ltx_core.training import page as pages
from ltxkit.ltx_core.training import run as runs
from ltxkit.ltx_core.training.best import Best
from ltxkit.ltx_core.training.checkpoints import complete_checkpoints
from ltxkit.ltx_core.training.config import Logging, Stopping, Training, load_config
from ltxkit.ltx_core.training.curves import MOST_POINTS, svg_curve, thinned
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.find_rate import find_rate, rate_at, suggested
from ltxkit.ltx_core.training.logs import Log, check_boards
from ltxkit.ltx_core.training.loop import train
from ltxkit.ltx_core.training.optimize import Updater
from ltxkit.ltx_core.training.page import NAME, RunPage, duration

ONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib's pictures take longer than the runs here; test_runs.py has them."""
    monkeypatch.setattr(logs, "draw_curves", lambda *_: None)
    monkeypatch.setattr(loop, "draw_rate", lambda *_: None)


def config(output: Path, *overrides: str) -> Training:
    settings = ["optimization.steps=10", "logging.validate_every=1", "logging.checkpoint_every=100", "logging.keep=1"]
    settings += ["data.kind=digits", "prompts=[]", "logging.log_every=1", "optimization.batch_size=4"]
    return load_config("moving-mnist", [*settings, *overrides, f"output={json.dumps(str(output))}"])


class Line:
    """A task of one Linear that learns a line, with the losses of its validations given."""

    def __init__(self, config: Training, validations: Callable[[int], Mapping[str, float]] | None = None) -> None:
        self.config, self.validations = config, validations
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 1)
        self.updater = Updater([self.layer], config.optimization)
        self.after: Callable[[int], object] = lambda _: None

    def update(self, step: int) -> dict[str, float]:
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=rng)
        loss = (self.layer(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        numbers = {"loss": float(loss.detach())} | self.updater.apply(step)
        self.after(step)
        return numbers

    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / "sheet.png", torch.rand(1, 8, 3000, 3))
            (folder / "prompts.txt").write_text("<script>alert('x')</script> & co.\n", encoding="utf-8")
        return dict(self.validations(step)) if self.validations else {"validation_loss": 1 / step}

    def preview(self, folder: Path | None) -> None:
        pass

    def state(self) -> dict[str, Any]:
        weights = {name: value.clone() for name, value in self.layer.state_dict().items()}
        return {"weights": weights, "updater": self.updater.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.layer.load_state_dict(state["weights"])
        self.updater.load(state["updater"])

    def export(self, folder: Path | None, *, final: bool = True) -> None:
        if folder is not None:
            (folder / "weight.json").write_text(json.dumps([final, self.layer.weight.tolist()]))


def steps_kept(output: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step_")) for folder in complete_checkpoints(output))


# ----------------------------------------------------------------------------------------------------------------- log


def test_the_log_has_what_a_user_asks_while_waiting(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    assert train(Line(chosen), chosen, ONE)
    entries = [entry for entry in read_log(tmp_path / "log.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in entries] == list(range(1, 11))
    for entry in entries:
        assert {"learning_rate", "gradient_norm", "seconds_left"} <= set(entry)
        assert entry["samples_per_second"] == pytest.approx(4 * entry["steps_per_second"], rel=1e-5)
        assert entry["seconds_left"] == pytest.approx((10 - entry["step"]) / entry["steps_per_second"], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "module", "message"),
    [
        ({"tensorboard": True}, "torch.utils.tensorboard", "do pip install tensorboard"),
        ({"wandb": True}, "wandb", "do pip install wandb"),
    ],
)
def test_a_missing_board_is_said_before_a_model_is_loaded(
    settings: dict[str, bool], module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)

    def loads(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(runs, "make_task", loads)
    with pytest.raises(UnsupportedError, match=message):
        runs.run_training(replace(config(tmp_path / "run"), logging=Logging(**settings)), notes=lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mode", "refused"), [("", True), ("online", True), ("offline", False), ("disabled", False)])
def test_wandb_without_an_account_is_refused(mode: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "wandb", types.SimpleNamespace(api=types.SimpleNamespace(api_key=None))
    )
    monkeypatch.setenv("WANDB_MODE", mode)
    if not refused:
        return check_boards(Logging(wandb=True))
    with pytest.raises(ConfigError, match="wandb login"):
        check_boards(Logging(wandb=True))


def test_a_resumed_run_goes_on_with_its_run_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def init(**settings: Any) -> Any:
        asked.append((settings["id"], settings["resume"]))
        return types.SimpleNamespace(id="abc", log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(__import__("sys").modules, "wandb", types.SimpleNamespace(init=init))
    for start in (0, 3):
        Log(tmp_path, Logging(wandb=True), start).close()
    assert asked == [(None, None), ("abc", "allow")]


# ---------------------------------------------------------------------------------------------------------------- page


class Page(HTMLParser):
    """The elements of a page, with the text of some."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def test_the_page_shows_the_run_and_nothing_from_outside(tmp_path: Path) -> None:
    output = tmp_path / 'a <img src=x onerror="alert(1)"> & "run"'
    chosen = config(output)
    shown: list[str] = []
    task = Line(chosen)
    task.after = lambda step: shown.append((output / NAME).read_text("utf-8")) if step == 5 else None
    assert train(task, chosen, ONE)
    going, done = Page(shown[0]), Page((output / NAME).read_text("utf-8"))
    assert [meta for meta in going.of("meta") if meta.get("http-equiv") == "refresh"]
    assert not [meta for meta in done.of("meta") if meta.get("http-equiv") == "refresh"]
    assert any("step 5 of 10" in word for word in going.words)
    assert any("finished: step 10 of 10" in word for word in done.words)
    assert any("lowest validation_loss: 0.1 at step 10" in word for word in done.words)
    for page in (going, done):
        assert not page.of("script")
        assert output.name in page.words
        assert "<script>alert('x')</script> & co." in page.words  # a prompt, as text
        assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in page.of("img"))
        assert not [value for _, attributes in page.seen for name, value in attributes.items() if name.startswith("on")]
        assert not re.search(r"(src|href)=.?(https?:|//)", "".join(map(str, page.seen)))
    titles = {svg["aria-label"] for svg in done.of("svg")}
    assert {"loss", "validation_loss", "learning_rate", "samples_per_second", "gradient_norm"} <= titles
    # The four newest validations and the first.
    assert [image["alt"] for image in done.of("img")] == [f"samples of step {step}" for step in (10, 9, 8, 7, 1)]


def test_the_page_takes_little_of_a_run_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(pages, "time", types.SimpleNamespace(monotonic=lambda: next(clock), strftime=lambda _: "now"))
    page, written = RunPage(config(tmp_path)), []
    monkeypatch.setattr(page, "_text", lambda state: written.append(state) or "x")
    for _ in range(40):
        page.show()
    assert len(written) == 1  # a second for the page, then fifty without
    page.show("stopped", now=True)
    assert written[-1] == "stopped"


def test_a_page_that_fails_costs_the_run_nothing(tmp_path: Path) -> None:
    chosen, said = config(tmp_path), []
    (tmp_path / NAME).mkdir(parents=True)
    (tmp_path / NAME / "in the way").touch()
    (tmp_path / "validation/step_000001/sheet.png").mkdir(parents=True)  # no picture
    assert train(Line(chosen, lambda _: {}), config(tmp_path, "logging.validate_every=100"), ONE, notes=said.append)
    assert len([note for note in said if note.startswith(f"{NAME} could not be made")]) == 1


@pytest.mark.parametrize(
    ("points", "options"),
    [
        ([], {}),
        ([(1, 2.0)], {}),
        ([(1, 2.0), (2, 2.0)], {}),
        ([(1, 0.0), (2, 5.0), (3, -1.0)], {"log_y": True}),
        ([(1, math.nan), (2, math.inf), (3, 1.0)], {}),
        ([(0.0, 1.0), (1e-7, 1.0), (1e-3, 0.5)], {"log_x": True}),
        ([(step, math.sin(step)) for step in range(5000)], {}),
        ([(1, 1e300), (2, -1e300)], {}),
    ],
)
def test_a_curve_is_a_picture_whatever_its_points_are(
    points: list[tuple[float, float]], options: dict[str, bool]
) -> None:
    root = ElementTree.fromstring(svg_curve('a "name" <b> & more', points, **options))
    assert root.attrib["aria-label"] == 'a "name" <b> & more'
    for line in root.iter("polyline"):
        places = [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
        assert len(places) <= MOST_POINTS
        assert all(0 <= x <= 420 and 0 <= y <= 200 for x, y in places)


def test_a_thinned_curve_keeps_its_peaks() -> None:
    points = [(float(step), 0.0) for step in range(10000)]
    points[7777] = (7777.0, 9.0)
    assert (7777.0, 9.0) in thinned(points)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (99, "99 s"), (300, "5 min"), (12000, "3 h 20 min"), (5990, "1 h 40 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ---------------------------------------------------------------------------------------------------- best, early end


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    losses = [5.0, 3.0, 2.0, 4.0, 4.0, 4.0, 2.5, 4.0, 4.0, 4.0]
    chosen = config(tmp_path)
    assert train(Line(chosen, lambda step: {"validation_loss": losses[step - 1]}), chosen, ONE)
    assert steps_kept(tmp_path) == [3, 10]
    plain = config(tmp_path / "plain", "logging.keep_best=false")
    assert train(Line(plain, lambda step: {"validation_loss": losses[step - 1]}), plain, ONE)
    assert steps_kept(tmp_path / "plain") == [10]
    seen = config(tmp_path / "seen")  # of clips that are trained on no loss is the best
    assert train(Line(seen, lambda step: {"seen_clips_loss": losses[step - 1]}), seen, ONE)
    assert steps_kept(tmp_path / "seen") == [10]


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_run_ends_when_its_validations_get_no_better(keep_best: bool, tmp_path: Path) -> None:
    losses = [5.0, 3.0, 2.0, 4.0, 2.0, 2.1, 1.0, 1.0, 1.0, 1.0]
    chosen = config(tmp_path, "stopping.patience=3", f"logging.keep_best={json.dumps(keep_best)}")
    said: list[str] = []
    task = Line(chosen, lambda step: {"validation_loss": losses[step - 1]})
    assert train(task, chosen, ONE, notes=said.append)
    assert any("ended at step 6 of 10" in note and "below 2 (step 3)" in note for note in said)
    assert steps_kept(tmp_path) == [3, 6]
    last, best = (json.loads((tmp_path / f"checkpoints/step_00000{n}/weight.json").read_text())[1] for n in (6, 3))
    assert json.loads((tmp_path / "final/weight.json").read_text())[1] == best != last
    assert {file.name for file in (tmp_path / "final").iterdir()} == {"weight.json"}


def test_an_interrupted_run_ends_where_it_would_have(tmp_path: Path) -> None:
    losses = [5.0, 3.0, 2.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]
    chosen = config(tmp_path, "stopping.patience=3")

    def stopping(task: Line, at: int) -> Callable[[], bool]:
        came: list[int] = []
        task.after = came.append
        return lambda: at in came

    def task() -> Line:
        return Line(chosen, lambda step: {"validation_loss": losses[step - 1]})

    first = task()
    assert not train(first, chosen, ONE, stop=stopping(first, 3))  # after step 4
    second = task()
    assert train(second, chosen, ONE, resume=True)
    assert steps_kept(tmp_path) == [3, 6]
    # Measured by other clips, the old losses are no measure any more.
    said: list[str] = []
    other = replace(chosen, validation_samples=3)
    third = Line(other, lambda _: {"validation_loss": 9.0})
    assert train(third, other, ONE, resume=True, notes=said.append)
    assert any("the validation has changed" in note for note in said)
    assert any("ended at step" not in note for note in said)


def test_a_small_gain_is_the_best_but_no_reason_to_wait() -> None:
    best, rule = Best(), Stopping(patience=2, improvement=0.1)
    for step, loss in enumerate([1.0, 0.99, 0.98], start=1):
        assert best.add(step, {"validation_loss": loss}, rule)
    assert (best.step, best.without) == (3, 2)
    assert best.exhausted(rule)
    assert not best.exhausted(Stopping())
    assert not best.add(4, {"psnr": 30.0}, rule)
    assert not best.add(5, {"validation_loss": math.nan}, rule)
    assert best.step == 3


@pytest.mark.parametrize("value", ["-1", "1.5", "many"])
def test_patience_is_a_count(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stopping\.patience"):
        config(tmp_path, f"stopping.patience={value}")


def test_patience_needs_clips_that_are_held_out(tmp_path: Path) -> None:
    settings = ["data.kind=folder", f"data.path={json.dumps(str(tmp_path))}", "stopping.patience=2"]
    with pytest.raises(ConfigError, match=r"no clip held out; expected validation\.share or validation\.path"):
        config(tmp_path, *settings)
    config(tmp_path, *settings, "validation.share=0.1")
    with pytest.raises(ConfigError, match="unknown key stopping"):
        load_config("moving-mnist-vae", ["stopping.patience=2"])


def test_a_file_stops_a_run_as_a_signal_does(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    task = Line(chosen)
    task.after = lambda step: (tmp_path / "stop").touch() if step == 4 else None
    assert not train(task, chosen, ONE)
    assert steps_kept(tmp_path)[-1] == 5
    assert not (tmp_path / "stop").exists()
    assert "stopped: step 5 of 10" in (tmp_path / NAME).read_text("utf-8")
    straight = Line(chosen)
    for step in range(10):
        straight.update(step)
    again = Line(chosen)
    assert train(again, chosen, ONE, resume=True)
    torch.testing.assert_close(again.layer.weight, straight.layer.weight, rtol=0, atol=0)


def test_a_command_that_a_file_has_stopped_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "run_training", lambda *_, **__: None)
    arguments = ["train", "--config", "moving-mnist", "--vae", "ltxkit-digits", "--output", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert main([*arguments, "--find-lr", "--resume"]) == 2


def test_a_failed_run_says_so_on_its_page(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    task = Line(chosen)

    def fails(step: int) -> None:
        if step == 2:
            raise TrainingError("got nothing; expected something; do it")

    task.after = fails
    with pytest.raises(TrainingError):
        train(task, chosen, ONE)
    assert "failed: step 2 of 10" in (tmp_path / NAME).read_text("utf-8")


@pytest.mark.parametrize(
    "change",
    ["stopping.patience=3", "logging.validate_every=2", "validation_samples=3", "optimization.learning_rate=1e-5"],
)
def test_what_may_change_when_a_run_is_resumed(change: str, tmp_path: Path) -> None:
    first = config(tmp_path, "optimization.steps=2")
    assert train(Line(first), first, ONE)
    second = config(tmp_path, "optimization.steps=4", change)
    assert train(Line(second), second, ONE, resume=True)
    with pytest.raises(ConfigError, match="text_dropout was"):
        train(Line(second), config(tmp_path, "text_dropout=0.5"), ONE, resume=True)


# ------------------------------------------------------------------------------------------------------- learning rate


def test_the_rate_that_is_found_trains_and_ten_times_more_is_too_much(tmp_path: Path) -> None:
    chosen = config(tmp_path / "run")
    task = Line(chosen)
    before = task.layer.weight.detach().clone()
    found = find_rate(task, chosen, ONE)
    assert found is not None
    torch.testing.assert_close(task.layer.weight, before, rtol=0, atol=0)  # nothing is trained
    assert task.updater.curve is None
    assert not any(optimizer.state_dict()["state"] for optimizer in task.updater.optimizers)

    def after(rate: float) -> float:
        trial = Line(chosen)
        trial.updater.curve = lambda _: rate
        losses = [trial.update(step)["loss"] for step in range(100)]
        return sum(losses[-10:]) / 10

    assert after(found) < 0.1 * after(1e-7)
    assert after(found) < after(found / 100)
    page = Page((tmp_path / "run/find_lr.html").read_text("utf-8"))
    assert f"Learning rate: take {found:.2g}" in page.words
    assert len(page.of("svg")) == 1


def test_a_loss_that_never_falls_gives_no_rate(tmp_path: Path) -> None:
    class Stuck(Line):
        def update(self, step: int) -> dict[str, float]:
            return super().update(step) | {"loss": 1.0 + 0.1 * math.sin(step)}

    assert find_rate(Stuck(config(tmp_path)), config(tmp_path), ONE) is None
    assert "no rate lowers the loss" in (tmp_path / "find_lr.html").read_text("utf-8")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_test_that_diverges_ends(bad: float, tmp_path: Path) -> None:
    class Blown(Line):
        tried = 0

        def update(self, step: int) -> dict[str, float]:
            self.tried += 1
            return {"loss": bad if self.tried == 100 + 60 else 1.0 - 0.001 * (self.tried - 100) * (self.tried > 100)}

    task = Blown(config(tmp_path))
    found = find_rate(task, config(tmp_path), ONE)
    assert task.tried == 160
    assert found == pytest.approx(rate_at(58) / 10)


def test_a_stopped_test_leaves_everything_as_it_was(tmp_path: Path) -> None:
    task = Line(config(tmp_path / "run"))
    before = task.layer.weight.detach().clone()
    assert find_rate(task, config(tmp_path / "run"), ONE, stop=iter([False] * 150 + [True]).__next__) is None
    torch.testing.assert_close(task.layer.weight, before, rtol=0, atol=0)
    assert not (tmp_path / "run").exists()


def test_the_suggestion_is_a_tenth_of_the_best() -> None:
    assert suggested([1.0, 0.5, 0.7]) == pytest.approx(rate_at(1) / 10)
    assert suggested([1.0, 0.999]) is None
    assert suggested([]) is None
    assert rate_at(0) == pytest.approx(finding.LOWEST)
    assert rate_at(finding.STEPS - 1) == pytest.approx(finding.HIGHEST)

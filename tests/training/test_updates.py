"""Single updates: clipping, gradients that are not finite, and what of a run's state they keep. Damaged checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ltxkit.ltx_core.errors import CheckpointError, TrainingError
from ltxkit.ltx_core.training.checkpoints import (
    latest_checkpoint,
    newest_intact,
    read_state,
    saved_cache,
    set_aside_after,
    write_state,
)
from ltxkit.ltx_core.training.config import Optimization
from ltxkit.ltx_core.training.optimize import Updater


def updater(**changes: object) -> tuple[nn.Linear, Updater]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    common = {"steps": 50, "batch_size": 1, "learning_rate": 0.1, "warmup": 0.0, "schedule": "constant"}
    return layer, Updater([layer], Optimization(**(common | changes)))  # type: ignore[arg-type]


def give(layer: nn.Linear, value: float) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_no_limit_of_the_gradient_is_off() -> None:
    (free, without), (wide, with_limit) = updater(max_grad_norm=0), updater(max_grad_norm=1e9)
    for layer, each in ((free, without), (wide, with_limit)):
        before = layer.weight.detach().clone()
        give(layer, 3.0)
        assert each.apply(0)["gradient_norm"] == pytest.approx(3.0 * 8**0.5)
        assert float((layer.weight.detach() - before).abs().min()) > 0.05
    assert torch.equal(free.weight, wide.weight)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_skips_the_step(value: float) -> None:
    layer, each = updater(ema_decay=0.9)
    give(layer, 1.0)
    each.apply(0)
    before = layer.weight.detach().clone()
    for step in range(1, 10):
        give(layer, value)
        numbers = each.apply(step)
        assert numbers["skipped_steps"] == step
        assert "gradient_norm" not in numbers
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
    give(layer, 1.0)
    assert "skipped_steps" not in each.apply(10)  # which ends the row
    for step in range(11, 20):
        give(layer, value)
        each.apply(step)
    give(layer, value)
    with pytest.raises(TrainingError, match="10 steps in a row, the last at step 20"):
        each.apply(20)


def test_the_count_of_skipped_steps_survives_a_resume() -> None:
    layer, each = updater()
    for step in range(9):
        give(layer, float("inf"))
        each.apply(step)
    again_layer, again = updater()
    again.load(each.state())
    give(again_layer, float("inf"))
    with pytest.raises(TrainingError, match="in a row"):
        again.apply(9)


def test_a_longer_run_starts_from_its_last_rate() -> None:
    options = {"schedule": "linear", "decay": 0.5}
    layer, each = updater(**options)
    for step in range(50):
        give(layer, 1.0)
        last = each.apply(step)["learning_rate"]
    longer_layer, longer = updater(**options, steps=100)
    longer.load(each.state())
    give(longer_layer, 1.0)
    assert longer.apply(50)["learning_rate"] < last + 0.03
    _same_layer, same = updater(**options)
    same.load(each.state())
    assert same.join is None
    _once_more_layer, once_more = updater(**options, steps=100)
    once_more.load(longer.state())
    assert once_more.join == longer.join


# ---------------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(output: Path, step: int) -> Path:
    folder = output / "checkpoints" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    write_state(folder, {"step": step, "config": {}, "task": {"weights": torch.arange(4000.0)}})
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, lambda file: file.write_bytes(b"")])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage: object, tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 4), checkpoint(tmp_path, 6)
    assert newest_intact(tmp_path, lambda _: None)[0] == newer
    damage(newer / "state.pt")  # type: ignore[operator]
    notes: list[str] = []
    folder, saved = newest_intact(tmp_path, notes.append)
    assert (folder, saved["step"]) == (older, 4)
    assert "step_000006" in notes[0]
    assert notes[0].endswith("step_000004 is used")
    set_aside_after(tmp_path, older)
    assert not newer.exists()
    assert newer.with_name("damaged_step_000006").is_dir()
    damage(older / "state.pt")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"step_000004.*expected a whole checkpoint"):
        newest_intact(tmp_path, lambda _: None)


def test_a_checkpoint_of_an_earlier_version_has_no_sum(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    (folder / "state.sha256").unlink()
    assert read_state(folder)["step"] == 2


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    folders = [tmp_path / "checkpoints" / name for name in ("step_000002", "step_x", "step_000010-copy")]
    for folder in folders:
        folder.mkdir(parents=True)
        write_state(folder, {"step": 2, "config": {}, "task": {}})
    assert latest_checkpoint(tmp_path) == newest_intact(tmp_path, lambda _: None)[0] == folders[0]
    set_aside_after(tmp_path, folders[0])
    assert all(folder.is_dir() for folder in folders)


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    file, notes = tmp_path / "text.pt", list[str]()
    assert saved_cache(file, ("key",), notes.append) is None
    assert not notes
    torch.save({"key": "x", "rows": torch.zeros(2000)}, file)
    assert saved_cache(file, ("key", "rows"), notes.append) is not None
    assert saved_cache(file, ("key", "others"), notes.append) is None
    cut(file)
    assert saved_cache(file, ("key",), notes.append) is None
    assert "text.pt is damaged" in notes[0]

"""Configs are read strictly, and the shipped presets are valid."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ltxkit import cli
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.training import run
from ltxkit.ltx_core.training.config import (
    PRESETS,
    Optimization,
    Training,
    TransformerTraining,
    UpscalerTraining,
    VAETraining,
    load_config,
)
from ltxkit.ltx_core.training.models import transformer_config, upsampler_config, vae_config
from ltxkit.ltx_core.training.schedule import described, joined, learning_rate, points
from ltxkit.ltx_core.training.settings_file import build, to_tree


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_describe_models_that_can_be_built(preset: str) -> None:
    config = load_config(preset)
    assert build(type(config), to_tree(config), "") == config
    with torch.device("meta"):
        if isinstance(config, VAETraining):
            vae = VideoVAE(vae_config(config.model))
            scale = vae.config.scale_factors
            for frames, height, width in config.data.sizes:
                assert ((frames - 1) % scale.frames, height % scale.height, width % scale.width) == (0, 0, 0)
        elif isinstance(config, TransformerTraining):
            if config.model is not None:
                LTXTransformer(transformer_config(config.model))
        else:
            assert isinstance(config, UpscalerTraining)
            LatentUpsampler(upsampler_config(config.model))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.learning_rat=1", r"unknown key optimization\.learning_rat; .* did you mean learning_rate\?"),
        ("optimisation.steps=1", "did you mean optimization"),
        ("optimization.steps=many", r"optimization\.steps: 'many'; expected int"),
        ("optimization.betas=[0.9]", r"optimization\.betas: \[0\.9\]; expected a list of 2"),
        ("optimization.accumulation=0", "accumulation: 0; expected 1 or more"),
        ("logging.keep=-1", "keep: -1; expected 1 or more"),
        ("crop_frames=0", "crop_frames: 0; expected 1 or more"),
        ("data.kind=cats", "expected one of digits, mnist, moving_mnist, folder"),
        ("data.kind=[digits]", "expected one of digits, mnist, moving_mnist, folder"),
        ("seed=-1", r"seed: -1; expected 0 to 18446744073709551615"),
        ("data.fps=.nan", r"data\.fps: nan; expected a finite number"),
        ("data.fps=0", r"data\.fps: 0\.0; expected more than 0 to 1000"),
        ("data.glyph_size=0", r"glyph_size: 0; expected 1 or more"),
        ("data.sizes=[[0, 32, 32]]", r"data\.sizes\[0\]\[0\]: 0; expected 1 or more"),
        ("data.spread=1.5", r"spread: 1\.5; expected 0 to 1"),
        ("optimization.learning_rate=.nan", r"learning_rate: nan; expected a finite number"),
        ("optimization.learning_rate=-1", r"learning_rate: -1\.0; expected more than 0"),
        ("optimization.learning_rate=.inf", r"learning_rate: inf; expected a finite number"),
        ("optimization.betas=[2, 2]", r"betas\[0\]: 2\.0; expected 0 to less than 1"),
        ("optimization.ema_decay=.nan", r"ema_decay: nan"),
        ("optimization.ema_decay=2", r"ema_decay: 2\.0; expected 0 to less than 1"),
        ("optimization.warmup_steps=-1", r"warmup_steps: -1; expected 0 or more"),
        ("adversary.layers=-1", r"adversary\.layers: -1; expected 1 or more"),
        ("kl.weight=.nan", r"kl\.weight: nan"),
        ("kl.weight=-1", r"kl\.weight: -1\.0; expected 0 or more"),
        ("unlock_psnr=.inf", r"unlock_psnr: inf; expected a finite number"),
        ("task=[vae]", r"got task \['vae'\]"),
        ("seed=2024-13-45", "which is not YAML"),
        ("task=sing", "got task 'sing'"),
        ("steps", "expected a.b=value"),
        ("data=3", "expected a section"),
    ],
)
def test_wrong_keys_and_values_say_what_is_expected(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("digits-vae", [override])


def test_settings_made_in_code_are_held_to_the_same_rules() -> None:
    common = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    Optimization(**common)
    for name, value in (("steps", 0), ("learning_rate", float("nan")), ("ema_decay", 1.0), ("betas", (0.9, 2.0))):
        with pytest.raises(ConfigError, match=rf"got {name}.*; expected"):
            Optimization(**{**common, name: value})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one of the presets .*digits-vae"):
        load_config("no-such-preset")
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: [vae", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not YAML"):
        load_config(broken)
    for content in (b"\xff\xfe\x00\x01", b"[" * 5000, b"a: 2024-13-45"):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^got .*; expected"):
            load_config(broken)
    broken.write_text("task: vae\noutput: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"without data, model, optimization"):
        load_config(broken)


@pytest.mark.parametrize("overrides", [[], ["model={x: &a [1], y: *a}"]])
def test_aliases_are_refused(tmp_path: Path, overrides: list[str]) -> None:
    """Nine lines of them make a value of a thousand million parts."""
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    file = tmp_path / "bomb.yaml"
    file.write_text("task: vae\n" if overrides else f"task: vae\nmodel:\n  {bomb.replace(chr(10), chr(10) + '  ')}")
    with pytest.raises(ConfigError, match=r"got the alias \*a.* without aliases"):
        load_config(file, overrides)
    for name in PRESETS.glob("*.yaml"):
        assert "&" not in name.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["2024", "runs #1", "true", "a: b", "1e3", '\\new "run"', "run \U0001f98a"])
def test_any_path_can_be_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Training] = []

    def record(config: Training, **_: object) -> Path:
        trained.append(config)
        return config.output

    monkeypatch.setattr(run, "run_training", record)
    assert cli.main(["train-vae", "--config", "digits-vae", "--output", name]) == 0
    assert [config.output for config in trained] == [Path(name)]


def test_overrides_and_numbers_with_an_exponent() -> None:
    config = load_config("digits-vae", ["optimization.learning_rate=1e-3", "kl.weight=1e-6", "data.enlarged=1"])
    assert isinstance(config, VAETraining)
    assert (config.optimization.learning_rate, config.kl.weight, config.data.enlarged) == (1e-3, 1e-6, 1.0)


def test_a_model_key_that_no_checkpoint_has_is_an_error() -> None:
    config = load_config("digits-vae", ["model.latent_chanels=4"])
    assert isinstance(config, VAETraining)
    with pytest.raises(ConfigError, match=r"unknown vae.latent_chanels"):
        vae_config(config.model)
    model = {key: value for key, value in config.model.items() if key != "patch_size"} | {"latent_chanels": 4}
    with pytest.raises(ConfigError, match=r"no patch_size"):
        vae_config(model)


COMMON = {"batch_size": 1, "learning_rate": 2.0, "final": 0.1}


def test_schedules() -> None:
    linear = Optimization(steps=100, schedule="linear", warmup_steps=4, decay_steps=10, **COMMON)
    assert [learning_rate(linear, step) for step in (0, 3, 89)] == [0.5, 2.0, 2.0]
    assert learning_rate(linear, 95) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    longer = Optimization(steps=200, schedule="linear", warmup_steps=4, decay_steps=10, **COMMON)
    assert learning_rate(longer, 89) == learning_rate(linear, 89)  # which lets a run be extended
    cosine = Optimization(steps=101, schedule="cosine", warmup_steps=2, **COMMON)
    assert learning_rate(cosine, 51) == pytest.approx(2.0 * 0.55)
    assert learning_rate(cosine, 101) == pytest.approx(0.2)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100, 500, 2000])
@pytest.mark.parametrize(
    "extra", [{}, {"warmup": 0}, {"warmup": 1}, {"decay": 1}, {"warmup_steps": 50, "decay_steps": 1000}]
)
def test_the_rate_that_was_asked_for_is_reached(schedule: str, steps: int, extra: dict[str, float]) -> None:
    config = Optimization(steps=steps, schedule=schedule, **(COMMON | extra))
    rates = [learning_rate(config, step) for step in range(steps)]
    assert max(rates) == 2.0
    peak = rates.index(2.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(rate > 0 for rate in rates)


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
@pytest.mark.parametrize("steps", [100, 300, 500, 1000, 5000])
def test_a_preset_of_any_length_reaches_its_rate(preset: str, steps: int) -> None:
    config = load_config(preset, [f"optimization.steps={steps}"]).optimization
    assert max(learning_rate(config, step) for step in range(steps)) == config.learning_rate


def test_the_curve_is_said_with_what_was_shortened() -> None:
    config = load_config("lora-2b", ["optimization.steps=500"]).optimization
    assert described(config) == (
        "learning rate: rises to 0.0002 over 12 steps, stays until step 250, falls to 1.08e-05 at step 500 (linear)"
    )
    short = load_config("lora-2b", ["optimization.steps=500", "optimization.decay_steps=1000"]).optimization
    assert "decay_steps is 250 instead of 1000, which does not fit into 500 steps" in described(short)
    assert points(config)[0][0] == 1
    assert points(config)[-1] == (500, learning_rate(config, 499))
    assert max(rate for _, rate in points(config)) == 2e-4


def test_a_longer_run_goes_on_without_a_leap() -> None:
    short, long = (load_config("lora-2b", [f"optimization.steps={n}"]).optimization for n in (2000, 3000))
    last = learning_rate(short, 1999)
    join = joined(long, 2000, last, None)
    rates = [last, *(learning_rate(long, step, join) for step in range(2000, 3000))]
    assert max(after - before for before, after in pairwise(rates)) < 0.02 * 2e-4
    assert rates[-1] == learning_rate(long, 2999)
    assert joined(long, 2500, learning_rate(long, 2499, join), join) == join  # resumed with the same curve
    assert joined(short, 1000, learning_rate(short, 999), None) is None
    lower = load_config("lora-2b", ["optimization.learning_rate=1e-5"]).optimization
    down = joined(lower, 900, 2e-4, None)
    assert learning_rate(lower, 900, down) == 1e-5  # a lower rate holds at once

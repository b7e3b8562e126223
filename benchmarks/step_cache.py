"""How close a step cache comes to the clip without one, against as many forwards in fewer steps.

The bundled model, float32, its 30 even steps with classifier-free guidance 3 and spatio-temporal guidance 1. Every
prompt has its own seed. The figure is the median over prompts of the PSNR of a clip's frames against the clip that all
steps of the model make; a forward is one branch of one step, counted where the model is called. "Fewer steps" runs as
many forwards without a cache. Digits and directions are those of `ltxkit eval-digits`, on the same clips.

python benchmarks/step_cache.py [--tiny] [--clips N]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protocol import Row, arguments, publish
from torch import Tensor, nn

from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.pipelines.settings import Overrides, PassSettings
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.progress import silent
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training.digits.evaluate import Score, evaluate_digits, prompts
from ltxkit.ltx_core.training.generate import ClipSettings, Models, generate_clips, load_models
from ltxkit.ltx_core.weights.bundled import BUNDLED, BUNDLED_SIZE

CLIPS, STEPS = 100, 30
GUIDED = PassSettings(
    steps=STEPS, guidance_scale=3.0, stg_scale=1.0, stg_blocks=(2,), stg_rescale=0.7, step_cache="off"
)
THRESHOLDS = ("careful", "fast", 0.07, 0.2)
SCORED = ("careful", "fast")
GLYPHS = 40  # pixels, as in the clips that the model was trained on
LARGEST = 255.0  # dB, of equal clips


@dataclass(frozen=True, eq=False)
class Made:
    """Clips (b 3 f h w) in [-1, 1], the forwards that each took, and their score where it was asked for."""

    clips: Tensor
    forwards: float
    score: Score | None = None


@contextmanager
def counted(transformer: nn.Module) -> Generator[list[int], None, None]:
    """Collects the forwards of every call: branches times clips."""
    counts: list[int] = []

    def count(_: nn.Module, given: Sequence[Any]) -> None:
        x, _, _, branches = given
        counts.append(len(x) * len(branches))

    hook = transformer.register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


def make(models: Models, settings: ClipSettings, said: PassSettings, clips: int, host: Host, *, scored: bool) -> Made:
    settings = replace(settings, overrides=Overrides(first=said))
    with counted(models.transformer) as counts:
        if scored:
            score, made = evaluate_digits(models, settings, GLYPHS, clips=clips, host=host)
        else:
            score, made = None, generate_clips(models, prompts(clips)[0], settings, host=host)
    print(f"{said.steps} steps, step cache {said.step_cache}: {sum(counts) / clips:g} forwards", file=sys.stderr)
    return Made(made, sum(counts) / clips, score)


def psnr(made: Made, reference: Made) -> float:
    """The median over clips, of frames in [0, 1]."""
    errors = ((made.clips - reference.clips) / 2).square().flatten(1).mean(dim=1)
    return statistics.median((-10 * errors.clamp(min=10 ** (-LARGEST / 10)).log10()).tolist())


def described(score: Score | None) -> str:
    return "" if score is None else f"; right digits {score.digits:.1%}, directions {score.direction:.1%}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    options = parser.parse_args()
    clips = 1 if options.tiny else options.clips
    host = host_on(DevicePlacement("cpu"), silent)
    models = load_models(Path(BUNDLED), host=host)
    size = PixelShape(1, 32, 32) if options.tiny else PixelShape(*BUNDLED_SIZE)
    settings = ClipSettings(size, 25.0, seed=1000)

    reference = make(models, settings, GUIDED, clips, host, scored=not options.tiny)
    rows: list[Row] = []
    for threshold in THRESHOLDS[:1] if options.tiny else THRESHOLDS:
        scored = threshold in SCORED and not options.tiny
        cached = make(models, settings, replace(GUIDED, step_cache=threshold), clips, host, scored=scored)
        steps = round(STEPS * cached.forwards / reference.forwards)
        fewer = make(models, settings, replace(GUIDED, steps=steps), clips, host, scored=False)
        rows.append(
            Row(
                case=f"step cache {threshold}: {cached.forwards:g} of {reference.forwards:g} forwards",
                unit="dB",
                ours=psnr(cached, reference),
                peer_name=f"{steps} steps",
                peer=psnr(fewer, reference),
                note=f"{reference.forwards / cached.forwards:.2f}x fewer forwards{described(cached.score)}",
            )
        )
        print(rows[-1], file=sys.stderr, flush=True)
    if reference.score is not None:
        rows[0] = replace(rows[0], note=f"{rows[0].note}; without a cache{described(reference.score)[1:]}")
    publish(
        "step_cache",
        f"How close does a step cache come to the clip of all forwards, median PSNR of {clips} clips? ({STEPS} steps "
        "with guidance and STG, against as many forwards in fewer steps)",
        rows,
        tiny=options.tiny,
    )


if __name__ == "__main__":
    main()

"""Whether an IC-LoRA that is trained here makes clips follow a reference: edges, on the bundled model.

`ltxkit train --config ic-lora-digits` trains it, on glyphs that none of the measured clips shows. Then each of 20
held-out clips gives its caption and its edges (OpenCV's Canny, as in training), a clip is made from these two alone,
and the edges of that clip are compared with the reference: Pearson's correlation over all pixels. The peer is the
correlation with the references of the other 19 clips. A contact sheet shows the true clip, its reference, and
what was made, a row each.

python benchmarks/ic_lora.py [--tiny] [--run FOLDER] [--sheet FILE.png]
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from protocol import Row, arguments, publish
from torch import Tensor

from ltxkit.ltx_core.media import write_image
from ltxkit.ltx_core.pipelines.settings import Overrides, PassSettings
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.progress import silent
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training.conditions import ClipConditions
from ltxkit.ltx_core.training.config import TransformerTraining, load_config
from ltxkit.ltx_core.training.edges import edges
from ltxkit.ltx_core.training.encoding import ClipEncoder
from ltxkit.ltx_core.training.generate import ClipSettings, Models, generate_clips, load_models
from ltxkit.ltx_core.training.pictures import sheet, to_frames
from ltxkit.ltx_core.training.run import run_training
from ltxkit.ltx_core.training.sources import open_source

CLIPS, PRESET = 20, "ic-lora-digits"
TINY = ["optimization.steps=1", "optimization.batch_size=2", "cache_clips=2", "validation_samples=1", "prompts=[]"]


def trained(folder: Path, *, tiny: bool) -> tuple[Path, float]:
    """The run, trained unless it is there already, and the minutes that this took."""
    if not (folder / "final").is_dir():
        config = load_config(PRESET, [f'output="{folder}"', *(TINY if tiny else [])])
        begun = time.process_time()
        run_training(config, report=lambda report: print_step(report.step, report.total, report.metrics["loss"]))
        return folder, (time.process_time() - begun) / 60
    return folder, 0.0


def print_step(step: int, total: int, loss: float) -> None:
    if step % 100 == 0:
        print(f"step {step} of {total}: loss {loss:.4f}", file=sys.stderr, flush=True)


def edges_of(clips: Tensor) -> Tensor:
    """Clips (b 3 f h w) in [-1, 1] -> (b, f*h*w) edges."""
    return torch.stack([edges(to_frames(clip))[..., 0].flatten() for clip in clips])


def correlations(made: Tensor, references: Tensor) -> Tensor:
    """Pearson's, of each row of `made` with each of `references`: (b, b)."""

    def standard(rows: Tensor) -> Tensor:
        rows = rows - rows.mean(dim=1, keepdim=True)
        return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-9)

    return standard(made) @ standard(references).T


def compared(models: Models, run: Path, count: int, picture: Path | None) -> tuple[float, float]:
    """Mean correlation with the own reference, and with those of others."""
    config = load_config(run / "config.yaml")
    assert isinstance(config, TransformerTraining)
    size, scale = PixelShape(*config.data.sizes[0]), models.vae.config.scale_factors
    source = open_source(config.data, "validation", config.seed, silent_notes)
    clips = source.samples(range(count), size, torch.device("cpu"))
    with torch.no_grad():
        encoder = ClipEncoder(models.vae, clips.pixels.device)
        conditions = ClipConditions(config, [source], scale)
        extras = conditions.encode(encoder.encode, source, range(count), size, clips.pixels)
        encoder.rest()
    said = PassSettings(steps=config.sample_steps, guidance_scale=config.guidance_scale)
    settings = ClipSettings(size, config.data.fps, seed=1000, overrides=Overrides(first=said))
    settings = replace(settings, references=extras["reference"])
    made = generate_clips(models, clips.captions, settings, host=host_on(DevicePlacement("cpu"), silent))
    references = edges_of(clips.pixels)
    found = correlations(edges_of(made), references)
    if picture is not None:
        shown = references.view(count, 1, *size).expand(-1, 3, -1, -1, -1) * 2 - 1
        rows = itertools.chain.from_iterable(zip(clips.pixels, shown, made, strict=True))
        write_image(picture, sheet(torch.stack(list(rows))))
    own = float(found.diagonal().mean())
    return own, float((found.sum() - found.diagonal().sum()) / max(1, count * (count - 1)))


def silent_notes(_: str) -> None:
    """What a source says is not of interest here."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="where to train, or a finished run to measure")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="also write the contact sheet")
    options = parser.parse_args()
    count = 2 if options.tiny else CLIPS
    with tempfile.TemporaryDirectory() as scratch:
        run, minutes = trained(options.run or Path(scratch) / "run", tiny=options.tiny)
        models = load_models(run, host=host_on(DevicePlacement("cpu"), silent))
        own, other = compared(models, run, count, options.sheet)
        base, base_other = compared(replace(models, loras=()), run, count, None)
        size = (run / "final" / "lora_comfyui.safetensors").stat().st_size
    trained_in = f"; trained in {minutes:.1f} minutes of processor time" if minutes else ""
    rows = [
        Row(
            case="IC-LoRA on edges",
            unit="correlation with the own reference",
            ours=own,
            peer_name="with another clip's",
            peer=other,
            note=f"{own / max(other, 1e-9):.1f} times as much{trained_in}; the file has {size:,} bytes",
        ),
        Row(
            case="the base without it",
            unit="correlation with the own reference",
            ours=base,
            peer_name="with another clip's",
            peer=base_other,
            note="the same prompts and references",
        ),
    ]
    publish(
        "ic_lora",
        f"Do clips of an IC-LoRA on the bundled model follow their references (edges of {count} held-out clips)?",
        rows,
        tiny=options.tiny,
    )


if __name__ == "__main__":
    main()

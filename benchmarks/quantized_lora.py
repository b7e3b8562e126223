"""What a LoRA loses when its base is quantized: the same run on every form of the base and on the original.

`ltxkit train --config lora-digits`, 50 steps on the bundled model: the same seed, clips, noise and learning rate, with
a base in fp8, int8, nf4 or GGUF, as a file has it or as it is made while loading. Compared are the validation loss on
fixed clips, the losses of all steps, and the change of the weights that the exported LoRAs make (alpha / rank * B A,
of all Linears): the norm of its difference against the norm of the original run's change. Each LoRA is measured on the
original base as well, where many will use it.

python benchmarks/quantized_lora.py [--tiny]
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from protocol import Row, arguments, publish
from safetensors.torch import load_file
from torch import Tensor

from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training.config import TransformerTraining, load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.run import make_task, run_training
from ltxkit.ltx_core.weights.bundled import BUNDLED, find_model
from ltxkit.ltx_core.weights.convert import convert

PRESET, STEPS = "lora-digits", 50
ORIGINAL = "the original base"
IN_FILE = ("fp8", "fp8-scaled", "comfy-int8", "gguf-q8_0", "gguf-q4_0")  # formats of `ltxkit convert`
ON_LOAD = ("int8", "nf4")
TINY = ["optimization.batch_size=2", "cache_clips=2", "validation_samples=1"]


@dataclass(frozen=True)
class Trained:
    """A finished run. losses: of every step. validation: loss on fixed clips after the last step, on its own base and
    on the original. changes: what the exported LoRA adds to each weight."""

    losses: list[float]
    validation: float
    on_original: float
    changes: dict[str, Tensor]


def settings(folder: Path, *, tiny: bool) -> list[str]:
    steps = 2 if tiny else STEPS
    said = [f"output={folder}", f"optimization.steps={steps}", f"logging.validate_every={steps}", "prompts=[]"]
    return [*said, *(TINY if tiny else [])]


def base_of(form: str, folder: Path) -> list[str]:
    """The settings that name a base in this form, whose file is made if there is none."""
    if form == ORIGINAL:
        return []
    if form in ON_LOAD:
        return [f"quantization={form}"]
    path = folder / (f"{form}.gguf" if form.startswith("gguf") else f"{form}.safetensors")
    convert(find_model(BUNDLED, "checkpoints"), path, form)
    return [f"initial={path}"]


def trained(form: str, folder: Path, *, tiny: bool) -> Trained:
    place = folder / form.replace(" ", "-")
    run, said = place / "run", settings(place / "run", tiny=tiny)
    place.mkdir()
    losses: list[float] = []
    config = load_config(PRESET, [*said, *base_of(form, place)])
    run_training(config, report=lambda report: losses.append(report.metrics["loss"]), notes=lambda _: None)
    (validation,) = (entry["validation_loss"] for entry in read_log(run / "log.jsonl") if "validation_loss" in entry)
    factors = load_file(run / "final" / "lora_comfyui.safetensors")
    changes = {
        name.removesuffix(".lora_A.weight"): factors[name.replace("lora_A", "lora_B")].float() @ down.float()
        for name, down in factors.items()
        if name.endswith(".lora_A.weight")
    }
    print(f"{form}: {losses[0]:.4f} to {losses[-1]:.4f}", file=sys.stderr, flush=True)
    return Trained(losses, validation, on_original(run, place / "again", tiny=tiny), changes)


def on_original(run: Path, output: Path, *, tiny: bool) -> float:
    """The validation loss of a run's LoRA on the original base."""
    config = load_config(PRESET, [*settings(output, tiny=tiny), f"lora.init_from={run}"])
    assert isinstance(config, TransformerTraining)
    return make_task(config, World(0, 1, torch.device("cpu")), lambda _: None).validate(0, None)["validation_loss"]


def difference(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Of all changes together, against their norm."""
    if got.keys() != wanted.keys():
        raise ValueError("the LoRAs have other targets; nothing to compare")
    apart = sum(float((got[name] - change).square().sum()) for name, change in wanted.items())
    return math.sqrt(apart / sum(float(change.square().sum()) for change in wanted.values()))


def row(form: str, run: Trained, original: Trained) -> Row:
    if form == ORIGINAL:
        return Row(
            form, "validation loss", run.validation, note=f"first step {run.losses[0]:.4f}, last {run.losses[-1]:.4f}"
        )
    steps = max(abs(a - b) for a, b in zip(run.losses, original.losses, strict=True))
    elsewhere = f"{run.on_original:.4f} with this LoRA on the original base"
    return Row(
        case=f"{form}, quantized while loading" if form in ON_LOAD else form,
        unit="validation loss",
        ours=run.validation,
        peer_name=ORIGINAL,
        peer=original.validation,
        difference=difference(run.changes, original.changes),
        note=f"{elsewhere}; losses of the steps differ by {steps:.4f} at most",
    )


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    forms = (ORIGINAL, "fp8", "int8") if options.tiny else (ORIGINAL, *IN_FILE, *ON_LOAD)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LTXKIT_CACHE"] = f"{scratch}/cache"  # what is encoded for one run serves the next
        runs = {form: trained(form, Path(scratch), tiny=options.tiny) for form in forms}
    rows = [row(form, run, runs[ORIGINAL]) for form, run in runs.items()]
    what = "outputs: how the exported LoRAs change the weights"
    question = f"What does a LoRA lose on a quantized base (the bundled model, {STEPS} steps; {what})?"
    publish("quantized_lora", question, rows, tiny=options.tiny)


if __name__ == "__main__":
    main()

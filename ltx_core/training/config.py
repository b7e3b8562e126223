"""What a training run is: frozen values, read from YAML without tolerance (`settings_file`).

Every section is a dataclass. The architecture (`model`) is written as in the metadata of released checkpoints and read
by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import ConfigError
from .settings_file import AtLeast, build, read_tree

Count = Annotated[int, AtLeast(1)]
PRESETS = Path(__file__).parents[2] / "assets" / "training"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where clips come from and what size they are.

    kind: "digits" draws scikit-learn's digits, "mnist" those of idx files in `path`, "moving_mnist" takes a published
        .npy or .npz file, "folder" a folder of videos with captions.
    sizes: one or more (frames, height, width); a batch has clips of one size only.
    spread: how much of the free path the axis that does not move may use (digits).
    enlarged: share of batches with the same clips at twice the size ("digits" and "mnist" only).
    """

    kind: Literal["digits", "mnist", "moving_mnist", "folder"]
    path: Path | None = None
    sizes: tuple[tuple[int, int, int], ...]
    glyph_size: int = 28
    spread: float = 1.0
    enlarged: float = 0.0
    fps: float = 25.0
    validation_clips: Count = 8


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How weights change.

    steps: updates of the weights. batch_size: clips per update, over all processes; each process takes its share, in
    `accumulation` pieces. schedule: "linear" falls to `final` times the rate over the last `decay_steps`, and is
    constant before, so that a run can be made longer; "cosine" falls all the way. optimizer: "muon" for weights with
    two or more axes (AdamW for the others).
    ema_decay: 0 keeps no average. precision: "tf32" is float32 with matrix products in TF32, where a GPU has it; "bf16"
    computes in bfloat16 on float32 weights. Small models, whose time is that of launches, are fastest in "tf32".
    gradient_checkpointing, compile: of transformers.
    sharding: how several processes train: with "ddp" each holds everything, with "fsdp" weights, gradients and
    optimizer are split over them (transformers and LoRA; AdamW).
    """

    steps: Count
    batch_size: Count
    accumulation: Count = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    decay_steps: int = 0
    final: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    sharding: Literal["ddp", "fsdp"] = "ddp"


@dataclass(frozen=True, kw_only=True)
class Logging:
    """What a run writes and how often, in steps. TensorBoard and W&B are used if they are installed."""

    log_every: Count = 10
    validate_every: Count = 1000
    checkpoint_every: Count = 500
    keep: Count = 2
    tensorboard: bool = False
    wandb: bool = False


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss: its weight, the step at which it begins, and over how many steps it grows to its weight."""

    weight: float
    start: int = 0
    ramp: int = 0

    def at(self, step: int) -> float:
        """The weight at `step`."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / (self.ramp + 1))


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The reconstruction GAN. width: channels of the discriminator's first layer."""

    weight: float = 0.0
    start: int = 0
    ramp: int = 0
    width: int = 32
    layers: int = 3
    learning_rate: float = 2e-4
    loss: Literal["hinge", "logistic"] = "hinge"

    @property
    def term(self) -> Term:
        return Term(weight=self.weight, start=self.start, ramp=self.ramp)


@dataclass(frozen=True, kw_only=True)
class VAETraining:
    """`ltxkit train-vae`.

    model: the `vae` member of a released checkpoint's metadata.
    decoder_noise: largest noise level that the decoder sees, on normalised latents (0.2 in the example).
    unlock_psnr: decoder noise and KL begin only after a validation reaches this many dB (None: at their `start`),
        because with either from the first step the latents can collapse.
    images_until_psnr: train on single frames until a validation of them reaches this many dB, then on clips.
    perceptual_weights: TorchScript file: (b, 3, h, w) pairs in [-1, 1] -> distance per pair.
    freeze_encoder: train the decoder alone; latents, and a transformer trained on them, stay valid.
    """

    task: Literal["vae"] = "vae"
    output: Path
    seed: int = 0
    initial: Path | None = None
    data: Data
    model: dict[str, Any]
    optimization: Optimization
    logging: Logging = field(default_factory=Logging)
    crop_frames: Count | None = None
    l1: Term = Term(weight=0.1)
    l2: Term = Term(weight=1.0)
    wavelet: Term = Term(weight=0.1)
    kl: Term = Term(weight=1e-5, ramp=300)
    perceptual: Term = Term(weight=0.0)
    perceptual_weights: Path | None = None
    adversary: Adversary = Adversary()
    decoder_noise: Term = Term(weight=0.2, ramp=300)
    unlock_psnr: float | None = None
    images_until_psnr: float | None = None
    freeze_encoder: bool = False
    statistics_clips: Count = 512


@dataclass(frozen=True, kw_only=True)
class Text:
    """Where text embeddings come from.

    encoder: a file or folder with a pretrained T5 (frozen); tokenizer: of it, where none is beside it. Without: a small
    T5 of `width` x `layers` is trained along, with a sentencepiece model of at most `vocabulary` pieces made from the
    captions.
    """

    encoder: Path | None = None
    tokenizer: Path | None = None
    width: Count = 128
    layers: Count = 2
    heads: Count = 4
    vocabulary: Count = 128


@dataclass(frozen=True, kw_only=True)
class Noising:
    """Which noise levels are trained: logit-normal, shifted towards 1 by the number of tokens.

    shift: mu of the shift; "tokens" takes LTX-Video's line through 1024 and 4096 tokens. uniform: share of samples
    with a uniform level, so that the tails do not starve. stretch: percentile that is stretched to the ends.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float | Literal["tokens"] = "tokens"
    uniform: float = 0.1
    stretch: float = 0.005


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """rank, alpha: the update is alpha / rank * B A. targets: names of Linears inside a transformer block."""

    rank: Count = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class TransformerTraining:
    """`ltxkit train`.

    model: the `transformer` member of a released checkpoint's metadata; None: take that of `initial`.
    initial: checkpoint to start from. version: which release it is, where the file does not say. lora: train this
    beside the frozen weights of `initial`.
    text_dropout: share of samples with an empty prompt. first_frame: share of samples that are given their first frame.
    cache_clips: latents are made once, of at most this many clips; 0 encodes every clip when it is needed.
    validation_samples: how many the validation loss is measured on.
    """

    task: Literal["transformer"] = "transformer"
    output: Path
    seed: int = 0
    vae: Path | None = None
    initial: Path | None = None
    version: str | None = None
    data: Data
    model: dict[str, Any] | None = None
    lora: LoRASettings | None = None
    text: Text = Text()
    optimization: Optimization
    logging: Logging = field(default_factory=Logging)
    noising: Noising = Noising()
    text_dropout: float = 0.2
    first_frame: float = 0.1
    cache_clips: int = 0
    validation_samples: Count = 64
    sample_steps: Count = 20
    guidance_scale: float = 3.0
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UpscalerTraining:
    """`ltxkit train` with task "upscaler": latents of a clip to latents of the same clip at twice the size."""

    task: Literal["upscaler"] = "upscaler"
    output: Path
    seed: int = 0
    vae: Path | None = None
    data: Data
    model: dict[str, Any]
    optimization: Optimization
    logging: Logging = field(default_factory=Logging)
    cache_clips: int = 0


Training = VAETraining | TransformerTraining | UpscalerTraining
TASKS: dict[str, type[Training]] = {
    "vae": VAETraining,
    "transformer": TransformerTraining,
    "upscaler": UpscalerTraining,
}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Training:
    """A config file, or the name of a preset, with `--set a.b=c` overrides applied; c is YAML, and text if quoted.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown or missing, a value is of the wrong type.
        UnsupportedError: PyYAML is not installed.
    """
    file = Path(path)
    if not file.is_file() and (PRESETS / f"{path}.yaml").is_file():
        file = PRESETS / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ConfigError(f"got config {path}; expected a YAML file or one of the presets {known}; check the name")
    tree = read_tree(file, overrides)
    if not isinstance(tree, dict) or tree.get("task") not in TASKS:
        got = tree.get("task") if isinstance(tree, dict) else tree
        raise ConfigError(f"got task {got!r} in {file}; expected one of {', '.join(TASKS)}; set task")
    return build(TASKS[tree["task"]], tree, "")

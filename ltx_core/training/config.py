"""The settings of a training run: frozen values, read strictly from YAML (`settings_file`).

Every section is a dataclass. The architecture (`model`) is written as in the metadata of released checkpoints and read
by the same code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ..errors import ConfigError
from ..values import FASTEST, LARGEST_SCALE, LARGEST_SEED, check_number, check_whole
from ..weights.bundled import BUNDLED, find_model
from .condition_settings import ConditionSettings, ReferenceSettings
from .optimizers import check_optimizer, is_import_path
from .settings_file import Range, Section, build, read_tree

Count = Annotated[int, Range(1)]
CountFromZero = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, LARGEST_SEED)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Decay = Annotated[float, Range(0, below=1)]
PRESETS = Path(__file__).parents[2] / "assets" / "training"


@dataclass(frozen=True, kw_only=True)
class DataPart(Section):
    """One of several sets of clips.

    path: as `Data.path`. repeats: how often each of its clips counts in an epoch; of 1.5, half of them twice. weight:
    its share of all samples, against the weights of the other parts; every clip is still seen. trigger_word: before
    every caption of this part. references, masks: folders with a file of the same name for each clip.
    """

    path: Path
    repeats: Annotated[float, Range(above=0, high=10_000)] = 1.0
    weight: Positive | None = None
    trigger_word: str = ""
    references: Path | None = None
    masks: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Where clips come from and how large they are.

    kind: "digits" draws scikit-learn's digits, "mnist" those of the idx files in `path`, "moving_mnist" reads a
        published .npy or .npz file, "folder" a folder of videos with captions.
    sizes: one or more (frames, height, width); all clips of a batch have one size.
    spread: part of the free path that digits may use across their direction of motion. brightness: of their white.
    enlarged: share of batches whose clips are drawn at twice the size ("digits" and "mnist" only).

    Of a folder: windows: which parts of a longer clip are seen: "head", its first frames; "random", one of
        `random_windows` random places, another one in each epoch; "slide", all windows that overlap by half; "all",
        windows side by side, to the last frame. short_videos_as_pictures: a video shorter than every other size serves
        sizes of one frame, by its first. allow_empty_captions: train clips without a caption on an empty prompt.
    path may also be a table, a tar of webdataset, a configuration of diffusion-pipe or musubi-tuner, or a folder that
        `datasets` has saved; parts: more of them. trigger_word: before every caption. file_column, caption_column: of
        tables with other headers. precomputed: use latents and embeddings that LTX-Video-Trainer has computed beside
        the clips (.precomputed).
    """

    kind: Literal["digits", "mnist", "moving_mnist", "folder"]
    path: Path | None = None
    sizes: tuple[tuple[Count, Count, Count], ...]
    glyph_size: Count = 28
    spread: Share = 1.0
    brightness: Annotated[float, Range(above=0, high=1)] = 1.0
    enlarged: Share = 0.0
    fps: Annotated[float, Range(above=0, high=FASTEST)] = 25.0
    validation_clips: Count = 8
    windows: Literal["head", "random", "slide", "all"] = "head"
    random_windows: Count = 4
    short_videos_as_pictures: bool = False
    allow_empty_captions: bool = False
    parts: tuple[DataPart, ...] = ()
    trigger_word: str = ""
    file_column: str | None = None
    caption_column: str | None = None
    precomputed: bool = True


@dataclass(frozen=True, kw_only=True)
class HoldOut(Section):
    """The clips of a folder that are not trained on, and that a validation measures. path: a folder of their own.
    share: of the folder's clips, one at least. Neither: every clip is trained on."""

    path: Path | None = None
    share: Annotated[float, Range(0, below=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.share:
            raise ConfigError(
                f"got validation.path and validation.share {self.share:g}; expected one of them; leave the other out"
            )


@dataclass(frozen=True, kw_only=True)
class Optimization(Section):
    """How the weights are updated.

    steps: updates of the weights. batch_size: clips per update, over all processes; each process computes its share in
    `accumulation` pieces. optimizer: "muon" updates weights with two or more axes and leaves the others to AdamW; see
    `optimizers` for the other names; "package.module.Class" imports a class, which gets `optimizer_arguments`.
    schedule: after a rise over `warmup`, a share of the steps, "linear" is constant, then falls to `final` times the
    rate over the share `decay`; "cosine" falls from the end of the rise on; see `schedule`. warmup_steps, decay_steps:
    the same in steps, shortened where they do not fit. max_grad_norm: 0 clips nothing.
    ema_decay: 0 keeps no average. precision: "tf32" is float32 with matrix products in TF32 on GPUs that have it;
    "bf16" computes in bfloat16 on float32 weights. Small models spend their time launching kernels and are fastest in
    "tf32".
    weights: of what is trained, apart from a LoRA: "bf16" rounds each step stochastically.
    gradient_checkpointing, compile: for transformers. offload_activations: what the backward pass needs waits in main
    memory. resident_blocks: how many blocks of a LoRA's base stay on the device; the others come when they are needed,
    forward and backward. None: all.
    sharding: how several processes train: "ddp" keeps a whole copy in each; "fsdp" splits weights, gradients and
    optimizer state over them (AdamW only).
    sequence_parallel: of a transformer: so many processes divide the tokens of each clip, and in self-attention the
    heads; 1: none.
    """

    steps: Count
    batch_size: Count
    accumulation: Count = 1
    optimizer: str = "adamw"
    optimizer_arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    learning_rate: Positive
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    weight_decay: NotNegative = 0.0
    warmup: Share = 0.05
    warmup_steps: CountFromZero | None = None
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    decay: Share = 0.5
    decay_steps: CountFromZero | None = None
    final: Share = 0.05
    max_grad_norm: NotNegative = 1.0
    ema_decay: Decay = 0.0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    sharding: Literal["ddp", "fsdp"] = "ddp"
    sequence_parallel: Annotated[int, Range(1, 1024)] = 1
    weights: Literal["fp32", "bf16"] = "fp32"
    offload_activations: bool = False
    resident_blocks: CountFromZero | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_optimizer(self.optimizer)
        if self.optimizer_arguments and not is_import_path(self.optimizer):
            raise ConfigError(
                f"got optimizer_arguments with optimizer {self.optimizer}; expected them with an import path; leave "
                "them out, or write the path of the class"
            )
        if self.offload_activations and not self.gradient_checkpointing:
            raise ConfigError(
                "got offload_activations without gradient_checkpointing; expected both: only the inputs of blocks are "
                "worth their way to main memory; set gradient_checkpointing=true"
            )
        if self.sequence_parallel > 1 and self.compile:
            raise ConfigError(
                f"got sequence_parallel {self.sequence_parallel} with compile; expected one of the two: exchanges "
                "between processes are not compiled; change one"
            )
        if self.weights == "bf16" and self.ema_decay:
            raise ConfigError(
                f"got weights bf16 with ema_decay {self.ema_decay:g}; expected fp32: an average in bf16 stands still; "
                "change one"
            )
        if self.resident_blocks is not None and (self.compile or not self.gradient_checkpointing):
            why = "compile" if self.compile else "no gradient_checkpointing"
            raise ConfigError(
                f"got resident_blocks {self.resident_blocks} with {why}; "
                "expected gradient_checkpointing without compile: kept activations would keep every block; change it"
            )


@dataclass(frozen=True, kw_only=True)
class Logging(Section):
    """What a run writes and how often, in steps. TensorBoard and W&B must be installed to be used.

    keep: the newest checkpoints that stay. keep_best: the one with the lowest validation_loss stays too.
    """

    log_every: Count = 10
    validate_every: Count = 1000
    checkpoint_every: Count = 500
    keep: Count = 2
    keep_best: bool = True
    tensorboard: bool = False
    wandb: bool = False


@dataclass(frozen=True, kw_only=True)
class Stopping(Section):
    """When a run ends before its last step: after `patience` validations in a row that did not lower validation_loss by
    more than the share `improvement`; final/ then holds the weights of the best one. 0: never."""

    patience: CountFromZero = 0
    improvement: Annotated[float, Range(0, below=1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Term(Section):
    """One loss: its weight, the step at which it starts, and the number of steps over which it grows to that weight."""

    weight: NotNegative
    start: CountFromZero = 0
    ramp: CountFromZero = 0

    def at(self, step: int) -> float:
        """The weight at `step`."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / (self.ramp + 1))


@dataclass(frozen=True, kw_only=True)
class Adversary(Section):
    """The reconstruction GAN. width: channels of the discriminator's first layer, a multiple of 4. Clips of fewer than
    four frames have no part in it."""

    weight: NotNegative = 0.0
    start: CountFromZero = 0
    ramp: CountFromZero = 0
    width: Count = 32
    layers: Count = 3
    learning_rate: Positive = 2e-4
    loss: Literal["hinge", "logistic"] = "hinge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 4 and self.layers > 1:
            raise ConfigError(
                f"got adversary.width {self.width}; expected a multiple of 4: norms divide twice as many channels into "
                f"8 groups; use {self.width + 4 - self.width % 4}"
            )

    @property
    def term(self) -> Term:
        return Term(weight=self.weight, start=self.start, ramp=self.ramp)


@dataclass(frozen=True, kw_only=True)
class VAETraining(Section):
    """`ltxkit train-vae`.

    model: the `vae` member of a released checkpoint's metadata.
    decoder_noise: largest noise level that the decoder sees, on normalised latents (0.2 in the example).
    unlock_psnr: decoder noise and KL start only once a validation reaches this many dB (None: at their `start`),
        because the latents can collapse with either from the first step on.
    images_until_psnr: train on single frames until their validation reaches this many dB, then on clips.
    perceptual_weights: TorchScript file: (b, 3, h, w) pairs in [-1, 1] -> distance per pair.
    freeze_encoder: train only the decoder; latents, and any transformer trained on them, stay valid.
    """

    task: Literal["vae"] = "vae"
    output: Path
    seed: Seed = 0
    initial: Path | None = None
    data: Data
    validation: HoldOut = HoldOut()
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
class Text(Section):
    """Where text embeddings come from.

    encoder: a file or folder with a pretrained T5, which stays frozen. tokenizer: its tokenizer, if the folder has
    none. quantization: of a plain encoder while it loads, as the loaders' option. Without an encoder, a small T5 of
    `width` x `layers` is trained with the transformer, and a sentencepiece model of at most `vocabulary` pieces is
    built from the captions.
    """

    encoder: Path | None = None
    tokenizer: Path | None = None
    quantization: str | None = None
    width: Count = 128
    layers: Count = 2
    heads: Count = 4
    vocabulary: Count = 128


@dataclass(frozen=True, kw_only=True)
class Noising(Section):
    """The distribution of noise levels in training: logit-normal, shifted towards 1 by the number of tokens.

    shift: mu of the shift; "tokens" takes LTX-Video's line through 1024 and 4096 tokens. uniform: share of samples
    with a uniformly drawn level, which keeps the tails trained. stretch: percentile that is stretched to level 0, and
    below which levels are reflected; 0: none is stretched. stretch_top: percentile, from above, that is stretched to
    level 1 then.
    """

    mean: float = 0.0
    std: Positive = 1.0
    shift: float | Literal["tokens"] = "tokens"
    uniform: Share = 0.1
    stretch: Annotated[float, Range(0, below=0.5)] = 0.005
    stretch_top: Annotated[float, Range(0, below=0.5)] = 0.001


@dataclass(frozen=True, kw_only=True)
class LoRASettings(Section):
    """The low-rank update alpha / rank * B A. targets: names of the Linears inside a transformer block.

    rank_pattern, alpha_pattern: other values for some Linears, by regular expressions for the end of their names, as in
        peft: `{to_v: 8, "0.attn1.*": 4}`.
    init_from: a LoRA file to go on from, of any kind that is loaded here as pairs of factors; a lower rank is widened.
    """

    rank: Count = 32
    alpha: Positive = 32.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    rank_pattern: dict[str, Any] = field(default_factory=dict)
    alpha_pattern: dict[str, Any] = field(default_factory=dict)
    init_from: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, patterns in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for pattern, value in patterns.items():
                _check_pattern(f"lora.{key}", pattern)
                if key == "rank_pattern":
                    check_whole(f"lora.{key}.{pattern}", value, 1, advice="pass the rank of these Linears")
                else:
                    check_number(f"lora.{key}.{pattern}", value, above=0, advice="pass the alpha of these Linears")


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"got {name} with {pattern!r} ({error}); expected a regular expression for the end of names; correct it"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Preview(Section):
    """The clips of `prompts` that validations make, one of each before the first step too (`at_start`).

    None: the run's seed, the first of `data.sizes`, the negative prompt of the base's recipe, no picture. image: the
    first frame of every clip. reference: the video that every clip follows, where there are references in training;
    None: the references of the first clips of the validation.
    """

    at_start: bool = True
    seed: Seed | None = None
    size: tuple[Count, Count, Count] | None = None
    negative_prompt: str | None = None
    image: Path | None = None
    reference: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TransformerTraining(Section):
    """`ltxkit train`.

    model: the `transformer` member of a released checkpoint's metadata; None: the architecture of `initial`.
    initial: checkpoint to start from. version: the release of `initial`, if its file does not say. lora: train a LoRA
    on the frozen weights of `initial`. quantization: of that base while it loads, as the loaders' option.
    text_dropout: share of samples with an empty prompt. first_frame: share of samples conditioned on their first frame.
    reference: a video that each clip follows, for an IC-LoRA. conditions: what else clips show from the start.
    cache_clips: encode at most this many clips once, and the others whenever they are needed; 0: none.
    validation_samples: number of samples in the validation loss.
    sample_steps, guidance_scale: of the clips of `prompts`; None: as the recipe of `initial` has them, 20 and 3 for a
        new model.
    """

    task: Literal["transformer"] = "transformer"
    output: Path
    seed: Seed = 0
    vae: Path | None = None
    initial: Path | None = None
    version: str | None = None
    data: Data
    validation: HoldOut = HoldOut()
    model: dict[str, Any] | None = None
    lora: LoRASettings | None = None
    quantization: str | None = None
    text: Text = Text()
    optimization: Optimization
    logging: Logging = field(default_factory=Logging)
    noising: Noising = Noising()
    text_dropout: Share = 0.2
    first_frame: Share = 0.1
    reference: ReferenceSettings | None = None
    conditions: ConditionSettings = field(default_factory=ConditionSettings)
    cache_clips: CountFromZero = 0
    validation_samples: Count = 64
    sample_steps: Count | None = None
    guidance_scale: Annotated[float, Range(0, LARGEST_SCALE)] | None = None
    prompts: tuple[str, ...] = ()
    preview: Preview = Preview()
    stopping: Stopping = Stopping()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stopping.patience and self.data.kind == "folder" and self.validation == HoldOut():
            raise ConfigError(
                f"got stopping.patience {self.stopping.patience} with no clip held out; expected validation.share or "
                "validation.path: the loss of clips that are trained on falls by learning by heart too; set one of them"
            )
        if self.lora is None and (self.quantization is not None or self.optimization.resident_blocks is not None):
            what = "quantization" if self.quantization is not None else "optimization.resident_blocks"
            raise ConfigError(
                f"got {what} for the training of a whole model; expected it with lora: only a frozen base can be "
                "quantized, or come and go; leave it out, or train a LoRA"
            )


@dataclass(frozen=True, kw_only=True)
class UpscalerTraining(Section):
    """`ltxkit train` with task "upscaler": from the latents of a clip to those of the same clip at twice the size."""

    task: Literal["upscaler"] = "upscaler"
    output: Path
    seed: Seed = 0
    vae: Path | None = None
    data: Data
    model: dict[str, Any]
    optimization: Optimization
    logging: Logging = field(default_factory=Logging)
    cache_clips: CountFromZero = 0
    stopping: Stopping = Stopping()


Training = VAETraining | TransformerTraining | UpscalerTraining
TASKS: dict[str, type[Training]] = {
    "vae": VAETraining,
    "transformer": TransformerTraining,
    "upscaler": UpscalerTraining,
}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Training:
    """A config file, or the name of a preset, with `--set a.b=c` overrides applied; c is YAML, and stays text if it is
    quoted.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown or missing, a value is of the wrong type.
        UnsupportedError: PyYAML is not installed.
    """
    file = Path(path)
    if not file.is_file() and (PRESETS / f"{path}.yaml").is_file():
        file = PRESETS / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ConfigError(f"got config {path}; expected a YAML file or one of the presets {known}; check the name")
    tree = read_tree(file, overrides)
    if not isinstance(tree, dict) or not isinstance(tree.get("task"), str) or tree["task"] not in TASKS:
        got = tree.get("task") if isinstance(tree, dict) else tree
        raise ConfigError(f"got task {got!r} in {file}; expected one of {', '.join(TASKS)}; set task")
    return build(TASKS[tree["task"]], _with_bundled(tree), "")


def _with_bundled(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the files of the bundled model in place of its name."""

    def named(section: Any, key: str, kind: str) -> Any:
        if not isinstance(section, dict) or section.get(key) != BUNDLED:
            return section
        return section | {key: str(find_model(BUNDLED, kind))}

    for key in ("initial", "vae"):
        tree = named(tree, key, "checkpoints")
    return tree | ({"text": named(tree["text"], "encoder", "text_encoders")} if "text" in tree else {})

"""What a training run is: frozen values, read from YAML without tolerance.

Every section is a dataclass; a key that no section has is an error that names the nearest one. The architecture
(`model`) is written as in the metadata of released checkpoints and read by the same code.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import ConfigError, UnsupportedError

T = TypeVar("T")
AT_LEAST_ONE = frozenset(
    {
        *("data.validation_clips", "validation_samples", "statistics_clips", "crop_frames", "sample_steps"),
        *("optimization.steps", "optimization.batch_size", "optimization.accumulation", "lora.rank"),
        *("logging.log_every", "logging.validate_every", "logging.checkpoint_every", "logging.keep"),
        *("text.width", "text.layers", "text.heads", "text.vocabulary"),
    }
)
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
    validation_clips: int = 8


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

    steps: int
    batch_size: int
    accumulation: int = 1
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

    log_every: int = 10
    validate_every: int = 1000
    checkpoint_every: int = 500
    keep: int = 2
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
    crop_frames: int | None = None
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
    statistics_clips: int = 512


@dataclass(frozen=True, kw_only=True)
class Text:
    """Where text embeddings come from.

    encoder: a file or folder with a pretrained T5 (frozen); tokenizer: of it, where none is beside it. Without: a small
    T5 of `width` x `layers` is trained along, with a sentencepiece model of at most `vocabulary` pieces made from the
    captions.
    """

    encoder: Path | None = None
    tokenizer: Path | None = None
    width: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 128


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
class LoRA:
    """rank, alpha: the update is alpha / rank * B A. targets: names of Linears inside a transformer block."""

    rank: int = 32
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
    lora: LoRA | None = None
    text: Text = Text()
    optimization: Optimization
    logging: Logging = field(default_factory=Logging)
    noising: Noising = Noising()
    text_dropout: float = 0.2
    first_frame: float = 0.1
    cache_clips: int = 0
    validation_samples: int = 64
    sample_steps: int = 20
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
    """
    try:
        import yaml
    except ImportError as error:
        raise UnsupportedError("got no PyYAML; expected it to read a training config; do pip install pyyaml") from error
    file = Path(path)
    if not file.is_file() and (PRESETS / f"{path}.yaml").is_file():
        file = PRESETS / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ConfigError(f"got config {path}; expected a YAML file or one of the presets {known}; check the name")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator or not key:
                raise ConfigError(f"got --set {override}; expected a.b=value; name the key and its value")
            parsed = yaml.safe_load(value)
            _put(tree, key.split("."), parsed if value.lstrip()[:1] in ("'", '"') else _number(parsed), key)
    except yaml.YAMLError as error:
        raise ConfigError(f"got {file}, which is no YAML ({error}); expected a training config; mend it") from error
    if not isinstance(tree, dict) or tree.get("task") not in TASKS:
        got = tree.get("task") if isinstance(tree, dict) else tree
        raise ConfigError(f"got task {got!r} in {file}; expected one of {', '.join(TASKS)}; set task")
    return build(TASKS[tree["task"]], tree, "")


def to_tree(value: Any) -> Any:
    """A config as plain dicts, lists and strings, which `build` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_tree(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_tree(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys (a.b.c) whose values differ between two trees."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            found |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if old == new else {prefix: (old, new)}


def build(kind: type[T], tree: Any, where: str) -> T:
    """`tree` as a dataclass of `kind`; `where` is the key it stands under, for messages."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"got {where or 'config'}: {tree!r}; expected a section with keys; indent them below it")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)
            raise ConfigError(f"got unknown key {name}; expected one of {', '.join(fields)}; did you mean {near[0]}?")
        values[key] = _convert(hints[key], value, name)
        if name in AT_LEAST_ONE and values[key] is not None and values[key] < 1:
            raise ConfigError(f"got {name}: {value!r}; expected 1 or more; change the value")
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"got {where or 'a config'} without {', '.join(missing)}; expected a value; add it")
    return kind(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, name)
            except ConfigError:
                continue
        return _convert(options[-1], value, name)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"got {name}: {value!r}; expected one of {', '.join(map(str, arguments))}; pick one")
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, name)
    if origin is tuple:
        return _tuple(arguments, value, name)
    if origin is dict and isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        value = _number(value)
        if isinstance(value, (int, float)):
            return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"got {name}: {value!r}; expected {getattr(hint, '__name__', hint)}; change the value")


def _tuple(arguments: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    repeated = len(arguments) == 2 and arguments[1] is ...
    if not isinstance(value, (list, tuple)) or (not repeated and len(value) != len(arguments)):
        length = "any number of" if repeated else len(arguments)
        raise ConfigError(f"got {name}: {value!r}; expected a list of {length} values; write [a, b, ...]")
    kinds = [arguments[0]] * len(value) if repeated else arguments
    return tuple(_convert(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(tree: Any, keys: Sequence[str], value: Any, name: str) -> None:
    for key in keys[:-1]:
        if not isinstance(tree, dict):
            raise ConfigError(f"got --set {name}; expected sections on the way to it; check the key")
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
    if not isinstance(tree, dict):
        raise ConfigError(f"got --set {name}; expected a section to put it into; check the key")
    tree[keys[-1]] = value

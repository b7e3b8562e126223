"""The memory plan as values: what each stage of a run needs, where the weights are meanwhile, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..shapes import PixelShape
from ..values import check_whole

CONTEXT_BYTES = 600 * 2**20
"""Memory that the driver, its context and the kernels take on a card before any tensor: an estimate, not measured here,
equal to what Comfy-Org/ComfyUI keeps free on Windows (model_management.py EXTRA_RESERVED_VRAM; 400 MiB elsewhere). Only
for a hypothetical card: a card in the machine reports its free memory."""


@dataclass(frozen=True)
class Card:
    """Where the models run. available: bytes that a run may take. total: bytes that the card has."""

    name: str
    available: int
    total: int
    is_main_memory: bool = False

    @classmethod
    def of_size(cls, total: int, name: str = "") -> Card:
        """A hypothetical card of `total` bytes. Raises ConfigError: not a positive whole number of them."""
        check_whole("card", total, 1, advice="pass the size of a card in bytes")
        return cls(name or f"{total / 2**30:g} GiB card", total - CONTEXT_BYTES, total)


@dataclass(frozen=True)
class Stage:
    """One stage of a run, with one model on the device.

    weights: bytes of the model. held: bytes of weights on the device at once. resident: how many of `blocks` stay;
    None: all. packed: bytes of weights that are packed for a CPU's kernels, beside those in the file; what there is no
    room for is not packed. unpacked: how many blocks of quantized weights stay unpacked on a card; unpacked_bytes: what
    that takes beside the stored ones. copies: bytes of weights in main memory into which LoRAs are merged.
    activations: bytes of work. tiling: how a VAE's work is cut up, in words. recorded: bytes that CUDA graphs of a pass
    before keep in addition.
    """

    name: str
    model: str
    weights: int
    held: int
    blocks: int
    resident: int | None
    activations: int
    tiling: str = ""
    packed: int = 0
    unpacked: int = 0
    unpacked_bytes: int = 0
    copies: int = 0
    recorded: int = 0

    @property
    def there(self) -> int:
        """Bytes of weights that take memory of their own."""
        return self.held + self.packed + self.unpacked_bytes + self.copies

    @property
    def peak(self) -> int:
        return self.there + self.activations + self.recorded

    @property
    def placing(self) -> str:
        """Where the weights are during the stage, in words."""
        if self.resident is None:
            in_file = "in the file, and packed for the CPU" if self.packed else "in the file"
            in_file += ", LoRAs merged into copies" if self.copies else ""
            whole = f"whole, {self.unpacked} of {self.blocks} blocks stay unpacked" if self.unpacked else "whole"
            return whole if self.held else in_file
        return f"{self.resident} of {self.blocks} blocks stay, {self.blocks - self.resident} are streamed"


@dataclass(frozen=True)
class Plan:
    """The memory that a run needs.

    weights: bytes per model, and of the transformer per block. stages: in the order of the run; every model leaves the
    device when its stage ends. converted: bytes of weights that main memory holds because they differ from the stored
    ones. smaller: the largest size that fits at this length. shorter: the longest clip of this size that fits. Both are
    None if the run fits as it is, or if no such clip does.
    """

    card: Card
    size: PixelShape
    branches: int
    weights: Mapping[str, int]
    converted: int
    stages: tuple[Stage, ...]
    smaller: PixelShape | None = None
    shorter: PixelShape | None = None

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(stage.peak for stage in self.stages) + (self.converted if self.card.is_main_memory else 0)

    @property
    def fits(self) -> bool:
        return self.peak <= self.card.available

    def __str__(self) -> str:
        return format_plan(self)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values: all fields, and the properties."""
        stages = [{**asdict(stage), "peak": stage.peak, "placing": stage.placing} for stage in self.stages]
        return {**asdict(self), "stages": stages, "peak": self.peak, "fits": self.fits}


def format_plan(plan: Plan) -> str:
    """The plan as lines of text."""
    card = plan.card
    lines = [
        f"{_size(plan.size)}, {plan.branches} {'branch' if plan.branches == 1 else 'branches'} per step, on "
        f"{card.name}: {_gigabytes(card.available)} of {_gigabytes(card.total)} to use",
        "",
        *_table(("weights", "size"), [(name, _gigabytes(count)) for name, count in plan.weights.items()]),
        "",
        *stage_lines(plan.stages),
        "",
    ]
    if card.is_main_memory:
        lines.append(
            f"Weights stay in their files, except for {_gigabytes(plan.converted)} that are converted or copied."
        )
    else:
        lines.append("Each model is evicted when its stage ends.")
    lines.append(f"Peak {_gigabytes(plan.peak)}: {'it fits' if plan.fits else 'it does not fit'}.")
    if plan.smaller is not None:
        lines.append(f"The largest size that fits: {_size(plan.smaller)}.")
    if plan.shorter is not None:
        lines.append(f"The longest clip of this size that fits: {_size(plan.shorter)}.")
    return "\n".join(lines)


def stage_lines(stages: Sequence[Stage]) -> list[str]:
    """A table of stages, as lines of text."""
    return _table(
        ("stage", "weights there", "work", "peak", "how"),
        [
            (
                stage.name,
                _gigabytes(stage.there),
                _gigabytes(stage.activations),
                _gigabytes(stage.peak),
                "; ".join(
                    word
                    for word in (
                        f"{stage.model} {stage.placing}",
                        stage.tiling,
                        f"{_gigabytes(stage.recorded)} kept by CUDA graphs" if stage.recorded else "",
                    )
                    if word
                ),
            )
            for stage in stages
        ],
    )


def _size(size: PixelShape) -> str:
    return f"{size.width}x{size.height}, {size.frames} frames"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rows = (header, *rows)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

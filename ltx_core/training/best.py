"""The best validation of a run so far: which checkpoint is kept for it, and when there is no hope of a better one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import whole
from .checkpoints import SUM
from .config import Stopping

MEASURE = "validation_loss"  # of clips that are held out: the loss of others falls by learning by heart too


@dataclass
class Best:
    """step, loss: of the best validation; step 0: there was none. without: validations since then."""

    step: int = 0
    loss: float = math.inf
    without: int = 0

    def add(self, step: int, validated: Mapping[str, float], stopping: Stopping) -> bool:
        """Whether the numbers of a validation are the best so far; those without a loss of held-out clips never are."""
        loss = validated.get(MEASURE)
        if loss is None:
            return False
        # A lower loss is the best in any case; one that is hardly lower is no sign that waiting is worth it.
        self.without = 0 if loss < self.loss * (1 - stopping.improvement) else self.without + 1
        if not loss < self.loss:  # nor is what is not a number
            return False
        self.step, self.loss = step, loss
        return True

    def exhausted(self, stopping: Stopping) -> bool:
        return bool(stopping.patience) and self.without >= stopping.patience

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, saved: Any) -> Best:
        """From the state of a checkpoint; those of earlier versions have none."""
        return cls(**saved) if isinstance(saved, Mapping) else cls()


def copy_weights(checkpoint: Path, target: Path) -> None:
    """The weights of a checkpoint, without what only a resumed run needs, as a folder `target`."""
    with whole(target, folder=True) as part:
        for item in checkpoint.iterdir():
            if item.is_dir():
                shutil.copytree(item, part / item.name)
            elif item.name not in ("state.pt", SUM):
                shutil.copy2(item, part / item.name)

"""What a model says about its blocks: nothing outside the model needs their attribute names.

A transformer or a text encoder is mostly a stack of equal blocks. Whatever streams them to a device, divides them among
several, or quantizes them alone asks the model where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

from torch import nn


@dataclass(frozen=True, eq=False)
class BlockStack:
    """The blocks of a model, and where tensors flow into and out of them.

    owner: the module whose forward iterates the blocks; attribute: the name of their `nn.ModuleList` there.
    entries: for a block, the modules that tensors from outside the block enter: the block itself, and every part that
        the model calls on its own.
    exit: the module that receives the result of the last block.
    """

    owner: nn.Module
    attribute: str
    entries: Callable[[nn.Module], Sequence[nn.Module]]
    exit: nn.Module

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, getattr(self.owner, self.attribute))

    def replace(self, blocks: nn.ModuleList) -> None:
        """Let the model iterate `blocks` from now on."""
        setattr(self.owner, self.attribute, blocks)


@runtime_checkable
class Stacked(Protocol):
    """A model that is a stack of blocks. BLOCK_PREFIX: what the names of everything in them start with."""

    BLOCK_PREFIX: ClassVar[str]

    def blocks(self) -> BlockStack: ...


def block_stack(model: nn.Module) -> BlockStack | None:
    """The blocks of a model; None if it can only be placed as a whole."""
    return model.blocks() if isinstance(model, Stacked) else None

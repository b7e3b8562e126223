"""T5's layers as transformers has them, but in the dtype that was chosen for the machine, whatever the file's is.

From a float16 file a CPU computes in float32, which holds its weights exactly and does not overflow. transformers'
layers cast activations to the dtype of their weights, which would undo that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.active import PLAINLY, Active
from ..kernels.choice import PLAIN_FORM
from .linear import Linear

PROMPTS = 2  # of a clip: weights that are used once for each of them are packed only where there are more


def text_dtype(weight: Tensor, active: Active) -> torch.dtype:
    """The dtype in which the encoder computes with a weight."""
    return active.kernels.text_dtype(weight.dtype) if weight.device.type == "cpu" else weight.dtype


class TextEmbedding(nn.Embedding):
    """`nn.Embedding`, in the dtype of the computation."""

    active: Active = PLAINLY

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight).to(text_dtype(self.weight, self.active))


class TextNorm(nn.Module):
    """T5's RMS norm: (..., d) -> (..., d) in the dtype of the computation, through float32."""

    active: Active = PLAINLY

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        dtype = text_dtype(self.weight, self.active)
        return self.weight.to(dtype) * (x * torch.rsqrt(variance + self.variance_epsilon)).to(dtype)


class GatedFeedForward(nn.Module):
    """GELU(x W0^T) * (x W1^T), times Wo^T. `wo` may have float32 weights in a float16 encoder: its input overflows."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        parts: Any = theirs
        self.wi_0, self.wi_1, self.wo = (_own_linear(part) for part in (parts.wi_0, parts.wi_1, parts.wo))
        self.act = cast("Callable[[Tensor], Tensor]", parts.act)

    def forward(self, x: Tensor) -> Tensor:
        first = cast(nn.Module, self.wi_0)  # a quantization may have put another Linear there
        fused = isinstance(first, Linear) and first.active.kernels.products.form(x.dtype) != PLAIN_FORM
        hidden = cast(Linear, first).with_gelu(x) if fused else self.act(first(x))
        hidden = hidden * self.wi_1(x)
        weight = cast("Tensor | None", self.wo.weight)  # None where it is quantized
        return self.wo(hidden.float() if weight is not None and weight.dtype == torch.float32 else hidden)


def use_own_layers(model: nn.Module) -> None:
    """Put these layers in the place of transformers', under the same names, with the same parameters."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "T5DenseGatedActDense":
                setattr(module, name, GatedFeedForward(child))
            elif type(child).__name__ == "T5LayerNorm":
                norm = TextNorm(cast(Tensor, child.weight).shape[0], cast(float, child.variance_epsilon))
                setattr(module, name, norm)
            elif type(child) is nn.Embedding:
                setattr(module, name, TextEmbedding(child.num_embeddings, child.embedding_dim))
            elif type(child) is nn.Linear:
                setattr(module, name, _own_linear(child))


def _own_linear(theirs: nn.Linear) -> Linear:
    linear = Linear(theirs.in_features, theirs.out_features, bias=cast("Tensor | None", theirs.bias) is not None)
    linear.pack_after = PROMPTS
    return linear

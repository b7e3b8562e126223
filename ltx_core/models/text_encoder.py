"""The text encoder: T5 v1.1 (arXiv 1910.10683, encoder only).

LTX-Video reads the last hidden state after `final_layer_norm`, of 256 tokens at most, padding masked
(Lightricks/LTX-Video, pipeline_ltx_video.py `encode_prompt`). Attributes have the names of the published checkpoints,
which are those of transformers, and the results are those of its `T5EncoderModel`. That library itself stays out of a
run: importing it takes as long as importing torch twice.

On a CPU it computes in the dtype that was chosen for the machine, whatever the file's is: from a float16 file in
float32, which holds its weights exactly and does not overflow.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextEncoderConfig
from ..kernels.active import Active
from ..kernels.directly import DIRECTLY
from ..kernels.norms import rms_norm
from ..progress import Progress, silent
from .blocks import BlockStack
from .linear import Linear
from .tokenizer import Tokenizer

PROMPTS = 2  # of a clip: weights that are used once for each of them are packed only where there are more
_HALF_OVERFLOWS_AT = 1000  # below float16's largest number, where a stream that overflowed is cut off


class TextEncoding(NamedTuple):
    """last_hidden_state: (b, l, d_model)."""

    last_hidden_state: Tensor


def text_dtype(weight: Tensor, active: Active) -> torch.dtype:
    """The dtype in which the encoder computes with a weight."""
    kernels = active.kernels
    widens = weight.device.type == "cpu" or (kernels.widens_text and weight.dtype == torch.bfloat16)
    return kernels.text_dtype(weight.dtype) if widens else weight.dtype


class TextEmbedding(nn.Embedding):
    """`nn.Embedding`, in the dtype of the computation."""

    active = DIRECTLY

    def __init__(self, rows: int, width: int) -> None:
        # Without initial values: to draw them on meta, torch would import its compiler.
        super().__init__(rows, width, _weight=torch.empty(rows, width))

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight).to(text_dtype(self.weight, self.active))


class T5LayerNorm(nn.Module):
    """RMS norm in float32, then in the dtype of the computation."""

    active = DIRECTLY

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = text_dtype(self.weight, self.active)
        return self.weight.to(dtype) * rms_norm(x.float(), None, self.eps, self.active).to(dtype)


class T5Attention(nn.Module):
    """Attention without scaling of the scores, to which a learned number per head and distance is added."""

    def __init__(self, config: TextEncoderConfig, *, has_relative_attention_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.q = _linear(config.d_model, inner)
        self.k = _linear(config.d_model, inner)
        self.v = _linear(config.d_model, inner)
        self.o = _linear(inner, config.d_model)
        if has_relative_attention_bias:
            self.relative_attention_bias = TextEmbedding(self.num_buckets, config.num_heads)

    def position_bias(self, length: int) -> Tensor:
        """(1, heads, l, l): what is added to the score of a query (row) for a key (column). For the first block."""
        place = torch.arange(length, device=self.relative_attention_bias.weight.device)
        buckets = distance_buckets(place[None, :] - place[:, None], self.num_buckets, self.max_distance)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)[None]

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        """x: (b, l, d_model). position_bias: (1 or b, heads, l, l)."""
        query, key, value = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (self.q(x), self.k(x), self.v(x))
        )  # (b, heads, l, d_kv)
        scores = query @ key.transpose(-1, -2)
        scores += position_bias
        shares = scores.float().softmax(-1).to(scores.dtype)
        del scores
        return self.o((shares @ value).transpose(1, 2).flatten(2))


def distance_buckets(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """The number of the bucket of each distance (key minus query).

    Half of the buckets are for each direction; of these, half are for one distance each, and the others ever wider, up
    to `max_distance` (arXiv 1910.10683, section 2.1; transformers' `T5Attention._relative_position_bucket`).
    """
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    wide = torch.log(size.float() / exact) / math.log(max_distance / exact) * (half - exact)
    wide = (exact + wide.clamp(0, half).long()).clamp(max=half - 1)  # without what is not finite: distance 0
    return (distance > 0).long() * half + torch.where(size < exact, size, wide)


class T5DenseGatedActDense(nn.Module):
    """tanh-GELU of one product times another, and a third product of that.

    In a float16 encoder `wo` may have float32 weights: its input overflows float16.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.wi_0 = _linear(config.d_model, config.d_ff)
        self.wi_1 = _linear(config.d_model, config.d_ff)
        self.wo = _linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        first = cast(nn.Module, self.wi_0)  # a quantization may have put another Linear there
        gated = first.with_gelu(x) if isinstance(first, Linear) else F.gelu(first(x), approximate="tanh")
        gated = gated * self.wi_1(x)
        weight = cast("Tensor | None", self.wo.weight)  # None where it is quantized
        return self.wo(gated.float() if weight is not None and weight.dtype == torch.float32 else gated)


class T5LayerSelfAttention(nn.Module):
    def __init__(self, config: TextEncoderConfig, *, has_relative_attention_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, has_relative_attention_bias=has_relative_attention_bias)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        return _finite(x + self.SelfAttention(self.layer_norm(x), position_bias))


class T5LayerFF(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.DenseReluDense = T5DenseGatedActDense(config)
        self.layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return _finite(x + self.DenseReluDense(self.layer_norm(x)))


class T5Block(nn.Module):
    def __init__(self, config: TextEncoderConfig, *, has_relative_attention_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [
                T5LayerSelfAttention(config, has_relative_attention_bias=has_relative_attention_bias),
                T5LayerFF(config),
            ]
        )

    def forward(self, x: Tensor, position_bias: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """position_bias: of the block before; None: made here, with what `mask` hides (0: a token that nobody sees)."""
        attention, feed_forward = cast(T5LayerSelfAttention, self.layer[0]), self.layer[1]
        if position_bias is None:
            position_bias = attention.SelfAttention.position_bias(x.shape[1]).to(x.dtype)
            if mask is not None:
                hidden = (1 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
                position_bias = position_bias + hidden
        x = feed_forward(attention(x, position_bias))
        return x, position_bias


class T5Stack(nn.Module):
    def __init__(self, config: TextEncoderConfig, embed_tokens: TextEmbedding) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            [T5Block(config, has_relative_attention_bias=number == 0) for number in range(config.num_layers)]
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = self.embed_tokens(input_ids)
        position_bias: Tensor | None = None
        for block in self.block:
            x, position_bias = block(x, position_bias, attention_mask)
        return self.final_layer_norm(x)


class T5EncoderModel(nn.Module):
    """A T5 v1.1 encoder: gated tanh-GELU, no dropout, one embedding under both of its key names."""

    BLOCK_PREFIX: ClassVar[str] = "encoder.block."

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.shared = TextEmbedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, self.shared)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that are not quantized."""
        return self.encoder.final_layer_norm.weight.dtype

    def blocks(self) -> BlockStack:
        return BlockStack(self.encoder, "block", lambda block: (block,), exit=self.encoder.final_layer_norm)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TextEncoding:
        """input_ids: (b, l) int64. attention_mask: (b, l), 0 for padding; None: there is none."""
        return TextEncoding(self.encoder(input_ids, attention_mask))


def _linear(width: int, outputs: int) -> Linear:
    linear = Linear(width, outputs, bias=False)
    linear.pack_after = PROMPTS
    return linear


def _finite(x: Tensor) -> Tensor:
    """A float16 stream cut off at its largest numbers, as transformers does."""
    if x.dtype != torch.float16:
        return x
    largest = torch.finfo(x.dtype).max
    limit = torch.where(x.isinf().any(), largest - _HALF_OVERFLOWS_AT, largest)
    return x.clamp(min=-limit, max=limit)


def build_t5(config: TextEncoderConfig) -> T5EncoderModel:
    """An encoder on the meta device, in eval mode."""
    with torch.device("meta"):
        model = T5EncoderModel(config)
    return model.eval().requires_grad_(False)


class TextEncoder:
    """A text encoder: model, tokenizer and architecture.

    notes: sentences that the user should see.
    outline: the model on meta, for plans; the model itself where there is no other.
    """

    def __init__(
        self,
        model: T5EncoderModel | Callable[[Progress], T5EncoderModel],
        tokenizer: Tokenizer,
        config: TextEncoderConfig,
        notes: tuple[str, ...] = (),
        outline: T5EncoderModel | None = None,
    ) -> None:
        """model: or what loads it; called once, when the model is first needed."""
        self.tokenizer, self.config, self.notes = tokenizer, config, notes
        self._model, self._load = (model, None) if isinstance(model, T5EncoderModel) else (None, model)
        self._lock = threading.Lock()
        self._outline = outline

    @property
    def model(self) -> T5EncoderModel:
        """The model; loaded now, if it is not yet."""
        return self.loaded(silent)

    @property
    def outline(self) -> T5EncoderModel:
        return self._outline or self.model

    def loaded(self, progress: Progress) -> T5EncoderModel:
        """As `model`, telling how far loading is. Raises as the loader; a load that was stopped can be repeated."""
        with self._lock:
            if self._load is not None:
                self._model = self._load(progress)
                self._load = None
            return cast(T5EncoderModel, self._model)

    @property
    def is_loaded(self) -> bool:
        return self._model is not None

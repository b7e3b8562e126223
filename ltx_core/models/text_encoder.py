"""The text encoder: T5 v1.1 (arXiv 1910.10683, encoder only) through transformers.

LTX-Video reads the last hidden state after `final_layer_norm`, of 256 tokens at most, padding masked
(Lightricks/LTX-Video, pipeline_ltx_video.py `encode_prompt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import nn

from ..config import TextEncoderConfig
from .blocks import BlockStack
from .text_layers import use_own_layers
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import T5EncoderModel


class StackedT5:
    """What a T5 encoder says about its blocks (`blocks.Stacked`); every encoder of `build_t5` is one."""

    BLOCK_PREFIX: ClassVar[str] = "encoder.block."

    def blocks(self) -> BlockStack:
        encoder = cast(nn.Module, getattr(self, "encoder"))  # noqa: B009  # transformers' T5EncoderModel has it
        return BlockStack(encoder, "block", lambda block: (block,), exit=encoder.get_submodule("final_layer_norm"))


@cache
def _stacked_t5() -> type[T5EncoderModel]:
    """The class of the encoder, made when transformers is first needed."""
    from transformers import T5EncoderModel

    class StackedT5EncoderModel(StackedT5, T5EncoderModel):
        pass

    return StackedT5EncoderModel


def build_t5(config: TextEncoderConfig) -> T5EncoderModel:
    """A T5 v1.1 encoder on the meta device: gated tanh-GELU, no dropout, one embedding under both of its key names.

    transformers 4 shares the embedding module and transformers 5 only ties the parameters, which loading by assignment
    undoes; here it is one module in either case.
    """
    from transformers import T5Config

    t5_config = T5Config(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.relative_attention_num_buckets,
        relative_attention_max_distance=config.relative_attention_max_distance,
        layer_norm_epsilon=config.layer_norm_epsilon,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
    )
    with torch.device("meta"):
        model = _stacked_t5()(t5_config)
        use_own_layers(model)
    model.set_input_embeddings(model.get_input_embeddings())
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A loaded text encoder: model, tokenizer and architecture. notes: sentences that the user should see."""

    model: T5EncoderModel
    tokenizer: Tokenizer
    config: TextEncoderConfig
    notes: tuple[str, ...] = ()

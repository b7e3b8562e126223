"""The text encoder: T5 v1.1 (arXiv 1910.10683, encoder only) through transformers, and its tokenizer.

LTX-Video reads the last hidden state after `final_layer_norm`, of 256 tokens at most, padding masked
(Lightricks/LTX-Video, pipeline_ltx_video.py `encode_prompt`). Sentencepiece or tokenizers make the tokens directly,
because transformers' own T5 tokenizer changes between releases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import nn

from ..config import TextEncoderConfig
from ..errors import CheckpointError
from .blocks import BlockStack

if TYPE_CHECKING:
    from transformers import T5EncoderModel

MAX_TOKENS = 256  # with the end-of-sequence token; Lightricks/LTX-Video since 2025-03 (128 before)
EOS_TOKEN = "</s>"


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
    model.set_input_embeddings(model.get_input_embeddings())
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt in the form that the encoder reads.

    ids: token ids, the end-of-sequence token last, no padding; 1 to MAX_TOKENS of them.
    total: how many tokens the whole prompt has, end of sequence included.
    cut_off: the end of the prompt that did not fit, in words; empty if all of it did.
    """

    ids: tuple[int, ...]
    total: int
    cut_off: str


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """T5's unigram tokenizer.

    path: its file.
    vocab_size: number of pieces in the file.
    eos_id: id of the end-of-sequence token, -1 if the file has none.
    """

    path: Path
    vocab_size: int
    eos_id: int
    to_ids: Callable[[str], Sequence[int]]
    to_text: Callable[[Sequence[int]], str]

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads `spiece.model` (sentencepiece) or `tokenizer.json` (tokenizers), distinguished by content.

        Raises:
            CheckpointError: the file is neither, or has no end-of-sequence token.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"got a tokenizer file {path} that cannot be read ({error.strerror}); "
                "expected spiece.model or tokenizer.json; check the path"
            ) from error
        tokenizer = _from_json(path, data) if data.lstrip()[:1] == b"{" else _from_sentencepiece(path, data)
        if tokenizer.eos_id < 0:
            raise CheckpointError(
                f"got {path}, which has no {EOS_TOKEN} token; expected the tokenizer of T5 v1.1; "
                "use spiece.model or tokenizer.json of google/t5-v1_1-xxl"
            )
        return tokenizer

    def encode(self, prompt: str) -> TokenizedPrompt:
        """Tokens of a prompt, without surrounding space; the part beyond MAX_TOKENS is cut off and reported."""
        ids = list(self.to_ids(prompt.strip()))
        kept = ids[: MAX_TOKENS - 1]
        cut = ids[MAX_TOKENS - 1 :]
        return TokenizedPrompt((*kept, self.eos_id), len(ids) + 1, self.to_text(cut).strip() if cut else "")


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A loaded text encoder: model, tokenizer and architecture. notes: sentences that the user should see."""

    model: T5EncoderModel
    tokenizer: Tokenizer
    config: TextEncoderConfig
    notes: tuple[str, ...] = ()


def _from_sentencepiece(path: Path, data: bytes) -> Tokenizer:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(data) and processor.LoadFromSerializedProto(data)
    except RuntimeError:
        loaded = False
    if not loaded:
        raise CheckpointError(
            f"got {path}, which is no sentencepiece model; expected spiece.model or tokenizer.json of T5 v1.1; "
            "download it again (a file of a few hundred bytes is a Git LFS pointer)"
        )
    return Tokenizer(path, processor.get_piece_size(), processor.eos_id(), processor.encode, processor.decode)


def _from_json(path: Path, data: bytes) -> Tokenizer:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception, which an interrupt is not
        raise CheckpointError(
            f"got {path}, which the tokenizers library cannot read ({error}); expected tokenizer.json of T5 v1.1; "
            "download it again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    eos_id = tokenizer.token_to_id(EOS_TOKEN)
    return Tokenizer(
        path,
        tokenizer.get_vocab_size(),
        -1 if eos_id is None else eos_id,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda ids: tokenizer.decode(list(ids)),
    )

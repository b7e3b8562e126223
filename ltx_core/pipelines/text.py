"""From prompts to the embeddings that the transformer reads."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..budget import stages
from ..errors import UnsupportedError
from ..host import Host
from ..models.text_encoder import T5EncoderModel, TextEncoder
from ..models.tokenizer import MAX_TOKENS, TokenizedPrompt
from ..progress import ProgressEvent, doubt
from .prompt_cache import PromptCache
from .sample import EncodedPrompt

STAGE = "encode text"
_SHOWN = 2000  # characters of each end of a text in a message


@torch.no_grad()
def encode_prompts(
    encoder: TextEncoder,
    prompts: Sequence[str],
    *,
    host: Host,
    kept: PromptCache | None = None,
) -> tuple[EncodedPrompt, ...]:
    """Each prompt encoded by T5 (last hidden state after `final_layer_norm`); the encoder is placed once for all.

    kept: of this encoder: what is in it is not encoded again, and where everything is, the encoder is not even loaded.

    A prompt is encoded without padding, which is exact: T5's positions are relative and padding would be masked. The
    host says what of a prompt the encoder does not see: words beyond 256 tokens, characters that T5 does not know, and
    control characters.

    Returns:
        per prompt embeddings (1, l, d_model) in the dtype in which the encoder computes, and mask (1, l) int64 of ones,
        both on the CPU; 1 <= l <= 256; an empty prompt is a single end-of-sequence token.

    Raises:
        UnsupportedError: the encoder returned numbers that are not finite.
    """
    tokenized = [encoder.tokenizer.encode(prompt) for prompt in prompts]
    for tokens in tokenized:
        for sentence in _unseen(tokens):
            doubt(sentence, host.say)
    distinct = list(dict.fromkeys(tokens.ids for tokens in tokenized))
    at_hand = {} if kept is None else {ids: kept.get(ids) for ids in distinct}
    encoded = {ids: embeddings for ids, embeddings in at_hand.items() if embeddings is not None}
    model = None if len(encoded) == len(distinct) else encoder.loaded(host.progress)
    host.progress(ProgressEvent(STAGE, 0, len(distinct)))
    if encoded:
        host.progress(ProgressEvent(STAGE, len(encoded), len(distinct)))
    if model is not None:
        work = stages.encoding_text(model, encoder.config, kernels=stages.dtypes_of(host))
        with host.place(model, memory_required=work) as device:
            for ids in distinct:
                if ids in encoded:
                    continue
                encoded[ids] = _encode(model, ids, device)
                if kept is not None:
                    kept.put(ids, encoded[ids])
                host.progress(ProgressEvent(STAGE, len(encoded), len(distinct)))
    embeddings = (encoded[tokens.ids] for tokens in tokenized)
    return tuple(EncodedPrompt(each, torch.ones(each.shape[:2], dtype=torch.int64)) for each in embeddings)


def _unseen(tokens: TokenizedPrompt) -> Iterator[str]:
    """What of a prompt the encoder does not see, as sentences."""
    if tokens.dropped:
        yield (
            "The prompt has characters that are no text and were left out: "
            f"{', '.join(map(_printable, tokens.dropped))}"
        )
    if tokens.unknown_words:
        words = ", ".join(f'"{word}"' for word in tokens.unknown_words)
        characters = " ".join(map(_printable, tokens.unknown))
        yield (
            f"The text encoder does not know these characters of the prompt: {characters} (in {_shortened(words)}); "
            "it reads each run of them as one unknown token, so say it in English words"
        )
    if tokens.cut_off:
        yield (
            f"The prompt has {tokens.total} tokens and the text encoder takes {MAX_TOKENS}; "
            f'it does not see the end: "{_shortened(tokens.cut_off)}"'
        )


def _shortened(text: str) -> str:
    """A text that a message can hold: some people paste a book."""
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} [...] {text[-_SHOWN:]}"


def _printable(character: str) -> str:
    """The character where it can be seen by itself, else its code point."""
    alone = character.isprintable() and not unicodedata.category(character).startswith("M")
    return character if alone else f"U+{ord(character):04X}"


def _encode(model: T5EncoderModel, tokens: Sequence[int], device: torch.device) -> Tensor:
    """(1, l, d_model), on the CPU."""
    ids = torch.tensor([tokens])
    output = model(input_ids=ids.to(device), attention_mask=torch.ones_like(ids).to(device))
    embeddings = output.last_hidden_state.cpu()
    if not bool(embeddings.isfinite().all()):
        raise UnsupportedError(
            "got numbers that are not finite from the text encoder; expected embeddings; float16 overflows in T5: "
            "load it as bfloat16 or float32"
        )
    return embeddings

"""From prompts to the embeddings that the transformer reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..budget import stages
from ..errors import UnsupportedError
from ..host import Host
from ..models.text_encoder import MAX_TOKENS, TextEncoder, TokenizedPrompt
from ..progress import ProgressEvent
from .sample import EncodedPrompt

STAGE = "encode text"


@torch.no_grad()
def encode_prompts(
    encoder: TextEncoder,
    prompts: Sequence[str],
    *,
    host: Host,
) -> tuple[EncodedPrompt, ...]:
    """Each prompt encoded by T5 (last hidden state after `final_layer_norm`); the encoder is placed once for all.

    A prompt is encoded without padding, which is exact: T5's positions are relative and padding would be masked. It is
    cut off after 256 tokens, and the host says which words are lost.

    Returns:
        per prompt embeddings (1, l, d_model) in the encoder's dtype and mask (1, l) int64 of ones, both on the CPU;
        1 <= l <= 256; an empty prompt is a single end-of-sequence token.

    Raises:
        UnsupportedError: the encoder returned numbers that are not finite.
    """
    tokenized = [encoder.tokenizer.encode(prompt) for prompt in prompts]
    for tokens in tokenized:
        if tokens.cut_off:
            host.say(
                f"The prompt has {tokens.total} tokens and the text encoder takes {MAX_TOKENS}; "
                f'it does not see the end: "{tokens.cut_off}"'
            )
    work = stages.encoding_text(encoder.model, encoder.config)
    host.progress(ProgressEvent(STAGE, 0, len(tokenized)))
    encoded: list[EncodedPrompt] = []
    with host.place(encoder.model, memory_required=work) as device:
        for tokens in tokenized:
            encoded.append(_encode(encoder, tokens, device))
            host.progress(ProgressEvent(STAGE, len(encoded), len(tokenized)))
    return tuple(encoded)


def _encode(encoder: TextEncoder, tokens: TokenizedPrompt, device: torch.device) -> EncodedPrompt:
    ids = torch.tensor([tokens.ids])
    mask = torch.ones_like(ids)
    output = encoder.model(input_ids=ids.to(device), attention_mask=mask.to(device))
    embeddings = output.last_hidden_state.cpu()
    if not bool(embeddings.isfinite().all()):
        raise UnsupportedError(
            "got numbers that are not finite from the text encoder; expected embeddings; float16 overflows in T5: "
            "load it as bfloat16 or float32"
        )
    return EncodedPrompt(embeddings, mask)

"""From prompts to what the transformer reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..budget.work import text_bytes, unpacking
from ..errors import UnsupportedError
from ..models.text_encoder import MAX_TOKENS, TextEncoder, TokenizedPrompt
from ..progress import Notes, Progress, ProgressEvent, log_note, silent
from .sample import EncodedPrompt

if TYPE_CHECKING:
    from ..placing.placement import Placement

STAGE = "encode text"


@torch.no_grad()
def encode_prompts(
    encoder: TextEncoder,
    prompts: Sequence[str],
    *,
    placement: Placement,
    progress: Progress = silent,
    notes: Notes = log_note,
) -> tuple[EncodedPrompt, ...]:
    """Each prompt as T5 sees it (last hidden state after `final_layer_norm`), the encoder placed once for all of them.

    A prompt is encoded without padding, which is exact: T5's positions are relative and padding would be masked. Beyond
    256 tokens it is cut off, and `notes` says which words were.

    Returns:
        per prompt embeddings (1, l, d_model) in the encoder's dtype and mask (1, l) int64 of ones, both on the CPU;
        1 <= l <= 256, the empty prompt being its end-of-sequence token.

    Raises:
        UnsupportedError: the encoder returned numbers that are not finite.
    """
    tokenized = [encoder.tokenizer.encode(prompt) for prompt in prompts]
    for tokens in tokenized:
        if tokens.cut_off:
            notes(
                f"The prompt has {tokens.total} tokens and the text encoder takes {MAX_TOKENS}; "
                f'it does not see the end: "{tokens.cut_off}"'
            )
    dtype = next(encoder.model.parameters()).dtype
    work = text_bytes(encoder.config, MAX_TOKENS, unpacking(encoder.model, dtype))
    progress(ProgressEvent(STAGE, 0, len(tokenized)))
    encoded: list[EncodedPrompt] = []
    with placement(encoder.model, memory_required=work) as device:
        for tokens in tokenized:
            encoded.append(_encode(encoder, tokens, device))
            progress(ProgressEvent(STAGE, len(encoded), len(tokenized)))
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

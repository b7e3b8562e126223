"""A small T5-like sentencepiece model, trained from the text below in well under a second."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..files import whole

_TEXT = """
A red fox runs through deep snow at dawn while the camera follows slowly from the left.
A woman with long brown hair smiles at another woman with short blonde hair in a quiet kitchen.
The video shows a waterfall between green cliffs; mist rises, and the light is soft and warm.
Two handwritten digits, 3 and 7, move across a black background and bounce off the edges.
The digits 0 1 2 3 4 5 6 7 8 9 move up, down, left and right: fast, slowly, or not at all.
A drone flies over a coastal city at night; windows glow yellow, cars pass, waves break on the shore.
Close-up of an old clockwork: brass wheels turn, dust floats, the focus shifts to a tiny spring.
An astronaut walks on a red planet, turns around and looks into the lens. Realistic, 35 mm film.
A cat jumps onto a wooden table, knocks over a glass of water and looks surprised.
Fireworks explode above a river; their reflections tremble. Wide shot, high quality, 4k, sharp.
worst quality, inconsistent motion, blurry, jittery, distorted
low resolution, watermark, text, logo, still image, oversaturated, noise
Zoom in on a quartz crystal; its facets split the sunlight into violet, blue, green, yellow and orange.
"Why not?" asked the girl. (Nobody answered.) It's 6:45 -- the train to Oxford left just now!
The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.
THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. Sphinx of black quartz, judge my vow.
Symbols: 50% & 100$ #1 @home a+b=c <tag> [list] {set} back\\slash under_score ~tilde ^hat `tick` a/b * | ;
"""


def train_tokenizer(path: Path, vocab_size: int = 400, sentences: Sequence[str] | None = None) -> int:
    """Write a unigram model with T5's special tokens (padding 0, end of sequence 1, unknown 2) to `path`.

    sentences: to learn from; None: the text above. The same bytes every time.
    Returns the number of pieces, at most `vocab_size`.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences or _TEXT.strip().splitlines()),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    with whole(path) as part:
        part.write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())

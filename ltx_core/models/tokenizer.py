"""T5's tokenizer: from a prompt to token ids, and what of the prompt the encoder cannot read.

Sentencepiece or tokenizers make the tokens directly, because transformers' own T5 tokenizer changes between releases.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..errors import CheckpointError, foreign_errors

MAX_TOKENS = 256  # with the end-of-sequence token; Lightricks/LTX-Video since 2025-03 (128 before)
PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN = "<pad>", "</s>", "<unk>"
SENTINELS = 100  # T5 keeps a hundred more ids than its tokenizer has pieces, for <extra_id_99> to <extra_id_0>

_LARGEST_FILE = 64 * 2**20  # bytes; a T5's tokenizer has 1 to 20 MB
_LONG_WORD = 40  # characters
_PROBES = ("a", "\U0010fffd", "é 一")  # a letter, a character that nobody has, a text to normalise


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt in the form that the encoder reads.

    ids: token ids, the end-of-sequence token last, no padding; 1 to MAX_TOKENS of them.
    total: how many tokens the whole prompt has, end of sequence included.
    cut_off: the end of the prompt that did not fit, in whole words; empty if all of it did.
    unknown: the characters that the tokenizer does not know, each once, in the order of the prompt.
    unknown_words: the words of the prompt that have tokens of unknown characters, each once.
    dropped: control characters and lone surrogates that were left out, each once.
    """

    ids: tuple[int, ...]
    total: int
    cut_off: str
    unknown: tuple[str, ...] = ()
    unknown_words: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """T5's unigram tokenizer.

    path: its file.
    vocab_size: number of pieces in the file.
    eos_id: id of the end-of-sequence token, -1 if the file has none. unk_id: id of what it does not know, likewise.
    marks: the tokens with a meaning of their own (`</s>`, `<extra_id_0>`, ...) and their ids.
    to_ids: tokens of a text without such marks.
    """

    path: Path
    vocab_size: int
    eos_id: int
    unk_id: int
    marks: Mapping[str, int]
    to_ids: Callable[[str], Sequence[int]]

    @classmethod
    def from_file(cls, path: Path, embeddings: int | None = None) -> Tokenizer:
        """Reads `spiece.model` (sentencepiece) or `tokenizer.json` (tokenizers), distinguished by content.

        embeddings: how many ids the encoder has; marks beyond them are ordinary text. None: as many as T5 keeps.

        Raises:
            CheckpointError: the file is neither, is damaged, or has no end-of-sequence token.
        """
        data = _read(path)
        tokenizer = _from_json(path, data) if data.lstrip()[:1] == b"{" else _from_sentencepiece(path, data)
        if tokenizer.eos_id < 0 or tokenizer.unk_id < 0:
            missing = EOS_TOKEN if tokenizer.eos_id < 0 else UNKNOWN_TOKEN
            raise CheckpointError(
                f"got {path}, which has no {missing} token; expected the tokenizer of T5 v1.1; "
                "use spiece.model or tokenizer.json of google/t5-v1_1-xxl"
            )
        for probe in _PROBES:
            tokenizer.to_ids(probe)
        within = {mark: number for mark, number in tokenizer.marks.items() if number < (embeddings or number + 1)}
        return replace(tokenizer, marks=within)

    def encode(self, prompt: str) -> TokenizedPrompt:
        """Tokens of a prompt, without surrounding space; the part beyond MAX_TOKENS is cut off and reported.

        Control characters and lone surrogates are left out and reported. Marks such as `</s>` in the text are read as
        marks, as transformers' T5Tokenizer does, whichever file the tokenizer is from.
        """
        text, dropped = _readable(prompt)
        ids = self._ids(text)
        lacking = self.unk_id in ids
        words = tuple(word for word in dict.fromkeys(text.split()) if self._lacks(word)) if lacking else ()
        letters = (c for word in words for part in self._parts(word)[::2] for c in unicodedata.normalize("NFC", part))
        unknown = (letter for letter in dict.fromkeys(letters) if self._lacks(letter))
        cut_off = text[self._fitting(text) :] if len(ids) >= MAX_TOKENS else ""
        kept = (*ids[: MAX_TOKENS - 1], self.eos_id)
        return TokenizedPrompt(kept, len(ids) + 1, cut_off, tuple(unknown), words, dropped)

    def _parts(self, text: str) -> list[str]:
        """Text and marks in turn, text first and last."""
        return re.split(f"({'|'.join(map(re.escape, self.marks))})", text) if self.marks else [text]

    def _ids(self, text: str) -> list[int]:
        numbers: list[int] = []
        for place, part in enumerate(self._parts(text)):
            numbers += [self.marks[part]] if place % 2 else self.to_ids(part)
        return numbers

    def _lacks(self, text: str) -> bool:
        """Whether it has characters that the tokenizer does not know."""
        return any(self.unk_id in self.to_ids(part) for part in self._parts(text)[::2])

    def _fitting(self, text: str) -> int:
        """Where the first word begins that does not fit, in a text that does not fit. No token reaches across a space.

        A long word is cut inside: scripts without spaces write whole sentences as one.
        """
        left, start = MAX_TOKENS - 1, 0
        for word in re.finditer(r"\S+", text):
            start, count = word.start(), len(self._ids(word[0]))
            if count > left:
                break
            left -= count
        else:
            return start
        if len(word[0]) <= _LONG_WORD:
            return start
        return start + bisect_right(range(len(word[0])), left, key=lambda end: len(self._ids(word[0][:end]))) - 1


def _readable(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The prompt without what is no text, and what that was. Two halves of a surrogate pair become their character."""
    whole = prompt.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    spaced = re.sub(r"[\t\n\f\r\x85]", " ", whole)  # tabs, ends of lines and of pages separate words
    dropped = dict.fromkeys(character for character in spaced if unicodedata.category(character) in ("Cc", "Cs"))
    kept = "".join(character for character in spaced if character not in dropped) if dropped else spaced
    return kept.strip(), tuple(dropped)


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _LARGEST_FILE else b""
    except OSError as error:
        raise CheckpointError(
            f"got a tokenizer file {path} that cannot be read ({error.strerror}); "
            "expected spiece.model or tokenizer.json; check the path"
        ) from error
    if size > _LARGEST_FILE:
        raise CheckpointError(
            f"got the tokenizer {path} of {size / 1e6:,.0f} MB; expected spiece.model (0.8 MB) or tokenizer.json "
            "(2 MB) of T5 v1.1; check the path"
        )
    return data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write


def _marks(special: Mapping[str, int | None], pieces: int, lookup: Callable[[str], int | None]) -> dict[str, int]:
    """The marks of T5: those of the file, and its sentinels, which count down from the last id."""
    known = {mark: number for mark, number in special.items() if number is not None and number >= 0}
    in_file = lookup("<extra_id_0>") is not None
    for sentinel in range(SENTINELS):
        mark = f"<extra_id_{sentinel}>"
        number = lookup(mark) if in_file else pieces + SENTINELS - 1 - sentinel
        if number is not None:
            known[mark] = number
    return known


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
    pieces, unknown = processor.get_piece_size(), processor.unk_id()
    special = {PAD_TOKEN: processor.pad_id(), EOS_TOKEN: processor.eos_id(), UNKNOWN_TOKEN: unknown}

    def lookup(mark: str) -> int | None:
        number = processor.piece_to_id(mark)
        return None if number == unknown else number

    return Tokenizer(path, pieces, processor.eos_id(), unknown, _marks(special, pieces, lookup), processor.encode)


def _from_json(path: Path, data: bytes) -> Tokenizer:
    import tokenizers

    with _refusing(path):
        content = json.loads(data)
        for charsmap in _charsmaps(content.get("normalizer")):
            _check_charsmap(path, charsmap)
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        kind, pieces = type(tokenizer.model).__name__, tokenizer.get_vocab_size()
    if kind != "Unigram":
        raise CheckpointError(
            f"got {path}, a tokenizer of the kind {kind}; expected the Unigram tokenizer of T5 v1.1; "
            "use spiece.model or tokenizer.json of google/t5-v1_1-xxl"
        )
    special = {mark: tokenizer.token_to_id(mark) for mark in (PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN)}
    eos, unknown = special[EOS_TOKEN], special[UNKNOWN_TOKEN]

    def to_ids(text: str) -> list[int]:
        with _refusing(path):
            return tokenizer.encode(text, add_special_tokens=False).ids

    marks = _marks(special, pieces, tokenizer.token_to_id)
    return Tokenizer(path, pieces, -1 if eos is None else eos, -1 if unknown is None else unknown, marks, to_ids)


def _refusing(path: Path) -> AbstractContextManager[None]:
    """What the tokenizers library raises, as a CheckpointError about the file."""
    return foreign_errors(
        lambda error: CheckpointError(
            f"got {path}, which the tokenizers library cannot read ({error}); expected tokenizer.json of T5 v1.1; "
            "download it again"
        )
    )


def _charsmaps(normalizer: object) -> Iterator[object]:
    """The character maps of a normalizer of tokenizer.json, also of one in a sequence."""
    if isinstance(normalizer, list):
        for one in cast("list[object]", normalizer):
            yield from _charsmaps(one)
    if isinstance(normalizer, dict):
        entry = cast("dict[str, Any]", normalizer)
        if entry.get("type") == "Precompiled":
            yield entry.get("precompiled_charsmap")
        yield from _charsmaps(entry.get("normalizers"))


def _check_charsmap(path: Path, charsmap: object) -> None:
    """The size that a map states must lie inside it: the library would reserve as much memory as it says."""
    try:
        data = base64.b64decode(charsmap if isinstance(charsmap, str) else "", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    size = struct.unpack("<I", data[:4])[0] if len(data) > 4 else 0
    if not size or size % 4 or 4 + size > len(data):
        raise CheckpointError(
            f"got {path}, whose normalizer has a damaged character map; expected tokenizer.json of T5 v1.1; "
            "download it again"
        )

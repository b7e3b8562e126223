"""T5's own tokenizer, which comes with the pack, against transformers; and what is said of the rest of a prompt."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import struct
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers

from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.models.tokenizer import MAX_TOKENS, Tokenizer
from ltxkit.ltx_core.weights.bundled import T5_TOKENIZER
from ltxkit.ltx_core.weights.text_encoder import T5_VOCABULARY

PLAIN = (
    "A red fox runs through deep snow at dawn; the camera follows slowly.",
    "naïve café, Zürich — Łódź… “quotes” ‘and’ ½ ﬁne ① ㎏",
    "  two\nlines\tand   many   spaces\r\n  ",
    "Ein Mädchen läuft über die Straße. Une forêt très sombre. O pisică aleargă.",
    "50% & 100$ #1 @home a+b=c [list] under_score 'tick' a/b * 6:45 -- 35 mm, 4k!!!",
    "https://example.org/a?b=c&d=e%20f supercalifragilisticexpialidocious",
    "",
    "   ",
)
UNKNOWN = (
    "一只猫在草地上奔跑",
    "日本, two 猫 in a {box} ~ <tag> | back\\slash ^",
    "😀 ❤️ 👍🏽 👨‍👩‍👧 family 🇩🇪",
    "Кошка бежит по траве. Γάτα στο γρασίδι.",
    "שלום עולם, a dog",
    "مرحبا بالعالم 123",
    "हिन्दी में एक बिल्ली ไทยแมววิ่ง 한국어 고양이",
    "zero\u200bwidth \u200ejoin\u200der soft\u00adhyphen \ufeffmark \u202eback",
    "private \ue000 use \ufffd \U0010fffd",
)
MARKED = (
    "a </s> b",
    "a</s>b",
    "</s></s> x",
    "<pad>",
    "a <pad> b<unk>c",
    "<unk> 猫 <unk>",
    "  <extra_id_0>  ",
    "a<extra_id_0>,b <extra_id_99>",
    "<extra_id_100> <EXTRA_ID_0> < /s> <s>",
)
ALL = (*PLAIN, *UNKNOWN, *MARKED)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' tokenizer, made from the same file."""
    folder = tmp_path_factory.mktemp("t5")
    (folder / "spiece.model").write_bytes(T5_TOKENIZER.read_bytes())
    return transformers.T5TokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """From both files: the sentencepiece model, and the tokenizer.json that transformers writes."""
    folder = tmp_path_factory.mktemp("json")
    theirs.save_pretrained(folder)
    return [Tokenizer.from_file(path, T5_VOCABULARY) for path in (T5_TOKENIZER, folder / "tokenizer.json")]


@pytest.fixture(scope="module")
def t5(ours: list[Tokenizer]) -> Tokenizer:
    return ours[0]


def test_the_file_is_googles() -> None:
    data = T5_TOKENIZER.read_bytes()
    assert len(data) == 791_656
    assert hashlib.sha256(data).hexdigest() == "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
    assert "Apache License" in (T5_TOKENIZER.parent / "LICENSE").read_text()


def check_ids(ours: list[Tokenizer], theirs: Any, prompts: Sequence[str]) -> None:
    expected = theirs([prompt.strip() for prompt in prompts], max_length=MAX_TOKENS, truncation=True).input_ids
    for tokenizer in ours:
        wrong = [p for p, ids in zip(prompts, expected, strict=True) if list(tokenizer.encode(p).ids) != ids]
        assert wrong == []


def test_ids_equal_transformers_in_both_formats(ours: list[Tokenizer], theirs: Any) -> None:
    check_ids(ours, theirs, ALL)


@pytest.mark.slow
def test_ids_of_any_mixture_equal_transformers_in_both_formats(ours: list[Tokenizer], theirs: Any) -> None:
    """Pairs of texts with and without a space between them, and words of all in any order."""
    draw = random.Random(0)
    words = [word for text in ALL for word in text.split()]
    mixed = [" ".join(draw.sample(words, draw.randint(1, 30))) for _ in range(400)]
    joined = [first + between + second for first, second in itertools.product(ALL, ALL) for between in ("", " ")]
    long = [" ".join(draw.choices(words, k=400)) for _ in range(20)]
    prompts = [*mixed, *joined, *long]
    assert len(prompts) > 1500
    check_ids(ours, theirs, prompts)


def test_marks_are_marks_and_nothing_unknown(ours: list[Tokenizer]) -> None:
    for tokenizer in ours:
        assert tokenizer.encode("</s> <pad> <unk> <extra_id_0> <extra_id_99>").ids == (1, 0, 2, 32099, 32000, 1)
        assert tokenizer.encode("a <unk> b").unknown == ()
        assert tokenizer.encode("<unk>猫").unknown == ("猫",)


def test_marks_beyond_the_embeddings_are_text() -> None:
    narrow = Tokenizer.from_file(T5_TOKENIZER, 32_000)
    assert max(narrow.encode("a <extra_id_0>").ids) < 32_000
    assert narrow.encode("a </s>").ids == (3, 9, 1, 1)


@pytest.mark.parametrize(
    ("prompt", "unknown", "words"),
    [
        ("A fox.", "", ()),
        ("", "", ()),
        ("café, Straße, ﬁne ① …", "", ()),
        ("naïve 1/2 ½", "ï½", ("naïve", "½")),
        ("一只猫, a cat, 一只猫 猫", "一只猫", ("一只猫,", "一只猫", "猫")),
        ("snow 😀 and 😀!", "😀", ("😀", "😀!")),
        ("a {box} of <tags>", "{}<", ("{box}", "<tags>")),
        ("שלום", "שלום", ("שלום",)),
    ],
)
def test_unknown_characters_are_named_once_with_their_words(
    ours: list[Tokenizer], prompt: str, unknown: str, words: tuple[str, ...]
) -> None:
    for tokenizer in ours:
        tokens = tokenizer.encode(prompt)
        assert (tokens.unknown, tokens.unknown_words) == (tuple(unknown), words)


def test_every_character_that_t5_lacks_is_named(ours: list[Tokenizer]) -> None:
    for text in UNKNOWN:
        lacking = {c for c in unicodedata.normalize("NFC", text) if 2 in ours[0].to_ids(c)}
        assert set(ours[0].encode(text).unknown) == lacking
        assert lacking


def test_control_characters_and_lone_surrogates_are_dropped(ours: list[Tokenizer]) -> None:
    controls = [chr(code) for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\t\n\f\r\x85"]
    for tokenizer in ours:
        clean = tokenizer.encode("ab")
        for character in (*controls, "\ud800", "\udfff", "\udcff"):
            tokens = tokenizer.encode(f"a{character}b")
            assert tokens.ids == clean.ids
            assert (tokens.dropped, tokens.unknown) == ((character,), ())
        for space in "\t\n\f\r\x85":
            assert tokenizer.encode(f"a{space}b") == tokenizer.encode("a b")
        assert tokenizer.encode("\x00\ud800").ids == (1,)
        assert tokenizer.encode("\ud83d\ude00 fox") == tokenizer.encode("😀 fox")  # a pair is one character


def test_directions_of_writing_are_left_alone(ours: list[Tokenizer], theirs: Any) -> None:
    for prompt in ("שלום fox עולם", "\u202bfox\u202c", "\u200f1 2\u200e", "\u2067a\u2069"):
        for tokenizer in ours:
            assert list(tokenizer.encode(prompt).ids) == theirs(prompt).input_ids
            assert tokenizer.encode(prompt).dropped == ()


@pytest.mark.parametrize("word", ["fox", "extraordinarily", "猫,", "</s>", "a</s>b"])
def test_the_end_is_cut_off_in_whole_words(ours: list[Tokenizer], word: str) -> None:
    for tokenizer in ours:
        one = len(tokenizer.encode(word).ids) - 1
        fitting = (MAX_TOKENS - 1) // one
        prompt = " ".join([word] * fitting)
        assert tokenizer.encode(prompt).cut_off == ""
        assert tokenizer.encode(f"{prompt} {word} {word}\n end").cut_off == f"{word} {word}  end"


@pytest.mark.parametrize("sentence", ["猫,", "x", "https://example.org/"])
def test_of_a_word_that_is_longer_than_a_prompt_the_end_is_cut_off(ours: list[Tokenizer], sentence: str) -> None:
    prompt = sentence * 600
    for tokenizer in ours:
        tokens = tokenizer.encode(prompt)
        assert tokens.total > MAX_TOKENS
        assert len(tokens.ids) == MAX_TOKENS
        kept = prompt.removesuffix(tokens.cut_off)
        assert 0 < len(kept) < len(prompt)
        assert len(tokenizer.encode(kept).ids) <= MAX_TOKENS < tokenizer.encode(kept + sentence * 3).total


# --------------------------------------------------------------------------------------------------- damaged files


def unigram(**changes: Any) -> dict[str, Any]:
    """A small tokenizer.json of T5's kind."""
    model = {"type": "Unigram", "unk_id": 2, "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["a", -1.0]]}
    return {"version": "1.0", "added_tokens": [], "model": model} | changes


def charsmap(data: bytes) -> dict[str, Any]:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}}


DAMAGED = {
    "three bytes": charsmap(b"abc"),
    "no map": charsmap(b""),
    "null map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": None}},
    "no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
    "size beyond the file": charsmap(struct.pack("<I", 2**32 - 4) + b"\0" * 64),
    "odd size": charsmap(struct.pack("<I", 7) + b"\0" * 64),
    "links out of the map": charsmap(struct.pack("<I", 8) + b"\xff" * 64),
    "in a sequence": {"normalizer": {"type": "Sequence", "normalizers": [charsmap(b"abc")["normalizer"]]}},
    "no unknown id": {"model": unigram()["model"] | {"unk_id": None}},
    "unknown id beyond the pieces": {"model": unigram()["model"] | {"unk_id": 9}},
    "no pieces": {"model": {"type": "Unigram", "unk_id": 0, "vocab": []}},
    "no end": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", 0.0]]}},
    "no unknown piece": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["</s>", 0.0], ["a", 0.0]]}},
    "another kind": {"model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"</s>": 1, "<unk>": 2}}},
    "a list for the model": {"model": []},
    "text for the normalizer": {"normalizer": "NFKC"},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_tokenizer_json_is_refused_in_words(tmp_path: Path, damage: str) -> None:
    """Some of them are a panic of the library's Rust code, which `except Exception` does not catch."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(unigram()))
    assert Tokenizer.from_file(path).encode("a").ids == (3, 1)
    path.write_text(json.dumps(unigram(**DAMAGED[damage])))
    with pytest.raises(CheckpointError, match=r"got .*tokenizer\.json.*; expected .*T5 v1\.1"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b"{\xff}", b'{"model": NaN}', b"null", b"\xef\xbb\xbf{}"])
def test_what_is_no_tokenizer_json_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path, ours: list[Tokenizer]) -> None:
    marked = tmp_path / "tokenizer.json"
    marked.write_bytes(b"\xef\xbb\xbf" + ours[1].path.read_bytes())
    assert Tokenizer.from_file(marked).encode("A fox.") == ours[1].encode("A fox.")


def test_a_file_of_weights_is_not_read_as_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "t5xxl.safetensors"
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(CheckpointError, match=r"got the tokenizer .*8,590 MB"):
        Tokenizer.from_file(path)


def test_an_interrupt_stays_an_interrupt(monkeypatch: pytest.MonkeyPatch, ours: list[Tokenizer]) -> None:
    class Stop(BaseException):
        """The exception with which a host stops a run."""

    def stop(_: bytes) -> None:
        raise Stop

    monkeypatch.setattr("tokenizers.Tokenizer.from_buffer", stop, raising=True)
    with pytest.raises(Stop):
        Tokenizer.from_file(ours[1].path)

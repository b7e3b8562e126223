"""The text encoder against T5 in transformers, from the same files."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file

from ltxkit.ltx_core.errors import CheckpointError, UnsupportedError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.tokenizer import MAX_TOKENS, Tokenizer
from ltxkit.ltx_core.pipelines.text import encode_prompts
from ltxkit.ltx_core.weights.bundled import T5_TOKENIZER
from ltxkit.ltx_core.weights.text_encoder import T5_VOCABULARY, find_tokenizer, load_text_encoder

DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"  # of from_pretrained

PROMPTS = [
    "A red fox runs through deep snow.",
    "  naïve café 日本, two\nlines — and   many   spaces  ",
    "",
    "the quick brown fox " * 40,
]
LONG = " ".join(f"word{i}" for i in range(400))


@contextmanager
def place(module: torch.nn.Module, *, memory_required: int = 0) -> Iterator[torch.device]:
    assert memory_required > 0
    yield torch.device("cpu")


CPU = Host(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete T5 v1.1 folder as on the hub, tiny and random, written by transformers."""
    path = tmp_path_factory.mktemp("t5")
    text = [*PROMPTS, "a quick brown fox jumps over the lazy dog", "word 0 1 2 3 4 5 6 7 8 9"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 3),
        model_prefix=str(path / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (path / "spiece.vocab").unlink()
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=256, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu"
    )
    model = transformers.T5EncoderModel(config).eval()
    for parameter in model.parameters():  # T5's own initialisation leaves attention almost flat
        parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(path)
    return path


def reference(folder: Path, prompt: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The official encoding: padded to 256 with a mask. Returns the real tokens only, (l, c)."""
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0)
    model = transformers.T5EncoderModel.from_pretrained(folder, **{DTYPE: dtype}).eval()
    inputs = tokenizer(prompt.strip(), padding="max_length", max_length=256, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)[0]
    return hidden[0][inputs.attention_mask[0].bool()]


def single_file(folder: Path, path: Path, *names: str, dtype: torch.dtype = torch.float32) -> Path:
    """A single safetensors file, as ComfyUI users have it, with the embedding under the given names."""
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop("shared.weight")
    tensors |= {name: embedding.clone() for name in names}
    save_file({key: value.to(dtype).contiguous() for key, value in tensors.items()}, path)
    return path


# ---------------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "unicode", "empty", "long"])
def test_trimmed_encoding_equals_transformers_padded_and_masked(
    folder: Path, prompt: str, relative: Callable[..., float]
) -> None:
    expected = reference(folder, prompt)
    (encoded,) = encode_prompts(load_text_encoder(folder), [prompt], host=CPU)
    assert encoded.mask is not None
    assert encoded.mask.tolist() == [[1] * len(expected)]
    assert not encoded.mask.is_floating_point()  # ComfyUI reads a float mask as an additive bias
    assert relative(encoded.embeddings[0], expected) <= 1e-5


def test_several_prompts_place_the_encoder_once(folder: Path) -> None:
    encoder = load_text_encoder(folder)
    placed = []

    @contextmanager
    def placement(module: torch.nn.Module, *, memory_required: int = 0) -> Iterator[torch.device]:
        placed.append(module)
        yield torch.device("cpu")

    together = encode_prompts(encoder, PROMPTS, host=Host(placement))
    assert placed == [encoder.model]
    for prompt, one in zip(PROMPTS, together, strict=True):
        assert torch.equal(one.embeddings, encode_prompts(encoder, [prompt], host=CPU)[0].embeddings)


@pytest.mark.parametrize(
    "names",
    [("shared.weight",), ("encoder.embed_tokens.weight",), ("shared.weight", "encoder.embed_tokens.weight")],
    ids=["first", "second", "both"],
)
def test_single_file_equals_folder(
    folder: Path, tmp_path: Path, names: tuple[str, ...], relative: Callable[..., float]
) -> None:
    path = single_file(folder, tmp_path / "t5xxl.safetensors", *names)
    encoder = load_text_encoder(path, tokenizer=folder)
    assert encoder.config == load_text_encoder(folder).config
    assert encoder.model.shared is encoder.model.encoder.embed_tokens
    (encoded,) = encode_prompts(encoder, PROMPTS[:1], host=CPU)
    assert relative(encoded.embeddings[0], reference(folder, PROMPTS[0])) <= 1e-5


def test_sharded_and_pipeline_folders(folder: Path, tmp_path: Path) -> None:
    model = transformers.T5EncoderModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "pipe" / "text_encoder", max_shard_size="30KB")
    assert len(list((tmp_path / "pipe" / "text_encoder").glob("*.safetensors"))) > 1
    (tmp_path / "pipe" / "tokenizer").mkdir()
    shutil.copy(folder / "spiece.model", tmp_path / "pipe" / "tokenizer")
    expected = encode_prompts(load_text_encoder(folder), PROMPTS[:1], host=CPU)[0].embeddings
    for path in (tmp_path / "pipe", tmp_path / "pipe" / "text_encoder"):
        encoder = load_text_encoder(path)
        assert encoder.tokenizer.path.parent.name == "tokenizer"
        assert torch.equal(encode_prompts(encoder, PROMPTS[:1], host=CPU)[0].embeddings, expected)


def test_a_whole_t5_is_read_without_its_decoder(folder: Path, tmp_path: Path) -> None:
    path = single_file(folder, tmp_path / "t5.safetensors", "shared.weight")
    tensors = load_file(path) | {
        "decoder.final_layer_norm.weight": torch.ones(32),
        "lm_head.weight": torch.ones(256, 32),
    }
    save_file(tensors, path)
    assert load_text_encoder(path, tokenizer=folder).config.num_layers == 3


def test_what_no_shape_shows_comes_from_config_json(
    folder: Path, tmp_path: Path, relative: Callable[..., float]
) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    config |= {"layer_norm_epsilon": 1e-3, "relative_attention_max_distance": 20}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
    encoded = encode_prompts(load_text_encoder(tmp_path / "t5"), PROMPTS[3:], host=CPU)[0]
    assert relative(encoded.embeddings[0], reference(tmp_path / "t5", PROMPTS[3])) <= 1e-5
    assert relative(encoded.embeddings[0], reference(folder, PROMPTS[3])) > 1e-3


# -------------------------------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_transformers(
    folder: Path, dtype: torch.dtype, rounding_bound: Callable[..., float]
) -> None:
    """Against float64 with the same rounded weights; errors are 48 % (bfloat16) and 36 % of their bounds."""
    encoder = load_text_encoder(folder, dtype=dtype)
    own = {name: parameter.dtype for name, parameter in encoder.model.named_parameters()}
    theirs = transformers.T5EncoderModel.from_pretrained(folder, **{DTYPE: dtype}).eval()
    assert own == {name: parameter.dtype for name, parameter in theirs.named_parameters()}
    (encoded,) = encode_prompts(encoder, PROMPTS[:1], host=CPU)
    ids = torch.tensor([encoder.tokenizer.encode(PROMPTS[0]).ids])
    with torch.no_grad():
        expected = theirs.double()(input_ids=ids).last_hidden_state
    error = (encoded.embeddings - expected).norm() / expected.norm()
    shapes = copy.deepcopy(encoder.model).to("meta")
    assert error <= rounding_bound(lambda: shapes(input_ids=ids.to("meta")), dtype)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float8_e4m3fn, torch.bfloat16),
    ],
)
def test_stored_dtype_is_kept_and_fp8_widened(
    folder: Path, tmp_path: Path, stored: torch.dtype, expected: torch.dtype
) -> None:
    path = single_file(folder, tmp_path / "t5.safetensors", "shared.weight", dtype=stored)
    encoder = load_text_encoder(path, tokenizer=folder)
    assert encoder.model.shared.weight.dtype == expected
    assert torch.equal(encoder.model.shared.weight.float(), load_file(path)["shared.weight"].float())
    (encoded,) = encode_prompts(encoder, PROMPTS[:1], host=CPU)
    assert encoded.embeddings.isfinite().all()


def test_overflow_is_an_error_that_says_so(folder: Path, tmp_path: Path) -> None:
    path = single_file(folder, tmp_path / "t5.safetensors", "shared.weight")
    tensors = load_file(path)
    tensors["encoder.final_layer_norm.weight"][3] = torch.inf
    save_file(tensors, path)
    with pytest.raises(UnsupportedError, match="not finite from the text encoder"):
        encode_prompts(load_text_encoder(path, tokenizer=folder), PROMPTS, host=CPU)


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    state = torch.get_rng_state()
    load_text_encoder(folder)
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def tokenizer_json(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json")
    transformers.T5TokenizerFast.from_pretrained(folder, extra_ids=0).save_pretrained(path)
    return path / "tokenizer.json"


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
def test_tokens_equal_transformers_in_both_formats(folder: Path, tokenizer_json: Path, prompt: str) -> None:
    theirs = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0)
    expected = theirs(prompt.strip(), max_length=256, truncation=True).input_ids
    for path in (folder / "spiece.model", tokenizer_json):
        assert list(Tokenizer.from_file(path).encode(prompt).ids) == expected


def test_of_a_book_the_message_shows_both_ends(released_t5: Path) -> None:
    said: list[str] = []
    book = " ".join(f"word{number}" for number in range(20_000))
    encode_prompts(load_text_encoder(released_t5), [book], host=Host(place, say=said.append))
    assert len(said[0]) < 5000
    assert " [...] " in said[0]
    assert said[0].endswith('word19999"')


def test_truncation_says_which_words_are_cut_off(folder: Path, tokenizer_json: Path) -> None:
    for path in (folder / "spiece.model", tokenizer_json):
        tokens = Tokenizer.from_file(path).encode(LONG)
        assert len(tokens.ids) == MAX_TOKENS
        assert tokens.ids[-1] == 1
        assert tokens.total > MAX_TOKENS
        assert LONG.endswith(tokens.cut_off)
        assert Tokenizer.from_file(path).encode(PROMPTS[0]).cut_off == ""

    said: list[str] = []
    encode_prompts(load_text_encoder(folder), [PROMPTS[0], LONG], host=Host(place, say=said.append))
    assert len(said) == 1
    assert f"{tokens.total} tokens" in said[0]
    assert "word398 word399" in said[0]
    assert "word0 " not in said[0]


def test_a_prompt_of_exactly_256_tokens_is_whole(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(folder / "spiece.model")
    one = len(tokenizer.encode("fox").ids) - 1
    fits = " ".join(["fox"] * (255 // one))
    assert tokenizer.encode(fits).cut_off == ""
    assert tokenizer.encode(fits + " fox" * 2).cut_off


def test_search_order_of_the_tokenizer(
    folder: Path, tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spiece = folder / "spiece.model"
    (tmp_path / "text_encoders").mkdir()
    weights = single_file(folder, tmp_path / "text_encoders" / "t5.safetensors", "shared.weight")

    def put(source: Path, place: Path) -> Path:
        place.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(source, place))

    def find(given: Path | None = None, vocabulary: int = 256) -> Path:
        return find_tokenizer(weights, given, [tmp_path / "host"], vocabulary=vocabulary)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find(vocabulary=T5_VOCABULARY) == T5_TOKENIZER  # which belongs to no other encoder
    with pytest.raises(CheckpointError, match=r"vocabulary of 256 is not that of T5 v1\.1 .*put its own into") as error:
        find()
    for place in (weights.parent, tmp_path / "tokenizer", tmp_path / "host"):
        assert str(place) in str(error.value)

    repository = tmp_path / "hub" / "models--Lightricks--LTX-Video"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    # From the last place to the first: each new file must take precedence over all existing ones.
    for place in (
        repository / "snapshots" / "abc" / "tokenizer" / "spiece.model",
        tmp_path / "host" / "tokenizer.json",
        tmp_path / "tokenizer" / "spiece.model",
        tmp_path / "text_encoders" / "tokenizer" / "spiece.model",
        tmp_path / "text_encoders" / "tokenizer.json",
        tmp_path / "text_encoders" / "spiece.model",
    ):
        put(tokenizer_json if place.suffix == ".json" else spiece, place)
        assert find() == find(vocabulary=T5_VOCABULARY) == place
        assert load_text_encoder(weights, host_tokenizers=[tmp_path / "host"]).tokenizer.path == place
    assert find(tokenizer_json) == tokenizer_json
    with pytest.raises(CheckpointError, match="or a folder with one of them; check the path"):
        find(tmp_path / "nowhere")


def test_an_encoder_of_t5s_vocabulary_needs_no_tokenizer_beside_it(
    released_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    encoder = load_text_encoder(released_t5)
    assert encoder.tokenizer.path == T5_TOKENIZER
    (encoded,) = encode_prompts(encoder, ["A lighthouse <extra_id_0>"], host=CPU)
    assert encoded.embeddings.shape[1] == 5


def test_what_the_encoder_does_not_see_is_said(released_t5: Path) -> None:
    said: list[str] = []
    prompts = ["a fox", "", "一只猫 and a\x07 cat\ud800", "fox " * 260 + "猫"]
    encoded = encode_prompts(load_text_encoder(released_t5), prompts, host=Host(place, say=said.append))
    assert [prompt.embeddings.shape[1] for prompt in encoded] == [5, 1, 7, MAX_TOKENS]
    advice = "it reads each run of them as one unknown token, so say it in English words"
    assert said == [
        "The prompt has characters that are no text and were left out: U+0007, U+D800",
        f'The text encoder does not know these characters of the prompt: 一 只 猫 (in "一只猫"); {advice}',
        f'The text encoder does not know these characters of the prompt: 猫 (in "猫"); {advice}',
        f'The prompt has 523 tokens and the text encoder takes 256; it does not see the end: "{"fox " * 133}猫"',
    ]


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b'{"model": 1}', "tokenizers library cannot read"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_file(tmp_path / "spiece.model")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    large = (chr(0x4E00 + i) for i in range(300))
    for name, sentences, eos in (("large", large, 1), ("moved", PROMPTS, 3)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*sentences] * 3),
            model_prefix=str(tmp_path / name),
            vocab_size=320,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=0,
            eos_id=eos,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        with pytest.raises(CheckpointError, match="pass the tokenizer that belongs to this text encoder"):
            load_text_encoder(folder, tokenizer=tmp_path / f"{name}.model")


@pytest.mark.parametrize(
    ("added", "removed", "message"),
    [
        (
            {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 4)},
            "",
            "UMT5",
        ),
        ({"encoder.block.0.layer.1.DenseReluDense.wi.weight": (48, 32)}, "wi_", "T5 1.0"),
        ({}, "block.1.layer.0.SelfAttention.k", r"block\.1\.layer\.0\.SelfAttention\.k"),
        ({}, "shared", r"without the tensor shared\.weight"),
        ({"encoder.surprise.weight": (3,)}, "", r"encoder\.surprise\.weight"),
        ({"encoder.block.2.layer.1.DenseReluDense.wo.weight": (32, 47)}, "", r"DenseReluDense\.wo"),
    ],
    ids=["umt5", "t5-1.0", "missing", "no-embedding", "unexpected", "shape"],
)
def test_files_that_are_almost_a_t5(
    folder: Path, tmp_path: Path, added: dict[str, tuple[int, ...]], removed: str, message: str
) -> None:
    path = single_file(folder, tmp_path / "t5.safetensors", "shared.weight")
    tensors = {key: value for key, value in load_file(path).items() if not removed or removed not in key}
    save_file(tensors | {key: torch.zeros(shape) for key, shape in added.items()}, path)
    with pytest.raises(CheckpointError, match=message):
        load_text_encoder(path, tokenizer=folder)


def test_another_model_is_named_as_what_it_is(folder: Path, tmp_path: Path) -> None:
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2)}, tmp_path / "clip_l.safetensors")
    with pytest.raises(CheckpointError, match=r"is a CLIP text encoder; expected a T5 v1\.1"):
        load_text_encoder(tmp_path / "clip_l.safetensors", tokenizer=folder)
    data = (folder / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_text_encoder(tmp_path / "cut.safetensors", tokenizer=folder)

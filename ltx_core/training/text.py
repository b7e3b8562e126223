"""Captions as the transformer reads them: from a frozen pretrained T5, or a small T5 that is trained with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..budget import stages
from ..config import TextEncoderConfig
from ..errors import ConfigError
from ..models.text_encoder import T5EncoderModel, TextEncoder, build_t5
from ..models.tokenizer import MAX_TOKENS, SENTINELS, Tokenizer
from ..progress import Notes
from ..weights.save import write_safetensors
from ..weights.text_encoder import EMBEDDING_AGAIN, hugging_face_config, load_text_encoder
from ..weights.tokenizer_training import train_tokenizer
from .checkpoints import saved_cache, write_cache
from .config import Text
from .data import file_identity
from .encoded_cache import EncodedCache, filled, key_of
from .encoding import plain_host

TOKENIZER = "spiece.model"  # of a text encoder's folder


class FrozenText:
    """A pretrained T5 that encodes every caption once.

    The encoder is in memory only while it encodes: a T5 XXL is larger than the model in training. On a card that it is
    too large for, it is streamed. The embeddings of the
    captions passed to `prepare` are cached in a file.
    """

    def __init__(
        self,
        place: Path,
        tokenizer: Path | None,
        channels: int,
        device: torch.device,
        quantization: str | None = None,
    ) -> None:
        self.place, self.tokenizer, self.channels, self.device = place, tokenizer, channels, device
        self.quantization = quantization
        _, self._host = plain_host(device)
        self._embeddings: dict[str, Tensor] = {}
        self._known: dict[str, Tensor] = {}  # made elsewhere

    def prepare(
        self,
        captions: Sequence[str],
        file: Path,
        notes: Notes,
        *,
        writes: bool,
        shared: EncodedCache | None = None,
    ) -> None:
        """Encode `captions`, or read them from `file`, which is written if `writes`, or from what all runs share."""
        wanted, key = list(dict.fromkeys(captions)), self._key()
        saved = saved_cache(file, ("key", "captions", "embeddings"), notes)
        if saved is not None and saved["key"] == key:
            self._embeddings = dict(zip(saved["captions"], saved["embeddings"], strict=True))
        missing = [caption for caption in wanted if caption not in self._embeddings]
        if not missing:
            return
        known = [*self._embeddings, *missing]  # in this order whichever is made first: equal runs write equal files

        def make(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
            chosen = [missing[number] for number in numbers]
            notes(f"encoding {len(chosen)} captions")
            encoder = self._open()
            for sentence in _unread(encoder.tokenizer, chosen):
                notes(sentence)
            for number in numbers:
                self._encode(encoder, [missing[number]])
                yield number, self._embeddings[missing[number]]

        # The same captions come in another dtype from a CPU, see `_open`.
        keys = [key_of("text", key, self.device.type, caption) for caption in missing]
        for caption, embedding in zip(missing, filled(shared, keys, "its captions", make), strict=True):
            self._embeddings[caption] = embedding
        if writes:
            write_cache(file, {"key": key, "captions": known, "embeddings": [self._embeddings[each] for each in known]})

    def know(self, embeddings: Mapping[str, Tensor]) -> None:
        """Take embeddings (l, d_model) that were made elsewhere.

        Raises:
            ConfigError: they have another width than the transformer reads.
        """
        for caption, tokens in embeddings.items():
            if tokens.shape[1] != self.channels:
                raise ConfigError(
                    f"got the embedding of {caption} of width {tokens.shape[1]}; expected {self.channels}, the model's "
                    "caption_channels; compute it with the encoder that belongs to the model"
                )
            self._known[caption] = tokens

    def embeddings(self, captions: Sequence[str]) -> list[Tensor]:
        """One (l, d_model) per caption, on the CPU, in the dtype that the encoder computes in.

        Raises:
            ConfigError: the encoder has another width than the transformer reads.
        """
        known = self._known
        missing = [each for each in dict.fromkeys(captions) if each not in self._embeddings and each not in known]
        if missing:
            self._encode(self._open(), missing)
        return [known[caption] if caption in known else self._embeddings[caption] for caption in captions]

    def _encode(self, encoder: TextEncoder, captions: Sequence[str]) -> None:
        work = stages.encoding_text(encoder.model, encoder.config, on_cpu=self.device.type == "cpu")
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
            self._host.place(encoder.model, memory_required=work) as device,
        ):
            for caption in captions:
                (embedding,) = encode(encoder, [caption], device)
                self._embeddings[caption] = embedding.cpu()

    def _open(self) -> TextEncoder:
        # CPUs without bfloat16 are a hundred times slower in it, and transformers computes in the stored dtype.
        dtype = torch.float32 if self.device.type == "cpu" else None
        places = [] if self.tokenizer is None else [self.tokenizer]  # searched if there is none next to the encoder
        encoder = load_text_encoder(self.place, dtype=dtype, quantization=self.quantization, host_tokenizers=places)
        if encoder.config.d_model != self.channels:
            raise ConfigError(
                f"got the text encoder {self.place} of width {encoder.config.d_model}; expected {self.channels}, the "
                "model's caption_channels; give the encoder that belongs to the model"
            )
        return encoder

    def _key(self) -> str:
        """The identity of the files: another encoder or tokenizer gives other embeddings."""
        places = [self.place] if self.tokenizer is None else [self.place, self.tokenizer]
        files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
        return json.dumps([file_identity(file) for file in files if file.is_file()])


def _unread(tokenizer: Tokenizer, captions: Sequence[str]) -> Iterator[str]:
    """What of the captions the encoder does not read, in a sentence for all of them."""
    tokens = [tokenizer.encode(caption) for caption in captions]
    unknown = [each for each in tokens if each.unknown_words]
    if unknown:
        characters = " ".join(dict.fromkeys(character for each in unknown for character in each.unknown))
        yield (
            f"{len(unknown)} of {len(captions)} captions have characters that the text encoder does not know: "
            f"{characters}; it reads each run of them as one unknown token, so write these captions in English"
        )
    too_long = sum(bool(each.cut_off) for each in tokens)
    if too_long:
        yield f"{too_long} of {len(captions)} captions have more than {MAX_TOKENS} tokens; their ends are not read"


def architecture_of(config: Text, vocabulary: int) -> TextEncoderConfig:
    """Of a new text encoder for so many tokens."""
    return TextEncoderConfig(
        vocab_size=vocabulary,
        d_model=config.width,
        d_kv=config.width // config.heads,
        d_ff=2 * config.width,
        num_layers=config.layers,
        num_heads=config.heads,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
    )


def make_text_encoder(config: Text, channels: int, captions: Sequence[str], folder: Path) -> TextEncoder:
    """A new text encoder to train, float32, with a tokenizer built from the captions in `folder`.

    Raises:
        ConfigError: the encoder has another width than the transformer reads.
    """
    if config.width != channels:
        raise ConfigError(
            f"got text.width {config.width}; expected {channels}, the model's caption_channels; make them equal"
        )
    path = folder / TOKENIZER
    if not path.is_file():
        train_tokenizer(path, config.vocabulary, captions)
    tokenizer = Tokenizer.from_file(path)
    architecture = architecture_of(config, tokenizer.vocab_size + SENTINELS)
    model = build_t5(architecture).to_empty(device="cpu")
    restart_t5(model, architecture)
    return TextEncoder(model.requires_grad_(True), tokenizer, architecture)


@torch.no_grad()
def restart_t5(model: T5EncoderModel, config: TextEncoderConfig) -> None:
    """Initial weights of a new T5 (transformers' `T5PreTrainedModel._init_weights`, factor 1). Its attention does not
    scale the scores, so queries start small."""
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:
            nn.init.ones_(parameter)
        elif "embed_tokens" in name or name.startswith("shared"):
            nn.init.normal_(parameter)
        elif "relative_attention_bias" in name:
            nn.init.normal_(parameter, std=config.d_model**-0.5)
        elif ".q." in name:
            nn.init.normal_(parameter, std=(config.d_model * config.d_kv) ** -0.5)
        else:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def encode(encoder: TextEncoder | FrozenText, prompts: Sequence[str], device: torch.device) -> list[Tensor]:
    """One (l, d_model) per prompt, without padding. Gradients flow if the encoder's weights require them."""
    if isinstance(encoder, FrozenText):
        return [embedding.to(device, torch.float32) for embedding in encoder.embeddings(prompts)]
    hidden, rows, lengths = encode_unique(encoder, prompts, device)
    return [hidden[row, :length] for row, length in zip(rows, lengths, strict=True)]


def encode_unique(
    encoder: TextEncoder, prompts: Sequence[str], device: torch.device, known: dict[str, list[int]] | None = None
) -> tuple[Tensor, list[int], list[int]]:
    """Each distinct prompt once, as (u, longest, d_model), padded to the longest of them; then each prompt's row in it,
    and its length. known: tokens of prompts, to which those of new ones are added."""
    known = {} if known is None else known
    for prompt in prompts:
        if prompt not in known:
            known[prompt] = list(encoder.tokenizer.encode(prompt).ids)
    tokens = {prompt: known[prompt] for prompt in dict.fromkeys(prompts)}
    row = {prompt: number for number, prompt in enumerate(tokens)}
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row_ids) for row_ids in tokens.values()], batch_first=True)
    lengths = torch.tensor([len(row_ids) for row_ids in tokens.values()])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    hidden = encoder.model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
    return hidden, [row[prompt] for prompt in prompts], [len(tokens[prompt]) for prompt in prompts]


def save_text_encoder(encoder: TextEncoder, weights: Mapping[str, Tensor], folder: Path) -> None:
    """A folder as transformers and the loaders read it: config.json, model.safetensors, spiece.model.

    weights: from `tensors_of`.
    """
    tensors = {name: tensor for name, tensor in weights.items() if name != EMBEDDING_AGAIN}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hugging_face_config(encoder.config), indent=2) + "\n", "utf-8")
    (folder / TOKENIZER).write_bytes(encoder.tokenizer.path.read_bytes())

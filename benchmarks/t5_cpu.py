"""How much less CPU time the layers of T5-XXL take from the file that most people have, `t5xxl_fp16`.

Two of the 24 layers with random weights in a float16 file, prompts of 60 and 256 tokens. LTXKit computes such a file in
float32 on a CPU, which holds its weights exactly; the embeddings are shown to be those of transformers in float32
before anything is timed. transformers in float16 computes what the file says. With --against, LTXKit of another commit
loads the same file in the same process, as users of that commit had it.

"packed": from the third prompt on, weights are packed where memory has room; a single clip encodes two prompts at most.
One thread, CPU time. The limit is the products alone in float32, by the fastest form that torch has here.

python benchmarks/t5_cpu.py [--tiny] [--only WORDS] [--against FOLDER]
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from protocol import Part, Rounds, Row, another, arguments, asked, compare, measured, only_some, publish
from safetensors.torch import save_file
from torch import Tensor

from ltxkit.ltx_core.config import TextEncoderConfig
from ltxkit.ltx_core.kernels.choice import parse_kernels
from ltxkit.ltx_core.kernels.here import kernels_here
from ltxkit.ltx_core.measuring.limits import only_work, product_forms
from ltxkit.ltx_core.measuring.protocol import relative_difference
from ltxkit.ltx_core.models.text_encoder import build_t5
from ltxkit.ltx_core.placing.computing import computing
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "assets" / "t5" / "spiece.model"
TOKENS = (60, 256)
AS_EXACT = 3  # times the difference of transformers in float32 from float64, that ours may have
HALF = 3e-2  # ... against others in float16, whose activations are rounded to 11 bits in every layer
ROUNDS = 5
CONFIG = TextEncoderConfig(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=2,
    num_heads=64,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
)
TINY = replace(CONFIG, d_model=128, d_ff=320, num_heads=2)


def write(config: TextEncoderConfig, folder: Path) -> Path:
    """A float16 file of random weights under T5's key names."""
    torch.manual_seed(0)
    model = build_t5(config).to_empty(device="cpu")
    for name, weight in model.named_parameters():
        torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.normal_(weight, std=0.02)
    path = folder / "t5xxl_fp16.safetensors"
    state = {key: value.half() for key, value in model.state_dict().items() if key != "encoder.embed_tokens.weight"}
    save_file(state, path)
    return path


def of_commit(folder: Path) -> Callable[..., Any]:
    """`load_text_encoder` of another checkout: all imports inside the package are relative, so that it can have
    another name here."""
    name = "ltxkit_of_another_commit"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ValueError(f"got {folder}; expected a checkout of LTXKit")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return import_module(f"{name}.ltx_core.weights.text_encoder").load_text_encoder


def transformers(config: TextEncoderConfig, path: Path, dtype: torch.dtype) -> Any:
    """transformers' encoder with the weights of the file."""
    from safetensors.torch import load_file
    from transformers import T5Config, T5EncoderModel

    described: Any = T5Config(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
    )
    model: Any = T5EncoderModel(described)
    state = load_file(path)
    model.load_state_dict(state | {"encoder.embed_tokens.weight": state["shared.weight"]})
    return model.to(dtype).eval()


def measure(tokens: int, against: Path | None, *, packed: bool, tiny: bool) -> list[Row]:
    config = TINY if tiny else CONFIG
    with tempfile.TemporaryDirectory() as name:
        path = write(config, Path(name))
        ours = load_text_encoder(path, tokenizer=TOKENIZER).model
        ids = torch.randint(3, 30000, (1, tokens), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)

        def run(model: Any) -> Callable[[], Tensor]:
            return lambda: model(input_ids=ids, attention_mask=mask).last_hidden_state

        peers = {"transformers, float16": run(transformers(config, path, torch.float16))}
        if against is not None:
            peers[another(against)] = run(of_commit(against)(path, tokenizer=TOKENIZER).model)
        kernels = parse_kernels("products=packed", "by the rehearsal") if tiny else kernels_here()
        assert kernels is not None
        room = {} if packed else {"memory_required": sys.maxsize}
        layer = ((4096, 4096, 4), (10240, 4096, 2), (4096, 10240, 1))  # outs, ins, times
        with computing(ours, kernels, **room):
            with torch.inference_mode():
                exact = run(transformers(config, path, torch.float64))()
                theirs = relative_difference(run(transformers(config, path, torch.float32))(), exact)
                difference = relative_difference(run(ours)(), exact)
            if not difference <= AS_EXACT * theirs:
                raise ValueError(
                    f"{tokens} tokens: got a difference of {difference:.1e} from float64; expected at most "
                    f"{AS_EXACT} times that of transformers in float32, {theirs:.1e}"
                )
            work = [(product_forms(tokens, ins, outs, torch.float32), times * 2) for outs, ins, times in layer]
            return compare(
                f"{config.num_layers} layers, a prompt of {tokens} tokens{', packed' if packed else ''}",
                run(ours),
                peers,
                Rounds(HALF, ROUNDS, warmup=2),
                limit=None if tiny else only_work(work, "processor"),
                note=f"from float64: {difference:.0e}",
                tiny=tiny,
            )


def main() -> None:
    parser = arguments(__doc__)
    only_some(parser)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of another commit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    against = None if options.against is None else options.against.resolve()
    parts = [
        Part(
            f"{tokens} {'packed' if packed else 'once'}",
            partial(measure, tokens, against, packed=packed, tiny=options.tiny),
        )
        for packed in (False, True)
        for tokens in TOKENS
    ]
    question = "How much less CPU time does T5 take from a float16 file? (layers of T5-XXL)"
    publish("t5_cpu", question, measured(parts, options.only), **asked(options))


if __name__ == "__main__":
    main()

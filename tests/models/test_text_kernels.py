"""T5 by the forms and in the dtype that were chosen for a CPU: as exact as float32, from a file in 16 bits too."""

import pytest
import torch

from ltxkit.ltx_core.config import TextEncoderConfig
from ltxkit.ltx_core.kernels import private
from ltxkit.ltx_core.kernels.choice import parse_kernels
from ltxkit.ltx_core.models.text_encoder import build_t5
from ltxkit.ltx_core.placing.computing import computing

pytestmark = pytest.mark.usefixtures("ample_memory", "half_precision")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
IDS = torch.arange(40)[None]
SIZES = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4}
CONFIG = TextEncoderConfig(
    **SIZES, relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6
)


@pytest.fixture(scope="module")
def theirs():
    """transformers' encoder with random weights."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(**SIZES, feed_forward_proj="gated-gelu", dropout_rate=0.0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def ours(theirs, dtype):
    model = build_t5(CONFIG)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in theirs.state_dict().items()}, assign=True)
    return model


def encoded(model):
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


def distance(result, expected):
    return ((result.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_plainly_it_is_as_exact_as_transformers(dtype, theirs):
    import copy

    result, exact = encoded(ours(theirs, dtype)), float64_of(theirs, dtype)
    assert result.dtype == dtype
    assert distance(result, exact) <= 2 * distance(encoded(copy.deepcopy(theirs).to(dtype)), exact)


def float64_of(theirs, stored):
    import copy

    return encoded(copy.deepcopy(theirs).to(stored).double())


@pytest.mark.skipif(not private.works("products", F32), reason="this torch has no oneDNN products")
@pytest.mark.parametrize("form", ["products=packed", "products=onednn", "attention=products"])
def test_from_a_float16_file_it_is_as_exact_as_float32(form, theirs):
    model, exact = ours(theirs, F16), float64_of(theirs, F16)
    import copy

    in_float32 = distance(encoded(copy.deepcopy(theirs).to(F16).float()), exact)
    with computing(model, parse_kernels(form, "asked for")) as active:
        results = [encoded(model) for _ in range(4)]
        assert (active.packed_bytes > 0) == ("packed" in form), "the third prompt packs"
    for result in results:
        assert result.dtype == F32
        assert distance(result, exact) <= 2 * in_float32 + 1e-7
    assert torch.equal(results[0], results[3])
    assert encoded(model).dtype == F16


@pytest.mark.skipif(not private.works("products", F32), reason="this torch has no oneDNN products")
def test_a_bfloat16_file_computes_as_it_was_measured(theirs):
    model, exact = ours(theirs, BF16), float64_of(theirs, BF16)
    with computing(model, parse_kernels("products=packed,dtype=float32", "asked for")):
        assert distance(encoded(model), exact) <= 1e-5
    with computing(model, parse_kernels("products=packed,dtype=file", "asked for")):
        narrow = encoded(model)
    assert narrow.dtype == parse_kernels("dtype=file", "").products.dtype(BF16)
    assert distance(narrow, exact) <= 2 * max(distance(encoded(model), exact), 1e-6)


def test_activations_beyond_float16_survive(theirs):
    """What overflows in float16: a hidden layer of 1e5 and more."""
    import copy

    big = copy.deepcopy(theirs)
    with torch.no_grad():
        for name, parameter in big.named_parameters():
            if "wi_" in name:
                parameter.mul_(600)
    model = ours(big, F16)
    with computing(model, parse_kernels("products=packed", "asked for")):
        result = encoded(model)
    assert result.isfinite().all()
    assert distance(result, float64_of(big, F16)) <= 1e-5

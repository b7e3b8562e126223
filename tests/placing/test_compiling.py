"""Compiled blocks: once for any size, length and prompt, equal to eager; and what is said where they cannot be."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.kernels.cards import Capabilities
from ltxkit.ltx_core.kernels.choice import parse_kernels
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.pipelines.chosen import placement_of
from ltxkit.ltx_core.placing import compiling
from ltxkit.ltx_core.placing.compiling import compile_where_placed, compiled, compiles, no_compiler
from ltxkit.ltx_core.placing.placement import DevicePlacement

CPU = torch.device("cpu")
CONFIG = TransformerConfig.of_size(layers=2, heads=2, head_dim=16, channels=8, captions=24)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LTXTransformer(CONFIG).eval().requires_grad_(False)


def step(model, tokens=11, length=5, *, guided=False, conditioned=0):
    """Sizes are those of no other axis: the compiler takes equal ones for the same."""
    made = torch.Generator().manual_seed(tokens)
    x, positions = torch.randn(1, tokens, 8, generator=made), torch.rand(1, 3, tokens, generator=made) * 4
    sigma = torch.full((1, 1, 1), 0.7)
    if conditioned:
        sigma = torch.where(torch.arange(tokens) < conditioned, 0.0, 0.7)[None, :, None]
    with torch.inference_mode():
        text = model.prepare_text([torch.randn(length, 24, generator=made)])
        branches = (Branch(text), Branch(text, frozenset({1}))) if guided else (Branch(text),)
        return torch.cat(model(x, sigma, model.prepare_positions(positions), branches))


# --- where it cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "has_triton", "said"),
    [
        (Capabilities("mps"), True, "torch has no compiler for mps"),
        (Capabilities("cuda", (6, 1)), True, "no kernels for compute capability 6.1"),
        (Capabilities("cuda", (8, 0)), False, "triton is not installed"),
        (Capabilities("cuda", (8, 0)), True, None),
        (Capabilities("rocm"), False, "triton is not installed"),
        (Capabilities("xpu"), True, None),
    ],
)
def test_what_a_device_lacks_is_one_clause(facts, has_triton, said, monkeypatch):
    monkeypatch.setattr(compiling, "Capabilities", SimpleNamespace(of=lambda device: facts))
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object() if has_triton else None)
    reason = no_compiler(torch.device("cuda"))
    assert reason is None if said is None else said in reason


def test_without_a_compiler_it_is_said_once_and_eager(model, monkeypatch):
    expected = step(model)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    said: list[str] = []
    with DevicePlacement("cpu", compile=True, say=said.append)(model):
        assert torch.equal(step(model), expected)
    assert said == ["The model is not compiled: there is no C++ compiler."]
    with DevicePlacement("cpu")(model):
        assert torch.equal(step(model), expected)
    assert len(said) == 1


def test_a_compiler_that_fails_is_said_once_and_the_step_is_eager(model, monkeypatch):
    import torch._dynamo

    expected, calls, said = step(model), [], []

    def fails(block, *given):
        calls.append(block)
        raise torch._dynamo.exc.TorchDynamoException("no kernel\nmore")

    monkeypatch.setattr(compiling, "no_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "_function_of", lambda kind, backend, deep: fails)
    monkeypatch.setattr(compiling, "_keep_kernels", lambda: None)
    with compiled(model, CPU, said.append):
        assert torch.equal(step(model), expected)
        assert torch.equal(step(model), expected)
    assert len(calls) == len(said) == 1
    assert said[0].startswith("The model is not compiled: ")
    assert "\n" not in said[0]
    assert not model.is_compiled
    assert all("forward" not in vars(block) for block in model.transformer_blocks)


def test_streamed_blocks_are_refused_and_other_models_are_not(model):
    placement = DevicePlacement("cpu", compile=True, resident_blocks=1)
    with pytest.raises(
        ConfigError, match=r"got compile for a model of which 1 of 2 blocks are streamed; .*turn compile off"
    ):
        placement(model).__enter__()
    assert not compiles(nn.Linear(1, 1))
    with placement(nn.Linear(1, 1)), DevicePlacement("cpu", resident_blocks=1)(model):
        pass


def test_a_model_may_ask_for_it_by_itself(model, monkeypatch):
    monkeypatch.setattr(compiling, "no_compiler", lambda device: "nothing compiles here")
    said = []
    compile_where_placed(model)
    with DevicePlacement("cpu", say=said.append)(model), DevicePlacement("cpu", say=pytest.fail)(nn.Linear(1, 1)):
        pass
    assert said == ["The model is not compiled: nothing compiles here."]
    with pytest.raises(ConfigError, match="got compile for a model of which 1 of 2 blocks are streamed"):
        DevicePlacement("cpu", resident_blocks=1)(model).__enter__()


@pytest.mark.parametrize(
    ("device", "resident", "said"),
    [("cpu", 3, "got compile and resident_blocks 3"), (["cpu", "cpu"], None, "got compile for 2 devices")],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(device, resident, said):
    with pytest.raises(ConfigError, match=said):
        placement_of(device, resident, None, "plain", print, compile=True)
    assert placement_of("cpu", None, None, "plain", print, compile=True)._compile


def test_kernels_are_kept_in_the_users_cache_unless_he_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("LTXKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    compiling._keep_kernels()
    assert compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiling._keep_kernels()
    assert compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")


# --- where it can -----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # torch traces a block for each of three variants
def test_a_block_is_compiled_once_for_any_size_length_and_prompt(model, monkeypatch):
    from torch._dynamo.testing import CompileCounter

    monkeypatch.setattr(compiling, "no_compiler", lambda device: None)
    counter = CompileCounter()
    counts = []
    cases = [{}, {"tokens": 13}, {"length": 7}, {"tokens": 17, "length": 9}]
    conditioned = [{"conditioned": 3}, {"tokens": 13, "conditioned": 7}]
    for case in cases + conditioned:
        expected = step(model, **case)
        with compiled(model, CPU, pytest.fail, backend=counter):
            assert torch.equal(step(model, **case), expected)
        counts.append(counter.frame_count)
    assert counts == [1, 1, 1, 1, 2, 2], "one for plain steps of any size, one for conditioned ones"


@pytest.mark.slow  # as above
def test_forks_and_loras_are_compiled_right(model, monkeypatch):
    monkeypatch.setattr(compiling, "no_compiler", lambda device: None)
    factors = torch.randn(2, 32, 4, generator=torch.Generator().manual_seed(5)) / 4
    hooks = [
        block.attn1.to_q.register_forward_hook(lambda _, given, result: result + given[0] @ factors[0] @ factors[1].T)
        for block in model.transformer_blocks
    ]
    expected = step(model, guided=True)
    with compiled(model, CPU, pytest.fail, backend="eager"):
        assert torch.equal(step(model, guided=True), expected)
        for hook in hooks:
            hook.remove()
        without = step(model, guided=True)
    assert torch.equal(without, step(model, guided=True))
    assert not torch.equal(without, expected)


@pytest.mark.slow  # compiles C++ for half a minute
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler")
def test_kernels_of_the_compiler_compute_the_same(model, monkeypatch, tmp_path):
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    chosen = parse_kernels("products=packed,attention=products,norms=pieces", "asked for")  # not known to the compiler
    expected = step(model, tokens=213)
    placement = DevicePlacement("cpu", kernels=chosen, compile=True, say=pytest.fail)
    # Otherwise it would start processes, which import torch. monkeypatch would take the setting away at the end.
    with torch._inductor.config.patch(compile_threads=1), placement(model):
        step(model, tokens=150)
        result = step(model, tokens=213)
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert any(tmp_path.rglob("*"))

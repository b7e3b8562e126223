"""Blocks as CUDA graphs: what torch is asked for, what is said where there are none, and that nothing of a step is read
after the next one has begun. There is no card here: a stand-in does with tensors what torch's graph trees do."""

import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.kernels.cards import Capabilities
from ltxkit.ltx_core.kernels.choice import PLAIN
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.pipelines.chosen import device_of_one, placement_of
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.placing import compiling, devices, graphs
from ltxkit.ltx_core.placing.compiling import compile_where_placed, compiled
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import SAMPLERS, SamplerSettings
from ltxkit.ltx_core.shapes import ScaleFactors

CPU = torch.device("cpu")
CONFIG = TransformerConfig.of_size(layers=3, heads=2, head_dim=16, channels=8, captions=24)


class Trees:
    """Does with the results of blocks what torch's trees do: each lies in a pool until the next step is marked, which
    overwrites it; here with numbers that show."""

    def __init__(self):
        self.steps = self.calls = 0
        self.pool = []

    def mark(self):
        self.steps += 1
        for result in self.pool:
            result.fill_(torch.nan)
        self.pool.clear()

    def block(self, block, x, *given):
        self.calls += 1
        assert not x.isnan().any(), "a block reads what a step before has left"
        result = type(block).forward(block, x, *given).clone()
        self.pool.append(result)
        return result


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LTXTransformer(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def trees(monkeypatch):
    """A machine that compiles, with a card that records."""
    made = Trees()

    def function_of(kind, backend, *, deep=False, graphs=False):
        return made.block if graphs else kind.forward

    monkeypatch.setattr(compiling, "no_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "no_graphs", lambda device: None)
    monkeypatch.setattr(compiling, "_function_of", function_of)
    monkeypatch.setattr(compiling, "_keep_kernels", lambda: None)
    monkeypatch.setattr(graphs, "_recorded", set())
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", made.mark)
    return made


def step(model, tokens=11, length=5):
    made = torch.Generator().manual_seed(tokens)
    x, positions = torch.randn(1, tokens, 8, generator=made), torch.rand(1, 3, tokens, generator=made) * 4
    with torch.inference_mode():
        text = model.prepare_text([torch.randn(length, 24, generator=made)])
        return model(x, torch.full((1, 1, 1), 0.7), model.prepare_positions(positions), [Branch(text)])[0]


def clip(model, place, sampler="euler", step_cache=0.0, previews=None, **guidance):
    """The latent of a clip of twelve guided steps."""
    made = torch.Generator().manual_seed(0)
    prompts = [EncodedPrompt(torch.randn(1, n, 24, generator=made)) for n in (5, 3)]
    sigmas = torch.linspace(1, 0, 13)
    run = Pass(model, sigmas, Guidance(scale=(3.0,), **guidance), SamplerSettings(sampler))
    host = Host(place)
    if previews is not None:
        host = replace(host, progress=lambda event: previews.append(event.denoised))
    return sample(
        replace(run, step_cache=step_cache),
        LatentClip(torch.zeros(1, 8, 2, 2, 3), ScaleFactors(8, 32, 32), fps=24),
        Prompts(*prompts),
        noise=SeededNoise(1),
        host=host,
    )


# --- where there are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (Capabilities("cuda", (8, 0)), None),
        (Capabilities("rocm"), "this is rocm"),
        (Capabilities("xpu"), "this is xpu"),
        (Capabilities("mps"), "this is mps"),
        (Capabilities("cpu"), "this is cpu"),
    ],
)
def test_only_nvidias_cards_have_them(facts, said, monkeypatch):
    monkeypatch.setattr(graphs, "Capabilities", SimpleNamespace(of=lambda device: facts))
    reason = graphs.no_graphs(CPU)
    assert reason is None if said is None else said in reason


def test_elsewhere_it_is_said_once_and_the_blocks_are_compiled_without(model, monkeypatch):
    asked, said = [], []

    def function_of(kind, backend, *, deep=False, graphs=False):
        asked.append(graphs)
        return kind.forward

    monkeypatch.setattr(compiling, "no_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "_function_of", function_of)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", pytest.fail)
    expected = step(model)
    compile_where_placed(model, cuda_graphs=True)
    with DevicePlacement("cpu", kernels=PLAIN, say=said.append)(model):
        assert model.is_compiled
        assert torch.equal(step(model), expected)
        assert torch.equal(step(model), expected)
    assert asked == [False]
    assert said == ["CUDA graphs are left out: they are NVIDIA's, and this is cpu."]


def test_without_a_compiler_one_sentence_is_said_for_both(model, monkeypatch):
    monkeypatch.setattr(compiling, "no_compiler", lambda device: "the package triton is not installed")
    said = []
    with compiled(model, CPU, said.append, cuda_graphs=True):
        step(model)
    assert said == ["The model is not compiled: the package triton is not installed."]


def test_streamed_blocks_are_refused_by_the_name_that_was_given(model):
    compile_where_placed(model, cuda_graphs=True)
    with pytest.raises(ConfigError, match=r"got cuda_graphs for a model of which 2 of 3 blocks .*turn cuda_graphs off"):
        DevicePlacement("cpu", kernels=PLAIN, resident_blocks=1)(model).__enter__()


@pytest.mark.parametrize(
    ("device", "resident", "said"),
    [("cpu", 3, "got cuda_graphs and resident_blocks 3"), (["cpu", "cpu"], None, "got cuda_graphs for 2 devices")],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(device, resident, said):
    with pytest.raises(ConfigError, match=said):
        placement_of(device, resident, None, "plain", print, compile=False, cuda_graphs=True)
    with pytest.raises(ConfigError, match="got cuda_graphs for a group"):
        device_of_one("cpu", compile=False, cuda_graphs=True)
    with pytest.raises(ConfigError, match="cuda_graphs"):
        placement_of("cpu", None, None, "plain", print, compile=False, cuda_graphs="yes")
    assert placement_of("cpu", None, None, "plain", print, compile=False, cuda_graphs=True)._compile


# --- where there are --------------------------------------------------------------------------------------------------


def test_torch_is_asked_for_its_graph_trees(monkeypatch):
    import torch._inductor

    asked = []
    monkeypatch.setattr(compiling, "_functions", {})
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    for deep in (False, True):
        for recorded in (False, True):
            compiling._function_of(LTXTransformer, "inductor", deep=deep, graphs=recorded)
    assert [options["options"] for options in asked] == [
        None,
        {"triton.cudagraphs": True},
        compiling.DEEP,
        compiling.DEEP | {"triton.cudagraphs": True},
    ]
    assert all(options["dynamic"] for options in asked)
    assert "triton.cudagraphs" in torch._inductor.list_options()
    assert torch._inductor.config.triton.cudagraph_trees, "without, each graph would have a pool of its own"


def test_each_forward_is_a_step_and_each_block_a_graph(model, trees):
    expected = step(model)
    with compiled(model, CPU, pytest.fail, cuda_graphs=True):
        for count in (1, 2, 3):
            assert torch.equal(step(model), expected)
            assert (trees.steps, trees.calls) == (count, 3 * count)
    assert "forward" not in vars(model)
    assert torch.equal(step(model), expected)
    assert trees.steps == 3


def test_the_stand_in_overwrites_what_outlives_a_step(model, trees):
    results = []
    hook = model.transformer_blocks[2].register_forward_hook(lambda block, given, result: results.append(result))
    with compiled(model, CPU, pytest.fail, cuda_graphs=True):
        step(model)
        assert results[0].isfinite().all()
        step(model)
        assert results[0].isnan().all()
    hook.remove()


@pytest.mark.parametrize("mode", ["attention_values", "attention_skip", "transformer_block"])
@pytest.mark.parametrize("step_cache", [0.0, 0.3])
def test_nothing_of_a_step_is_read_after_it(model, trees, mode, step_cache):
    """Branches that fork and rejoin, velocities that the step cache holds, and previews that somebody keeps."""
    options = {"stg_scale": (1.0,), "skip_blocks": ((1,),), "stg_mode": mode, "step_cache": step_cache}
    previews, expected_previews = [], []
    expected = clip(model, DevicePlacement("cpu", kernels=PLAIN), previews=expected_previews, **options)
    compile_where_placed(model, cuda_graphs=True)
    got = clip(model, DevicePlacement("cpu", kernels=PLAIN, say=pytest.fail), previews=previews, **options)
    assert torch.equal(got, expected)
    assert trees.steps == 12 if step_cache == 0 else 3 < trees.steps < 12
    shown, expected_shown = (
        [preview for preview in each if preview is not None] for each in (previews, expected_previews)
    )
    assert len(shown) == len(expected_shown) >= 12
    assert all(torch.equal(one, other) for one, other in zip(shown, expected_shown, strict=True))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_samplers_that_hold_velocities_read_none_of_a_step_before(model, trees, sampler):
    expected = clip(model, DevicePlacement("cpu", kernels=PLAIN), sampler)
    compile_where_placed(model, cuda_graphs=True)
    assert torch.equal(clip(model, DevicePlacement("cpu", kernels=PLAIN, say=pytest.fail), sampler), expected)
    assert trees.steps >= 12


def test_so_many_sizes_are_recorded_and_others_run_compiled(model, trees, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_SIZES", 2)
    said = []
    with compiled(model, CPU, said.append, cuda_graphs=True):
        for tokens, length in ((11, 5), (11, 5), (13, 5), (13, 7), (17, 7), (11, 5)):
            step(model, tokens, length)
    assert trees.steps == 4
    assert said == [
        "Steps of 2 sizes are recorded as CUDA graphs, as many as are kept; others run compiled without them."
    ]


def test_weights_at_another_place_count_as_another_size(model, trees):
    with compiled(model, CPU, pytest.fail, cuda_graphs=True):
        step(model)
        assert len(graphs._recorded) == 1
        model.scale_shift_table.data = model.scale_shift_table.data.clone()
        step(model)
        assert len(graphs._recorded) == 2


def test_what_cannot_be_recorded_is_said_once_and_runs_compiled(model, trees, monkeypatch):
    calls, said = [], []

    def fails(block, *given):
        calls.append(block)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(trees, "block", fails)
    expected = step(model)
    with compiled(model, CPU, said.append, cuda_graphs=True):
        assert torch.equal(step(model), expected)
        assert torch.equal(step(model), expected)
    assert len(calls) == 1
    assert said == ["CUDA graphs are left out: RuntimeError: operation not permitted when stream is capturing"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), ConfigError("ours"), KeyboardInterrupt()])
def test_other_errors_and_interrupts_pass(model, trees, monkeypatch, error):
    def fails(block, *given):
        raise error

    monkeypatch.setattr(trees, "block", fails)
    with compiled(model, CPU, pytest.fail, cuda_graphs=True), pytest.raises(type(error)):
        step(model)
    assert "forward" not in vars(model)


def test_steps_of_several_threads_take_turns(model, trees, monkeypatch):
    """All recordings share one pool: a step that begins would overwrite what another is about to read."""
    inside, most = [], []
    block = trees.block

    def watched(*given):
        inside.append(threading.get_ident())
        most.append(len(set(inside)))
        try:
            return block(*given)
        finally:
            inside.pop()

    monkeypatch.setattr(trees, "block", watched)
    expected = step(model)
    results = []
    with compiled(model, CPU, pytest.fail, cuda_graphs=True):
        threads = [threading.Thread(target=lambda: results.extend(step(model) for _ in range(20))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 60
    assert all(torch.equal(result, expected) for result in results)
    assert max(most) == 1


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_that_graphs_keep_is_not_free(monkeypatch):
    card = torch.device("cuda", 1)
    segments = [
        {"device": 1, "segment_pool_id": (0, 0), "total_size": 100, "allocated_size": 10},
        {"device": 1, "segment_pool_id": (0, 1), "total_size": 1000, "allocated_size": 200},
        {"device": 0, "segment_pool_id": (0, 2), "total_size": 5000, "allocated_size": 0},
    ]
    accelerator = SimpleNamespace(
        mem_get_info=lambda device: (10_000, 20_000),
        memory_allocated=lambda device: 210,
        memory_reserved=lambda device: 1100,
        memory_snapshot=lambda: segments,
    )
    monkeypatch.setattr(torch, "cuda", accelerator)
    monkeypatch.setattr(torch, "get_device_module", lambda device: accelerator)
    monkeypatch.setattr(devices, "_allowed_share", lambda accelerator, device: 1.0)
    monkeypatch.setitem(devices.sys.modules, "torch._inductor.cudagraph_trees", SimpleNamespace())
    assert devices.pooled(card) == 800
    assert devices.memory(card).free == 10_000 + 90
    assert devices.pooled(CPU) == 0
    monkeypatch.delitem(devices.sys.modules, "torch._inductor.cudagraph_trees")
    assert devices.pooled(card) == 0
    assert devices.memory(card).free == 10_000 + 890


def test_the_model_that_is_recorded_may_work_in_what_its_graphs_keep(model, monkeypatch):
    from ltxkit.ltx_core.main_memory import Memory
    from ltxkit.ltx_core.placing import placement

    monkeypatch.setattr(placement, "memory", lambda device: Memory(1000, 2000))
    monkeypatch.setattr(placement, "pooled", lambda device: 300)
    place = DevicePlacement("meta", kernels=None)
    assert place._available(model).free == 1000
    compile_where_placed(model, cuda_graphs=True)
    assert place._available(model).free == 1300
    assert place._available(torch.nn.Linear(1, 1)).free == 1000


@pytest.mark.slow  # compiles C++ for half a minute
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler")
def test_torch_compiles_with_the_option_and_computes_the_same(model, monkeypatch, tmp_path):
    """On a CPU torch leaves the graphs out; the option, the steps and the blocks are those of a card."""
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "no_graphs", lambda device: None)
    monkeypatch.setattr(graphs, "_recorded", set())
    expected = step(model, tokens=213)
    with torch._inductor.config.patch(compile_threads=1), compiled(model, CPU, pytest.fail, cuda_graphs=True):
        step(model, tokens=150)
        kept = step(model, tokens=213)
        again = step(model, tokens=213)
    assert torch.equal(kept, again)
    assert (kept - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert any(tmp_path.rglob("*"))

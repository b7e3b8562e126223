"""A forward that is divided among processes is the forward of one. Here threads play the processes, each with a model
of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.sharing import Counted, Sharing, TokenShare, parts_of
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing.streaming import streamed
from ltxkit.ltx_core.placing.together import check_alike, shared
from ltxkit.ltx_core.training.config import LoRASettings
from ltxkit.ltx_core.training.flow import Flow
from ltxkit.ltx_core.training.footprint import Alive
from ltxkit.ltx_core.training.lora import LoRALayers

CHANNELS, CAPTIONS, LAYERS, HEADS = 6, 10, 4, 4
Processes = Callable[..., list[Any]]
OneOf = Callable[[int], Sharing]


@pytest.fixture(scope="module")
def model() -> LTXTransformer:
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=LAYERS, heads=HEADS, head_dim=6, channels=CHANNELS, captions=CAPTIONS)
    return LTXTransformer(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Case:
    """A forward. levels: of the tokens of each sample; weights: of the first tokens in self-attention."""

    tokens: int = 15
    samples: int = 1
    levels: int = 1
    weights: tuple[float, ...] | None = None
    lengths: tuple[int, ...] = (7,)
    branches: Callable[..., list[Branch]] = lambda positive, negative: [Branch(negative), Branch(positive)]

    def velocities(self, model: LTXTransformer) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(self.samples, self.tokens, CHANNELS, generator=generator)
        positions = torch.rand(self.samples, 3, self.tokens, generator=generator) * 100
        sigma = torch.rand(self.samples, self.tokens if self.levels > 1 else 1, 1, generator=generator)
        sigma = (sigma * self.levels).ceil() / self.levels if self.levels > 1 else sigma
        texts = [
            model.prepare_text(
                [torch.randn(length, CAPTIONS, generator=generator) for length in (*lengths, *lengths)[: self.samples]]
            )
            for lengths in (self.lengths, (5,))
        ]
        weights = None if self.weights is None else torch.tensor(self.weights)
        return model(x, sigma, model.prepare_positions(positions, weights), self.branches(*texts))


def forked(mode: str, skip: set[int]) -> Callable[..., list[Branch]]:
    return lambda positive, negative: [
        Branch(negative),
        Branch(positive),
        Branch(positive, frozenset(skip), mode),  # pyright: ignore[reportArgumentType]
    ]


CASES = {
    "plain": Case(branches=lambda positive, _: [Branch(positive)]),
    "guided": Case(),
    "as many tokens as processes": Case(tokens=4),
    "fewer tokens than processes": Case(tokens=1),
    "two samples": Case(samples=2, lengths=(7, 4)),
    "a level for each token": Case(levels=5),
    "a level for each token of two samples": Case(levels=16, samples=2),
    "a run of conditions": Case(levels=2, tokens=23),
    "weighted guides": Case(weights=(0.5, 0.2, 0.0, 1.0)),
    "a text of one token": Case(lengths=(1,)),
    **{
        f"{mode} of blocks {skip}": Case(branches=forked(mode, skip))
        for mode in ("attention_values", "attention_skip", "transformer_block")
        for skip in ({1}, {0, 3}, {0, 1, 2, 3})
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_divided_forward_is_the_whole_one(
    model: LTXTransformer, size: int, case: Case, in_processes: Processes
) -> None:
    with torch.no_grad():
        expected = case.velocities(model)

    def work(sharing: Sharing) -> tuple[Tensor, ...]:
        mine = copy.deepcopy(model)
        with shared(mine, sharing):
            return case.velocities(mine)

    found = in_processes(size, work)
    for of_process in found:
        for velocity, whole in zip(of_process, expected, strict=True):
            torch.testing.assert_close(velocity, whole, atol=1e-5, rtol=0)
    for others in zip(*found, strict=True):
        assert all(torch.equal(others[0], other) for other in others)


def test_each_process_computes_its_own_tokens(model: LTXTransformer, in_processes: Processes) -> None:
    """And what is exchanged is three quarters of queries, keys and values once, and of their means once, per block."""
    rows: list[int] = []
    sent: list[int] = []

    def work(sharing: Sharing) -> None:
        mine = copy.deepcopy(model)
        exchange = type(sharing).exchange
        if sharing.rank == 1:
            mine.transformer_blocks[0].ff.register_forward_hook(lambda _, x, __: rows.append(x[0].shape[-2]))
            object.__setattr__(
                sharing, "exchange", lambda x, *lengths: (sent.append(x.numel()), exchange(sharing, x, *lengths))[1]
            )
        with shared(mine, sharing):
            Case(tokens=14, branches=lambda positive, _: [Branch(positive)]).velocities(mine)

    in_processes(4, work)
    width = model.config.hidden_size
    assert rows == [4]  # of 3, 4, 3 and 4
    assert sent == [3 * 4 * width, 14 * width // 4] * LAYERS


def test_streamed_blocks_are_divided_alike(model: LTXTransformer, in_processes: Processes) -> None:
    with torch.no_grad():
        expected = CASES["guided"].velocities(model)

    def work(sharing: Sharing) -> tuple[Tensor, ...]:
        mine = copy.deepcopy(model)
        # Each with as many blocks as its device has room for.
        with streamed(mine, torch.device("cpu"), sharing.rank), shared(mine, sharing):
            return CASES["guided"].velocities(mine)

    for found in in_processes(3, work):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_afterwards_the_model_computes_alone(model: LTXTransformer, one_of: OneOf) -> None:
    mine = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="stop"), shared(mine, one_of(1)):
        raise RuntimeError("stop")
    assert mine.sharing is None


def test_more_processes_than_heads_are_refused(model: LTXTransformer, one_of: OneOf) -> None:
    message = r"got 5 processes for a model with 4 heads .* expected at most 4"
    with pytest.raises(ConfigError, match=message), shared(model, one_of(5)):
        pass


@dataclass(frozen=True)
class Step:
    """A step of training. levels: of a sample's tokens, of which those at 0 are given. precision: of autocast."""

    tokens: int = 15
    lengths: tuple[int, ...] = (7,)
    levels: bool = False
    lora: bool = False
    checkpointed: bool = False
    precision: torch.dtype | None = None

    def flow(self, model: LTXTransformer, sharing: Sharing | None) -> Flow:
        mine = copy.deepcopy(model).requires_grad_(not self.lora)
        mine.gradient_checkpointing, mine.sharing = self.checkpointed, sharing
        if not self.lora:
            return Flow(mine, None)
        layers = LoRALayers(mine, LoRASettings(rank=2, alpha=2))
        generator = torch.Generator().manual_seed(5)
        for parameter in layers.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        return Flow(mine, None, layers)

    def loss_and_gradients(self, flow: Flow) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(4)
        count = len(self.lengths)
        x0, noise = torch.randn(2, count, self.tokens, CHANNELS, generator=generator)
        sigma = torch.rand(count, self.tokens if self.levels else 1, 1, generator=generator) * 0.9 + 0.05
        if self.levels:
            sigma[:, : self.tokens // 3] = 0
        positions = torch.rand(1, 3, self.tokens, generator=generator) * 100
        prompts = [torch.randn(length, CAPTIONS, generator=generator) for length in self.lengths]
        with torch.autocast("cpu", self.precision or torch.bfloat16, enabled=self.precision is not None):
            losses = flow(x0, noise, sigma, positions, prompts)
        losses.mean().backward()
        return losses.detach(), {name: p.grad for name, p in flow.named_parameters() if p.grad is not None}


STEPS = {
    "plain": Step(),
    "samples with texts of their own": Step(lengths=(7, 4)),
    "given tokens": Step(levels=True, lengths=(3, 5)),
    "fewer tokens than processes": Step(tokens=1),
    "blocks computed twice": Step(checkpointed=True),
    "a LoRA": Step(lora=True, checkpointed=True, levels=True),
    "bfloat16": Step(precision=torch.bfloat16),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("size", [2, 3])
def test_a_divided_step_has_the_gradients_of_the_whole_one(
    model: LTXTransformer, in_processes: Processes, size: int, step: Step
) -> None:
    """Their mean over the processes, as data parallel training takes it."""
    losses, expected = step.loss_and_gradients(step.flow(model, None))

    def work(sharing: Sharing) -> tuple[Tensor, dict[str, Tensor]]:
        return step.loss_and_gradients(step.flow(model, sharing))

    found = in_processes(size, work, trains=True)
    # Of rounding in bfloat16, 2^-9 each, about 60 meet on the way there and back.
    close = 1e-5 if step.precision is None else 0.02
    for own, gradients in found:
        torch.testing.assert_close(own, losses, rtol=1e-6 if step.precision is None else 0.01, atol=0)
        assert gradients.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        mean = torch.stack([gradients[name] for _, gradients in found]).mean(0)
        error, norm = float((mean - gradient).norm()), float(gradient.norm())
        assert error <= close * max(norm, 1e-2 * largest), name


def test_what_a_process_allocates_is_counted_without_the_others(model: LTXTransformer, in_processes: Processes) -> None:
    """By the one with the largest share."""
    step = Step(tokens=47, lengths=(7, 7))

    def counted(sharing: Sharing) -> int:
        flow = step.flow(model, sharing)
        with Alive() as alive:
            step.loss_and_gradients(flow)
        return alive.most

    found = in_processes(3, counted, trains=True)
    alone = counted(Counted(count=3))
    assert alone == pytest.approx(max(found), rel=0.05)
    assert alone < 0.7 * counted(Counted(count=1))


def test_values_that_differ_are_named(in_processes: Processes) -> None:
    def work(sharing: Sharing) -> None:
        check_alike(sharing, size=(9, 64, 64), seed=[1] if sharing.rank < 2 else [2])

    with pytest.raises(ConfigError, match=r"got seed \[1\] in process 0 and \[2\] in process 2; expected the same"):
        in_processes(3, work)
    in_processes(3, lambda sharing: check_alike(sharing, seed=4))


@pytest.mark.parametrize(
    ("total", "size", "expected"),
    [(32, 4, [8, 8, 8, 8]), (32, 3, [10, 11, 11]), (3, 2, [1, 2]), (2, 4, [0, 1, 0, 1]), (0, 2, [0, 0]), (7, 1, [7])],
)
def test_parts(total: int, size: int, expected: list[int]) -> None:
    assert parts_of(total, size) == expected


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exchange_keeps_every_number(size: int, dtype: torch.dtype, in_processes: Processes) -> None:
    """There and back, and in between each process has whole columns of its heads."""
    rows, tokens, heads, head_dim = 2, 13, 7, 2
    whole = torch.arange(3 * rows * tokens * heads * head_dim).view(3, rows, tokens, -1).to(dtype)

    def work(sharing: Sharing) -> None:
        share = TokenShare(sharing, tokens, heads)
        own = [share.own(part, 1) for part in whole]
        mine = share.to_heads(own)
        first = sum(parts_of(heads, size)[: sharing.rank]) * head_dim
        for part, columns in zip(whole, mine, strict=True):
            assert torch.equal(columns, part[..., first : first + share.own_heads * head_dim])
        for part, back in zip(own, (share.to_tokens(columns) for columns in mine), strict=True):
            assert torch.equal(back, part)
        assert torch.equal(share.gathered(own[0], 1), whole[0])

    in_processes(size, work)

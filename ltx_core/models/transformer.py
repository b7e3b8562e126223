"""The LTX-Video transformer, 2B and 13B, versions 0.9.0 to 0.9.8.

arXiv 2501.00103; Lightricks/LTX-Video transformer3d.py, and attention.py for the block. Attribute names are the keys of
the official single file after its prefix. One forward computes all branches of a denoising step and does their common
work once (see `branches`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import TransformerConfig
from ..errors import ConfigError, ShapeError
from ..kernels import elementwise
from ..kernels.active import PLAINLY, Active
from ..kernels.directly import DIRECTLY
from ..kernels.elementwise import TokenRows, added, gated_sum, norm_modulation
from ..kernels.products import tanh_gelu
from ..kernels.rotation import table_size
from ..progress import log_note
from .attention import CrossAttention, SelfAttention
from .blocks import BlockStack
from .branches import (
    BlockPlan,
    BlockText,
    Branch,
    BranchStructure,
    ForwardPlan,
    PreparedText,
    plan_forward,
    structure_of,
)
from .dtypes import compute_dtype
from .embeddings import AdaLayerNormSingle, CaptionProjection, Modulation, scale_shift_table
from .linear import Linear
from .rope import RotaryTable, rotary_table
from .sharing import Sharing, TokenShare
from .teams import collected, teams_for

__all__ = ["Branch", "LTXTransformer", "PreparedText", "RotaryTable", "TransformerBlock"]

OUTPUT_NORM_EPS = 1e-6  # fixed in Lightricks/LTX-Video transformer3d.py; `norm_eps` of the config is the blocks'


class _ProjectedGELU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        proj = cast(nn.Module, self.proj)  # a quantization may have put another Linear there
        return proj.with_gelu(x) if isinstance(proj, Linear) else tanh_gelu(proj(x))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity takes the place of training's dropout: the keys are net.0.proj and net.2.
        self.net = nn.Sequential(_ProjectedGELU(width, 4 * width), nn.Identity(), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        folds: Callable[[Tensor, int], bool] | None = getattr(self.net[2], "folds_gelu", None)
        if folds is not None and folds(x, x.numel() // x.shape[-1]):  # 8 passes less
            down, hidden = cast(Any, self.net[2]), cast(_ProjectedGELU, self.net[0])
            return down.of_gelu(hidden.proj(x))
        return self.net(x)


class TransformerBlock(nn.Module):
    active: Active = PLAINLY

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, heads, head_dim = config.hidden_size, config.num_attention_heads, config.attention_head_dim
        self.eps = config.norm_eps  # of both norms, which have no weights
        self.attn1 = SelfAttention(d, d, heads, head_dim)
        self.attn2 = CrossAttention(d, config.cross_attention_dim, heads, head_dim)
        self.ff = FeedForward(d)
        self.scale_shift_table = scale_shift_table(6, d)

    def forward(
        self, x: Tensor, modulation: Modulation, rotary: RotaryTable, texts: Sequence[BlockText], plan: BlockPlan
    ) -> Tensor:
        """Lanes before the block (g b n d) -> those that read a text; `texts`: one for each of these."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (self.scale_shift_table + modulation.blocks).unbind(1)
        rows, active = modulation.rows, self.active
        h = norm_modulation(x, self.eps, shift_a, scale_a, rows, active)
        h = self.attn1(modulation.narrowed(h), rotary, plan)
        x = gated_sum(plan.fork(x), gate_a, h, rows)
        x = plan.spread(x)
        x = added(x, self.attn2(modulation.narrowed(x), texts))
        h = norm_modulation(x, self.eps, shift_m, scale_m, rows, active)
        return gated_sum(x, gate_m, self.ff(modulation.narrowed(h)), rows)


class LTXTransformer(nn.Module):
    """Predicts velocity = noise - data for latent tokens.

    Can be built under `torch.device("meta")`: it has parameters only, no buffers.

    gradient_checkpointing: recompute blocks in the backward pass instead of keeping their activations.

    Raises:
        ConfigError: sizes that do not go together.
    """

    BLOCK_PREFIX: ClassVar[str] = "transformer_blocks."
    COMPILES: ClassVar[bool] = True  # see `placing.compiling`
    active = DIRECTLY
    sharing: Sharing | None = None  # while several processes divide each forward among them

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.hidden_size % 2:
            raise ConfigError(
                f"got hidden size {config.hidden_size}; expected an even one, since rotary positions turn pairs of "
                "channels; change attention_head_dim"
            )
        if config.cross_attention_dim != config.hidden_size:
            raise ConfigError(
                f"got cross_attention_dim {config.cross_attention_dim}; expected {config.hidden_size}, the width of "
                "projected text; make it num_attention_heads * attention_head_dim"
            )
        self.config = config
        self.gradient_checkpointing = False
        self.is_compiled = False  # while `placing.compiling` has its blocks
        d = config.hidden_size
        self.patchify_proj = Linear(config.in_channels, d)
        self.adaln_single = AdaLayerNormSingle(d)
        self.caption_projection = CaptionProjection(config.caption_channels, d)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.norm_out = nn.LayerNorm(d, eps=OUTPUT_NORM_EPS, elementwise_affine=False)
        self.scale_shift_table = scale_shift_table(2, d)
        self.proj_out = Linear(d, config.out_channels)
        # Of the last forward, for the structure of its branches and whether they start apart: steps repeat it.
        self._planned: tuple[tuple[BranchStructure, bool], ForwardPlan] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that are not quantized."""
        return self.scale_shift_table.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the computation: `dtype`, on CPUs the one that was chosen there."""
        return compute_dtype(self.scale_shift_table, self.active.kernels.products)

    def blocks(self) -> BlockStack:
        def entries(block: nn.Module) -> tuple[nn.Module, ...]:
            text = cast(TransformerBlock, block).attn2
            return block, text.to_k, text.to_v  # a block's text is prepared before the block runs

        return BlockStack(self, self.BLOCK_PREFIX.rstrip("."), entries, exit=self.norm_out)

    def called_parts(self) -> list[tuple[nn.Module, list[str]]]:
        """Modules that are called as a whole, inner ones first, each with the methods other than `forward` that compute
        with its weights: the units in which weights can be gathered."""
        parts: list[tuple[nn.Module, list[str]]] = []
        for block in self.transformer_blocks:
            parts += [(cast(TransformerBlock, block).attn2, ["prepare"]), (block, [])]
        return [*parts, (self, ["prepare_text"])]

    def prepare_text(self, contexts: Sequence[Tensor]) -> PreparedText:
        """The text of a branch.

        contexts: embeddings without padding, one (l, caption_channels) per sample, or (s, l, caption_channels) for s
            neighbours; a single embedding serves the whole batch.

        Raises:
            ShapeError: no text, a text without tokens, or of another width.
        """
        expected = self.config.caption_channels
        if not contexts:
            raise ShapeError("got no text; expected one per sample, or one for all; encode the prompt first")
        for context in contexts:
            if context.ndim not in (2, 3) or context.shape[-1] != expected:
                raise ShapeError(
                    f"got text of shape {tuple(context.shape)}; expected (tokens, {expected}); text from another "
                    "encoder family does not fit: use the T5 v1.1 encoder that the model was trained with"
                )
            if context.shape[-2] == 0:
                raise ShapeError(
                    "got text without tokens; expected one at least, even an empty prompt has its end token; encode it"
                )
        lengths = [context.shape[-2] for context in contexts]
        counts = [context.shape[:-1].numel() for context in contexts]
        # In float32 where float16 may have to be left later: it is done once, and the step may follow it.
        dtype = self.compute_dtype if self._narrow is None else torch.float32
        projected = self.caption_projection(torch.cat([c.flatten(0, -2) for c in contexts]).to(dtype))
        if len(set(lengths)) == 1:
            return PreparedText((projected.unflatten(0, (-1, lengths[0])),))
        parts = zip(projected.split(counts), lengths, strict=True)
        return PreparedText(tuple(part.unflatten(0, (-1, length)) for part, length in parts))

    def prepare_positions(self, positions: Tensor, weights: Tensor | None = None) -> RotaryTable:
        """Positions (b | 1, 3, n) float32, on the device of the forward: seconds, pixels down, pixels right.

        weights: of the first tokens in self-attention, see `RotaryTable`.

        Raises:
            ShapeError: any other shape.
        """
        if positions.ndim != 3 or positions.shape[1] != 3:
            raise ShapeError(
                f"got positions of shape {tuple(positions.shape)}; expected (batch or 1, 3, tokens); pass seconds, "
                "pixels down and pixels right"
            )
        config, card = self.config, self.active.card
        table = rotary_table(
            positions.float(),
            config.hidden_size,
            config.positional_embedding_theta,
            config.positional_embedding_max_pos,
            form="complex" if card is None else card.rotation(self.compute_dtype, config.hidden_size),
        )
        return table if weights is None else replace(table, weights=weights)

    def forward(self, x: Tensor, sigma: Tensor, rotary: RotaryTable, branches: Sequence[Branch]) -> tuple[Tensor, ...]:
        """One velocity per branch.

        x: (b n c) normalised latent tokens.
        sigma: (b n 1), or (b 1 1) for one level per sample; 0 is clean, 1 is noise.
        rotary: from `prepare_positions`.
        branches: branches with the same text share the text object; then their common work is done once.

        Returns:
            one (b n c_out) float32 per branch, in their order; equal branches get the same tensor.

        Raises:
            ShapeError: channels, tokens or samples do not fit. ConfigError: a skipped block that does not exist.
        """
        self._check(x, sigma, rotary, branches)
        velocities = self._velocities(x, sigma, rotary, branches)
        if self._narrow is None or all(bool(velocity.isfinite().all()) for velocity in velocities):
            return velocities
        self.active.widen()
        log_note("Numbers of the transformer have left the range of float16: it computes in float32 from this step on.")
        return self._velocities(x, sigma, rotary, branches)

    @property
    def _narrow(self) -> torch.dtype | None:
        """float16 where weights of another dtype are cast to it: then the stream of residuals is float32."""
        dtype = self.compute_dtype
        return dtype if dtype == torch.float16 and self.dtype != dtype else None

    def _velocities(
        self, x: Tensor, sigma: Tensor, rotary: RotaryTable, branches: Sequence[Branch]
    ) -> tuple[Tensor, ...]:
        sharing = self.sharing
        if sharing is None or sharing.size == 1:
            return self._of_team(x, sigma, rotary, branches, None)
        # Gradients pass among those that divide the tokens, and not from team to team.
        if torch.is_grad_enabled() or not sharing.teams:
            return self._of_team(x, sigma, rotary, branches, sharing)
        heads = self.config.num_attention_heads
        teams = teams_for(structure_of(branches), self.config.num_layers, sharing.size, heads)
        if len(teams) == 1:
            return self._of_team(x, sigma, rotary, branches, sharing)
        team = next(team for team in teams if sharing.rank in team.ranks)
        members = sharing.part(team.ranks) if len(team.ranks) > 1 else None
        velocities = self._of_team(x, sigma, rotary, [branches[number] for number in team.branches], members)
        return collected(velocities, sharing, teams)

    def _of_team(
        self, x: Tensor, sigma: Tensor, rotary: RotaryTable, branches: Sequence[Branch], team: Sharing | None
    ) -> tuple[Tensor, ...]:
        """team: the processes among which the tokens of these branches are divided; None: this one computes all."""
        plan = self._plan(branches)
        share = None if team is None else team.of(x.shape[1], self.config.num_attention_heads)
        modulation, dtype = self._modulation(sigma, share), self.compute_dtype
        if share is not None:
            x, rotary = share.own(x, 1).contiguous(), rotary.shared(share)
        x = self.patchify_proj(x.to(dtype))
        x = x if modulation.narrow is None else x.float()
        x = x.expand(plan.num_lanes, -1, -1, -1)  # (g b n d)
        x = x.contiguous() if self.is_compiled else x  # as after each block: strides of 0 would be another variant
        for number, (block, lanes) in enumerate(zip(self.transformer_blocks, plan.blocks, strict=True)):
            block = cast(TransformerBlock, block)
            texts = [_read_once(branches[of].text, number, dtype, block) for of in lanes.texts]
            x = self._run(block, x, modulation, rotary, texts, lanes)
        shift, scale = (self.scale_shift_table + modulation.output.unsqueeze(1)).unbind(1)
        x = elementwise.modulation(self.norm_out(x), shift, scale, modulation.rows)
        velocities = self.proj_out(modulation.narrowed(x)).float()
        velocities = velocities if share is None else share.gathered(velocities, 2)
        return tuple(velocities[lane] for lane in plan.lane_of)

    def _plan(self, branches: Sequence[Branch]) -> ForwardPlan:
        structure, apart, planned = structure_of(branches), self.is_compiled, self._planned
        if planned is None or planned[0] != (structure, apart):
            plan = plan_forward(structure, self.config.num_layers, apart=apart)
            planned = self._planned = (structure, apart), plan
        return planned[1]

    def _run(
        self,
        block: TransformerBlock,
        x: Tensor,
        modulation: Modulation,
        rotary: RotaryTable,
        texts: Sequence[BlockText],
        plan: BlockPlan,
    ) -> Tensor:
        """Lanes before a block (g b n d) -> lanes after it."""
        kept = plan.set_aside(x)
        if kept is not None and not plan.computed:
            return kept
        if self.gradient_checkpointing and torch.is_grad_enabled():
            x = cast(Tensor, checkpoint(block, x, modulation, rotary, texts, plan, use_reentrant=False))
        else:
            x = block(x, modulation, rotary, texts, plan)
        return plan.rejoin(x, kept)

    def _modulation(self, sigma: Tensor, share: TokenShare | None = None) -> Modulation:
        rows = TokenRows()
        levels = sigma.flatten().float()
        if sigma.shape[1] > 1:
            levels, index = levels.unique(return_inverse=True)
            index = index.view(sigma.shape[:2])
            index = index if share is None else share.own(index, 1)
            rows = rows if levels.shape[0] == 1 else TokenRows.of(index)
        blocks, output = self.adaln_single(levels * self.config.timestep_scale_multiplier, self.compute_dtype)
        return Modulation(blocks, output, rows, self._narrow)

    def _check(self, x: Tensor, sigma: Tensor, rotary: RotaryTable, branches: Sequence[Branch]) -> None:
        config = self.config
        if x.ndim != 3 or x.shape[2] != config.in_channels:
            raise ShapeError(
                f"got latent tokens of shape {tuple(x.shape)}; expected (batch, tokens, {config.in_channels}); use "
                "latents of the VAE that belongs to this model"
            )
        b, n, _ = x.shape
        if tuple(sigma.shape) not in ((b, n, 1), (b, 1, 1)):
            raise ShapeError(
                f"got sigma of shape {tuple(sigma.shape)}; expected ({b}, {n}, 1) or ({b}, 1, 1); give one level per "
                "token or per sample"
            )
        rows, tokens = table_size(rotary.rotation)
        if tokens != n or rows not in (1, b):
            raise ShapeError(
                f"got positions of {rows} samples with {tokens} tokens; expected {b} or 1 with {n}; prepare them for "
                "this latent"
            )
        for branch in branches:
            samples, width = branch.text.samples, branch.text.contexts[0].shape[-1]
            if samples not in (1, b):
                raise ShapeError(f"got {samples} texts; expected {b}, or 1 for all; give one prompt per sample")
            if width != config.hidden_size:
                raise ShapeError(
                    f"got text prepared at width {width}; expected {config.hidden_size}; prepare it with this model"
                )


def _read_once(text: PreparedText, number: int, dtype: torch.dtype, block: TransformerBlock) -> BlockText:
    """What block `number` reads from a text. Outside the forward of the block, where a checkpoint would replay it."""
    contexts = text.contexts
    if dtype == torch.float16:  # a text that was prepared in float32, see `prepare_text`
        contexts = tuple(context.to(dtype) for context in contexts)
    return text.cache.of_block(number, dtype, lambda: block.attn2.prepare(contexts))

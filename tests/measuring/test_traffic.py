"""What a block reads and writes beside products and attention, counted by a dispatch mode."""

from dataclasses import replace

import pytest
import torch

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.kernels.active import Active
from ltxkit.ltx_core.kernels.cards import PLAIN_CARD, CardKernels
from ltxkit.ltx_core.kernels.choice import PLAIN
from ltxkit.ltx_core.measuring.inputs import StepInputs
from ltxkit.ltx_core.measuring.traffic import counting, touched
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.computing import using
from ltxkit.ltx_core.shapes import LatentShape

pytestmark = pytest.mark.usefixtures("half_precision")

GRID, WIDTH = LatentShape(4, 8, 8), 256
LEVELS = 0.1  # passes that rows of levels take at this size: 1/256 each


def test_operations_by_what_they_read_and_write():
    x, y, bias = torch.ones(4, 8), torch.ones(4, 8), torch.ones(8)
    with torch.no_grad(), counting() as traffic:
        z = x + y
        z.mul_(bias)
        torch.add(x, 1, out=z)
        z.view(-1)[:3].expand(2, 3)
        z @ y.T
        z.to(z.dtype)
        torch.dropout(z, 0.5, train=False)
        torch.nn.functional.rms_norm(x, (8,))
    of = {name: nbytes / x.nbytes for name, nbytes in traffic.by_operator.items()}
    assert of == {"aten.add": 5, "aten.mul_": 2.25, "norm.rms_norm": 2}
    assert traffic.kernels == 4
    assert traffic.bytes == sum(traffic.by_operator.values())
    assert touched(torch.ones(1).expand(5)) == 4
    with counting(least=1000) as traffic:
        _ = x + y
    assert traffic.kernels == 0


def passes(card: CardKernels, *, conditioned: bool) -> tuple[float, float, torch.Tensor]:
    """Of one block, in bfloat16; and the velocity of three."""
    taken = []
    for layers in (1, 3):
        torch.manual_seed(0)
        config = TransformerConfig.of_size(layers=layers, heads=4, head_dim=64, channels=16, captions=32)
        model = LTXTransformer(config).to(torch.bfloat16).eval()
        given = StepInputs.random(config, GRID, torch.device("cpu"))
        if conditioned:
            given = replace(given, sigma=torch.where(torch.arange(GRID.tokens) < 64, 0.0, 0.5)[None, :, None])
        with using(model, Active(PLAIN, card=card)), torch.inference_mode():
            step = given.step_of(model)
            velocity = step()
            with counting(GRID.tokens * WIDTH) as traffic:
                step()
        taken.append(traffic)
    one, three = taken
    unit = 2 * GRID.tokens * WIDTH * 2
    return (three.bytes - one.bytes) / unit, (three.kernels - one.kernels) / 2, velocity


@pytest.mark.parametrize(("conditioned", "most_fused"), [(False, 31), (True, 35)])
def test_passes_of_a_block(conditioned, most_fused):
    plain, _, expected = passes(PLAIN_CARD, conditioned=conditioned)
    fused, kernels, velocity = passes(CardKernels(elementwise="comfy-kitchen"), conditioned=conditioned)
    assert plain <= 47 + LEVELS
    assert fused <= most_fused + LEVELS
    assert kernels < 18
    difference = (velocity - expected).abs().max() / expected.abs().max()
    assert difference <= 1e-2

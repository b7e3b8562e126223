"""What a card computes by: kernels of other packages where they are there and right, plain torch everywhere else.

A package is used on NVIDIA cards alone, and only after it has computed the same as plain torch on the card itself.
Nothing here has an autograd: training keeps the plain forms. CPUs have kernels of their own, see `choice`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from ..errors import ConfigError
from . import fused
from .choice import CARD_FORMS, PLAIN, PLAIN_FORM, WITHOUT_BFLOAT16, CardKind, Kernels
from .rotation import Form

HALVES = (torch.bfloat16, torch.float16)
_PACKAGES: Mapping[str, str] = {
    fused.KITCHEN: "comfy_kitchen",
    fused.FLASH_4: "flash_attn.cute",
    fused.FLASH_3: "flash_attn_interface",
    fused.SAGE: "sageattention",
    fused.BITSANDBYTES: "bitsandbytes",
}
"""Module of each back end."""
_COMPUTE: Mapping[str, Sequence[int]] = {
    fused.KITCHEN: (7, 8, 9, 10, 11, 12),
    fused.FLASH_4: (9, 10),
    fused.FLASH_3: (9,),
    fused.SAGE: (8, 9, 10, 12),
    fused.BITSANDBYTES: (7, 8, 9, 10, 11, 12),
}
"""Generations of NVIDIA cards (major number of the compute capability) for which a back end has kernels."""
_APPROXIMATE = frozenset({fused.SAGE})  # only where it is asked for


@dataclass(frozen=True)
class Capabilities:
    """What is known about a device before anything runs on it.

    kind: "cuda" (NVIDIA), "rocm", or torch's name of the type. compute: compute capability of an NVIDIA card.
    packages: back ends that are installed. bfloat16: whether the device computes in it, and does not imitate it.
    """

    kind: str
    compute: tuple[int, int] | None = None
    packages: frozenset[str] = frozenset()
    bfloat16: bool = True

    @classmethod
    def of(cls, device: torch.device) -> Capabilities:
        if device.type != "cuda":
            return cls(device.type, bfloat16=device.type != "mps" or _mps_has_bfloat16())
        if torch.version.hip is not None:
            return cls("rocm", bfloat16=torch.cuda.is_bf16_supported(including_emulation=False))
        compute = torch.cuda.get_device_capability(device)
        return cls("cuda", compute, _installed(), bfloat16=compute >= (8, 0))


@dataclass(frozen=True)
class CardKernels:
    """A choice for one device: a form of `CARD_FORMS` for each kind.

    gelu_in_product: torch has GELU in the product's own kernel here. bfloat16: whether the card computes in it.
    query_blocks: torch's attention may hold all scores here, so that it gets a block of queries at a time.
    compiles: norms of a VAE are compiled. why: sentences about back ends that were left out.
    """

    elementwise: str = PLAIN_FORM
    attention: str = PLAIN_FORM
    unpacking: str = PLAIN_FORM
    gelu_in_product: bool = False
    bfloat16: bool = True
    query_blocks: bool = False
    compiles: bool = False
    why: tuple[str, ...] = ()

    def fuses(self, dtype: torch.dtype, width: int) -> bool:
        """Whether norms, modulation and rotation of tokens of this dtype and width are one kernel of comfy-kitchen."""
        return self.elementwise == fused.KITCHEN and dtype in HALVES and width % fused.KITCHEN_LANES == 0

    def unpacks_nf4(self, dtype: torch.dtype, block: int) -> bool:
        """Whether weights in NF4 with a scale for each `block` of them become numbers of this dtype in one kernel."""
        return self.unpacking == fused.BITSANDBYTES and dtype in HALVES and block in fused.BLOCKS_OF_4_BITS

    def rotation(self, dtype: torch.dtype, width: int) -> Form:
        """The form of the rotary table for a computation in `dtype`."""
        return "matrices" if self.fuses(dtype, width) else "planes"

    def in_words(self) -> str:
        """The choice, or the part of a sentence that says it."""
        without = (
            "" if self.bfloat16 else "; weights in bfloat16, which it only imitates, compute in float16 and float32"
        )
        said = [f"elementwise operations by {_spoken(self.elementwise)}", f"attention by {_spoken(self.attention)}"]
        if self.attention in _APPROXIMATE:
            said[-1] += ", which is approximate"
        if self.unpacking != PLAIN_FORM:
            said.append(f"weights in NF4 unpacked by {self.unpacking}")
        return "; ".join(said) + without

    @property
    def kernels(self) -> Kernels:
        """The dtypes of computation."""
        return PLAIN if self.bfloat16 else WITHOUT_BFLOAT16

    def to_json(self) -> dict[str, Any]:
        """As a clip's settings say it."""
        names = (*CARD_FORMS, "gelu_in_product", "bfloat16")
        return {name: getattr(self, name) for name in names}


PLAIN_CARD = CardKernels()


def chosen(
    facts: Capabilities,
    asked: Mapping[CardKind, str] | None,
    wrong: Callable[[str], str | None],
) -> CardKernels:
    """The choice for a device.

    asked: a form for some kinds; a kind that is missing is chosen. None: all are. wrong: why a back end cannot be used
    on the device, None if it computes as plain torch does; called for those alone that everything else speaks for.

    Raises:
        ConfigError: a back end is asked for that is not there.
    """
    asked = {} if asked is None else asked
    forms: dict[CardKind, str] = {}
    why: list[str] = []
    for kind, offered in CARD_FORMS.items():
        named = asked.get(kind)
        forms[kind] = PLAIN_FORM
        candidates = [form for form in offered if form not in _APPROXIMATE] if named is None else [named]
        for form in candidates:
            if form == PLAIN_FORM:
                continue
            reason = _missing(form, facts) or wrong(form)
            if reason is None:
                forms[kind] = form
                break
            if named is not None:
                raise ConfigError(
                    f"got the kernels {kind}={form}; expected a back end that works on this device: {reason}; "
                    "leave it out for the best one that there is"
                )
            if form in facts.packages:
                why.append(f"{form} is left out: {reason}.")
    holds_scores = facts.kind == "mps" or (facts.kind != "cuda" and not facts.bfloat16)
    return CardKernels(**forms, bfloat16=facts.bfloat16, query_blocks=holds_scores, why=tuple(why))


def _missing(form: str, facts: Capabilities) -> str | None:
    if facts.kind != "cuda" or facts.compute is None:
        return f"{form} has kernels for NVIDIA cards, and this is {facts.kind}"
    if form not in facts.packages:
        return f"the package {_PACKAGES[form].partition('.')[0]} is not installed, or lacks {_PACKAGES[form]}"
    if facts.compute[0] not in _COMPUTE[form]:
        return f"{form} has no kernels for compute capability {facts.compute[0]}.{facts.compute[1]}"
    return None


@cache
def card_kernels(device: torch.device, asked: tuple[tuple[CardKind, str], ...] | None = None) -> CardKernels:
    """The choice for a device that is no CPU, tried on it once per process. asked: items of `chosen`'s.

    Raises:
        ConfigError: as `chosen`.
    """
    facts = Capabilities.of(device)
    dtypes = HALVES if facts.bfloat16 else (torch.float16,)
    choice = chosen(facts, None if asked is None else dict(asked), lambda form: fused.wrong(form, device, dtypes))
    gelu = facts.kind == "cuda" and fused.gelu_works(device)
    return replace(choice, gelu_in_product=gelu)


@contextmanager
def exact_sums(card: CardKernels | None) -> Generator[None]:
    """Inside, products in float16 are added up in float32 where weights in bfloat16 compute in it."""
    if card is None or card.bfloat16:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction = before


def _installed() -> frozenset[str]:
    return frozenset(form for form, module in _PACKAGES.items() if _is_there(module))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a package without this part, or a broken one
        return False


def _mps_has_bfloat16() -> bool:
    return torch.backends.mps.is_macos_or_newer(14, 0)


def _spoken(form: str) -> str:
    return "plain torch" if form == PLAIN_FORM else form

"""Which kernel and which dtype on a CPU, for products, attention, convolutions and norms apart.

Two processors with the same instructions differ eightfold in bfloat16 against float32, so no flag can say: it is
measured once per processor model and torch version (`measure`), before a model first works on a CPU, and kept
(`here`), so that a seed stays one clip on a machine. What cards compute by is `cards`; what a user writes about either
is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch

from ..errors import ConfigError
from ..values import check_text, shown
from . import fused

Kind = Literal["products", "attention", "convolutions", "norms"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PLAIN_FORM = "plain"
FORMS: Mapping[Kind, tuple[str, ...]] = {
    "products": (PLAIN_FORM, "onednn", "packed"),
    "attention": (PLAIN_FORM, "products"),
    "convolutions": (PLAIN_FORM, "packed"),
    "norms": (PLAIN_FORM, "pieces"),
}
"""What each kind of operation can be computed by, plain torch first.

products: `F.linear`; oneDNN; oneDNN with weights turned once into its layout, which gives the same bits. attention:
`scaled_dot_product_attention`; two products per head and block of queries. convolutions: as `models.convolution` does;
oneDNN with packed weights. norms: `F.rms_norm`; a few rows at a time in float32.
"""

CardKind = Literal["elementwise", "attention", "unpacking"]
CARD_FORMS: Mapping[CardKind, tuple[str, ...]] = {
    "elementwise": (fused.KITCHEN, PLAIN_FORM),
    "attention": (fused.FLASH_4, fused.FLASH_3, PLAIN_FORM, fused.SAGE),
    "unpacking": (fused.BITSANDBYTES, PLAIN_FORM),
}
"""What each kind of operation can be computed by on a card, best first; what stands after plain torch is taken only
where it is asked for. elementwise: norms with modulation, and with the rotation of queries and keys. unpacking: weights
in NF4 to numbers."""

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtypes of computation among which a choice is made, by the names in which it is kept."""

MEASURED = "auto"
COMPUTED = ("file", "float32")
"""The dtypes of computation that can be asked for: the others would lose bits of some file; `dtype` of a load does."""


def name_of(dtype: torch.dtype) -> str:
    """ "bfloat16" for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def native_dtype(stored: torch.dtype) -> torch.dtype:
    """The dtype in which a CPU computes with weights of this dtype while nothing has been measured.

    Their own, but float32 on CPUs without kernels for half precision: on these, PyTorch's own half-precision loops are
    some hundred times slower than a cast of each weight when it is used.
    """
    if stored not in (torch.bfloat16, torch.float16):
        return stored
    name = "_is_mkldnn_bf16_supported" if stored == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, name)()
    return stored if supported else torch.float32


@dataclass(frozen=True)
class Operation:
    """How one kind of operation is computed on a CPU.

    forms: dtype of the computation -> one of `FORMS`; plain where it has no entry.
    computed: dtype of the weights -> that of the computation; `native_dtype` where it has no entry. Only a dtype that
        holds the weights exactly: whoever wants fewer bits loads them so.
    """

    forms: Mapping[torch.dtype, str] = field(default_factory=dict)
    computed: Mapping[torch.dtype, torch.dtype] = field(default_factory=dict)

    def form(self, dtype: torch.dtype) -> str:
        """The form of a computation in `dtype`."""
        return self.forms.get(dtype, PLAIN_FORM)

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """The dtype in which to compute with weights of dtype `stored`."""
        return self.computed.get(stored) or native_dtype(stored)

    def dtype_on(self, stored: torch.dtype, device: str) -> torch.dtype:
        """`dtype` on a type of device: a card computes in the stored dtype unless it is said here."""
        return self.dtype(stored) if device == "cpu" else self.computed.get(stored, stored)

    def packs(self, dtype: torch.dtype) -> bool:
        """Whether a computation in `dtype` wants weights that were turned into the kernel's layout."""
        return self.form(dtype) == "packed"


@dataclass(frozen=True)
class Kernels:
    """A choice: the one of this machine (`here.kernels_here`), or one that the user asks for.

    widens_half: a text encoder computes in float32 with weights in float16, which float32 holds exactly: in float16 its
        activations overflow, and float16 is nowhere 1.3 times as fast on CPUs. widens_text: so it does with weights in
        bfloat16.
    origin: where it comes from, in words for the user; "" for the plain forms in the file's dtype.
    card: what is asked for on a card, a form of `CARD_FORMS` for some kinds; None: nothing, the best there is.
    """

    products: Operation = Operation()
    attention: Operation = Operation()
    convolutions: Operation = Operation()
    norms: Operation = Operation()
    widens_half: bool = False
    widens_text: bool = False
    origin: str = ""
    card: tuple[tuple[CardKind, str], ...] | None = field(default=None, compare=False)

    def text_dtype(self, stored: torch.dtype) -> torch.dtype:
        """The dtype in which a text encoder computes with weights of dtype `stored`."""
        if (stored == torch.float16 and self.widens_half) or (stored == torch.bfloat16 and self.widens_text):
            return torch.float32
        return self.products.dtype(stored)

    @property
    def is_plain(self) -> bool:
        """Whether these are the plain forms in the file's dtype."""
        return not self.widens_half and not self.widens_text and all(self.of(kind) == Operation() for kind in KINDS)

    def of(self, kind: Kind) -> Operation:
        return cast(Operation, getattr(self, kind))

    def in_stored_dtype(self) -> Kernels:
        """The same forms for weights whose dtype the user has asked for: they compute in it."""
        operations: dict[str, Any] = {kind: replace(self.of(kind), computed={}) for kind in KINDS}
        return replace(self, **operations, widens_half=False, widens_text=False)

    def in_words(self) -> str:
        """The choice, or the part of a sentence that says it."""
        if not self.origin:
            return "plain torch in the dtype of each file"
        said: list[str] = []
        for kind in KINDS:
            operation = self.of(kind)
            forms = [f"{form} in {name_of(dtype)}" for dtype, form in sorted(operation.forms.items(), key=str)]
            widened = [name_of(half) for half, other in operation.computed.items() if other != half]
            changed = f", {' and '.join(sorted(widened))} as float32" if widened else ""
            said.append(f"{kind} {', '.join(forms) or PLAIN_FORM}{changed}")
        return "; ".join(said)

    def to_json(self) -> dict[str, Any]:
        """As JSON values: what `from_json` reads, and what a clip's settings say."""
        return {
            kind: {
                "forms": {name_of(dtype): form for dtype, form in self.of(kind).forms.items()},
                "computed": {name_of(key): name_of(value) for key, value in self.of(kind).computed.items()},
            }
            for kind in KINDS
        }

    @classmethod
    def from_json(cls, values: Any, origin: str) -> Kernels:
        """Raises ValueError: the values are not those of `to_json`."""
        operations: dict[str, Any] = {}
        try:
            for kind in KINDS:
                given = values[kind]
                forms = {DTYPES[dtype]: str(form) for dtype, form in given["forms"].items()}
                computed = {DTYPES[dtype]: DTYPES[other] for dtype, other in given["computed"].items()}
                if any(form not in FORMS[kind] for form in forms.values()):
                    raise ValueError(f"a form that does not exist among {sorted(forms.values())}")
                operations[kind] = Operation(forms, computed)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no choice of kernels: {error}") from error
        return cls(**operations, widens_half=True, origin=origin)


PLAIN = Kernels()
"""Plain torch in the file's dtype: what modules compute by while nobody has told them another."""

WITHOUT_BFLOAT16 = Kernels(
    products=Operation(computed={torch.bfloat16: torch.float16}),
    convolutions=Operation(computed={torch.bfloat16: torch.float32}),
    widens_text=True,
)
"""For a card that only imitates bfloat16: weights of a transformer in it are cast to float16, one Linear at a time, and
its stream of residuals is float32; those of a VAE, an upscaler and a text encoder, whose numbers may leave float16, are
cast to float32."""

IN_FLOAT32 = replace(WITHOUT_BFLOAT16, products=Operation(computed={torch.bfloat16: torch.float32}))
"""The same for a transformer whose numbers left float16."""


def parse_kernels(text: str, origin: str) -> Kernels | None:
    """The choice that a user writes; None for "auto", the best one for the device.

    text: "plain", or forms of some kinds, and the dtype of a CPU's computation, the file's or float32:
        "products=packed,attention=products,convolutions=packed,dtype=float32" for a CPU, for every dtype;
        "elementwise=comfy-kitchen,attention=sageattention" for a card. What is not written stays plain.

    Raises:
        ConfigError: another text.
    """
    check_text("kernels", text)
    text = text.strip().lower()
    if text in ("", MEASURED):
        return None
    operations: dict[str, Any] = {kind: Operation() for kind in KINDS}
    card: dict[CardKind, str] = dict.fromkeys(CARD_FORMS, PLAIN_FORM)
    widens_half = text != PLAIN_FORM
    for word in () if text == PLAIN_FORM else text.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        if name == "dtype" and value in COMPUTED:
            computed = dict.fromkeys(DTYPES.values(), torch.float32) if value == "float32" else {}
            widens_half = value == "float32"
            operations = {kind: replace(operation, computed=computed) for kind, operation in operations.items()}
        elif name in FORMS and value in FORMS[name]:  # pyright: ignore[reportArgumentType] - it was just compared
            forms = dict.fromkeys(DTYPES.values(), value)
            operations[name] = replace(operations[name], forms=forms)
        elif name in CARD_FORMS and value in CARD_FORMS[name]:  # pyright: ignore[reportArgumentType]
            card[cast(CardKind, name)] = value
        else:
            offered = "; ".join(f"{kind}={'|'.join(_offered(kind))}" for kind in dict.fromkeys([*FORMS, *CARD_FORMS]))
            raise ConfigError(
                f"got the kernels {shown(word)}; expected {MEASURED}, {PLAIN_FORM}, or a list of {offered}; "
                f"dtype={'|'.join(COMPUTED)}, with commas between; leave it out for the best ones"
            )
    said = origin if text != PLAIN_FORM else ""
    return Kernels(**operations, widens_half=widens_half, origin=said, card=tuple(card.items()))


def _offered(kind: str) -> list[str]:
    """The forms of a kind on any device, each once."""
    forms = cast("Mapping[str, tuple[str, ...]]", FORMS).get(kind, ())
    return list(dict.fromkeys([*forms, *cast("Mapping[str, tuple[str, ...]]", CARD_FORMS).get(kind, ())]))


def check_device(kernels: Kernels | None, device: torch.device) -> None:
    """Raises ConfigError: a CPU is asked for a card's back end."""
    named = [] if kernels is None else [f"{kind}={form}" for kind, form in kernels.card or () if form != PLAIN_FORM]
    if named and device.type == "cpu":
        raise ConfigError(
            f"got the kernels {', '.join(named)}; expected forms of a CPU, on which torch's own kernels compute alone; "
            "leave them out, or choose a card as the device"
        )

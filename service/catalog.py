"""What a service offers: models and LoRAs by name. No request names a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..ltx_core.errors import ConfigError
from ..ltx_core.values import shown

if TYPE_CHECKING:
    from ..ltx_core.pipelines.dry_run import Outline
    from ..ltx_core.shapes import PixelShape


class NotOfferedError(ConfigError):
    """A name that the service does not offer."""


@dataclass(frozen=True)
class Model:
    """A model as `ltxkit.load` takes it. name: by which requests know it."""

    name: str
    model: str
    text_encoder: str | None = None
    vae: str | None = None
    upscaler: str | None = None
    version: str | None = None
    quantization: str | None = None
    text_quantization: str | None = None

    def files(self) -> dict[str, Any]:
        """The arguments that a plan and a load have in common."""
        return {name: value for name, value in asdict(self).items() if name != "name" and value is not None}


@dataclass(frozen=True)
class Catalog:
    """Models and LoRAs by their names; requests without a model get the first."""

    models: Mapping[str, Model]
    loras: Mapping[str, str]

    def model(self, name: str | None) -> Model:
        """Raises NotOfferedError: there is none of this name."""
        if name is None:
            return next(iter(self.models.values()))
        return _named(self.models, name, "model", "GET /v1/models lists them")

    def lora(self, name: str) -> str:
        """The file of a LoRA. Raises NotOfferedError: there is none of this name."""
        return _named(self.loras, name, "LoRA", "the server's --lora offers one")

    def to_json(self) -> dict[str, Any]:
        return {"models": [asdict(each) for each in self.models.values()], "loras": dict(self.loras)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Catalog:
        return cls({each["name"]: Model(**each) for each in said["models"]}, dict(said["loras"]))


def _named(offered: Mapping[str, Any], name: str, what: str, advice: str) -> Any:
    if name not in offered:
        names = ", ".join(offered) or "none"
        raise NotOfferedError(f"got the {what} {shown(name)}; expected one that is offered here: {names}; {advice}")
    return offered[name]


@functools.lru_cache(maxsize=8)
def outline_of(model: Model) -> Outline:
    """A model's headers, read once. Raises as `dry_run.outline`."""
    from ..ltx_core.pipelines.dry_run import outline
    from ..ltx_core.pipelines.places import find_file, find_models
    from ..ltx_core.weights.build import open_files
    from ..ltx_core.weights.bundled import find_model

    files = model.files()
    path, text_encoder = find_models(files.pop("model"), files.pop("text_encoder", None))
    vae, upscaler, version = (files.pop(name, None) for name in ("vae", "upscaler", "version"))
    opened = open_files(
        path,
        text_encoder,
        vae=find_model(vae, "checkpoints") if vae else None,
        upscaler=find_file(upscaler, "latent_upscale_models") if upscaler else None,
        version=version,
    )
    return outline(opened, version=version, **files)


@functools.lru_cache(maxsize=8)
def own_size(model: Model) -> tuple[PixelShape, float]:
    """The size and the frame rate of a clip for which a request says none. Raises as `dry_run.outline`."""
    from ..ltx_core.pipelines.recipe import recipe_for
    from ..ltx_core.shapes import PixelShape
    from ..ltx_core.weights.bundled import BUNDLED, BUNDLED_SIZE, is_bundled

    recipe, _ = recipe_for(outline_of(model).info.versions)
    size = PixelShape(recipe.num_frames, recipe.height, recipe.width)
    if model.model == BUNDLED or is_bundled(model.model):
        side = 1 if model.upscaler is None else 2
        size = PixelShape(BUNDLED_SIZE[0], side * BUNDLED_SIZE[1], side * BUNDLED_SIZE[2])
    return size, float(recipe.frame_rate)

"""How a request becomes a clip, in a worker of the server and in an actor of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ltx_core.progress import Notes, log_note
from .catalog import Catalog
from .folder import Folder
from .reporting import Reporter

if TYPE_CHECKING:
    from ..ltx_core.pipelines.bar import Shown
    from ..ltx_core.pipelines.clip import Clip
    from ..ltx_core.pipelines.library import Components
    from ..ltx_core.sampling.preview import LinearPreview

_SAID = ("negative_prompt", "width", "height", "frames", "fps", "seed")


def clip_of(
    request: Mapping[str, Any],
    reference: Any,
    ltx: Components,
    catalog: Catalog,
    *,
    progress: Shown,
    notes: Notes = log_note,
) -> Clip:
    """The clip of a request.

    request: what `requests.read_request` returns. reference: the picture or clip that it begins with, as `Condition`
        takes it; None: none. ltx: the models that it names. progress, notes: as `Components.generate` has them.

    Raises:
        As `Components.generate`.
    """
    from ..ltx_core.pipelines.condition import Condition
    from ..ltx_core.pipelines.front import LoRA

    ltx.loras = tuple(LoRA(catalog.lora(each["name"]), each["scale"]) for each in request["loras"])
    return ltx.generate(
        request["prompt"],
        **{name: request[name] for name in _SAID},
        conditions=() if reference is None else Condition(reference),
        progress=progress,
        notes=notes,
        **request["knobs"],
    )


@dataclass
class Held:
    """The models of one name, which stay loaded until another name is asked for. device: None for the best there is."""

    catalog: Catalog
    device: str | None
    _models: tuple[str, Components, LinearPreview] | None = None

    def models(self, name: str, reporter: Reporter) -> tuple[Components, LinearPreview]:
        """The models of this name, and what shows their latents."""
        if self._models is None or self._models[0] != name:
            from ..ltx_core.pipelines.library import Components
            from ..ltx_core.pipelines.preview import fit_preview
            from ..ltx_core.placing.placement import host_on

            self.drop()
            ltx = Components.load(
                **self.catalog.model(name).files(), device=self.device, progress=reporter, notes=reporter.note
            )
            self._models = name, ltx, fit_preview(ltx.vae, host_on(ltx.placement, reporter, reporter.note))
        return self._models[1:]

    def drop(self) -> None:
        self._models = None


def make_video(
    job_id: str, request: Mapping[str, Any], folder: Folder, held: Held, reporter: Reporter
) -> dict[str, Any]:
    """Make the files of a job in a service's folder, where its upload is too, and return what the queue keeps of it.

    Raises:
        Stopped: the job is not wanted any more. OSError: the disk is full. As `Components.generate` besides.
    """
    reporter.check()
    ltx, reporter.preview = held.models(request["model"], reporter)
    reporter.passes = 1 if ltx.upscaler is None else 2
    clip = clip_of(request, folder.upload(job_id), ltx, held.catalog, progress=reporter, notes=reporter.note)
    video = folder.video(job_id)
    clip.save(video, contact_sheet=folder.sheet(job_id), progress=reporter)
    _write_thumbnail(video, folder.thumbnail(job_id))
    return {"notes": reporter.notes, "bytes": video.stat().st_size}


def _write_thumbnail(video: Path, path: Path) -> None:
    from PIL import Image

    from ..ltx_core.media.inputs import as_frames

    frame = as_frames(video, limit=1)[0]
    picture = Image.fromarray(frame.numpy() if frame.dtype.itemsize == 1 else (frame * 255).round().byte().numpy())
    picture.thumbnail((384, 384))
    picture.save(path, "jpeg")

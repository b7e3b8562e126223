"""The shipped workflows: the name that front ends show, which is the file's, and the short one of before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the pack

# Letters, figures, spaces and hyphens: a front end puts the name into addresses as it is, and shows it as a title.
TEMPLATES: Mapping[str, str] = {
    "demo-text": "01 Demo - a digit from a prompt",
    "demo-first-frame": "02 Demo - a picture starts to move",
    "demo-two-stage": "03 Demo - two stages",
    "t2v-2b": "04 Text to video - 2B",
    "i2v-2b": "05 Image to video - 2B",
    "keyframes-2b": "06 Keyframes - 2B",
    "extend-2b": "07 Extend a clip - 2B",
    "interpolate-2b": "08 Join two clips - 2B",
    "video-to-video-2b": "09 Video to video - 2B",
    "inpaint-2b": "10 Inpaint a clip - 2B",
    "long-2b": "11 Long video - 2B",
    "two-stage-simple": "12 Two stages in one node - 13B distilled",
    "two-stage-13b-distilled": "13 Two stages - 13B distilled",
    "two-stage-13b-dev": "14 Two stages - 13B dev",
    "ic-lora-13b": "15 Control video - 13B with an IC-LoRA",
    "train-lora-2b": "16 Train a LoRA - 2B",
    "per-step-13b": "17 Guidance per step and a memory plan - 13B dev",
    "demo-edges": "18 Demo - a digit follows edges",
}


def template(short: str) -> Path:
    """The API file of a shipped workflow."""
    return ROOT / "workflows" / "api" / f"{TEMPLATES[short]}.json"


def shipped(path: Path) -> Path:
    """`path`; where it does not exist, the file that has replaced it: `demo-text` alone, or at the end of a path."""
    if path.exists() or path.stem not in TEMPLATES:
        return path
    if path == Path(path.stem):
        return template(path.stem)
    renamed = path.with_name(f"{TEMPLATES[path.stem]}.json")
    return renamed if renamed.exists() else path

"""Draw the pictures of the templates, the icon and the banner.

    .venv/bin/python tests/host/draw_cards.py [name ...]

A graph on the bundled model is run, and its picture is made of frames of the result. The big models cannot run here:
their pictures are cards with the graph, and with the example that it begins from, if it has one. No picture shows a
result that was not made. Run `draw_workflows.py` first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ltxkit.headless.runner import run_workflow
from ltxkit.ltx_core import media
from ltxkit.nodes.examples import EXAMPLES
from ltxkit.nodes.templates import ROOT, TEMPLATES, template

SIZE = (960, 540)
BACKGROUND, PAPER, INK, FAINT, ACCENT = "#14171f", "#1f2430", "#f2f4f8", "#8d97ab", "#b39ddb"
FONT = "DejaVuSans.ttf"
MARGIN = 36
NUMBER = 70  # pixels that the number of a template takes
LOADERS = ("LTXKitLoadExample",)  # of the temple, in all graphs on big models


def font(size: int, *, bold: bool = False) -> Any:
    return ImageFont.truetype(FONT.replace(".ttf", "-Bold.ttf") if bold else FONT, size)


def heading(card: Image.Image, name: str, line: str) -> None:
    draw = ImageDraw.Draw(card)
    number, _, title = name.partition(" ")
    room = SIZE[0] - 2 * MARGIN - NUMBER
    size = next(size for size in range(40, 10, -1) if draw.textlength(title, font=font(size, bold=True)) <= room)
    draw.text((MARGIN, 26), title, fill=INK, font=font(size, bold=True))
    draw.text((MARGIN, 82), line, fill=FAINT, font=font(22))
    draw.text((SIZE[0] - MARGIN, 30), number, fill=ACCENT, font=font(34, bold=True), anchor="ra")


def demo(short: str) -> Image.Image:
    """Four frames of what the graph makes with its own seed."""
    with tempfile.TemporaryDirectory() as folder:
        files = run_workflow(template(short), models=Path(folder), input_folder=EXAMPLES, output_folder=Path(folder))
        frames = media.read_video(files[0]).frames
    card = Image.new("RGB", SIZE, BACKGROUND)
    heading(card, TEMPLATES[short], "frames of the result: made by the model that comes with LTXKit, on a CPU")
    count, gap = 4, 16
    side = (SIZE[0] - 2 * MARGIN - (count - 1) * gap) // count
    for place in range(count):
        frame = frames[round(place * (len(frames) - 1) / (count - 1))]
        picture = Image.fromarray((frame * 255).round().to(torch.uint8).numpy()).resize((side, side))
        card.paste(picture, (MARGIN + place * (side + gap), 215))
    return card


def card(short: str) -> Image.Image:
    """The graph, and the example that it begins from."""
    name = TEMPLATES[short]
    nodes = json.loads((ROOT / f"workflows/{name}.json").read_text(encoding="utf-8"))["nodes"]
    starts = [node for node in nodes if node["type"] in LOADERS]
    drawn = Image.new("RGB", SIZE, BACKGROUND)
    heading(drawn, name, "the graph" + (", and the example that it begins from" if starts else ""))
    room = (SIZE[0] - 2 * MARGIN, SIZE[1] - 130 - MARGIN)
    with Image.open(ROOT / f"docs/workflows/{short}.png") as picture:
        graph = picture.convert("RGB")
    graph.thumbnail(room, Image.Resampling.LANCZOS)
    drawn.paste(graph, (SIZE[0] - MARGIN - graph.width, 130 + (room[1] - graph.height) // 2))
    if starts:
        with Image.open(EXAMPLES / "temple.jpg") as picture:
            example = picture.convert("RGB").resize((240, 160), Image.Resampling.LANCZOS)
        framed = Image.new("RGB", (248, 168), INK)
        framed.paste(example, (4, 4))
        drawn.paste(framed, (MARGIN, SIZE[1] - MARGIN - 168))
    return drawn


def strip(size: tuple[int, int], frames: list[Image.Image]) -> Image.Image:
    """A film strip: noise that becomes a clip, over a dark ground."""
    ground = Image.new("RGB", size, BACKGROUND)
    side = size[1] // 2
    gap = side // 12
    left = (size[0] - len(frames) * side - (len(frames) - 1) * gap) // 2
    draw = ImageDraw.Draw(ground)
    top = (size[1] - side) // 2
    for place, frame in enumerate(frames):
        x = left + place * (side + gap)
        draw.rectangle((x - gap // 2, top - gap * 2, x + side + gap // 2, top + side + gap * 2), fill=PAPER)
        for hole in range(4):
            at = x + (2 * hole + 1) * side // 8
            for y in (top - gap * 3 // 2, top + side + gap // 2):
                draw.rectangle((at - gap // 2, y, at + gap // 2, y + gap), fill=BACKGROUND)
        ground.paste(frame.resize((side, side), Image.Resampling.NEAREST), (x, top))
    return ground


def marks() -> None:
    """Icon (400x400) and banner (21:9) of the registry, from the digit of the examples and noise."""
    digit = media.read_image(EXAMPLES / "three.png")[0]
    noise = torch.rand(digit.shape, generator=torch.Generator().manual_seed(0)).mean(-1, keepdim=True).expand_as(digit)
    levels = (1.0, 0.7, 0.4, 0.15, 0.0)
    mixed = [((1 - level) * digit + level * noise).mul(255).round().to(torch.uint8) for level in levels]
    frames = [Image.fromarray(frame.numpy()) for frame in mixed]
    strip((400, 400), [frames[-1]]).save(ROOT / "assets/icon.png", optimize=True)
    banner = strip((1260, 540), frames[1:])
    ImageDraw.Draw(banner).text((630, 36), "LTXKit", fill=INK, font=font(44, bold=True), anchor="ma")
    banner.quantize(128).save(ROOT / "assets/banner.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TEMPLATES), help="short names")
    for short in parser.parse_args().names:
        drawn = demo(short) if short.startswith("demo-") else card(short)
        drawn.save(ROOT / f"workflows/{TEMPLATES[short]}.jpg", quality=88)
    marks()


if __name__ == "__main__":
    main()

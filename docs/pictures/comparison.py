"""Draws what a teacher, the student alone and the distilled student find in the same photograph, side by side.

python docs/pictures/comparison.py PHOTO TEACHER.pt STUDENT.pt DISTILLED.pt OUTPUT.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import gkd_fast
from gkd_fast.data.images import read_image
from gkd_fast.predict.drawing import class_colours, draw

SCORE = 0.5
WIDTH, TITLE, GAP = 420, 26, 8
TITLES = ("teacher", "student alone", "student distilled")


def found_in(photo: Path, checkpoint: Path) -> Image.Image:
    """The photograph with the boxes that a detector finds with at least SCORE."""
    detector = gkd_fast.load(checkpoint)
    image = read_image(photo)
    (found,) = detector([image.float() / 255])
    sure = found["scores"] >= SCORE
    boxes = {name: value[sure].detach() for name, value in found.items()}
    return draw(image, boxes, detector.classes, class_colours(len(detector.classes)))


def side_by_side(photo: Path, checkpoints: list[Path]) -> Image.Image:
    """One picture with a titled panel for each checkpoint."""
    panels = [found_in(photo, checkpoint) for checkpoint in checkpoints]
    height = round(WIDTH * panels[0].height / panels[0].width)
    whole = Image.new("RGB", (len(panels) * (WIDTH + GAP) - GAP, height + TITLE), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(16)
    for number, (panel, title) in enumerate(zip(panels, TITLES, strict=True)):
        left = number * (WIDTH + GAP)
        pen.text((left + 2, 3), title, fill="black", font=font)
        whole.paste(panel.resize((WIDTH, height), Image.Resampling.LANCZOS), (left, TITLE))
    return whole


def main() -> None:
    """Read the command line and write the picture."""
    photo, *checkpoints, output = map(Path, sys.argv[1:])
    side_by_side(photo, checkpoints).save(output, quality=85)


if __name__ == "__main__":
    main()

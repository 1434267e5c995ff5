"""python docs/results/digits.py FOLDER: handwritten digits on photographs, a data set that no weight was chosen on.

The digits (UCI, 8 x 8 pixels, 1,797 of them) and the two photographs come with scikit-learn (pip install scikit-learn).
No digit is in training and in validation images. Layout of YOLO, 320 x 240 pixels, 300 + 80 images.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

Array = np.ndarray
WIDTH, HEIGHT = 320, 240
SPLITS = {"train": (300, range(1300)), "valid": (80, range(1300, 1797))}
DIGITS = load_digits()


def background(rng: random.Random, photographs: Sequence[Image.Image]) -> Array:
    """A part [240,320,3] of a photograph, mirrored or not."""
    photograph, width = rng.choice(photographs), rng.randint(240, 480)
    height = width * 3 // 4
    left, top = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
    part = photograph.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT))
    pixels = np.asarray(part, dtype=np.float32)
    return (pixels[:, ::-1] if rng.random() < 0.5 else pixels).copy()


def ink(rng: random.Random, pool: range) -> tuple[int, Array]:
    """Index of a digit, and how much of each of 20 to 80 pixels square it covers, turned by up to 12 degrees."""
    side, index = int(20 * 4 ** rng.random()), rng.choice(pool)
    digit = Image.fromarray((DIGITS.images[index] / 16 * 255).astype(np.uint8))
    turned = digit.resize((side, side), Image.Resampling.BICUBIC).rotate(rng.uniform(-12, 12))
    return index, np.asarray(turned, dtype=np.float32) / 255


def free_place(rng: random.Random, side: int, taken: list[tuple[int, int, int]]) -> tuple[int, int] | None:
    """Left and top of a square that covers no other, if one is found."""
    for _ in range(20):
        x, y = rng.randint(0, WIDTH - side), rng.randint(0, HEIGHT - side)
        if all(x + side <= a or a + s <= x or y + side <= b or b + s <= y for a, b, s in taken):
            return x, y
    return None


def draw(rng: random.Random, photographs: Sequence[Image.Image], pool: range) -> tuple[Array, list[str]]:
    """An image of one to seven digits, and the lines of its label file."""
    pixels, taken, lines = background(rng, photographs), [], []
    for _ in range(rng.randint(1, 7)):
        index, cover = ink(rng, pool)
        side, (rows, columns) = len(cover), np.nonzero(cover > 0.3)
        place = free_place(rng, side, taken) if len(rows) else None
        if place is None:
            continue
        x, y = place
        taken.append((x, y, side))
        colour = np.array([rng.randint(0, 255) for _ in range(3)], dtype=np.float32)
        square = pixels[y : y + side, x : x + side]
        square[:] = square * (1 - cover[..., None]) + cover[..., None] * colour
        left, right = x + columns.min(), x + columns.max() + 1
        top, bottom = y + rows.min(), y + rows.max() + 1
        centre = f"{(left + right) / 2 / WIDTH:.5f} {(top + bottom) / 2 / HEIGHT:.5f}"
        lines.append(f"{DIGITS.target[index]} {centre} {(right - left) / WIDTH:.5f} {(bottom - top) / HEIGHT:.5f}")
    return pixels.clip(0, 255).astype(np.uint8), lines


def main(folder: Path) -> None:
    rng = random.Random(5)
    photographs = [Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")]
    for split, (count, pool) in SPLITS.items():
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels, lines = draw(rng, photographs, pool)
            Image.fromarray(pixels).save(folder / split / "images" / f"{number:04}.jpg", quality=92)
            (folder / split / "labels" / f"{number:04}.txt").write_text("\n".join(lines) + "\n")
    names = ", ".join(f"'{digit}'" for digit in range(10))
    (folder / "data.yaml").write_text(f"train: train/images\nval: valid/images\nnc: 10\nnames: [{names}]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

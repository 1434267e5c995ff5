"""Writes images and PASCAL VOC folders of a few small images."""

from pathlib import Path

import numpy as np
from PIL import Image

VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_image(path: Path, size: tuple[int, int] = (30, 40), *, seed: int = 0, mode: str = "RGB") -> Path:
    """A smooth random image of (height, width)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size[::-1]).convert(mode).save(path)
    return path


def write_voc(root: Path, objects: dict[str, list[tuple]], *, split: str = "train", size: str = "default") -> Path:
    """A VOC folder of 40 x 30 images; objects: for each image name (class, difficult, (xmin, ymin, xmax, ymax))."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if size == "default":
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    for seed, (name, items) in enumerate(objects.items()):
        write_image(root / "JPEGImages" / f"{name}.jpg", seed=seed)
        body = "".join(VOC_OBJECT.format(name=c, difficult=d, box=box) for c, d, box in items)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{body}</annotation>")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(objects) + "\n")
    return root

"""Images inside a page: crops of instances, and images with boxes over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import horizontal_flip, to_pil_image

from gkd_fast.data.pipeline import PreparedDataset

_MARGIN = 0.15  # of a box's longer side, seen around it


class Gallery:
    """Crops of a data set's resized images by image id."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.dataset = dataset
        self._index = {image["id"]: index for index, image in enumerate(dataset.ground_truth()["images"])}

    def image(self, image_id: int, *, flipped: bool = False) -> Tensor:
        """uint8 [3,H,W]."""
        image = self.dataset[self._index[image_id]][0].as_subclass(Tensor)
        return horizontal_flip(image) if flipped else image

    def crop(self, image_id: int, box: Tensor, *, flipped: bool = False, side: int = 56, note: str = "") -> str:
        """An element with what lies under a box [4] and around it, `side` pixels high and wide."""
        image = self.image(image_id, flipped=flipped)
        return f'<img src="{data_url(square(image, box, side))}" width="{side}" height="{side}" title="{escape(note)}">'


def square(image: Tensor, box: Tensor, side: int, *, margin: float = _MARGIN, least: float = 2) -> Image.Image:
    """The square around a box, `side` pixels wide; black outside of the image. The rest as for `corners_around`."""
    corners = corners_around(box, margin=margin, least=least)
    return to_pil_image(image).crop(corners).resize((side, side), Image.Resampling.BICUBIC)


def corners_around(box: Tensor, *, margin: float = _MARGIN, least: float = 2) -> tuple[int, int, int, int]:
    """The square around a box [4], x1 y1 x2 y2 in whole pixels.

    Args:
        box: x1 y1 x2 y2 in pixels.
        margin: around it, as a part of its longer side.
        least: length that the longer side counts as where it is shorter, in pixels.
    """
    x1, y1, x2, y2 = box.tolist()
    half = max(x2 - x1, y2 - y1, least) * (0.5 + margin)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    left, top, right, bottom = (round(value) for value in (x - half, y - half, x + half, y + half))
    return left, top, right, bottom


def data_url(image: Image.Image) -> str:
    """The image as JPEG in an address."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def boxed(
    name: str,
    size: tuple[int, int],
    boxes: Tensor,
    labels: Sequence[int],
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    *,
    named: bool = True,
    over: str = "",
    beyond: float = 0,
) -> str:
    """The image that `symbol` gave a name, with boxes [n,4] over it, coloured by label from 0.

    Args:
        name, size: of the image; (height, width).
        boxes, labels, texts: of each box.
        named: texts are written beside the boxes; else they show where the mouse rests.
        colours: of the labels.
        over: further SVG in the image's pixels, drawn last.
        beyond: what is shown of the outside of the image, in pixels.
    """
    height, width = size
    parts = [f'<use href="#{name}"/>']
    text_size = max(6.0, min(size) / 18)
    for (x1, y1, x2, y2), label, text in zip(boxes.tolist(), labels, texts, strict=True):
        colour = "rgb({},{},{})".format(*colours[label])
        # At the right edge a text that starts with its box would be cut off.
        at, anchor = (x1 + 1, "start") if x1 < 0.75 * width else (width - 1, "end")
        parts.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" stroke="{colour}"'
            + ("/>" if named else f"><title>{escape(text)}</title></rect>")
        )
        if named:
            parts.append(
                f'<text x="{at:.1f}" y="{max(y1 - 2, text_size):.1f}" fill="{colour}" text-anchor="{anchor}" '
                f'font-size="{text_size:.1f}" stroke-width="{text_size / 8:.2f}">{escape(text)}</text>'
            )
    seen = f"{0 - beyond:g} {0 - beyond:g} {width + 2 * beyond:g} {height + 2 * beyond:g}"
    return f'<svg class="boxed" viewBox="{seen}">{"".join(parts)}{over}</svg>'


def symbol(name: str, image: Tensor) -> str:
    """An image [3,H,W] to be drawn as often as needed, and stored once."""
    height, width = image.shape[-2:]
    return (
        f'<svg width="0" height="0" style="position:absolute"><defs><image id="{name}" width="{width}" '
        f'height="{height}" href="{data_url(to_pil_image(image))}"/></defs></svg>'
    )


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions, spread evenly."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long().unique().tolist() if count else []

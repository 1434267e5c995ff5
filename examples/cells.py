"""What the examples share: small square images of blood cells, or of the embedded scenes, and a line of output."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from torchvision.transforms.functional import resize, to_pil_image

from gkd_fast.data import Scenes, open_dataset

Batch = tuple[Tensor, list[Tensor], list[Tensor]]
"""Images [N,3,S,S] in 0..1; boxes [B,4] x1 y1 x2 y2 in pixels and labels [B] from 0 of each."""


def options(description: str, **more: Sequence[str]) -> argparse.ArgumentParser:
    """The examples' command line.

    Args:
        description: of the example.
        **more: positional arguments and their choices; the first choice is the default.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, choices in more.items():
        parser.add_argument(name, nargs="?", choices=choices, default=choices[0])
    parser.add_argument("--data-root", help="PASCAL VOC folder, such as BCCD's; without it scenes are drawn")
    parser.add_argument("--images", type=int, default=64, help="number of images")
    parser.add_argument("--size", type=int, default=160, help="side of the square images in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images a step")
    parser.add_argument("--steps", type=int, default=60, help="training steps of the teacher and of the student")
    parser.add_argument("--method", default="gkd", help="distillation methods")
    return parser


@dataclass(frozen=True)
class Cells:
    """Images that are held in memory.

    Attributes:
        classes: names.
        samples: image [3,S,S] in 0..1, boxes [B,4] in its pixels, labels [B] from 0.
        batch: images a step.
    """

    classes: tuple[str, ...]
    samples: list[tuple[Tensor, Tensor, Tensor]]
    batch: int

    def batches(self, steps: int) -> Iterator[Batch]:
        """Random batches, half of whose images are mirrored."""
        for _ in range(steps):
            chosen = [self._mirrored(self.samples[i]) for i in torch.randperm(len(self.samples))[: self.batch]]
            images, boxes, labels = zip(*chosen, strict=True)
            yield torch.stack(images), list(boxes), list(labels)

    def _mirrored(self, sample: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        image, boxes, labels = sample
        if torch.rand(()) < 0.5:
            return sample
        left, top, right, bottom = boxes.unbind(1)
        return image.flip(2), torch.stack([image.shape[2] - right, top, image.shape[2] - left, bottom], 1), labels


def load(given: argparse.Namespace) -> Cells:
    """The images that the command line names, stretched to squares."""
    torch.manual_seed(0)
    dataset = open_dataset(given.data_root, "trainval") if given.data_root else Scenes(given.images, size=(160, 160))
    samples = []
    for image, target in (dataset[index] for index in range(min(given.images, len(dataset)))):
        scale = torch.tensor([given.size / image.shape[2], given.size / image.shape[1]] * 2)
        small = resize(image.as_subclass(Tensor), [given.size, given.size], antialias=True)
        samples.append((small / 255, target["boxes"].as_subclass(Tensor) * scale, target["labels"] - 1))
    return Cells(dataset.classes, samples, given.batch)


def train(network: nn.Module, loss: Callable[..., Tensor], batches: Iterator[Batch]) -> nn.Module:
    """A teacher: ``loss(network, images, boxes, labels)`` is made smaller."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for batch in batches:
        value = loss(network.train(), *batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    print(f"teacher: loss {value.item():.2f}")
    return network


def normalised(boxes: Sequence[Tensor], size: int) -> list[Tensor]:
    """Boxes [B,4] x1 y1 x2 y2 in pixels of square images -> centre, width and height as fractions."""
    return [box_convert(b, "xyxy", "cxcywh") / size for b in boxes]


def labels_of(images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Boxes and labels of square images [N,3,S,S] as transformers' losses take them."""
    boxes = normalised(boxes, images.shape[-1])
    return [{"boxes": b, "class_labels": c} for b, c in zip(boxes, labels, strict=True)]


def show(step: int, own: Tensor, terms: dict[str, Tensor]) -> dict[str, float]:
    """Print and return what a step's loss consists of."""
    values = {"loss": own.item()} | {name: term.item() for name, term in terms.items()}
    print(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
    return values


def write_yolo(cells: Cells, folder: Path) -> Path:
    """The images as Ultralytics reads them, the same for training and validation.

    Returns:
        The file that names the parts and the classes.
    """
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, (image, boxes, labels) in enumerate(cells.samples):
        to_pil_image(image).save(folder / f"images/{number:04d}.png")
        rows = torch.cat([labels[:, None], *normalised([boxes], image.shape[1])], 1).tolist()
        text = "".join(f"{label:.0f} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, x, y, w, h in rows)
        (folder / f"labels/{number:04d}.txt").write_text(text)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(cells.classes))
    description = folder / "data.yaml"
    description.write_text(f"path: {folder.resolve()}\ntrain: images\nval: images\nnames:\n{names}")
    return description

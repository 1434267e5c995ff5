"""transformers' DETR, in a loop of one's own; it has one feature map, of stride 32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

import cells
import gkd_fast


def network(width: int, classes: Sequence[str]) -> nn.Module:
    """A DETR with random weights; from_pretrained(...) gives one with trained ones."""
    widths = [width, 2 * width, 4 * width, 8 * width]
    body = ResNetConfig(
        embedding_size=width, hidden_sizes=widths, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    layers = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes = {"d_model": 2 * width, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width, "num_queries": 50}
    config = DetrConfig(backbone_config=body, use_timm_backbone=False, use_pretrained_backbone=False, **layers, **sizes)
    config.id2label = dict(enumerate(classes))
    return DetrForObjectDetection(config)


def loss(model: nn.Module, images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    return model(pixel_values=images, labels=cells.labels_of(images, boxes, labels)).loss


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    options = cells.options(__doc__).parse_args(arguments)
    data, history = cells.load(options), []
    teacher, student = (network(width, data.classes) for width in (32, 16))
    cells.train(teacher, loss, data.batches(options.steps))
    student.train()
    # ---- distilling: the student's own loop, and four lines
    settings = {"example": data.samples[0][0][None], "method": options.method, "min_box": 8}
    distiller = gkd_fast.Distiller(teacher, student, data.classes, ["model.input_projection"], **settings)
    optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], 1e-3)
    for step, (images, boxes, labels) in enumerate(data.batches(options.steps)):
        own = loss(student, images, boxes, labels)
        terms = distiller(images, boxes, labels)  # boxes in pixels of the batch, padding included
        optimizer.zero_grad()
        (own + sum(terms.values())).backward()
        optimizer.step()
        # ----
        history.append(cells.show(step, own, terms))
    return history


if __name__ == "__main__":
    main()

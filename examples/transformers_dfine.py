"""transformers' D-FINE, in a loop of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

import cells
import gkd_fast


def network(width: int, classes: Sequence[str]) -> nn.Module:
    """A D-FINE with random weights; from_pretrained(...) gives one with trained ones."""
    widths, wide = ([factor * width for factor in factors] for factors in ((1, 2, 4, 8), (2, 4, 8, 16)))
    body = HGNetV2Config(
        stem_channels=[3, width, width],
        stage_in_channels=widths,
        stage_mid_channels=[w // 2 for w in widths],
        stage_out_channels=wide,
        hidden_sizes=wide,
        stage_numb_of_layers=[2] * 4,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DFineConfig(backbone_config=body, freeze_backbone_batch_norms=False, encoder_in_channels=wide[1:])
    config.d_model = config.encoder_hidden_dim = config.encoder_ffn_dim = config.decoder_ffn_dim = 2 * width
    config.decoder_in_channels, config.decoder_layers, config.id2label = [2 * width] * 3, 2, dict(enumerate(classes))
    config.num_queries, config.num_denoising = 50, 10
    return DFineForObjectDetection(config)


def loss(model: nn.Module, images: Tensor, *truth: Sequence[Tensor]) -> Tensor:
    return model(pixel_values=images, labels=cells.labels_of(images, *truth)).loss


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    options = cells.options(__doc__).parse_args(arguments)
    data, history = cells.load(options), []
    teacher, student = (network(width, data.classes) for width in (32, 16))
    cells.train(teacher, loss, data.batches(options.steps))
    student.train()
    # ---- distilling: the student's own loop, and four lines
    settings = {"example": data.samples[0][0][None], "method": options.method, "min_box": 8}
    distiller = gkd_fast.Distiller(teacher, student, data.classes, ["model.encoder"], **settings)
    optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], 1e-3)
    for step, (images, boxes, labels) in enumerate(data.batches(options.steps)):
        own = loss(student, images, boxes, labels)
        terms = distiller(images, boxes, labels)
        optimizer.zero_grad()
        (own + sum(terms.values())).backward()
        optimizer.step()
        # ----
        history.append(cells.show(step, own, terms))
    return history


if __name__ == "__main__":
    main()

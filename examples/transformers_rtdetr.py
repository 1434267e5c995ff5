"""transformers' RT-DETRv2, in transformers' own trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection, TrainingArguments

import cells
from gkd_fast.integrations.transformers import DistillationTrainer


def network(width: int, classes: Sequence[str]) -> nn.Module:
    """An RT-DETRv2 with random weights; from_pretrained(...) gives one with trained ones."""
    stages = {"hidden_sizes": [width, width, 2 * width, 4 * width], "out_features": ["stage2", "stage3", "stage4"]}
    body = RTDetrResNetConfig(embedding_size=width, depths=[1] * 4, layer_type="basic", **stages)
    config = RTDetrV2Config(backbone_config=body, encoder_in_channels=[width, 2 * width, 4 * width])
    config.d_model = config.encoder_hidden_dim = config.encoder_ffn_dim = config.decoder_ffn_dim = 2 * width
    config.decoder_in_channels, config.decoder_layers, config.freeze_backbone_batch_norms = [2 * width] * 3, 2, False
    config.num_queries, config.num_denoising = 50, 10
    config.id2label = dict(enumerate(classes))
    return RTDetrV2ForObjectDetection(config)


def collate(samples: Sequence[Any]) -> dict[str, Any]:
    images, boxes, labels = zip(*samples, strict=True)
    images = torch.stack(images)
    return {"pixel_values": images, "labels": cells.labels_of(images, boxes, labels)}


def loss(model: nn.Module, *batch: Any) -> Tensor:
    return model(pixel_values=batch[0], labels=cells.labels_of(*batch)).loss


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = cells.options(__doc__)
    parser.add_argument("--output", default="runs/rtdetr", help="folder of the checkpoints")
    options = parser.parse_args(arguments)
    data = cells.load(options)
    teacher, student = (network(width, data.classes) for width in (32, 16))
    cells.train(teacher, loss, data.batches(options.steps))
    settings = {"max_steps": options.steps, "per_device_train_batch_size": options.batch, "learning_rate": 1e-3}
    settings |= {"remove_unused_columns": False, "label_names": ["labels"], "report_to": "none", "use_cpu": True}
    settings = TrainingArguments(options.output, logging_steps=1, **settings)

    # ---- distilling: one argument
    trainer = DistillationTrainer(
        student, settings, teacher=teacher, method=options.method, train_dataset=data.samples, data_collator=collate
    )
    trainer.train()
    # ----
    return [line for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
    main()

"""Two or one process of a DETR trained by `DistillationTrainer` for two steps: weights, adapters and log are written.

[torchrun --nproc-per-node=2] detr_steps.py FOLDER IMAGES_WITH_BOXES
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig, TrainingArguments

from gkd_fast import parallel
from gkd_fast.integrations.transformers import DistillationTrainer
from gkd_fast.methods import Settings

CLASSES = ("red", "green", "blue")


def detr(width: int, seed: int) -> DetrForObjectDetection:
    """Without dropout and with frozen batch normalisation: a process's share does not change the whole."""
    torch.manual_seed(seed)
    body = ResNetConfig(
        embedding_size=width, hidden_sizes=[width] * 4, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        backbone_config=body,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=2 * width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=10,
        dropout=0.0,
    )
    config.id2label = dict(enumerate(CLASSES))
    return DetrForObjectDetection(config)


def samples(with_boxes: int, count: int = 4) -> list[dict]:
    """Images of 96 pixels of which the first ones have boxes."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        boxes = torch.rand(5, 4, generator=generator) * 0.3 + 0.3
        labels = {"boxes": boxes, "class_labels": torch.arange(5) % 3}
        if number % count >= with_boxes:
            labels = {name: value[:0] for name, value in labels.items()}
        found.append({"pixel_values": torch.rand(3, 96, 96, generator=generator), "labels": labels})
    return found


def collate(batch: list[dict]) -> dict:
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in batch]),
        "labels": [sample["labels"] for sample in batch],
    }


class InOrder(DistillationTrainer):
    """Each process takes every other image of the one order."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def arguments(folder: str | Path, **changes: object) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }
    return TrainingArguments(str(folder), **{**settings, **changes})


def squares(outputs: object, *_: object, **__: object) -> torch.Tensor:
    """A mean over images. DETR's own loss of two processes is not that of one: transformers 5.24 takes the mean of the
    numbers of boxes and divides it by the number of processes again.
    """
    return outputs["logits"].square().mean() + outputs["pred_boxes"].square().mean()


def trainer(folder: str | Path, data: list[dict], *, loss: object = None, **changes: object) -> InOrder:
    """A small pair; the adapters are the same in every process."""
    built = InOrder(
        detr(8, seed=1),
        arguments(folder, **changes),
        teacher=detr(16, seed=2),
        settings=Settings(min_box=4),
        train_dataset=data,
        data_collator=collate,
        compute_loss_func=loss,
    )
    torch.manual_seed(3)
    for parameter in built.distiller.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    built.distiller.refresh_steps = 2
    return built


def main() -> None:
    torch.set_num_threads(1)
    folder, processes = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
    backend = {"ddp_backend": "gloo"} if processes > 1 else {}
    for with_boxes in (4, 1):
        data = samples(with_boxes) * 3
        built = trainer(folder, data, loss=squares, per_device_train_batch_size=4 // processes, **backend)
        built.train()
        state = {
            "student": [p.detach().clone() for p in built.model.parameters()],
            "adapters": [p.detach().clone() for p in built.distiller.parameters()],
            "log": [line for line in built.state.log_history if "loss" in line],
        }
        torch.save(state, folder / f"{with_boxes}-{processes}-{parallel.rank()}.pt")
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

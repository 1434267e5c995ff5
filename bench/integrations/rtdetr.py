"""The transformers pair: RT-DETRv2 on a MobileNetV2 with ImageNet weights, by transformers' own trainer.

No RT-DETR learns from random weights in the minutes that this takes on a CPU. Both networks therefore stand on
torchvision's MobileNetV2; the teacher's encoder and decoder are wider, and its decoder is deeper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from torchvision.transforms.functional import normalize, resize

from gkd_fast.data import AnnotatedImages
from gkd_fast.evaluation.detections import Detection

_SIDE = 128
_EPOCHS = {"teacher": 14, "control": 8, "distilled": 8}
_STAGES = (6, 13, 17)  # the last blocks of strides 8, 16, 32


class Squares(Dataset):
    """Images stretched to a square, as RT-DETR's processor does, and half of them mirrored; boxes as fractions."""

    def __init__(self, dataset: AnnotatedImages) -> None:
        self.samples = []
        for image, target in (dataset[index] for index in range(len(dataset))):
            height, width = image.shape[1:]
            boxes = target["boxes"].as_subclass(Tensor) / torch.tensor([width, height] * 2)
            boxes = box_convert(boxes, "xyxy", "cxcywh")
            small = resize(image.as_subclass(Tensor), [_SIDE, _SIDE], antialias=True)
            self.samples.append((small, boxes.float(), target["labels"] - 1))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, boxes, labels = self.samples[index]
        if torch.rand(()) < 0.5:
            image, boxes = image.flip(2), torch.cat([1 - boxes[:, :1], boxes[:, 1:]], 1)
        return {"pixel_values": image.float() / 255, "boxes": boxes, "class_labels": labels}


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """A batch as RT-DETR's loss takes it."""
    labels = [{key: sample[key] for key in ("boxes", "class_labels")} for sample in samples]
    return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), "labels": labels}


class MobileNet(nn.Module):
    """torchvision's MobileNetV2 in the place of RT-DETR's backbone."""

    channels = (32, 96, 320)

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.mobilenet_v2(weights="IMAGENET1K_V1").features[:-1]

    def forward(self, images: Tensor) -> SimpleNamespace:
        maps, value = [], normalize(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        for index, layer in enumerate(self.features):
            value = layer(value)
            if index in _STAGES:
                maps.append(value)
        return SimpleNamespace(feature_maps=maps)


def build(role: str, classes: Sequence[str]) -> nn.Module:
    """The teacher (128 channels, 3 decoder layers) or a student (64, 2)."""
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    width, layers = (128, 3) if role == "teacher" else (64, 2)
    stages = ["stage2", "stage3", "stage4"]
    # Only its channels matter: the backbone is replaced.
    body = RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, *MobileNet.channels], depths=[1] * 4, out_features=stages
    )
    config = RTDetrV2Config(
        backbone_config=body,
        encoder_in_channels=list(MobileNet.channels),
        d_model=width,
        encoder_hidden_dim=width,
        decoder_in_channels=[width] * 3,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_layers=layers,
        hidden_expansion=0.5,
        num_queries=100,
        num_denoising=50,
        id2label=dict(enumerate(classes)),
        label2id={name: label for label, name in enumerate(classes)},
    )
    network = RTDetrV2ForObjectDetection(config)
    network.model.backbone.model = MobileNet()
    return network


def run(
    role: str, seed: int, train: AnnotatedImages, test: AnnotatedImages, folder: Path, name: str, method: str
) -> list[Detection]:
    """Train one network and detect in the test images."""
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(seed)
    network = build(role, train.classes)
    arguments = TrainingArguments(
        str(folder / name),
        seed=seed,
        num_train_epochs=_EPOCHS[role],
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=1e-4,
        max_grad_norm=1.0,
        logging_steps=37,
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    shared = {"args": arguments, "train_dataset": Squares(train), "data_collator": collate}
    if role == "distilled":
        from gkd_fast.integrations.transformers import DistillationTrainer
        from gkd_fast.methods import Settings

        teacher = build("teacher", train.classes)
        teacher.load_state_dict(torch.load(folder / "teacher.pt", weights_only=True))
        trainer = DistillationTrainer(network, teacher=teacher, method=method, settings=Settings(min_box=8), **shared)
    else:
        trainer = Trainer(network, **shared)
    trainer.train()
    torch.save(network.state_dict(), folder / f"{name}.pt")
    return detect(network, test)


@torch.no_grad()
def detect(network: nn.Module, test: AnnotatedImages) -> list[Detection]:
    """What a network finds, in pixels of the original images."""
    from transformers import RTDetrImageProcessor

    network.eval()
    processor, detections = RTDetrImageProcessor(), []
    for record, (image, *_) in zip(test.records, Squares(test).samples, strict=True):
        output = network(pixel_values=image[None].float() / 255)
        found = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[record.size])[0]
        found["labels"] = found["labels"] + 1
        detections.append({"image_id": record.image_id, **found})
    return detections

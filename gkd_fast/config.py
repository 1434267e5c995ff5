"""Every setting of a run and its default, in one place.

The dataclasses are frozen and keyword-only. A preset is a named set of overrides; the command line is
generated from the dataclasses, so the text under a field is also its ``--help``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gkd_fast.cli.recipes import LARGE_MODEL, RECIPES
from gkd_fast.errors import InputError
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import PUBLISHED


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and annotations."""

    data: Literal["scenes", "voc", "coco"] = "scenes"
    """Kind of data set: embedded drawn scenes, a PASCAL VOC folder, or a COCO folder."""
    data_root: Path | None = None
    """Folder of the data set (voc: holds Annotations, JPEGImages, ImageSets; coco: holds annotations)."""
    train_split: str = "train"
    """Split to train on (voc: ImageSets/Main/SPLIT.txt, or FOLDER/SPLIT for a folder in the root, several joined by
    "+"; coco: annotations/instances_SPLIT.json)."""
    val_split: str = "val"
    """Split to evaluate on."""
    classes: tuple[str, ...] = ()
    """Class names to detect, in order; empty: all classes of the data."""
    short_side: int = 128
    """Length to which the short side of an image is resized, in pixels."""
    long_side: int = 320
    """Upper limit for the long side after resizing, in pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    cache: bool = True
    """Keep resized images in memory as uint8 (3 bytes a pixel)."""
    workers: int = 0
    """Worker processes that load images; 0 loads in the training process."""
    prefetch: int = 2
    """Batches that every worker process holds ready."""
    size_buckets: int = 4
    """Most sizes to which batches are padded, and so most graphs of a compiled part of a network; images of alike
    shape share a batch."""
    scenes_train: int = 640
    """Number of training images of the scenes data set."""
    scenes_val: int = 160
    """Number of validation images of the scenes data set."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Teacher and student networks."""

    detector: Literal["faster_rcnn", "retinanet"] = "faster_rcnn"
    """Detector of teacher and student."""
    teacher: str = "resnet18"
    """Backbone of the teacher, a torchvision model name (resnet101, convnext_tiny, swin_t, ...)."""
    student: str = "mobilenet_v2"
    """Backbone of the student, a torchvision model name."""
    teacher_width: float = 1.0
    """Width multiplier of the teacher's backbone, for backbones that have one (mobilenet, mnasnet)."""
    student_width: float = 0.35
    """Width multiplier of the student's backbone, for backbones that have one."""
    conventions: Literal["torchvision", "mmdet", "mmdet-caffe", "detectron2", "detectron2-resnext"] = "torchvision"
    """Whose conventions the detectors follow (input, anchors, RoIAlign, RetinaNet's extra levels); a finished teacher
    keeps its own. For one-stage detectors the student's anchors should be the teacher's."""
    teacher_weights: str = ""
    """torchvision weights of the teacher: of its backbone (IMAGENET1K_V1, DEFAULT) or of a whole detector
    (FasterRCNN_ResNet50_FPN_Weights.COCO_V1, which also sets the architecture); empty: random."""
    student_weights: str = ""
    """The same for the student, alone and distilled."""
    teacher_checkpoint: Path | None = None
    """Trained teacher: a checkpoint of this program; the teacher is then not trained."""
    student_checkpoint: Path | None = None
    """Trained student: a checkpoint of this program, from which the student alone and the distilled one both start."""
    teacher_ap: float | None = None
    """COCO AP that a given teacher reaches on the validation images, as a fraction (0.398); far less on a sample of
    them stops the run. None: as its checkpoint, its run or torchvision says, if they do."""
    teacher_channels: int = 64
    """Channels of the teacher's feature pyramid."""
    student_channels: int = 48
    """Channels of the student's feature pyramid."""
    teacher_head: int = 256
    """Width of the teacher's box head (Faster R-CNN), in units."""
    student_head: int = 128
    """Width of the student's box head (Faster R-CNN), in units."""
    anchor_size: int = 12
    """Side of the smallest anchors, in pixels; it doubles with every pyramid level."""
    pyramid_norm: bool = True
    """Batch normalisation in the feature pyramid, which training from random weights needs."""
    freeze_norm: bool = False
    """Keep batch normalisation at the loaded statistics (for pre-trained backbones and tiny batches)."""
    proposals: int = 300
    """Proposals an image that the region proposal network keeps."""
    rois: int = 64
    """Proposals an image that the box head is trained on."""
    detections: int = 100
    """Most detections an image."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation of the student; the teacher's own training shares all but its length and rate."""

    epochs: int = 5
    """Epochs of the student, alone and distilled."""
    teacher_epochs: int = 6
    """Epochs of the teacher, where no checkpoint is given."""
    batch_size: int = 8
    """Images a step."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """SGD (momentum 0.9) or AdamW."""
    lr: float = 2e-3
    """Learning rate after warm-up."""
    teacher_lr: float = 2e-3
    """Learning rate of the teacher's own training."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["multistep", "cosine"] = "cosine"
    """Learning rate after warm-up: divided by ten at the milestones, or a half cosine to zero."""
    milestones: tuple[int, ...] = (16, 22)
    """Epochs after which the multi-step schedule divides the rate by ten."""
    clip_norm: float = 10.0
    """Upper limit of the gradient's norm; 0: none."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how the run executes."""

    output: Path | None = None
    """Folder of the run's results; none: the next free runs/DATA-N."""
    resume: Literal["off", "on", "auto"] = "off"
    """Go on with the run in --output, or with the newest one in runs/, with its settings (--resume alone: on);
    auto: the same, or a new run where there is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto: the GPU where one is there."""
    amp: bool = False
    """Mixed precision."""
    amp_dtype: Literal["bf16", "fp16"] = "bf16"
    """Number format of mixed precision; fp16 (with a gradient scaler) needs a GPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the dense parts of both networks and the distillation loss (--compile: on, --no-compile: off);
    auto: on a GPU; on a CPU it saves memory and no time (bench/README.md)."""
    bad_steps: int = 10
    """Steps in a row with a loss or gradient that is not finite, none of which changes a weight, that end the run."""
    grad_norm_steps: int = 0
    """Steps between two measurements of the norm of every loss term's gradient on the student's feature pyramid,
    written to metrics.jsonl; each costs a backward pass of the heads a term; 0: none."""
    seed: int = 0
    """Seed of weights, data order and augmentation."""
    log_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_steps: int = 200
    """Steps between two checkpoints within an epoch; every epoch ends with one."""
    keep_checkpoints: int = 3
    """The last checkpoints of each network's training that are kept."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the whole student (DDP), or its part of weights and optimiser (FSDP2)."""
    shard_teacher: bool = False
    """Under torchrun: every process holds its part of the frozen teacher, which may be larger than one device."""
    skip_teacher_check: bool = False
    """Train with a given teacher whatever it reaches on the validation images."""
    dry_run: bool = False
    """Build both networks, train two steps on one drawn image of full size, and print parameters and estimates of
    memory and time; needs no data and writes nothing."""
    sync_norm: bool = False
    """Under torchrun, on GPUs: batch normalisation by the statistics of the whole batch, not of a process's share."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    preset: str = ""
    """Named settings to start from, comma-separated; later ones win, single options win over all."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    distill: Settings = field(default_factory=Settings)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Small images of small objects on cluttered backgrounds, which are not worth a student's short training: the README
    # compares these weights with smaller ones. 100 images a class keep the refresh short.
    "scenes": {
        "distill": {"min_box": 16.0, "candidate_images": 100}
        | {"foreground_weight": 16.0, "background_weight": 1.0, "attenuation": False}
    },
    "voc": {
        "data": {"data": "voc", "train_split": "trainval", "val_split": "test", "short_side": 600}
        | {"long_side": 1000, "cache": False, "workers": 2},
        "model": LARGE_MODEL,
        "optim": {"optimizer": "sgd", "lr": 0.01, "teacher_lr": 0.01, "batch_size": 8, "epochs": 12}
        | {"teacher_epochs": 12, "warmup_steps": 500, "schedule": "multistep", "milestones": (8, 11)},
    },
    "coco": {
        "data": {"data": "coco", "train_split": "train2017", "val_split": "val2017", "short_side": 800}
        | {"long_side": 1333, "cache": False, "workers": 4},
        "model": LARGE_MODEL,
        "optim": {"optimizer": "sgd", "lr": 0.02, "teacher_lr": 0.02, "batch_size": 16, "epochs": 24}
        | {"teacher_epochs": 24, "warmup_steps": 500, "schedule": "multistep"},
    },
    "bccd": {
        "data": {"data": "voc", "train_split": "trainval", "val_split": "test", "short_side": 240},
        "model": {"teacher": "mobilenet_v2", "teacher_weights": "IMAGENET1K_V1", "student_channels": 64}
        | {
            "student_width": 0.35,
            "teacher_head": 512,
            "student_head": 512,
            "rois": 128,
            "pyramid_norm": False,
            "anchor_size": 16,
        },
        "optim": {"epochs": 4, "teacher_epochs": 4, "batch_size": 4, "lr": 2e-3, "teacher_lr": 1e-3},
    },
    "reference": {"distill": PUBLISHED},
    **RECIPES,
}


def with_presets(config: Config, names: str) -> Config:
    """Apply comma-separated preset names to a configuration, in order.

    Raises:
        InputError: for a name that is no preset.
    """
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in PRESETS:
            raise InputError(f"--preset: expected one of {', '.join(PRESETS)}; got {name!r}")
        for section, values in PRESETS[name].items():
            config = replace(config, section, **values)
    return dataclasses.replace(config, preset=names)


def replace(config: Config, section: str, **values: object) -> Config:
    """A copy of the configuration with fields of one section changed."""
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON types (paths as text)."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))  # type: ignore[return-value]


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        InputError: for a field that does not exist.
    """
    config = Config(preset=values.get("preset", ""))
    for section in ("data", "model", "distill", "optim", "run"):
        fields = {item.name: item for item in dataclasses.fields(getattr(config, section))}
        given = values.get(section, {})
        unknown = sorted(set(given) - set(fields))
        if unknown:
            raise InputError(f"configuration: unknown fields in {section}: {', '.join(unknown)}")
        config = replace(config, section, **{name: _typed(fields[name], given[name]) for name in given})
    return config


def _typed(item: dataclasses.Field[Any], value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if value is not None and "Path" in str(item.type):
        return Path(value)
    return value

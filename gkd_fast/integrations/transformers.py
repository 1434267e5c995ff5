"""Distillation in transformers' own trainer, for RT-DETRv2, D-FINE and DETR.

    from gkd_fast.integrations.transformers import DistillationTrainer

    trainer = DistillationTrainer(student, arguments, teacher=teacher, train_dataset=..., data_collator=...)
    trainer.train()

Batches hold ``pixel_values`` and ``labels`` with ``class_labels`` and ``boxes``, as the models' own losses take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from gkd_fast.distiller import Distiller
from gkd_fast.integrations import state
from gkd_fast.integrations.foreign import Teacher
from gkd_fast.methods import Settings

try:
    from safetensors import safe_open
    from transformers import AutoModelForObjectDetection, PreTrainedModel, Trainer, TrainerCallback
    from transformers.utils import SAFE_WEIGHTS_NAME
except ImportError as error:
    raise ImportError(
        "gkd_fast.integrations.transformers: expected transformers >= 5.24 and accelerate, which are no dependencies "
        f"of gkd_fast: pip install 'transformers[torch]' ({error})"
    ) from error

# Where a model's maps of strides 8, 16, 32 are; DETR has one, of stride 32.
_LAYERS = {
    "rt_detr_v2": ["model.encoder"],
    "d_fine": ["model.encoder"],
    "detr": ["model.input_projection"],
}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EXAMPLE = 256  # pixels; a multiple of every stride


def build_distiller(
    teacher: str | Path | nn.Module,
    student: Any,
    *,
    layers: Sequence[str] | None = None,
    teacher_layers: Sequence[str] | None = None,
    **options: Any,
) -> Distiller:
    """A distiller of two of transformers' detectors, on the student's device.

    Args:
        teacher: a model, or what ``from_pretrained`` takes; of the student's classes.
        student: a model.
        layers, teacher_layers: the modules that give feature maps; None: known for the models named above.
        **options: others of `gkd_fast.Distiller`.

    Raises:
        ValueError: for other classes, and models whose layers are not known.
    """
    device = next(student.parameters()).device
    network = _loaded(teacher)
    classes, found = (tuple(own.config.id2label.values()) for own in (student, network))
    if found != classes:
        raise ValueError(f"teacher: expected the student's classes {', '.join(classes)}, got {', '.join(found)}")
    return Distiller(
        network.to(device),
        student,
        classes,
        layers or _layers(student),
        teacher_layers or _layers(network),
        boxes="cxcywh",
        example=torch.zeros(1, 3, _EXAMPLE, _EXAMPLE, device=device),
        run_student=_run,
        run_teacher=_run,
        **options,
    )


def _loaded(teacher: str | Path | nn.Module) -> Any:
    return teacher if isinstance(teacher, nn.Module) else AutoModelForObjectDetection.from_pretrained(teacher)


def as_teacher(
    teacher: str | Path | nn.Module,
    *,
    layers: Sequence[str] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Teacher:
    """A detector of transformers as a teacher for `gkd_fast.integrations.torchvision.Distiller`.

    Args:
        teacher: a model, or what ``from_pretrained`` takes.
        layers: modules that give feature maps; None: known for RT-DETRv2, D-FINE and DETR.
        mean, std: of its input in units of 0..1, as its image processor says; None: ImageNet's for DETR, else 0 and 1.

    Raises:
        ValueError: for a model whose layers are not known, or one for images of one size alone.
    """
    network = _loaded(teacher)
    config = network.config
    if getattr(config, "eval_size", None) is not None or getattr(config, "anchor_image_size", None) is not None:
        raise ValueError("teacher: expected eval_size and anchor_image_size None, for images of any size")
    padded = config.model_type == "detr"
    default = _IMAGENET if padded else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Teacher(
        network.eval(),
        layers or _layers(network),
        tuple(config.id2label.values()),
        _predict,
        exclusive=padded,
        mean=mean or default[0],
        std=std or default[1],
    )


def _predict(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [N,Q,4] in pixels and class logits of every query."""
    found = network(pixel_values=images)
    height, width = images.shape[-2:]
    boxes = box_convert(found.pred_boxes, "cxcywh", "xyxy") * images.new_tensor([width, height] * 2)
    return boxes, found.logits


def boxes_of_batch(
    pixel_values: Tensor, labels: Sequence[dict[str, Tensor]], pixel_mask: Tensor | None = None
) -> list[Tensor]:
    """Boxes as fractions of the padded batch.

    DETR's batches are padded, and each image's boxes are fractions of the size that its label gives.

    Args:
        pixel_values: [N,3,H,W].
        labels: of N images: boxes [B_i,4] as centre, width and height; and where the batch may be padded size,
            height and width in pixels, as transformers' processors give it.
        pixel_mask: [N,H,W], 0 where an image is padded.

    Raises:
        ValueError: for a padded batch whose labels do not say what boxes are fractions of.
    """
    height, width = pixel_values.shape[-2:]
    if not all("size" in label for label in labels):
        if pixel_mask is not None and not bool(pixel_mask.all()):
            raise ValueError(
                "labels: expected size, the height and width in pixels that boxes are fractions of, in a padded batch "
                f"(pixel_mask has zeros); got {', '.join(sorted(labels[0]))}"
            )
        return [label["boxes"] for label in labels]
    whole = pixel_values.new_tensor([width, height], dtype=torch.float32)
    # size is (height, width)
    parts = [label["size"].to(whole.device).flip(0) / whole for label in labels]
    return [label["boxes"] * part.repeat(2) for label, part in zip(labels, parts, strict=True)]


class DistillationTrainer(Trainer):
    """transformers' trainer with the distillation terms in the student's loss.

    Checkpoints hold the plain student; ``distiller.pt`` beside it is for resuming. Evaluation does not distil.

    Args:
        model: the student.
        args: as for `transformers.Trainer`, as all further ones.
        teacher: a model, or what ``from_pretrained`` takes; see `build_distiller`.
        method, settings, layers, teacher_layers: see `gkd_fast.Distiller`.
        distiller: a finished one, of boxes ``cxcywh``, in the place of teacher and its options.

    Attributes:
        distiller: its omega and bank show what is trusted.

    Raises:
        ValueError: for training that cannot be distilled in: several GPUs in one process, FSDP, DeepSpeed.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any = None,
        *more: Any,
        teacher: str | Path | nn.Module | None = None,
        method: str = "gkd",
        settings: Settings | None = None,
        layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        distiller: Distiller | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, args, *more, **options)
        if (teacher is None) == (distiller is None):
            raise ValueError("teacher, distiller: expected one of them, got " + ("none" if teacher is None else "both"))
        self._check_launch()
        given: dict[str, Any] = {"method": method, "settings": settings}
        given |= {"layers": layers, "teacher_layers": teacher_layers}
        self.distiller = distiller or build_distiller(cast(nn.Module, teacher), self.model, **given)
        if self.distiller.box_format != "cxcywh":
            raise ValueError(f"distiller: expected one of boxes cxcywh, got {self.distiller.box_format}")
        self.add_callback(_Follow(self.distiller))
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def _check_launch(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(f"args: expected one GPU a process (launch with torchrun), got {self.args.n_gpu}")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("args: expected a student that every process holds whole (DDP), got FSDP or DeepSpeed")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **options: Any
    ) -> Any:
        """The student's loss; in training with the distillation terms."""
        labels = inputs["labels"]  # the library's own may take them out
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        if self.model.training:
            images = inputs["pixel_values"]
            boxes = boxes_of_batch(images, labels, inputs.get("pixel_mask"))
            with self.accelerator.autocast():  # the student has its own, inside; the teacher has none
                terms = self.distiller(images, boxes, [label["class_labels"] for label in labels])
            loss = loss + sum(terms.values())
            self._count += 1
            for name, term in terms.items():
                self._sums[name] = self._sums.get(name, 0) + term.detach()
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """The library's optimizer, which also trains the distiller's adapters."""
        optimizer = super().create_optimizer(*args)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        adapters = [parameter for parameter in self.distiller.parameters() if id(parameter) not in known]
        if adapters:
            if self.lr_scheduler is not None:
                raise ValueError("optimizers: expected one that trains trainer.distiller.parameters() too")
            optimizer.add_param_group({"params": adapters, "weight_decay": self.args.weight_decay})
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """The library's log, where the mean of each term since the last one stands beside the loss."""
        if "loss" in logs and self._count:
            means = torch.stack(list(self._sums.values())) / self._count
            logs |= dict(zip(self._sums, self.accelerator.reduce(means, "mean").tolist(), strict=True))
            self._sums, self._count = {}, 0
        super().log(logs, *args, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Some models (DETR) are saved under older names, which from_pretrained translates and the trainer does not.
        path = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        if isinstance(self.model, PreTrainedModel) and path.exists():
            with safe_open(path, "pt") as weights:
                renamed = set(weights.keys()) - set(self.model.state_dict())
            if renamed:
                self.model.load_state_dict(type(self.model).from_pretrained(resume_from_checkpoint).state_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state.save(self.distiller, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state.load(self.distiller, checkpoint)


class _Follow(TrainerCallback):
    """Attenuation by the epoch; and gradients of the adapters end with the step, as the trainer's own clearing does not
    know them.
    """

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.distiller.settings.attenuation:
            self.distiller.attenuation = 1 - int(state.epoch + 1e-6) / state.num_train_epochs

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.distiller.zero_grad()


def _layers(network: nn.Module) -> list[str]:
    kind = getattr(network.config, "model_type", type(network).__name__)
    if kind not in _LAYERS:
        raise ValueError(
            f"layers: expected the names of the modules that give feature maps for a {kind}, got none "
            f"(known for {', '.join(_LAYERS)})"
        )
    return _LAYERS[kind]


def _run(network: nn.Module, images: Tensor) -> Any:
    return network(pixel_values=images)

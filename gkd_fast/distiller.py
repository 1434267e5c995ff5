"""Distillation of one student from one frozen teacher, by global knowledge and other methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gkd_fast import parallel
from gkd_fast.config import DistillConfig
from gkd_fast.config_terms import parse_terms
from gkd_fast.detectors import DetectorAdapter, StudentPass, pyramid_strides
from gkd_fast.detectors.base import ground_truth_instances
from gkd_fast.detectors.folding import fold_batch_norm
from gkd_fast.methods import Setup, Step, build_terms
from gkd_fast.methods.gkd.bank import PrototypeBank
from gkd_fast.methods.gkd.harvest import CandidatePool
from gkd_fast.methods.gkd.prototypes import Batches, collect_candidates, generate_bank, merged
from gkd_fast.methods.gkd.robust import Adapters, instance_weights, robust_distilling


class Distiller:
    """The frozen teacher, the methods' modules and the prototype bank; gives a training step its distillation terms.

    Args:
        teacher: adapter of the trained teacher; frozen here, in evaluation mode from now on.
        student_channels: channels of the student's pyramid.
        classes: the data's class names.
        config: the methods and their settings.
        device: of all networks.
        shard: moves the teacher to the device in parts; None: as a whole.

    Attributes:
        uses_prototypes: whether the methods need `refresh`.
        bank: the prototypes, None before the first `refresh`.
        pool: candidates from the training steps' features, if they are harvested; see `harvest`.

    Raises:
        InputError: if `config.terms` names an unknown method, or one that does not fit the detector.
    """

    def __init__(
        self,
        teacher: DetectorAdapter,
        student_channels: int,
        classes: tuple[str, ...],
        config: DistillConfig,
        device: torch.device,
        shard: Callable[[nn.Module, torch.device], None] | None = None,
    ) -> None:
        teacher.model.eval().requires_grad_(False)
        fold_batch_norm(teacher.model.backbone)
        if shard:
            shard(teacher.model, device)
        else:
            teacher.model.to(device)
        names = parse_terms(config.terms, one_stage=teacher.stage == "one_stage")
        setup = Setup(
            stage=teacher.stage,
            student_channels=student_channels,
            teacher_channels=teacher.model.backbone.out_channels,
            levels=len(teacher.model.backbone.fpn.layer_blocks) + (1 if teacher.stage == "two_stage" else 2),
        )
        self.teacher = teacher
        self.modules = nn.ModuleDict()
        if "gkd" in names:
            self.modules["gkd"] = Adapters(
                student_channels, setup.teacher_channels, setup.levels, relu=config.adapter_relu
            )
        self.modules.update(build_terms(tuple(name for name in names if name != "gkd"), setup, config))
        self.modules.to(device)
        self.uses_prototypes = "gkd" in names or config.robust_terms
        self.levels, self.student_channels = setup.levels, student_channels
        self.classes = classes
        self.config = config
        self.device = device
        self.bank: PrototypeBank | None = None
        self.pool: CandidatePool | None = None
        self.objective = robust_distilling

    def refresh(
        self,
        student: DetectorAdapter,
        batches: Batches,
        progress: Callable[[int], None] = lambda images: None,
        *,
        images: Sequence[int] = (),
    ) -> PrototypeBank:
        """Generate the prototypes anew: from the pool where it holds candidates, else by a pass over the batches.

        Args:
            student: the network that is trained.
            batches: of this process's share of the candidate images.
            progress: called with the number of images of every finished batch.
            images: ids of the candidate images of all processes, in order; needed where there are several.
        """
        if self.pool and self.pool.filled:
            candidates = self.pool.candidates()
        else:
            own = collect_candidates(student, self.teacher, batches, self.config, self.device, progress=progress)
            parts = parallel.gather(own)
            candidates = merged(parts, images) if parts else own
        # One process picks for all: the picks are equal even on unequal machines.
        bank = parallel.from_main(generate_bank(candidates, self.classes, self.config) if parallel.is_main() else None)
        self.bank = bank.to(self.device)
        return bank

    def harvest(self, images: Mapping[int, int]) -> None:
        """Take the candidates from the training steps from now on.

        Args:
            images: number of trainable boxes of each candidate image, by image id.
        """
        self.pool = CandidatePool(
            images, self.levels, self.student_channels, self.teacher.model.backbone.out_channels, self.config.negative
        )

    def terms(
        self, student: DetectorAdapter, own: StudentPass, images: ImageList, *, kappa: float
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The distillation terms of a step, each named by its method and its part, such as ``gkd_global``.

        Returns:
            The terms, and the robust weights [L,B] of the student's instances (None without global knowledge).

        Raises:
            RuntimeError: before the first `refresh`, where prototypes are needed.
        """
        if self.uses_prototypes and self.bank is None:
            raise RuntimeError("distiller: expected prototypes, call refresh first")
        with torch.no_grad():
            pyramid = self.teacher.pyramid(images)
        if self.pool:
            strides = pyramid_strides(images.tensors.shape, own.features)
            self.pool.add(own.features, list(pyramid.values()), own.targets, strides)
        terms, omega = {}, None
        if "gkd" in self.modules:
            terms, omega = self._global_knowledge(student, own, pyramid, kappa)
        methods = [name for name in self.modules if name != "gkd"]
        if methods:
            with torch.autocast(self.device.type, enabled=False):
                step = self._step(student, own, images, pyramid)
                for name in methods:
                    # The mean over the processes of what each finds in its share of the batch.
                    found = self.modules[name](step).items()
                    terms |= {f"{name}_{part}": value / parallel.world_size() for part, value in found}
        return terms, omega

    def _global_knowledge(
        self, student: DetectorAdapter, own: StudentPass, pyramid: dict[str, Tensor], kappa: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        assert self.bank is not None
        adapted = self.modules["gkd"](own.features)
        soft = student.soft_pairs(own, self.teacher, pyramid) if self.config.soft_weight else None
        if soft is not None and student.stage == "one_stage" and self.config.one_stage_soft == "published":
            soft = soft.of_instances()
        with torch.autocast(self.device.type, enabled=False):
            terms, omega = self.objective(
                own.features,
                adapted,
                list(pyramid.values()),
                own.instances,
                soft,
                self.bank,
                self.config,
                stage=student.stage,
                kappa=kappa,
            )
        return {f"gkd_{name}": value for name, value in terms.items()}, omega

    def _step(self, student: DetectorAdapter, own: StudentPass, images: ImageList, pyramid: dict[str, Tensor]) -> Step:
        """What the methods beside global knowledge work on."""
        maps = [[feature.float() for feature in levels] for levels in (own.features, pyramid.values())]
        truth = ground_truth_instances(own.targets)
        if self.config.robust_terms:
            assert self.bank is not None
            weights = instance_weights(*maps, truth, self.bank, self.config)
        else:
            weights = truth.boxes.new_ones(len(own.features), len(truth.boxes))
        return Step(
            student=maps[0],
            teacher=maps[1],
            strides=pyramid_strides(images.tensors.shape, maps[0]),
            truth=truth,
            weights=weights,
            images=images,
            own=own,
            student_network=student,
            teacher_network=self.teacher,
        )

    @property
    def adapters(self) -> nn.Module | None:
        """From the student's to the teacher's channels, for global knowledge."""
        return getattr(self.modules, "gkd", None)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the student."""
        return list(self.modules.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Trained modules and bank."""
        bank = None if self.bank is None else vars(self.bank.to(torch.device("cpu")))
        return {"modules": self.modules.state_dict(), "bank": bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore modules and bank."""
        self.modules.load_state_dict(state["modules"])
        self.bank = None if state["bank"] is None else PrototypeBank(**state["bank"]).to(self.device)

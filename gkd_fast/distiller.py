"""Distillation of any student from any frozen teacher, in any training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gkd_fast import parallel
from gkd_fast.asking import Anchors, Logits, Sources
from gkd_fast.instances import FORMATS, Instances, check_instances, instances_of
from gkd_fast.methods import Settings, Setup, Step, build_methods, check_needs, resolved, uses_prototypes
from gkd_fast.methods.gkd import (
    ClassRings,
    LabelledBatch,
    PrototypeBank,
    collect_candidates,
    embedding_modes,
    generate_bank,
    instance_weights,
)
from gkd_fast.methods.gkd.prototypes import merged
from gkd_fast.methods.gkd.rings import candidates_from
from gkd_fast.methods.units import TeacherUnits
from gkd_fast.ops._checks import check_choice
from gkd_fast.pyramids import infer_strides, one_dtype, pool, resized
from gkd_fast.ranges import check_ranges
from gkd_fast.watching import Run, Watched

_FIRST_STEPS = 20  # steps until the first prototypes, where no pass gives them
_DARK = 2.5 / 255  # images in 0..1 are brighter than this somewhere; divided by 255 again they are not


class Distiller(nn.Module):
    """Gives a training step its distillation terms (paper: prototypes, robust weights, global and local knowledge).

    Forward hooks read the student's feature maps as its own loop runs it; the teacher is run here, on the same images.
    Neither network becomes a part of this module: its parameters are the adapters alone, its state those and the
    prototypes. Nothing of it is left in deep copies and pickles of the networks.

    Several processes (torch.distributed): each calls it with its share of the batch. The terms are made for gradients
    that are averaged over the processes, as DDP and FSDP do; those of the distiller's own parameters are averaged here.

    Args:
        teacher, student: any networks, also compiled or in DDP; the distiller comes before a compiled one's first call.
            The teacher is put into evaluation mode.
        classes: the names of the classes, or their number.
        layers: names of the student's modules whose outputs are its feature maps [N,C,H,W], from the finest on.
        teacher_layers: of the teacher; None: as the student's. As many maps; other channels and sizes are allowed.
        example: images [N,3,H,W] on the networks' device, run once through both.
        method: ``NAME[@FACTOR][+...]``, see `gkd_fast.methods`; None: as the settings say.
        boxes: ``xyxy`` in pixels of the batch, or ``cxcywh`` normalised by its sides.
        strides: of the student's maps, in pixels; None: from the sizes of images and maps, in every step.
        stage: ``two_stage`` takes softmax for soft labels, ``one_stage`` sigmoids; in published feature units also the
            mean, and the sum, of gkd's feature losses over the levels.
        settings: of the methods.
        run_student, run_teacher: how a network is run on images, where that is not ``network(images)``.
        logits: gives the class logits of both networks for each box, for soft labels; None: there are none.
        anchors: gives the student's anchors, which fgfi needs.
        refresh_steps: steps between two generations of the prototypes from what the last steps saw; None: `refresh`
            alone generates them, and has to before the first step.
        checked_steps: first steps in which the values of images, boxes and labels are looked at, for which the host
            waits for the device.
        detectors: student and teacher as `gkd_fast.detectors.adapt` gives them; `forward` then takes the student's
            pass.
        **changes: single settings by name, such as ``min_box=8``.

    Attributes:
        attenuation: kappa of the paper, 1 - epoch / epochs, to be set by the training loop; 1 at first.
        bank: the prototypes; None before they are generated.
        methods: the methods' modules by name.
        settings: of the methods.
        steps: training steps seen.

    Raises:
        ValueError: for a layer that is not there or gives no map, and a method that is unknown or lacks what it needs.
        TypeError: for a setting that does not exist.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        classes: Iterable[str] | int,
        layers: Sequence[str],
        teacher_layers: Sequence[str] | None = None,
        *,
        example: Tensor,
        method: str | None = None,
        boxes: Literal["xyxy", "cxcywh"] = "xyxy",
        strides: Sequence[float] | None = None,
        stage: Literal["one_stage", "two_stage"] = "one_stage",
        settings: Settings | None = None,
        run_student: Run | None = None,
        run_teacher: Run | None = None,
        logits: Logits | None = None,
        anchors: Anchors | None = None,
        refresh_steps: int | None = 200,
        checked_steps: int = 10,
        detectors: tuple[Any, Any] | None = None,
        **changes: Any,
    ) -> None:
        super().__init__()
        check_choice("boxes", boxes, FORMATS)
        check_choice("stage", stage, ("one_stage", "two_stage"))
        settings = dataclasses.replace(settings or Settings(), **changes)
        check_ranges(settings, str)
        self.settings = resolved(settings if method is None else dataclasses.replace(settings, method=method))
        names = self.settings.method.split("+")
        self.sources = Sources(stage, logits, anchors, detectors)
        check_needs(names, self.sources.offered)
        self.classes = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        self.box_format, self.strides, self.detectors = boxes, strides, detectors
        self.refresh_steps, self.checked_steps = refresh_steps, checked_steps
        self._student = Watched("student", student, layers, run_student)
        self._teacher = Watched("teacher", teacher, teacher_layers or layers, run_teacher)
        self.methods = build_methods(names, self._setup(example), self.settings).to(example.device)
        self._mean_gradients = parallel.MeanGradients(self.methods.parameters())
        self.uses_prototypes = uses_prototypes(self.settings)
        self._units = TeacherUnits() if self.settings.feature_units == "teacher" else None
        self.rings: ClassRings | None = None
        if self.uses_prototypes and (refresh_steps or self.settings.prototypes_from == "harvest"):
            self.rings = ClassRings(len(self.classes), self.settings.capacity)
        self.bank: PrototypeBank | None = None
        self.attenuation = 1.0
        self.steps = 0

    def forward(
        self,
        images: Tensor,
        boxes: Tensor | Sequence[Tensor],
        labels: Tensor | Sequence[Tensor],
        image_index: Tensor | None = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        flipped: Sequence[bool] | Tensor | None = None,
        own: Any = None,
    ) -> dict[str, Tensor]:
        """The terms of the step whose student's forward pass was just run on the same images.

        Args:
            images: [N,3,H,W] as the student saw them, augmented and normalised.
            boxes: of the images as they are given, one tensor [B_i,4] an image, or all [B,4] with image_index.
            labels: likewise, [B_i] or [B], class from 0.
            image_index: int64 [B], the image of each box, where they are one tensor.
            image_ids: of the N images in the data set; with them an instance seen again replaces its older embedding.
            flipped: of the N images, whether they are mirrored; kept beside the prototypes.
            own: the student's pass, of `detectors`, whose maps are then taken.

        Returns:
            float32 scalars by name, such as ``gkd_foreground``, already weighted: to be added to the student's loss.

        Raises:
            RuntimeError: without a student's pass before, or one that carries no gradient, and without prototypes where
                nothing generates them.
            ValueError: in the first steps, for boxes of another format or size, and labels out of range.
        """
        student = self._student.take() if own is None else self._shown_maps(own)
        self._follow(images.device)
        teacher = self._teach(images)
        truth = instances_of(images, boxes, labels, image_index, self.box_format)
        self._check(student, teacher, images, truth)
        training = self.training and torch.is_grad_enabled()
        if self._units and (training or not self.steps):
            self._units.add(teacher)
        step = self._step(student, teacher, images, truth, own)
        if training and self.rings is not None:
            self.remember(self.embeddings(step), truth, step.strides, len(images), image_ids, flipped)
        terms = self._terms(step)
        self.steps += training
        if training and self._is_due():
            with contextlib.suppress(ValueError):  # no class has an instance yet
                self.refresh()
        return terms

    def refresh(
        self,
        loader: Iterable[Sequence[Any]] | None = None,
        *,
        images: Sequence[int] = (),
        progress: Callable[[int], None] = lambda images: None,
    ) -> PrototypeBank:
        """Generate the prototypes anew; to be called by every process.

        Args:
            loader: of batches (images, boxes, labels) or (images, boxes, labels, image_ids) as for `forward`, not
                augmented: a pass of both networks over the images; a batch whose boxes are one tensor is
                (images, boxes, labels, image_ids or None, image_index). None: from what the last training steps saw.
            images: ids of all processes' images, in the order of a pass by one process; empty: any order.
            progress: called with the number of images of every finished batch.

        Raises:
            ValueError: if no class has an instance.
        """
        if loader is None:
            if self.rings is None:
                raise ValueError(
                    'refresh: expected a loader, for no step is remembered with prototypes_from="pass" and without '
                    "refresh_steps; got None"
                )
            find = partial(candidates_from, parallel.gather(self.rings.rows()), self.rings.strides)
        else:
            find = partial(merged, parallel.gather(self._pass(loader, progress)), images)
        # One process picks for all: the picks are equal even on unequal machines.
        bank = parallel.from_main(self._generated(find) if parallel.is_main() else None)
        if isinstance(bank, ValueError):
            raise bank
        assert bank is not None
        self.bank = bank.to(self.device)
        return bank

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms, in their order."""
        methods: list[tuple[str, Any]] = list(self.methods.items())
        return tuple(f"{name}_{part}" for name, method in methods for part in method.parts)

    @property
    def omega(self) -> Tensor | None:
        """Robust weights [L,B] of the last step's instances; None without global knowledge."""
        gkd: Any = dict(self.methods).get("gkd")
        return None if gkd is None else gkd.omega

    @property
    def teacher(self) -> nn.Module:
        """The teacher, as it was given."""
        return self._teacher.network

    @property
    def device(self) -> torch.device:
        """Of the networks, as of the example."""
        return self._device

    def remove(self) -> None:
        """Take the hooks off both networks."""
        self._student.remove()
        self._teacher.remove()

    @property
    def measures_units(self) -> bool:
        """Whether the next training step still changes what the teacher's maps are measured in."""
        return self._units is not None and not self._units.settled

    def get_extra_state(self) -> dict[str, Any]:
        """Prototypes, what the last steps of this process saw, the teacher's units, and the steps' number."""
        return self._extra_state(self.rings.state_dict() if self.rings else None)

    def gathered_extra_state(self) -> dict[str, Any]:
        """The same with what the last steps of all processes saw, on the main process; to be called by all."""
        return self._extra_state(self.rings.gathered_state() if self.rings else None)

    def _extra_state(self, rings: dict[str, Any] | None) -> dict[str, Any]:
        bank = None if self.bank is None else vars(self.bank.to(torch.device("cpu")))
        units = self._units.state_dict() if self._units else None
        return {"bank": bank, "rings": rings, "units": units, "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        self.bank = None if state["bank"] is None else PrototypeBank(**state["bank"]).to(self.device)
        if self.rings and state["rings"]:
            self.rings.load_state_dict(state["rings"], self.device)
        if self._units and state.get("units"):
            self._units.load_state_dict(state["units"], self.device)
        self.steps = state["steps"]

    def __reduce__(self) -> Any:
        raise TypeError("Distiller: it holds on to two networks; expected its state_dict() to be saved or copied")

    def _setup(self, example: Tensor) -> Setup:
        """The shapes of both pyramids on example images."""
        self._device = example.device
        try:
            maps = [watched.example(example) for watched in (self._student, self._teacher)]
            if len(maps[0]) != len(maps[1]):
                raise ValueError(
                    f"layers: expected as many maps of both networks, got {len(maps[0])} of the student and "
                    f"{len(maps[1])} of the teacher"
                )
            for role, levels in zip(("student", "teacher"), maps, strict=True):
                strides = infer_strides(example.shape[-2:], levels)
                if list(strides) != sorted(strides):
                    raise ValueError(f"{role}: expected layers from the finest map on, got strides {strides}")
        except BaseException:
            self.remove()
            raise
        self._teacher.ends_early &= self.sources.logits is None  # whose hooks may lie behind the last watched layer
        channels = [tuple(feature.shape[1] for feature in levels) for levels in maps]
        return Setup(
            stage=self.sources.stage,
            student_channels=channels[0],
            teacher_channels=channels[1],
            offered=self.sources.offered,
        )

    def _shown_maps(self, own: Any) -> list[Tensor]:
        self._student.forget()
        return list(own.features)

    def _follow(self, device: torch.device) -> None:
        """Have the prototypes where the networks now are."""
        if device != self._device:
            self._device = device
            self.set_extra_state(self.get_extra_state())

    @torch.no_grad()
    def _teach(self, images: Tensor) -> list[Tensor]:
        if any(module.training for module in self._teacher.inner.modules()):
            self._teacher.network.eval()
        return self._teacher.maps(images)

    def _check(self, student: list[Tensor], teacher: list[Tensor], images: Tensor, truth: Instances) -> None:
        if len(student[0]) != len(images):
            raise ValueError(
                f"images: expected the {len(student[0])} that the student's last forward pass saw, got {len(images)}"
            )
        if len(teacher) != len(student):
            raise ValueError(f"teacher: expected {len(student)} maps, got {len(teacher)}")
        if self.training and torch.is_grad_enabled() and not all(feature.requires_grad for feature in student):
            raise RuntimeError(
                "student: expected maps with gradient; the layers are frozen, ran under no_grad, or lie in a reentrant "
                "checkpoint (use_reentrant=False passes gradients on)"
            )
        if self.steps < self.checked_steps:
            check_instances(truth, images, self.classes, self.box_format)
            if images.is_floating_point() and 0 < float(images.abs().max()) < _DARK:
                warnings.warn(
                    f"images: no value above {float(images.max()):.2g}; were they divided by 255 twice?", stacklevel=3
                )

    def _step(self, student: list[Tensor], teacher: list[Tensor], images: Tensor, truth: Instances, own: Any) -> Step:
        size = images.shape[-2:]
        if self.uses_prototypes and self.bank is None and not self.refresh_steps:
            raise RuntimeError("distiller: expected prototypes, call refresh first")
        alike = all(s.shape[2:] == t.shape[2:] for s, t in zip(student, teacher, strict=True))
        strides = tuple(self.strides or infer_strides(size, student))
        step = Step(
            student=student,
            teacher=teacher if alike else resized(teacher, student),
            teacher_own=teacher,
            strides=strides,
            teacher_strides=strides if alike else infer_strides(size, teacher),
            truth=truth,
            instances=own.instances if own else truth,
            weights=truth.boxes.new_ones(len(student), len(truth.boxes)),
            images=images,
            units=self._units.units() if self._units else None,
            bank=self.bank,
            # A number would be a constant of the compiled loss, and another one every epoch.
            kappa=torch.full((), self.attenuation, device=images.device),
        )
        return dataclasses.replace(step, **self.sources.answers(step, own))

    def _terms(self, step: Step) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        exact = None
        for name, method in self.methods.items():
            if getattr(method, "takes_raw_maps", False):
                # Parts of the global batch's terms, which add up.
                found = {part: value * parallel.world_size() for part, value in method(step).items()}
            else:
                with torch.autocast(step.images.device.type, enabled=False):
                    exact = exact or self._in_float32(step)
                    found = method(exact)
            terms |= {f"{name}_{part}": value for part, value in found.items()}
        return terms

    def _in_float32(self, step: Step) -> Step:
        """The step for methods that compute in float32, with robust weights where they are asked for."""
        step = dataclasses.replace(
            step,
            student=[feature.float() for feature in step.student],
            teacher=[feature.float() for feature in step.teacher],
            teacher_own=[feature.float() for feature in step.teacher_own],
        )
        if step.units is not None:
            deviations = step.units.deviations
            step = dataclasses.replace(step, teacher=[f / d for f, d in zip(step.teacher, deviations, strict=True)])
        if not self.settings.robust_masks or not self.uses_prototypes or step.bank is None:
            return step
        strides = step.strides, step.teacher_strides
        weights = instance_weights(step.student, step.teacher_own, step.truth, step.bank, self.settings, strides)
        return dataclasses.replace(step, weights=weights)

    @torch.no_grad()
    def embeddings(self, step: Step) -> tuple[Tensor, Tensor]:
        """Of a step's instances in both spaces, float32 [L,B,C_S] and [L,B,C_T]."""
        with torch.autocast(step.images.device.type, enabled=False):
            student, teacher = (
                pool(one_dtype(levels), step.truth, strides, self.settings.negative, exact=True)
                for levels, strides in ((step.student, step.strides), (step.teacher_own, step.teacher_strides))
            )
        return student, teacher

    def remember(
        self,
        embeddings: tuple[Tensor, Tensor],
        truth: Instances,
        strides: Sequence[float],
        images: int,
        image_ids: Sequence[int] | Tensor | None,
        flipped: Sequence[bool] | Tensor | None,
    ) -> None:
        """Keep the `embeddings` of a step of so many images, for the next prototypes; the rest as for `forward`."""
        assert self.rings is not None
        ids, mirrored = (
            None if column is None else torch.as_tensor(column).to(self.device, non_blocking=True)
            for column in (image_ids, flipped)
        )
        self.rings.add(*embeddings, truth, strides, images=images, image_ids=ids, flipped=mirrored)

    def _is_due(self) -> bool:
        """Whether the prototypes are to be generated from the last steps now."""
        if self.rings is None or not self.refresh_steps:
            return False
        every = self.refresh_steps if self.bank else min(_FIRST_STEPS, self.refresh_steps)
        return self.steps % every == 0

    def _pass(self, loader: Iterable[Sequence[Any]], progress: Callable[[int], None]) -> Any:
        def batches() -> Iterator[LabelledBatch]:
            for images, boxes, labels, *more in loader:
                ids, index = (*more, None, None)[:2]
                images = images.to(self.device, non_blocking=True)
                instances = instances_of(images, boxes, labels, index, self.box_format)
                yield LabelledBatch(images, instances, None if ids is None else torch.as_tensor(ids))

        def pyramids(images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            return self._student.maps(images, plain=True), self._teacher.maps(images, plain=True)

        with embedding_modes(self._student.inner, self._teacher.inner, self.settings):
            return collect_candidates(batches(), pyramids, self.settings, strides=self.strides, progress=progress)

    def _generated(self, find: Callable[[], Any]) -> PrototypeBank | ValueError:
        try:
            return generate_bank(find(), self.classes, self.settings)
        except ValueError as error:
            return error

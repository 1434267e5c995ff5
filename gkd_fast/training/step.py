"""One training step: forward, losses, backward, update, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gkd_fast import parallel
from gkd_fast.config import Config
from gkd_fast.data.buckets import SizeBuckets
from gkd_fast.detectors import DetectorAdapter, StudentPass, plain_targets
from gkd_fast.detectors.base import ground_truth_instances, place_anchors, sizes_of
from gkd_fast.detectors.truth import BatchTargets, PaddedTruth
from gkd_fast.distiller import Distiller
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.pyramids import infer_strides
from gkd_fast.training.balance import Balance, gradient_norms
from gkd_fast.training.compile import AutoCompile, CompiledStep
from gkd_fast.training.distilling import distilled_terms, graph_terms, ids_and_flips, padded_bank
from gkd_fast.training.distributed import data_parallel, is_sharded, prepare_student
from gkd_fast.training.optim import build_optimizer
from gkd_fast.training.planting import Planting
from gkd_fast.training.precision import Precision, RunningStatistics
from gkd_fast.training.readback import BadSteps

_BALANCE_STEPS = 50  # between two measurements, where no other number is given

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class TrainStep:
    """Everything that a step changes: the detector, its optimiser, the scaler, the distiller's modules.

    Args:
        adapter: the detector to train, on the device.
        config: of the run.
        lr: learning rate after warm-up.
        device: of all networks.
        distiller: the frozen teacher, or None to train without distillation.
        buckets: the padded sizes of batches, or None to pad every batch as little as possible.
        most: boxes of an image, of the data; a compiled step has room for so many. None: it is not compiled.
        steps: of the phase, for `AutoCompile`.

    Attributes:
        modules: everything that is trained.
        compiled: the step as graphs; None: it is never compiled.
        norms: of every term's gradient on the student's feature pyramid, if the last step measured them.
    """

    def __init__(
        self,
        adapter: DetectorAdapter,
        config: Config,
        lr: float,
        device: torch.device,
        distiller: Distiller | None = None,
        buckets: SizeBuckets | None = None,
        *,
        most: int | None = None,
        steps: int | None = None,
    ) -> None:
        self.adapter = adapter
        self.config = config
        self.device = device
        self.distiller = distiller
        self.buckets = buckets
        prepare_student(adapter.model, distiller.methods if distiller else None, config, device)
        self.modules = nn.ModuleDict({"detector": adapter.model})
        if distiller:
            self.modules["distiller"] = distiller.methods
        self.trainable = list(self.modules.parameters())
        teacher = list(distiller.teacher.parameters()) if distiller else []
        _channels_last([*self.trainable, *teacher])
        self.optimizer = build_optimizer(self.trainable, config.optim, lr)
        self.together = data_parallel(adapter.model, config, device)
        self.precision = Precision(config.run, device)
        self.statistics = RunningStatistics(adapter.model)
        self.bad_steps = BadSteps(config.run.bad_steps, device)
        self.balance = None
        if distiller and config.distill.auto_balance:
            self.balance = Balance(config.distill.balance_ratio, device)
        self.norm_steps = config.run.grad_norm_steps or (_BALANCE_STEPS if self.balance else 0)
        self.norms: dict[str, Tensor] = {}
        self.planting = Planting.of(config.data, config.run.seed) if distiller else None
        self.steps = 0
        self.most = most
        self.auto = AutoCompile(config.run.compile, device, len(buckets.sizes) if buckets else 1, steps)
        self.compiled: CompiledStep[Any] | None = None
        graphs = most is not None and self.planting is None
        if self.auto.decided is not False and graphs and not is_sharded([*self.trainable, *teacher]):
            for model in (adapter.model, distiller.teacher) if distiller else (adapter.model,):
                place_anchors(model, device)
            self.compiled = CompiledStep(self._graph, config.data.size_buckets)
        self._bank: tuple[PrototypeBank, PrototypeBank] | None = None

    def __call__(self, batch: Batch, kappa: float) -> dict[str, Tensor]:
        """Update the weights once; a step with a number that is not finite leaves them as they are.

        Args:
            batch: uint8 images and their targets.
            kappa: attenuation of the distillation terms.

        Returns:
            The loss terms of the global batch, float32 scalars on the device.

        Raises:
            RunError: once too many steps in a row were not finite.
        """
        self.statistics.save()
        images, targets = self.prepare(batch)
        forward = self._run_graph if self._compiles() else self._forward
        features, terms = self.together(forward, images, targets, kappa)
        self._measure(terms, features)
        self.backward(terms)
        if self.compiled:
            self.compiled.backward_done()
        values = self.update(terms, [target["image_id"] for target in batch[1]])
        self.steps += 1
        return dict(zip(terms, values, strict=True))

    def _forward(
        self, images: ImageList, targets: BatchTargets, kappa: float
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The student's maps, and the terms."""
        with self.precision.student_pass():
            own = self.student_pass(images, targets)
            return own.features, {**_parts(own), **self.distil(own, images, kappa)}

    def _run_graph(
        self, images: ImageList, targets: BatchTargets, kappa: float
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The same by one compiled graph."""
        assert self.compiled is not None
        attenuation = torch.full((), kappa, device=self.device)
        sizes = sizes_of(images.image_sizes, self.device)
        arguments = images.tensors, sizes, targets.padded, attenuation, self._padded_bank()
        features, terms, embeddings = self.compiled(*arguments)
        if self.distiller:
            self.distiller.steps += 1
            if embeddings:
                truth, strides = targets.padded.instances(), infer_strides(images.tensors.shape[-2:], features)
                self.distiller.remember(embeddings, truth, strides, len(targets), *ids_and_flips(targets))
        return features, terms

    def _graph(
        self, images: Tensor, sizes: Tensor, truth: PaddedTruth, kappa: Tensor, bank: PrototypeBank | None
    ) -> tuple[list[Tensor], dict[str, Tensor], tuple[Tensor, Tensor] | None]:
        """All that lies between the images and the gradients, and what the distiller is to remember."""
        with self.precision.autocast():
            own = self.adapter.tensor_pass(images, sizes, truth)
            terms, embeddings = _parts(own), None
            if self.distiller:
                added, embeddings = graph_terms(self.distiller, own, images, truth.instances(), kappa, bank)
                terms |= added
            return own.features, terms, embeddings

    def _padded_bank(self) -> PrototypeBank | None:
        """The prototypes in a size that stays."""
        bank = self.distiller.bank if self.distiller else None
        if bank is None:
            return None
        if self._bank is None or self._bank[0] is not bank:
            padded = padded_bank(bank)
            assert padded is not None
            self._bank = bank, padded
        return self._bank[1]

    def _compiles(self) -> bool:
        """Whether this step is a graph; one that measures gradients or the teacher's units is not."""
        if self.compiled is None or not self.auto() or self._measures():
            return False
        distiller = self.distiller
        if distiller is None:
            return True
        waits = distiller.uses_prototypes and distiller.bank is None
        return not distiller.measures_units and not waits

    def prepare(self, batch: Batch) -> tuple[ImageList, BatchTargets]:
        """The padded batch and the targets, on the device."""
        images, targets = batch
        size = self.buckets.fit([(image.shape[-2], image.shape[-1]) for image in images]) if self.buckets else None
        on_device = [image.to(self.device, non_blocking=True) for image in images]
        most = self.most if self.compiled else None
        return self.adapter.batch(on_device, size), plain_targets(targets, self.device, most)

    def student_pass(self, images: ImageList, targets: BatchTargets) -> StudentPass:
        """The detector's own losses, in float32, and what distillation looks at."""
        return self.adapter.train_pass(images, targets)

    def distil(self, own: StudentPass, images: ImageList, kappa: float) -> dict[str, Tensor]:
        """The distillation terms, in float32; none without a teacher."""
        if self.distiller is None:
            return {}
        shown = images.tensors
        if self.planting:
            ids = [target["image_id"] for target in own.targets]
            shown, _ = self.planting(shown, ground_truth_instances(own.targets), ids)
        return distilled_terms(self.distiller, own, shown, kappa)

    def backward(self, terms: dict[str, Tensor]) -> None:
        """Gradients of the sum of the terms."""
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.scaler.scale(torch.stack(list(terms.values())).sum()).backward()

    def update(self, terms: dict[str, Tensor], image_ids: list[int]) -> Tensor:
        """Step the optimiser where everything is finite; returns the terms [T] of the global batch."""
        values = parallel.total(torch.stack([value.detach() for value in terms.values()])) / parallel.world_size()
        finite, bad = self.precision.update(self.optimizer, self.trainable, values, self.config.optim.clip_norm)
        self.statistics.keep(finite)
        self.bad_steps.add(list(terms), values, bad, image_ids)
        return values

    def _measure(self, terms: dict[str, Tensor], features: list[Tensor]) -> None:
        """Gradient norms where it is their turn; scales the distillation terms in place where they are balanced."""
        self.norms = {}
        if self._measures():
            self.norms = gradient_norms(terms, features, self.precision.scaler)
        if self.balance:
            terms |= self.balance(terms, self.norms)

    def _measures(self) -> bool:
        return bool(self.norm_steps) and self.steps % self.norm_steps == 0

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on needs beside `modules` and `optimizer`."""
        return {
            "scaler": self.precision.scaler.state_dict(),
            "distiller": self.distiller.gathered_extra_state() if self.distiller else None,
            "balance": self.balance.state_dict() if self.balance else None,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.precision.scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]
        if self.balance:
            self.balance.load_state_dict(state["balance"])
        if self.distiller:
            self.distiller.set_extra_state(state["distiller"])


def _parts(own: StudentPass) -> dict[str, Tensor]:
    """The detector's losses: parts of the global batch's, which add up, where gradients are averaged."""
    return {name: value * parallel.world_size() for name, value in own.losses.items()}


def _channels_last(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.dim() == 4 and not is_sharded([parameter]):
            # contiguous() leaves 1x1 kernels as they are, and their gradients would come in another layout.
            parameter.data = torch.empty_like(parameter.data, memory_format=torch.channels_last).copy_(parameter.data)

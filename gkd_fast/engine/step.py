"""One training step: forward, losses, backward, update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gkd_fast.config import Config
from gkd_fast.detectors import DetectorAdapter, plain_targets
from gkd_fast.distill import Distiller
from gkd_fast.engine.optim import build_optimizer
from gkd_fast.engine.precision import Precision

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class TrainStep:
    """Everything that a step changes: the detector, its optimiser, the scaler, the distiller's adapters.

    Args:
        adapter: the detector to train, on the device.
        config: of the run.
        lr: learning rate after warm-up.
        device: of all networks.
        distiller: the frozen teacher, or None to train without distillation.
    """

    def __init__(
        self,
        adapter: DetectorAdapter,
        config: Config,
        lr: float,
        device: torch.device,
        distiller: Distiller | None = None,
    ) -> None:
        self.adapter = adapter
        self.clip_norm = config.optim.clip_norm
        self.device = device
        self.distiller = distiller
        self.trainable = [*adapter.model.parameters(), *(distiller.parameters() if distiller else [])]
        self.optimizer = build_optimizer(self.trainable, config.optim, lr)
        self.precision = Precision(config.run, device)

    def __call__(self, batch: Batch, kappa: float) -> dict[str, Tensor]:
        """Update the weights once.

        Args:
            batch: uint8 images and their targets.
            kappa: attenuation of the distillation terms.

        Returns:
            The loss terms, float32 scalars on the device.
        """
        terms = self._losses(batch, kappa)
        scaler = self.precision.scaler
        self.optimizer.zero_grad(set_to_none=True)
        scaler.scale(torch.stack(list(terms.values())).sum()).backward()
        if self.clip_norm:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trainable, self.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        return terms

    def _losses(self, batch: Batch, kappa: float) -> dict[str, Tensor]:
        images, targets = batch
        image_list = self.adapter.batch([image.to(self.device, non_blocking=True) for image in images])
        with self.precision.autocast():
            own = self.adapter.train_pass(image_list, plain_targets(targets, self.device))
            terms = {name: value.float() for name, value in own.losses.items()}
            if self.distiller:
                terms.update(self.distiller.terms(self.adapter, own, image_list, kappa=kappa)[0])
        return terms

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser, for a training that goes on."""
        return {
            "model": self.adapter.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "distiller": self.distiller.state_dict() if self.distiller else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.adapter.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        if self.distiller:
            self.distiller.load_state_dict(state["distiller"])

"""Training of one detector: on its own, or distilled from a frozen teacher."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gkd_fast.config import Config
from gkd_fast.data.loader import build_loader
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import DetectorAdapter
from gkd_fast.distill import Distiller, candidate_indices
from gkd_fast.engine.checkpoint import load_state, save_atomically
from gkd_fast.engine.metrics import MetricsWriter, Progress, StepMeter
from gkd_fast.engine.optim import build_schedule
from gkd_fast.engine.step import Batch, TrainStep


@dataclass(frozen=True)
class Phase:
    """One training of the run: the teacher, the student alone, or the distilled student."""

    name: str
    folder: Path
    epochs: int
    lr: float


class Trainer:
    """Runs one phase, from where its last checkpoint stands.

    Args:
        adapter: the detector to train, on the device.
        dataset: prepared training images.
        phase: name, folder, length and learning rate.
        config: of the run.
        device: of all networks.
        distiller: the frozen teacher, or None to train without distillation.
    """

    def __init__(
        self,
        adapter: DetectorAdapter,
        dataset: PreparedDataset,
        phase: Phase,
        config: Config,
        device: torch.device,
        distiller: Distiller | None = None,
    ) -> None:
        self.adapter = adapter
        self.dataset = dataset
        self.phase = phase
        self.config = config
        self.device = device
        self.distiller = distiller
        self.loader = build_loader(
            dataset,
            batch_size=config.optim.batch_size,
            shuffle=True,
            seed=config.run.seed,
            workers=config.data.workers,
        )
        self.steps_per_epoch = len(self.loader)
        self.update = TrainStep(adapter, config, phase.lr, device, distiller)
        self.schedule = build_schedule(self.update.optimizer, config.optim, phase.epochs, self.steps_per_epoch)
        self.candidate_images = (
            candidate_indices(dataset.labels_per_image(), config.distill.candidate_images, config.run.seed)
            if distiller
            else []
        )
        self.step = 0
        self.seconds = 0.0
        self.metrics = MetricsWriter(phase.folder.parent / "metrics.jsonl")
        self.meter = StepMeter()

    def fit(self) -> float:
        """Train to the end of the phase.

        Returns:
            Images a second over the phase, without the time for prototypes.
        """
        self._resume()
        total = self.phase.epochs * self.steps_per_epoch
        progress = Progress(self.phase.name, total, self.step)
        self.adapter.model.train()
        while self.step < total:
            self._epoch(self.step // self.steps_per_epoch, progress)
        progress.close()
        return total * self.config.optim.batch_size / max(self.seconds, 1e-9)

    def _epoch(self, epoch: int, progress: Progress) -> None:
        done = self.step % self.steps_per_epoch
        uses_prototypes = self.distiller is not None and self.distiller.uses_prototypes
        if uses_prototypes and done == 0 and epoch % self.config.distill.refresh_epochs == 0:
            self._refresh(epoch)
        self.dataset.set_epoch(epoch)
        self.loader.sampler.set_epoch(epoch, start=done * self.config.optim.batch_size)
        started = time.perf_counter()
        self.meter.pause()
        for batch in self.loader:
            self._step(batch, epoch)
            progress.step()
            if self.step % self.config.run.log_steps == 0:
                self._log(epoch, progress)
            if self.step % self.config.run.checkpoint_steps == 0:
                self.seconds += time.perf_counter() - started
                self.save()
                started = time.perf_counter()
        self.seconds += time.perf_counter() - started
        self.save()

    def _step(self, batch: Batch, epoch: int) -> None:
        kappa = 1 - epoch / self.phase.epochs if self.config.distill.attenuation else 1.0
        terms = self.update(batch, kappa)
        self.schedule.step()
        self.step += 1
        self.meter.add(terms, len(batch[0]))

    def _refresh(self, epoch: int) -> None:
        started = time.perf_counter()
        assert self.distiller is not None
        loader = build_loader(
            self.dataset.without_flip(),
            batch_size=self.config.optim.batch_size,
            shuffle=False,
            seed=self.config.run.seed,
            workers=self.config.data.workers,
            indices=self.candidate_images,
        )
        with self.update.precision.autocast():
            bank = self.distiller.refresh(self.adapter, loader)
        bank.save(self.phase.folder / "prototypes.pt")
        self.metrics.write(
            {"phase": self.phase.name, "event": "prototypes", "epoch": epoch, "count": bank.student.shape[1]}
            | {"images": len(self.candidate_images), "seconds": round(time.perf_counter() - started, 3)}
        )

    def _log(self, epoch: int, progress: Progress) -> None:
        means = self.meter.flush()
        progress.show(means)
        rounded = {name: float(f"{value:.6g}") for name, value in means.items()}
        lr = self.schedule.get_last_lr()[0]
        self.metrics.write({"phase": self.phase.name, "step": self.step, "epoch": epoch, "lr": lr, **rounded})

    def save(self) -> None:
        """Write the state from which `fit` goes on."""
        save_atomically(
            {
                "step": self.step,
                "seconds": self.seconds,
                "schedule": self.schedule.state_dict(),
                **self.update.state_dict(),
                "random": torch.get_rng_state(),
            },
            self.phase.folder / "last.pt",
        )

    def _resume(self) -> None:
        path = self.phase.folder / "last.pt"
        if not path.exists():
            return
        state = load_state(path)
        self.step, self.seconds = state["step"], state["seconds"]
        self.schedule.load_state_dict(state["schedule"])
        self.update.load_state_dict(state)
        torch.set_rng_state(state["random"])

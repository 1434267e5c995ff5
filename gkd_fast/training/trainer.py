"""Training of one detector: on its own, or distilled from a frozen teacher."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gkd_fast import parallel
from gkd_fast.config import Config
from gkd_fast.data.buckets import SizeBuckets
from gkd_fast.data.loader import build_loader
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import DetectorAdapter
from gkd_fast.distiller import Distiller
from gkd_fast.errors import InputError
from gkd_fast.files import claimed, replacing
from gkd_fast.interrupt import Interrupted, Pending, deferred
from gkd_fast.methods.gkd import PrototypeBank, candidate_indices
from gkd_fast.tracking import Trackers
from gkd_fast.training.distilling import passed_batches
from gkd_fast.training.metrics import MetricsWriter, Progress, StepMeter
from gkd_fast.training.optim import build_schedule
from gkd_fast.training.readback import Readback
from gkd_fast.training.states import States
from gkd_fast.training.step import Batch, TrainStep


@dataclass(frozen=True)
class Phase:
    """One training of the run: the teacher, the student alone, or the distilled student."""

    name: str
    folder: Path
    epochs: int
    lr: float
    batch_size: int


class Trainer:
    """Runs one phase, from where its last checkpoint stands.

    Args:
        adapter: the detector to train, on the device.
        dataset: prepared training images.
        phase: name, folder, length, learning rate and images a step.
        config: of the run.
        device: of all networks.
        distiller: the frozen teacher, or None to train without distillation.
        trackers: which get the metrics, too.
    """

    def __init__(
        self,
        adapter: DetectorAdapter,
        dataset: PreparedDataset,
        phase: Phase,
        config: Config,
        device: torch.device,
        distiller: Distiller | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.adapter = adapter
        self.dataset = dataset
        self.phase = phase
        self.config = config
        self.device = device
        self.distiller = distiller
        buckets = SizeBuckets(dataset.sizes(), config.data.size_buckets)
        self.loader = build_loader(
            dataset,
            batch_size=phase.batch_size,
            shuffle=True,
            seed=config.run.seed,
            workers=config.data.workers,
            groups=[buckets.index(size) for size in dataset.sizes()],
            prefetch=config.data.prefetch,
            share=(parallel.rank(), parallel.world_size()),
        )
        self.steps_per_epoch = len(self.loader)
        self.total = phase.epochs * self.steps_per_epoch
        self.update = TrainStep(
            adapter,
            config,
            phase.lr,
            device,
            distiller,
            buckets,
            most=max(dataset.boxes_per_image(range(len(dataset))).values(), default=0),
            steps=self.total,
        )
        self.schedule = build_schedule(self.update.optimizer, config.optim, phase.epochs, self.steps_per_epoch)
        self.states = States(
            phase.folder / "checkpoints", config.run.keep_checkpoints, self.update.modules, self.update.optimizer
        )
        self.step = 0
        self.saved = 0
        self.seconds = 0.0
        self.metrics = MetricsWriter(phase.folder.parent / "metrics.jsonl", write=parallel.is_main(), trackers=trackers)
        self.meter = StepMeter()
        self.norms = Readback()

    def fit(self) -> float:
        """Train to the end of the phase.

        Returns:
            Images a second over the phase, without the time for prototypes.

        Raises:
            Interrupted: after a signal, once the state is saved.
            RunError: if the run cannot go on, or another process trains in the same folder.
        """
        with claimed(self.states.folder):
            self._resume()
            return self._fit()

    def _fit(self) -> float:
        self.adapter.model.train()
        with closing(Progress(self.phase.name, self.total, self.step, show=parallel.is_main())) as progress:
            while self.step < self.total:
                epoch = self.step // self.steps_per_epoch
                if self.step % self.steps_per_epoch == 0:
                    self._refresh(epoch)
                with deferred() as signal:
                    self._epoch(epoch, progress, signal)
        self._report_graphs()
        return self.total * self.phase.batch_size / max(self.seconds, 1e-9)

    def _epoch(self, epoch: int, progress: Progress, signal: Pending) -> None:
        done = self.step % self.steps_per_epoch
        self.dataset.set_epoch(epoch)
        sampler: Any = self.loader.sampler
        sampler.set_epoch(epoch, start=done * self.phase.batch_size)
        started = time.perf_counter()
        self.meter.pause()
        for batch in self.meter.waiting(self.loader):
            self._step(batch, epoch)
            progress.step()
            if self.step % self.config.run.log_steps == 0:
                self._log(epoch, progress)
            number = parallel.largest(signal.number)
            if number or self.step % self.config.run.checkpoint_steps == 0 or self.step == self.total:
                self.seconds += time.perf_counter() - started
                self._save()
                started = time.perf_counter()
            if number:
                raise Interrupted(number)
        self.seconds += time.perf_counter() - started

    def _step(self, batch: Batch, epoch: int) -> None:
        kappa = 1 - epoch / self.phase.epochs if self.config.distill.attenuation else 1.0
        images, targets = batch
        seed = self.config.run.seed
        drawn = [{**target, "draw": draw_seed(seed, epoch, target["image_id"])} for target in targets]
        terms = self.update((images, drawn), kappa)
        self.schedule.step()
        self.step += 1
        self.meter.add(terms, len(images) * parallel.world_size())
        if self.update.norms:
            names, values = zip(*self.update.norms.items(), strict=True)
            self.norms.put(torch.stack(values), (names, epoch, self.step))

    def _refresh(self, epoch: int) -> None:
        """Generate the prototypes, where it is their turn."""
        distiller, every = self.distiller, self.config.distill.refresh_epochs
        if distiller is None or not distiller.uses_prototypes or epoch % every:
            return
        self._save()  # what a signal during the pass would lose
        started = time.perf_counter()
        with self.update.precision.autocast():
            bank, images = (distiller.refresh(), None) if self._harvested() else self._pass(distiller)
        if parallel.is_main():
            with replacing(self.phase.folder / "prototypes.pt") as temporary:
                bank.save(temporary)
        seconds = round(time.perf_counter() - started, 3)
        looked_at = {} if images is None else {"images": images}
        self._write("prototypes", epoch, {"count": bank.student.shape[1], **looked_at, "seconds": seconds})

    def _harvested(self) -> bool:
        """Whether the steps of any process have given candidates."""
        rings = self.distiller.rings if self.distiller else None
        return rings is not None and bool(parallel.largest(int(rings.filled)))

    def _pass(self, distiller: Distiller) -> tuple[PrototypeBank, int]:
        """Prototypes by a pass over the candidate images, and the number of these."""
        images = self._candidates()
        loader = build_loader(
            self.dataset.without_flip(),
            batch_size=self.phase.batch_size,
            shuffle=False,
            seed=self.config.run.seed,
            workers=self.config.data.workers,
            indices=parallel.own_share(images),
        )
        batches = passed_batches(self.adapter, loader, self.device)
        return distiller.refresh(batches, images=list(self.dataset.boxes_per_image(images))), len(images)

    def _candidates(self) -> list[int]:
        """The images that prototypes are taken from."""
        limit, seed = self.config.distill.candidate_images, self.config.run.seed
        return candidate_indices(self.dataset.labels_per_image(), limit, seed)

    def _report_graphs(self) -> None:
        """Say what compiling took, if anything was compiled."""
        compiled = self.update.compiled
        if compiled is None or not compiled.seconds:
            return
        graphs, seconds = len(compiled.seconds), round(sum(compiled.seconds.values()), 1)
        self._write("compiled", self.phase.epochs - 1, {"graphs": graphs, "seconds": seconds})
        if parallel.is_main():
            print(f"{self.phase.name}: compiled {graphs} graph{'s' * (graphs > 1)} in {seconds:.0f} s")

    def _log(self, epoch: int, progress: Progress) -> None:
        lr = self.schedule.get_last_lr()[0]
        self.meter.flush({"phase": self.phase.name, "step": self.step, "epoch": epoch, "lr": lr})
        for means in self._write_arrived():
            progress.show(means)

    def _write_arrived(self, *, wait: bool = False) -> list[dict[str, float]]:
        """Write the metrics that the device has handed over, all of them with `wait`; returns the mean terms."""
        for values, (names, epoch, step) in self.norms.take(wait=wait):
            norms = dict(zip(names, map(_rounded, values), strict=True))
            self._write("gradient_norms", epoch, {"step": step, **norms})
        arrived = self.meter.arrived(wait=wait)
        for record, means in arrived:
            self.metrics.write({**record, **{name: _rounded(value) for name, value in means.items()}})
        return [means for _, means in arrived]

    def _write(self, event: str, epoch: int, values: dict[str, Any]) -> None:
        self.metrics.write({"phase": self.phase.name, "event": event, "epoch": epoch, **values})

    def _save(self) -> None:
        """Write the state from which `fit` goes on, unless this one is written."""
        if self.saved == self.step:
            return
        self.update.bad_steps.check(wait=True)
        self._write_arrived(wait=True)
        progress = {
            "steps_per_epoch": self.steps_per_epoch,
            "seconds": self.seconds,
            "schedule": self.schedule.state_dict(),
            "update": self.update.state_dict(),
            "meter": self.meter.state_dict(),
            "metrics": self.metrics.position(),
        }
        self.states.save(self.step, progress)
        self.saved = self.step

    def _resume(self) -> None:
        state = self.states.load()
        if state is None:
            self.metrics.forget(self.phase.name)
            return
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise InputError(
                f"--resume: expected {state['steps_per_epoch']} steps an epoch as before, got {self.steps_per_epoch}; "
                "leave --batch-size and the data as they were"
            )
        self.step = self.saved = state["step"]
        self.update.auto.left -= self.step
        self.seconds = state["seconds"]
        self.schedule.load_state_dict(state["schedule"])
        self.update.load_state_dict(state["update"])
        self.meter.load_state_dict(state["meter"], self.device)
        self.metrics.rewind(state["metrics"])


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def draw_seed(seed: int, epoch: int, image_id: int) -> int:
    """The seed from which samples of an image are drawn in an epoch, however many processes train."""
    return int(np.random.SeedSequence((seed, epoch, image_id)).generate_state(1)[0])

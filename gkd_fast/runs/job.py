"""The main job: teacher, control, prototypes, distilled student, and their measured AP."""

from __future__ import annotations

import copy
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gkd_fast import parallel
from gkd_fast.config import Config, to_dict
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import DetectorAdapter, DetectorSpec, adapt, build_detector, detector_from_weights, specs
from gkd_fast.detectors.settings import NetworkConfig
from gkd_fast.distiller import Distiller
from gkd_fast.errors import InputError
from gkd_fast.evaluation.coco import evaluate_coco
from gkd_fast.evaluation.detect import detect
from gkd_fast.evaluation.voc import evaluate_voc
from gkd_fast.files import loading, write_json
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.runs.data import Images, prepare, read_images
from gkd_fast.runs.detector_file import load_detector, save_detector
from gkd_fast.runs.robustness import planted_weights, weights_by_condition
from gkd_fast.runs.teacher_check import check_teacher, teacher_classes
from gkd_fast.tracking import Trackers, tracked
from gkd_fast.training.distilling import build_distiller, freeze_teacher
from gkd_fast.training.distributed import shard_teacher
from gkd_fast.training.precision import resolve_device
from gkd_fast.training.trainer import Phase, Trainer

Result = dict[str, Any]


class Job:
    """The parts of a run: data, teacher, student alone, distilled student. What is finished is read, not run again.

    Args:
        config: settled and validated settings.
        images: what they describe, where it is read already.
        trackers: which get the metrics, too.

    Raises:
        InputError: for input that cannot be used and networks that cannot be built, before any training.
    """

    def __init__(self, config: Config, images: Images | None = None, trackers: Trackers | None = None) -> None:
        self.config = config
        self.trackers = trackers
        self.device = resolve_device(config.run.device)
        images = images or read_images(config, told=False)
        self.data = prepare(config, images.relabelled(teacher_classes(config, images.classes)))
        self.specs, self.given = {}, {}
        for role, spec in zip(("teacher", "student"), specs(config.model), strict=True):
            self.given[role], self.specs[role] = _load_given(config, role, spec, self.data.classes)
            if self.given[role] is None:
                self._first(role)  # a network that cannot be built is an error before any training

    def teacher(self, folder: Path) -> tuple[nn.Module, Result | None]:
        """The teacher on the CPU and its figures; a given one comes without figures, the rest is trained."""
        if self.given["teacher"] is not None:
            return self.given["teacher"], None
        optim = self.config.optim
        batch = optim.teacher_batch_size or optim.batch_size
        phase = Phase("teacher", folder / "teacher", optim.teacher_epochs, optim.teacher_lr, batch)
        return self._train(phase, "teacher")

    def frozen(self, teacher: nn.Module) -> DetectorAdapter:
        """The teacher frozen and on the device; a given one is checked."""
        config = self.config
        shard = shard_teacher if config.run.shard_teacher and parallel.world_size() > 1 else None
        freeze_teacher(teacher, self.device, shard)
        if teacher is self.given["teacher"]:
            check_teacher(config, self.data.val, partial(evaluate_detector, config, model=teacher, device=self.device))
        return adapt(teacher)

    def student(self, folder: Path, teacher: DetectorAdapter | None = None) -> tuple[nn.Module, Result]:
        """The student on the CPU and its figures: trained alone, or distilled from a frozen teacher."""
        name, optim = "distilled" if teacher else "student", self.config.optim
        phase = Phase(name, folder / name, optim.epochs, optim.lr, optim.batch_size)
        return self._train(phase, "student", teacher)

    def evaluate(self, model: nn.Module) -> Result:
        """The figures of a network on the device."""
        return evaluate_detector(self.config, self.data.val, model, self.device)

    def _first(self, role: str) -> nn.Module:
        """The network of a role before its first step."""
        given = self.given[role]
        if given is not None:
            return copy.deepcopy(given)
        weights = getattr(self.config.model, role).weights
        return build_detector(self.specs[role], len(self.data.classes), weights=weights)

    def _distiller(self, teacher: DetectorAdapter, student: DetectorAdapter) -> Distiller:
        with torch.random.fork_rng():
            # The adapters' weights; the student's own seed is the control's.
            torch.manual_seed(self.config.run.seed + 1)
            return build_distiller(teacher, student, self.data.classes, self.config.distill)

    def _train(self, phase: Phase, role: str, teacher: DetectorAdapter | None = None) -> tuple[nn.Module, Result]:
        """Train and evaluate one detector unless that is done; the network comes from its file, on the CPU."""
        config, data = self.config, self.data
        torch.manual_seed(config.run.seed)
        result_file, model_file = phase.folder / "result.json", phase.folder / "model.pt"
        if not parallel.from_main(result_file.exists()):
            phase.folder.mkdir(parents=True, exist_ok=True)
            model = self._first(role).to(self.device)
            started = time.perf_counter()
            adapter = adapt(model)
            distiller = self._distiller(teacher, adapter) if teacher else None
            rate = Trainer(adapter, data.train, phase, config, self.device, distiller, self.trackers).fit()
            save_detector(model_file, model, self.specs[role], data.classes, to_dict(config))
            parallel.barrier()
            model = load_detector(model_file).build().to(self.device)  # whole again where it was sharded
            result = self.evaluate(model)
            bank = phase.folder / "prototypes.pt"
            if teacher and config.data.teacher_noise != "none" and bank.exists():
                found = PrototypeBank.load(bank)
                result["planted"] = planted_weights(adapt(model), teacher, found, data.train, config, self.device)
            result |= {"images_per_second": round(rate, 2), "seconds": round(time.perf_counter() - started, 1)}
            write_json(result_file, result)
            parallel.barrier()
        return load_detector(model_file).build(), json.loads(result_file.read_text())


@loading()
def run(config: Config, folder: Path, images: Images | None = None) -> Result:
    """Run the main job and return the content of its ``summary.json``.

    Args:
        config: settled and validated settings.
        folder: the run's folder, made here; finished phases found in it are not run again.
        images: what the settings describe, where it is read already.

    Raises:
        InputError: before any training, for input that cannot be used; later for an image that cannot be read.
        RunError: if the run cannot go on: a full disk, a dead loader process.
        Interrupted: after SIGTERM or SIGINT.
    """
    job = Job(config, images)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", to_dict(config))
    if parallel.is_main():
        print(f"run folder: {folder}", flush=True)
    with tracked(config.run.track if parallel.is_main() else (), folder, to_dict(config)) as job.trackers:
        job.trackers.summary = _phases(job, folder)
        return dict(job.trackers.summary)


def _phases(job: Job, folder: Path) -> Result:
    """All networks trained and evaluated; the content of ``summary.json``."""
    config = job.config
    summary: Result = {"classes": list(job.data.classes), "device": str(job.device), "amp": config.run.amp}

    teacher, figures = job.teacher(folder)
    frozen = job.frozen(teacher)
    summary["teacher"] = figures or job.evaluate(teacher)
    _, summary["student"] = job.student(folder)
    student, summary["distilled"] = job.student(folder, frozen)
    stored = folder / "distilled" / "prototypes.pt"
    if config.data.data == "scenes" and stored.exists():
        adapter, bank = adapt(student.to(job.device)), PrototypeBank.load(stored)
        summary["robust_weights"] = weights_by_condition(adapter, frozen, bank, job.data.val, config, job.device)
    write_json(folder / "summary.json", summary)
    return summary


def _load_given(
    config: Config, role: str, spec: DetectorSpec, classes: tuple[str, ...]
) -> tuple[nn.Module | None, DetectorSpec]:
    """A finished ``teacher`` or ``student`` where one is given, else None."""
    own: NetworkConfig = getattr(config.model, role)
    path, weights = own.checkpoint, own.weights
    if path:
        checkpoint = load_detector(path).reduced(classes)
        if checkpoint.spec.detector != config.model.detector:
            raise InputError(f"{path}: expected a {config.model.detector}, got a {checkpoint.spec.detector}")
        return checkpoint.build(), checkpoint.spec
    if "_Weights." in weights:
        spec, model = detector_from_weights(weights, classes)
        if spec.detector != config.model.detector:
            raise InputError(f"--{role}-weights: expected a {config.model.detector}, got a {spec.detector}")
        return model, spec
    return None, spec


def evaluate_detector(config: Config, dataset: PreparedDataset, model: nn.Module, device: torch.device) -> Result:
    """COCO figures, and for VOC data the mAP of both rules."""
    detections = detect(
        adapt(model).opened(),
        dataset,
        batch_size=config.optim.batch_size,
        workers=config.data.workers,
        device=device,
    )
    return parallel.from_main(_figures(config, dataset, detections) if parallel.is_main() else {})


def _figures(config: Config, dataset: PreparedDataset, detections: list[dict[str, Any]]) -> Result:
    result = evaluate_coco(dataset.ground_truth(), detections)
    if config.data.data == "voc":
        for rule in ("2007", "2010"):
            result[f"mAP_{rule}"] = evaluate_voc(dataset.ground_truth(), detections, rule=rule)["mAP"]
    return result

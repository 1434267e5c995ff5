"""transformers' own trainer: two processes, resuming, accumulation, EMA, AMP, compile, padded batches, checkpoints."""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[integrations]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[integrations]'")

from detr_steps import CLASSES, arguments, collate, detr, samples, squares, trainer
from transformers import DetrImageProcessor, TrainerCallback

from gkd_fast.distiller import Distiller
from gkd_fast.errors import InputError
from gkd_fast.integrations.transformers import DistillationTrainer, boxes_of_batch, build_distiller

SCRIPT = Path(__file__).with_name("detr_steps.py")
NAMES = ("gkd_global", "gkd_foreground", "gkd_background")


def close(found, expected, tolerance: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(float(other.abs().max()), 1e-3))


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one and two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        command = [sys.executable, *launcher, str(SCRIPT), str(folder)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("with_boxes", [4, 1])
def test_two_processes_are_one(with_boxes: int, launched: Path) -> None:
    files = (launched / f"{with_boxes}-{name}.pt" for name in ("1-0", "2-0", "2-1"))
    alone, first, second = (torch.load(file, weights_only=True) for file in files)
    for part in ("student", "adapters"):
        assert all(torch.equal(a, b) for a, b in zip(first[part], second[part], strict=True))
        close(first[part], alone[part])
    for line, other in zip(first["log"], alone["log"], strict=True):
        for name in NAMES:
            assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)
    assert alone["log"][-1]["gkd_global"] > 0


def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path) -> None:
    """Terms are means over a batch's cells and boxes: two equal halves give the whole's mean."""
    half = samples(4)[:2]
    whole = trainer(tmp_path, half * 6, per_device_train_batch_size=4)
    parts = trainer(tmp_path, half * 6, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for built in (whole, parts):
        built.distiller.refresh_steps = 1000
        built.train()
    close(weights(parts.model), weights(whole.model))
    close(weights(parts.distiller), weights(whole.distiller))
    assert all(parameter.grad is None for parameter in parts.distiller.parameters()), "gradients end with their step"


def test_resumed_training_ends_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    settings = {
        "max_steps": -1,
        "num_train_epochs": 4,
        "save_strategy": "epoch",
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
    }
    straight = trainer(tmp_path / "a", samples(4), **settings)
    kappas = _kappas(straight)
    straight.train()
    assert sorted(set(kappas), reverse=True) == [1.0, 0.75, 0.5, 0.25]
    saved = tmp_path / "a/checkpoint-4"
    state = torch.load(saved / "distiller.pt", weights_only=True)
    assert state["_extra_state"]["steps"] == 4
    again = trainer(tmp_path / "b", samples(4), **settings)
    kappas = _kappas(again)
    again.train(resume_from_checkpoint=str(saved))
    assert kappas == [0.5, 0.5, 0.25, 0.25]
    assert again.distiller.steps == straight.distiller.steps == 8
    close(weights(again.model), weights(straight.model), 1e-6)
    close(weights(again.distiller), weights(straight.distiller), 1e-6)
    assert torch.equal(again.distiller.bank.student, straight.distiller.bank.student)
    (saved / "distiller.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"^resume: expected .*distiller\.pt"):
        trainer(tmp_path / "c", samples(4), **settings).train(resume_from_checkpoint=str(saved))


def _kappas(built: DistillationTrainer) -> list[float]:
    found = []
    built.distiller.register_forward_pre_hook(lambda distiller, _: found.append(distiller.attenuation))
    return found


def test_bfloat16(tmp_path: Path) -> None:
    plain, other = trainer(tmp_path, samples(4)), trainer(tmp_path, samples(4), bf16=True)
    dtypes = set()
    other.model.model.input_projection.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    _train_alike(plain, other, 0.1)
    assert dtypes == {torch.bfloat16}
    assert _log(other)[-1]["gkd_global"] > 0


def test_compile(tmp_path: Path) -> None:
    """With a loss outside of the model, for the library's own would be compiled too, which takes a minute."""
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    plain, other = (trainer(tmp_path, samples(4), loss=squares, **changes) for changes in ({}, compiled))
    _train_alike(plain, other, 1e-4)


def _train_alike(plain: DistillationTrainer, other: DistillationTrainer, tolerance: float) -> None:
    for built in (plain, other):
        built.train()
    for line, expected in zip(_log(other), _log(plain), strict=True):
        for name in ("loss", *NAMES):
            assert math.isfinite(line[name])
            assert line[name] == pytest.approx(expected[name], rel=tolerance, abs=1e-3)


def _log(built: DistillationTrainer) -> list[dict]:
    return [line for line in built.state.log_history if "loss" in line]


def test_evaluation_does_not_distil(tmp_path: Path) -> None:
    built = trainer(tmp_path, samples(4), max_steps=2)
    built.eval_dataset = samples(4)
    built.train()
    steps = built.distiller.steps
    found = built.evaluate()
    assert built.distiller.steps == steps
    assert math.isfinite(found["eval_loss"])
    assert not any(name.startswith("gkd_") for name in found)


def test_an_average_of_the_weights_has_no_hooks(tmp_path: Path) -> None:
    """EMA by deepcopy, made once the hooks are there: its passes do not reach the distiller."""
    built = trainer(tmp_path, samples(4))
    average = torch.optim.swa_utils.AveragedModel(built.model)

    class Average(TrainerCallback):
        def on_step_end(self, *_, **__):
            average.update_parameters(built.model)
            with torch.no_grad():  # no step of the student's is mistaken for it
                average(pixel_values=torch.rand(1, 3, 64, 64))

    built.add_callback(Average())
    built.train()
    assert built.distiller.steps == 3
    assert not any("gkd_fast" in type(h).__module__ for m in average.modules() for h in m._forward_hooks.values())
    assert b"gkd_fast" not in pickle.dumps(copy.deepcopy(built.model))


def test_a_checkpoint_loads_without_gkd_fast(tmp_path: Path) -> None:
    trainer(tmp_path, samples(4), max_steps=2, save_strategy="steps", save_steps=2).train()
    code = """
import sys; sys.modules["gkd_fast"] = None
import torch
from transformers import AutoModelForObjectDetection
network = AutoModelForObjectDetection.from_pretrained(sys.argv[1])
print(*network(pixel_values=torch.zeros(1, 3, 64, 64)).pred_boxes.shape)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoint-2")]
    assert subprocess.check_output(command, text=True).split() == ["1", "10", "4"]


def test_the_optimizer_trains_the_adapters(tmp_path: Path) -> None:
    built = trainer(tmp_path, samples(4), optim="adamw_torch")
    before = weights(built.distiller)
    built.train()
    groups = [group["params"] for group in built.optimizer.param_groups]
    assert sum(any(p is q for q in group) for p in built.distiller.parameters() for group in groups) == len(before)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(built.distiller), strict=True))


def test_padded_batches() -> None:
    """Processors update boxes when they pad a batch with them; a collator that pads leaves them as fractions of the
    image: label["size"] says which, and both come out in the same pixels."""
    images = [torch.zeros(3, 100, 200, dtype=torch.uint8), torch.zeros(3, 200, 100, dtype=torch.uint8)]
    box = {"bbox": [20, 10, 40, 20], "category_id": 0, "area": 800, "iscrowd": 0, "id": 0}
    truth = [{"image_id": number, "annotations": [box]} for number in range(2)]
    processor = DetrImageProcessor(size={"shortest_edge": 100, "longest_edge": 200})
    together = processor(images, annotations=truth, return_tensors="pt")
    single = [processor(i, annotations=t, return_tensors="pt") for i, t in zip(images, truth, strict=True)]
    later = {"pixel_values": torch.zeros(2, 3, 200, 200), "pixel_mask": torch.zeros(2, 200, 200, dtype=torch.int64)}
    for number, one in enumerate(single):
        height, width = one["pixel_values"].shape[2:]
        later["pixel_mask"][number, :height, :width] = 1
    later["labels"] = [one["labels"][0] for one in single]
    assert not torch.equal(together["labels"][0]["boxes"], later["labels"][0]["boxes"])
    for batch in (together, later):
        sides = torch.tensor([batch["pixel_values"].shape[3], batch["pixel_values"].shape[2]] * 2)
        for found in boxes_of_batch(batch["pixel_values"], batch["labels"], batch["pixel_mask"]):
            torch.testing.assert_close(found * sides, torch.tensor([[40.0, 20, 40, 20]]))
    for label in later["labels"]:
        del label["size"]
    with pytest.raises(ValueError, match=r"^labels: expected size, the height and width in pixels"):
        boxes_of_batch(later["pixel_values"], later["labels"], later["pixel_mask"])
    whole = torch.ones_like(later["pixel_mask"])
    assert boxes_of_batch(later["pixel_values"], later["labels"], whole)[0] is later["labels"][0]["boxes"]


def test_the_teacher_sees_the_students_pixels(tmp_path: Path) -> None:
    built = trainer(tmp_path, samples(4), max_steps=1)
    seen: dict[str, torch.Tensor] = {}
    for name, network in (("student", built.model), ("teacher", built.distiller.teacher)):
        first = network.model.backbone.model.embedder
        first.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, inputs[0].clone()))
    built.train()
    assert torch.equal(seen["student"], seen["teacher"])


def test_arguments_that_cannot_be_used(tmp_path: Path) -> None:
    student, teacher = detr(8, 0), detr(8, 1)
    settings = {"args": arguments(tmp_path), "train_dataset": samples(4), "data_collator": collate}
    with pytest.raises(ValueError, match=r"^teacher, distiller: expected one of them, got none$"):
        DistillationTrainer(student, **settings)
    teacher.config.id2label = {0: "cat"}
    with pytest.raises(ValueError, match=r"^teacher: expected the student's classes red, green, blue, got cat$"):
        DistillationTrainer(student, teacher=teacher, **settings)
    teacher.config.id2label = dict(enumerate(CLASSES))
    with pytest.raises(InputError, match=r"^method: fgfi needs "):
        DistillationTrainer(student, teacher=teacher, method="fgfi", **settings)
    example = torch.zeros(1, 3, 64, 64)
    pixels = Distiller(teacher, student, CLASSES, ["model.input_projection"], example=example)
    with pytest.raises(ValueError, match=r"^distiller: expected one of boxes cxcywh, got xyxy$"):
        DistillationTrainer(student, distiller=pixels, **settings)
    student.config.model_type = "mine"
    with pytest.raises(ValueError, match=r"^layers: expected the names of the modules .* for a mine"):
        build_distiller(teacher, student)

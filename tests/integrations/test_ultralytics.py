"""Ultralytics' own trainer: EMA, resuming, AMP, compile, image sizes, checkpoints without gkd_fast."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("ultralytics", reason="ultralytics is not installed: pip install -e '.[integrations]'")

from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

import cells
import gkd_fast
from gkd_fast.errors import InputError
from gkd_fast.integrations.ultralytics import DistillationTrainer, _Criterion, distil, pyramid_layers

NAMES = ("gkd_global", "gkd_foreground", "gkd_background")
SHARED = {
    "imgsz": 64,
    "batch": 3,
    "nbs": 3,
    "workers": 0,
    "device": "cpu",
    "exist_ok": True,
    "plots": False,
    "verbose": False,
    "amp": False,
    "val": False,
    "optimizer": "SGD",
    "lr0": 0.01,
    "warmup_epochs": 0,
    "mosaic": 0.0,
}


def model(name: str, classes: tuple[str, ...]) -> DetectionModel:
    torch.manual_seed(0)
    network = DetectionModel(f"{name}.yaml", nc=len(classes), verbose=False)
    network.args, network.names = get_cfg(), dict(enumerate(classes))
    return network


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, small_cells) -> Path:
    return cells.write_yolo(small_cells, tmp_path_factory.mktemp("yolo"))


@pytest.fixture
def teacher(small_cells) -> DetectionModel:
    return model("yolo11n", small_cells.classes)


def train(folder: Path, data: Path, trainer: type, *, start: str | Path = "yolo11n.yaml", **changes) -> YOLO:
    network = YOLO(start)
    network.add_callback("on_train_start", lambda trainer: _check_ema(trainer))
    for event, function in changes.pop("callbacks", {}).items():
        network.add_callback(event, function)
    network.train(data=data, project=str(folder), name="run", trainer=trainer, **{**SHARED, **changes})
    return network


def _check_ema(trainer: DistillationTrainer) -> None:
    """What is validated and saved carries no live hook and no distiller."""
    for module in trainer.ema.ema.modules():
        for hook in module._forward_hooks.values():
            assert "gkd_fast" not in type(hook).__module__
    assert not isinstance(getattr(trainer.ema.ema, "criterion", None), _Criterion)


class Stopped(Exception):  # noqa: N818
    pass


def stop_at(epoch: int):
    def stop(trainer) -> None:
        if trainer.epoch == epoch:
            raise Stopped

    return stop


def without_gkd_fast(code: str, *arguments: object) -> str:
    code = "import sys; sys.modules['gkd_fast'] = None\n" + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
def test_resumed_training_ends_as_if_it_had_not_stopped(name: str, tmp_path: Path, data: Path, teacher) -> None:
    seen = []

    def note(trainer) -> None:
        seen.append((trainer.epoch, trainer.distiller.attenuation, trainer.distiller.steps))
        adapters.append([p.detach().clone() for p in trainer.distiller.parameters()])

    trainer = distil(teacher, refresh_steps=2, min_box=4)
    options = {"epochs": 3, "start": f"{name}.yaml"}
    adapters: list = []
    with pytest.raises(Stopped):
        train(tmp_path, data, trainer, callbacks={"on_train_epoch_end": note, "on_model_save": stop_at(1)}, **options)
    last = tmp_path / "run/weights/last.pt"
    saved = torch.load(last.with_name("distiller.pt"), weights_only=True)
    assert saved["_extra_state"]["bank"] is not None
    YOLO(last).train(resume=True, trainer=type("Noting", (trainer,), {"optimizer_step": _noting(note)}))
    assert [(epoch, kappa) for epoch, kappa, _ in seen[:3]] == [
        (0, 1.0),
        (1, pytest.approx(2 / 3)),
        (2, pytest.approx(1 / 3)),
    ]
    assert seen[2][2] == 5, "steps go on from the four that were made"
    assert all(torch.equal(a, b) for a, b in zip(adapters[1], _adapters(saved), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(adapters[1], adapters[-1], strict=True))


def _adapters(state):
    return [value for name, value in state.items() if name != "_extra_state"]


def _noting(note):
    def optimizer_step(self) -> None:
        super(type(self), self).optimizer_step()
        note(self)

    return optimizer_step


def test_a_checkpoint_loads_without_gkd_fast(tmp_path: Path, data: Path, teacher) -> None:
    train(tmp_path, data, distil(teacher, min_box=4), epochs=1)
    code = """
import torch
from ultralytics import YOLO
network = YOLO(sys.argv[1])
print(network.predict(torch.rand(1, 3, 64, 64), verbose=False)[0].boxes.xyxy.shape[1])
print(any(module._forward_hooks for module in network.model.modules()))
"""
    assert without_gkd_fast(code, tmp_path / "run/weights/last.pt").split()[-2] == "4"


@pytest.mark.parametrize(
    "changes",
    [{"multi_scale": 0.5}, {"amp": "bf16"}, {"nbs": 6}, {"optimizer": "MuSGD"}, {"optimizer": "auto", "val": True}],
    ids=str,
)
def test_settings_of_the_trainer(changes, tmp_path: Path, data: Path, teacher, monkeypatch) -> None:
    if "amp" in changes:  # Ultralytics has bfloat16 on GPUs alone
        bfloat16 = lambda enabled, device: torch.autocast(device, torch.bfloat16, enabled=bool(enabled))  # noqa: E731
        monkeypatch.setattr("ultralytics.engine.trainer.autocast", bfloat16)
    terms = []

    def note(trainer) -> None:
        terms.append({name: float(value) for name, value in trainer.loss_items.items()})
        group = next(
            g
            for g in trainer.optimizer.param_groups
            if any(p is adapter for p in g["params"] for adapter in trainer.distiller.parameters())
        )
        assert group["param_group"] == "weight"

    train(
        tmp_path,
        data,
        distil(teacher, refresh_steps=2, min_box=4),
        epochs=2,
        callbacks={"on_train_batch_end": note},
        **changes,
    )
    assert len(terms) == 4
    for values in terms:
        assert [name for name in values if name.startswith("gkd_")] == [
            "gkd_global",
            "gkd_foreground",
            "gkd_background",
        ]
        assert all(map(math.isfinite, values.values()))
    assert terms[0]["gkd_global"] == 0
    assert terms[-1]["gkd_global"] > 0, "prototypes were generated from the steps"


def test_a_compiled_student_has_the_same_terms(teacher, small_cells) -> None:
    batch = _batch(small_cells)
    found = []
    for compiled in (False, True):
        student = model("yolo11n", small_cells.classes).train()
        network = torch.compile(student, backend="eager") if compiled else student
        distiller = _distiller(teacher, network, student)
        student.criterion = _Criterion(student.init_criterion(), distiller)
        torch.manual_seed(0)
        loss, items = student.loss(batch, network(batch["img"]))  # as the trainer does where it compiles
        loss.sum().backward()
        found.append((items, student.model[4].cv1.conv.weight.grad.clone()))
        distiller.remove()
    (items, gradient), (other_items, other_gradient) = found
    for name, value in items.items():
        torch.testing.assert_close(other_items[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def _batch(small_cells):
    import ultralytics_yolo

    torch.manual_seed(0)
    return ultralytics_yolo.batch_of(*next(small_cells.batches(1)))


def _distiller(teacher, network, student):
    torch.manual_seed(1)  # of the adapters
    return gkd_fast.Distiller(
        teacher,
        network,
        len(student.names),
        pyramid_layers(student),
        boxes="cxcywh",
        example=torch.zeros(1, 3, 64, 64),
        min_box=4,
    )


def test_copies_of_the_criterion_are_the_plain_one(teacher, small_cells) -> None:
    student = model("yolo26n", small_cells.classes).train()
    distiller = _distiller(teacher, student, student)
    student.criterion = _Criterion(student.init_criterion(), distiller)
    student(_batch(small_cells))
    plain = type(student.criterion.plain)
    assert type(copy.deepcopy(student).criterion) is plain
    assert type(copy.copy(student.criterion)) is plain
    assert type(pickle.loads(pickle.dumps(student.criterion))) is plain
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(student), buffer)
    assert b"gkd_fast" not in buffer.getvalue()
    student.criterion.updates = 7  # Ultralytics sets it where training is resumed
    assert student.criterion.plain.updates == 7


def test_hooks_are_gone_after_the_training(tmp_path: Path, data: Path, teacher) -> None:
    found = []
    train(tmp_path, data, distil(teacher, min_box=4), epochs=1, callbacks={"on_train_end": found.append})
    trainer = found[0]
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert trainer.model.criterion is None


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, data: Path) -> None:
    other = model("yolo11n", ("cat", "dog"))
    with pytest.raises(ValueError, match=r"^teacher: expected the data's classes .*, got cat, dog$"):
        train(tmp_path, data, distil(other), epochs=1)


def test_a_method_that_needs_more_says_so(tmp_path: Path, data: Path, teacher) -> None:
    with pytest.raises(InputError, match=r"^method: crosskd needs "):
        train(tmp_path, data, distil(teacher, method="crosskd"), epochs=1)


def test_other_methods(tmp_path: Path, data: Path, teacher) -> None:
    terms = []
    note = {"on_train_batch_end": lambda trainer: terms.append(dict(trainer.loss_items))}
    train(tmp_path, data, distil(teacher, method="pkd+fgd", min_box=4), epochs=1, callbacks=note)
    names = [name for name in terms[-1] if name.startswith(("pkd_", "fgd_"))]
    assert len(names) > 3
    assert all(math.isfinite(float(terms[-1][name])) for name in names)


def test_resuming_without_the_state_says_what_is_missing(tmp_path: Path, data: Path, teacher) -> None:
    trainer = distil(teacher, min_box=4)
    with pytest.raises(Stopped):
        train(tmp_path, data, trainer, epochs=3, callbacks={"on_model_save": stop_at(0)})
    (tmp_path / "run/weights/distiller.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"^resume: expected .*distiller\.pt"):
        YOLO(tmp_path / "run/weights/last.pt").train(resume=True, trainer=trainer)


def test_the_trainer_reaches_the_processes_that_ultralytics_starts() -> None:
    cloudpickle = pytest.importorskip("cloudpickle", reason="Ultralytics installs cloudpickle where it needs it")
    found = pickle.loads(cloudpickle.dumps(distil("teacher.pt", method="gkd+fgd", min_box=4)))
    assert issubclass(found, DistillationTrainer)
    assert found.teacher == "teacher.pt"
    assert found.options["method"] == "gkd+fgd"


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Ultralytics starts several processes for GPUs alone: the same arithmetic, with gloo."""
    script, environment = Path(__file__).with_name("yolo_steps.py"), {**os.environ, "OMP_NUM_THREADS": "1"}
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher, name in (([], "one"), (several, "two")):
        command = [sys.executable, *launcher, str(script), str(tmp_path / name)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    reached = [name for name, value in one.items() if value.abs().max() > 0]
    assert len(reached) > 100
    for name in reached:
        assert torch.equal(first[name], second[name])
        scale = float(one[name].abs().max())
        torch.testing.assert_close(first[name], one[name], rtol=1e-3, atol=1e-4 * scale)

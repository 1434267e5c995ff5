"""Methods inside of the distiller and the trainer: gradients, names, robust masks, state."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from term_cases import tiny_batch, tiny_detectors
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gkd_fast.config import PLAIN, Config, from_dict, replace, to_dict, validate
from gkd_fast.data import Scenes
from gkd_fast.data.pipeline import PreparedDataset
from gkd_fast.detectors import DetectorAdapter, DetectorSpec, StudentPass, adapt, build_detector
from gkd_fast.distiller import Distiller
from gkd_fast.errors import InputError
from gkd_fast.methods import METHODS, Settings, Step, uses_prototypes
from gkd_fast.methods.gkd import PrototypeBank
from gkd_fast.methods.names import MASKED, NAMES, NEEDED
from gkd_fast.training.distilling import build_distiller, freeze_teacher
from gkd_fast.training.trainer import Phase, Trainer

CPU = torch.device("cpu")
PARTS = {
    "fgfi": {"imitation"},
    "defeat": {"foreground", "background"},
    "fbkd": {"attention", "masked", "relation"},
    "rkd": {"distance", "angle"},
    "cwd": {"channels"},
    "pkd": {"correlation"},
    "fgd": {"foreground", "background", "attention", "global"},
    "mgd": {"generation"},
    "crosskd": {"class", "box"},
}
FITTING = [(name, detector) for name in PARTS for detector in ("faster_rcnn", "retinanet")]
FITTING.remove(("crosskd", "faster_rcnn"))


def make_distiller(method: str, student: DetectorAdapter, teacher: DetectorAdapter, **settings) -> Distiller:
    freeze_teacher(teacher.model, CPU)
    return build_distiller(teacher, student, ("a", "b", "c"), Settings(method=method, **settings))


def terms_of(distiller: Distiller, own: StudentPass, images: ImageList) -> dict[str, Tensor]:
    boxes, labels = [target["boxes"] for target in own.targets], [target["labels"] - 1 for target in own.targets]
    return distiller(images.tensors, boxes, labels, own=own)


def make_bank(student_channels: int, teacher_channels: int, strides: tuple[int, ...]) -> PrototypeBank:
    generator = torch.Generator().manual_seed(0)
    levels = len(strides)
    return PrototypeBank(
        student=torch.randn(levels, 6, student_channels, generator=generator),
        teacher=torch.randn(levels, 6, teacher_channels, generator=generator),
        class_offsets=torch.tensor([0, 2, 4, 6]),
        most=2,
        image_ids=torch.zeros(levels, 6, dtype=torch.int64),
        boxes=torch.zeros(levels, 6, 4),
        classes=("a", "b", "c"),
        strides=strides,
    )


def distil(
    terms: str, detector: str, *, boxes: bool = True, channels: tuple[int, int] = (8, 12), **settings
) -> tuple[dict[str, Tensor], DetectorAdapter, Distiller]:
    student, teacher = tiny_detectors(detector, channels=channels)
    distiller = make_distiller(terms, student, teacher, **settings)
    if distiller.uses_prototypes:
        first = 4 if detector == "faster_rcnn" else 8
        distiller.bank = make_bank(*channels, tuple(first * 2**level for level in range(5)))
    images, targets = tiny_batch(student, boxes=boxes)
    torch.manual_seed(0)
    own = student.train_pass(images, targets)
    return terms_of(distiller, own, images), student, distiller


def test_every_known_name_has_its_method() -> None:
    assert set(METHODS) == {"gkd", *PARTS}


@pytest.mark.parametrize("channels", [(8, 12), (8, 8)])
@pytest.mark.parametrize(("name", "detector"), FITTING)
def test_gradients_reach_the_student_and_its_modules_but_not_the_teacher(
    name: str, detector: str, channels: tuple[int, int]
) -> None:
    terms, student, distiller = distil(name, detector, channels=channels)
    expected = PARTS[name] | ({"positive", "negative"} if (name, detector) == ("defeat", "faster_rcnn") else set())
    assert set(terms) == {f"{name}_{part}" for part in expected} == set(distiller.names)
    assert not distiller.uses_prototypes
    for value in terms.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert value.item() > 0
    sum(terms.values()).backward()
    backbone = [parameter.grad for parameter in student.model.backbone.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in backbone)
    assert any((grad != 0).any() for grad in backbone)
    assert all(parameter.grad is not None for parameter in distiller.parameters())
    assert all(parameter.grad is None for parameter in distiller.teacher.parameters())


@pytest.mark.parametrize(("name", "detector"), FITTING)
def test_a_batch_without_boxes_has_finite_terms(name: str, detector: str) -> None:
    terms, student, _ = distil(name, detector, boxes=False)
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    grads = [parameter.grad for parameter in student.model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


class Witness(nn.Module):
    """Stands in for a method and remembers what it was given."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        self.step = step
        self.autocast = torch.is_autocast_enabled("cpu")
        return {"seen": step.student[0].sum()}


def test_methods_run_in_float32_under_mixed_precision() -> None:
    student, teacher = tiny_detectors("retinanet")
    distiller = make_distiller("cwd", student, teacher)
    distiller.methods["cwd"] = witness = Witness()
    images, targets = tiny_batch(student)
    with torch.autocast("cpu", torch.bfloat16):
        own = student.train_pass(images, targets)
        terms = terms_of(distiller, own, images)
    assert own.features[0].dtype == torch.bfloat16
    assert {feature.dtype for feature in (*witness.step.student, *witness.step.teacher)} == {torch.float32}
    assert not witness.autocast
    assert set(terms) == {"cwd_seen"}


@pytest.mark.parametrize("name", ["fgfi", "defeat", "fgd"])
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_robust_masks_weigh_the_boxes(name: str, detector: str) -> None:
    plain, _, _ = distil(name, detector)
    robust, _, distiller = distil(name, detector, robust_masks=True)
    assert distiller.uses_prototypes
    foreground = f"{name}_{'imitation' if name == 'fgfi' else 'foreground'}"
    assert 0 < robust[foreground].item() != pytest.approx(plain[foreground].item(), rel=1e-6)
    for part in set(plain) - {foreground}:
        torch.testing.assert_close(robust[part], plain[part])


def test_robust_masks_need_no_prototypes_without_masks() -> None:
    assert not uses_prototypes(Settings(method="cwd+pkd", robust_masks=True))


def test_global_knowledge_is_the_same_beside_other_methods() -> None:
    alone, _, _ = distil("gkd", "faster_rcnn")
    combined, _, _ = distil("gkd+fgd+cwd", "faster_rcnn")
    assert list(combined)[: len(alone)] == list(alone)
    for name, value in alone.items():
        torch.testing.assert_close(combined[name], value)
    assert {"fgd_foreground", "cwd_channels"} <= set(combined)


def test_needed_prototypes_are_asked_for() -> None:
    student, teacher = tiny_detectors("retinanet")
    images, targets = tiny_batch(student)
    for method in ("gkd+cwd", "fgd+robust"):
        distiller = make_distiller(method, student, teacher)
        with pytest.raises(RuntimeError, match="expected prototypes, call refresh first"):
            terms_of(distiller, student.train_pass(images, targets), images)


def test_state_goes_through_a_file(tmp_path: Path) -> None:
    every = "+".join(METHODS)
    torch.manual_seed(1)
    _, _, distiller = distil(every, "retinanet")
    torch.save(distiller.state_dict(), tmp_path / "state.pt")
    other = make_distiller(every, *tiny_detectors("retinanet"))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(list(other.parameters())) == len(list(distiller.parameters())) > 50
    for own, loaded in zip(distiller.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, loaded)
    assert other.bank is not None
    assert torch.equal(other.bank.student, distiller.bank.student)


@pytest.mark.parametrize(
    ("terms", "detector", "message"),
    [
        ("fitnet", "retinanet", r"method: expected names of gkd, fgfi, .* joined by '\+', .* got 'fitnet'"),
        ("", "retinanet", "method: .* got ''"),
        ("gkd+", "retinanet", r"method: .* got 'gkd\+'"),
        ("fgd+gkd+fgd", "retinanet", r"method: expected every name once, got 'fgd\+gkd\+fgd'"),
        ("gkd@-1", "retinanet", "method: expected a positive number behind '@', got 'gkd@-1'"),
        ("gkd+crosskd", "faster_rcnn", "method: crosskd needs .*--detector retinanet"),
    ],
)
def test_unusable_names_are_refused(terms: str, detector: str, message: str) -> None:
    config = replace(replace(Config(), "distill", method=terms), "model", detector=detector)
    with pytest.raises(InputError, match=f"--{message}"):
        validate(config)
    with pytest.raises(InputError, match=f"^{message}"):
        make_distiller(terms, *tiny_detectors(detector))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fgfi_weight": -1.0}, "--fgfi-weight: expected zero or a positive number, got -1.0"),
        ({"fgd_global_weight": (0.0, -2.0)}, r"--fgd-global-weight: expected zero or a positive number, got \(0.0"),
        ({"cwd_temperature": 0.0}, "--cwd-temperature: expected a positive number, got 0.0"),
        ({"rkd_instances": 0}, "--rkd-instances: expected a positive number, got 0"),
        ({"mgd_masked": (0.5, 1.5)}, "--mgd-masked: expected a number from 0 to 1, got"),
    ],
)
def test_unusable_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(replace(Config(), "distill", **settings))


@pytest.mark.parametrize("terms", ["gkd+fgd", "mgd+pkd"])
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_one_step_of_the_trainer(terms: str, detector: str, tmp_path: Path) -> None:
    config = replace(PLAIN, "optim", epochs=1, batch_size=4)
    config = replace(config, "run", log_steps=1, device="cpu")
    config = replace(config, "distill", method=terms, robust_masks=True)
    config = replace(config, "model", detector=detector)
    scenes = Scenes(4, size=(96, 96))
    dataset = PreparedDataset(scenes, short_side=96, long_side=96)
    student, teacher = networks_for(detector, len(scenes.classes))
    freeze_teacher(teacher.model, CPU)
    distiller = build_distiller(teacher, student, scenes.classes, config.distill)
    before = {name: value.clone() for name, value in distiller.methods.state_dict().items()}
    phase = Phase("distilled", tmp_path / "distilled", 1, 1e-3, 4)
    phase.folder.mkdir()
    Trainer(student, dataset, phase, config, CPU, distiller).fit()

    logged = (tmp_path / "metrics.jsonl").read_text()
    for name in terms.split("+"):
        assert f'"{name}_' in logged
    assert ('"prototypes"' in logged) == ("gkd" in terms) == (distiller.bank is not None)
    after = distiller.methods.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def networks_for(detector: str, classes: int) -> tuple[DetectorAdapter, DetectorAdapter]:
    torch.manual_seed(0)
    common = {"detector": detector, "backbone": "mobilenet_v2", "width": 0.1, "head": 16, "proposals": 20, "rois": 16}
    student, teacher = (
        adapt(build_detector(DetectorSpec(channels=channels, anchor_size=16, **common), classes))
        for channels in (8, 12)
    )
    return student, teacher


def test_settings_survive_the_configuration_file() -> None:
    config = replace(Config(), "distill", method="gkd+mgd", mgd_masked=(0.1, 0.2))
    assert from_dict(to_dict(config)) == config
    assert dataclasses.replace(config.distill, method="gkd").mgd_masked == (0.1, 0.2)


@pytest.mark.parametrize(("name", "detector"), [*((name, "retinanet") for name in PARTS), ("defeat", "faster_rcnn")])
def test_methods_are_one_graph(name: str, detector: str) -> None:
    student, teacher = tiny_detectors(detector)
    distiller = make_distiller(name, student, teacher)
    images, targets = tiny_batch(student)
    own = student.train_pass(images, targets)
    method = distiller.methods[name]
    distiller.methods[name] = witness = Witness()
    terms_of(distiller, own, images)
    torch.compiler.reset()
    results = []
    for module in (method, torch.compile(method, fullgraph=True, backend="eager")):
        torch.manual_seed(0)
        results.append(module(witness.step))
    torch.testing.assert_close(results[1], results[0])


def test_the_names_are_those_of_the_modules() -> None:
    assert tuple(METHODS) == NAMES
    assert set(NEEDED) | set(MASKED) <= set(NAMES)

"""The terms of a user's own loop: the operators' numbers, any channels and sizes, every method, prototypes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from own_networks import CLASSES, Network, make_boxes, make_images, make_pair, train_step
from torch import Tensor, nn

from gkd_fast.instances import Instances
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import robust_distilling
from gkd_fast.methods.names import NAMES, NEEDED
from gkd_fast.pyramids import imitation, pool

GKD = ("gkd_global", "gkd_foreground", "gkd_background")
MAPS_AND_BOXES = [name for name in NAMES if name not in NEEDED]


def as_instances(boxes: list[Tensor], labels: list[Tensor]) -> Instances:
    index = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(b) for b in boxes]))
    return Instances(torch.cat(boxes), index, torch.cat(labels))


def gradients(terms: dict[str, Tensor], *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    found = torch.autograd.grad(sum(terms.values()), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_terms_and_gradients_are_those_of_robust_distilling() -> None:
    teacher, student, distiller = make_pair(feature_units="published")
    for seed in range(3):
        train_step(student, distiller, seed=seed)
    assert distiller.bank is not None
    images, (boxes, labels) = make_images(seed=7), make_boxes(seed=7)
    student(images)
    terms = distiller(images, boxes, labels)
    maps = [level(images) for level in student.levels]
    with torch.no_grad():
        taught = [level(images) for level in teacher.levels]
    adapted = distiller.methods["gkd"].adapters(maps)
    expected, omega = robust_distilling(
        maps,
        adapted,
        taught,
        as_instances(boxes, labels),
        None,
        distiller.bank,
        distiller.settings,
        stage="one_stage",
        kappa=1.0,
    )
    assert set(terms) == set(GKD) == set(distiller.names)
    for name, value in expected.items():
        torch.testing.assert_close(terms[f"gkd_{name}"], value, rtol=1e-6, atol=1e-7)
        assert value > 0
    assert torch.equal(omega, distiller.omega)
    for own, other in zip(gradients(terms, student, distiller), gradients(expected, student, distiller), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


def test_the_first_steps_trust_every_instance() -> None:
    _, student, distiller = make_pair()
    terms = train_step(student, distiller)
    assert terms["gkd_global"] == 0
    assert terms["gkd_foreground"] > 0
    assert distiller.bank is None
    assert (distiller.omega == 1).all()


def test_attenuation_scales_the_terms() -> None:
    _, student, distiller = make_pair()
    before = train_step(student, distiller)
    distiller.attenuation = 0.25
    after = train_step(student, distiller)
    for name in ("gkd_foreground", "gkd_background"):
        torch.testing.assert_close(after[name], 0.25 * before[name])


def test_levels_may_differ_in_channels() -> None:
    teacher, student, distiller = make_pair(Network((8, 12, 20)), Network((10, 20, 40)))
    for seed in range(4):
        terms = train_step(student, distiller, seed=seed)
    assert distiller.bank.student.shape[2] == 20
    assert distiller.bank.teacher.shape[2] == 40
    assert all(value.isfinite() and value > 0 for value in terms.values())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_unequal_levels_have_the_sums_of_equal_ones() -> None:
    """Channels of zeros change neither embeddings' cosines nor squared differences."""
    instances = as_instances(*make_boxes())
    maps = [[torch.randn(2, 6, side, side) for side in (32, 16, 8)] for _ in range(2)]
    wider = [[torch.cat([m, torch.zeros_like(m[:, : 2 * n])], 1) for n, m in enumerate(levels)] for levels in maps]
    omega = torch.rand(3, 20)
    strides = (4, 8, 16)
    for own, other in zip(
        imitation(*maps, instances, omega, strides), imitation(*wider, instances, omega, strides), strict=True
    ):
        torch.testing.assert_close(own, other)
    narrow, wide = pool(maps[0], instances, strides), pool(wider[0], instances, strides)
    torch.testing.assert_close(wide[..., :6], narrow)
    assert (wide[..., 6:] == 0).all()


def test_the_teachers_maps_may_have_other_sizes() -> None:
    _, student, distiller = make_pair(teacher=Network((24, 24, 24), (8, 16, 32)))
    for seed in range(4):
        terms = train_step(student, distiller, seed=seed)
    assert all(value.isfinite() and value > 0 for value in terms.values())


def test_an_image_size_of_its_own_in_every_step() -> None:
    _, student, distiller = make_pair()
    for seed, side in enumerate((128, 96, 160, 224, 104)):
        terms = train_step(student, distiller, side=side, seed=seed)
        assert all(value.isfinite() for value in terms.values())


def test_strides_may_be_given() -> None:
    """A network that works on images of half the size has maps of double strides."""
    _, student, distiller = make_pair(strides=(4, 8, 16))
    inferred = make_pair()[2]
    for number, item in enumerate((distiller, inferred)):
        torch.manual_seed(0)
        student = item._student.inner
        found = train_step(student, item)
        if number == 0:
            expected = found
    for name in GKD:
        torch.testing.assert_close(found[name], expected[name])
    with pytest.raises(ValueError, match="strides"):
        train_step(*make_pair(strides=(4, 8))[1:])


@pytest.mark.parametrize("stage", ["one_stage", "two_stage"])
@pytest.mark.parametrize("method", MAPS_AND_BOXES)
def test_every_method_of_maps_and_boxes(method: str, stage: str) -> None:
    _, student, distiller = make_pair(Network((8, 12, 20)), Network((10, 20, 40)), method=method, stage=stage)
    for seed in range(2):
        terms = train_step(student, distiller, seed=seed)
    assert tuple(terms) == distiller.names
    assert all(name.startswith(f"{method}_") for name in terms)
    for value in terms.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()
    assert all(p.grad is not None for p in distiller.parameters())


def test_methods_are_combined_and_weighed() -> None:
    single = train_step(*make_pair(method="gkd+fgd")[1:])
    assert tuple(single)[:3] == GKD
    assert {"fgd_foreground", "fgd_global"} <= set(single)
    doubled = train_step(*make_pair(method="gkd@2+fgd")[1:])
    for name, value in single.items():
        torch.testing.assert_close(doubled[name], (2 if name.startswith("gkd") else 1) * value)
    robust = train_step(*make_pair(method="gkd+fgd+robust")[1:])
    torch.testing.assert_close(robust["fgd_foreground"], single["fgd_foreground"])  # no prototypes yet


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fgfi", r"method: fgfi needs the student's anchors: Distiller\(anchors=...\)"),
        ("gkd+crosskd", "method: crosskd needs the heads of two torchvision RetinaNets"),
        ("gkd+nothing", "method: expected names of gkd, fgfi"),
    ],
)
def test_a_method_says_what_it_needs(method: str, message: str) -> None:
    student = Network()
    with pytest.raises(ValueError, match=message):
        make_pair(student, method=method)
    assert not any(module._forward_hooks for module in student.modules())


def test_anchors_make_fgfi_possible() -> None:
    def anchors(images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        found = []
        for level, feature in enumerate(maps):
            side = 4 * 2**level
            rows, columns = (torch.arange(size) * side for size in feature.shape[2:])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            found.append(torch.stack([x, y, x + 2 * side, y + 2 * side], -1).reshape(-1, 4).float())
        return found

    _, student, distiller = make_pair(method="fgfi", anchors=anchors)
    terms = train_step(student, distiller)
    assert terms["fgfi_imitation"] > 0


@pytest.mark.parametrize("stage", ["one_stage", "two_stage"])
def test_soft_labels_by_a_callback(stage: str) -> None:
    given = {}

    def logits(boxes: Tensor, image_index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        given.update(boxes=boxes, image_index=image_index, labels=labels)
        return given["student"], given["teacher"]

    _, student, distiller = make_pair(logits=logits, stage=stage)
    given["student"], given["teacher"] = torch.randn(20, 3, requires_grad=True), torch.randn(20, 3)
    terms = train_step(student, distiller)
    assert tuple(terms) == (*GKD, "gkd_soft") == distiller.names
    assert given["boxes"].shape == (20, 4)
    assert given["student"].grad is not None
    s, t = given["student"].detach() / 2, given["teacher"] / 2
    if stage == "two_stage":
        divergence = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).mean(1)
    else:
        p, q = t.sigmoid(), s.sigmoid()
        divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    torch.testing.assert_close(terms["gkd_soft"].detach(), (4 * divergence).mean(), rtol=1e-4, atol=1e-6)
    given["teacher"] = torch.randn(20, 4)
    with pytest.raises(ValueError, match=r"logits: expected \[20,K\] of both networks, got \[20, 3\] and \[20, 4\]"):
        train_step(student, distiller)


def test_normalised_centres_are_the_same_boxes() -> None:
    boxes, labels = make_boxes()
    _, student, distiller = make_pair()
    expected = train_step(student, distiller)
    centred = [torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1) / 128 for b in boxes]
    _, student, distiller = make_pair(boxes="cxcywh")
    found = train_step(student, distiller, boxes=centred)
    index = torch.arange(2).repeat_interleave(10)
    _, student, distiller = make_pair(boxes="cxcywh")
    flat = train_step(
        student, distiller, boxes=torch.cat(centred), labels=torch.cat(labels)[:, None], image_index=index
    )
    for name in GKD:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(flat[name], found[name])


def test_a_pass_gives_prototypes_with_and_without_image_ids() -> None:
    _, student, distiller = make_pair()
    student.train()
    for ids in (None, [40, 41]):
        batches = [(make_images(seed=n), *make_boxes(seed=n), *([ids] if ids else [])) for n in range(2)]
        bank = distiller.refresh(batches)
        assert set(bank.image_ids.flatten().tolist()) <= ({0, 1, 2, 3} if ids is None else {40, 41})
        assert bank.classes == CLASSES
    assert student.training
    assert distiller.bank is not None
    terms = train_step(student, distiller)
    assert terms["gkd_global"] > 0


def test_a_pass_takes_boxes_in_one_tensor() -> None:
    _, _, distiller = make_pair()
    boxes, labels = make_boxes()
    index = torch.arange(2).repeat_interleave(10)
    one = distiller.refresh([(make_images(), torch.cat(boxes), torch.cat(labels), None, index)])
    other = distiller.refresh([(make_images(), boxes, labels)])
    assert torch.equal(one.student, other.student)


def test_without_steps_or_loader_there_is_nothing_to_generate_from() -> None:
    _, _, distiller = make_pair(refresh_steps=None, prototypes_from="pass")
    with pytest.raises(ValueError, match="refresh: expected a loader"):
        distiller.refresh()
    _, student, distiller = make_pair()
    with pytest.raises(ValueError, match="expected instances in the steps so far, got none"):
        distiller.refresh()
    with pytest.raises(ValueError, match="expected at least one batch"):
        distiller.refresh([])
    boxes, labels = make_boxes()
    with pytest.raises(ValueError, match="expected instances of at least one class"):
        distiller.refresh([(make_images(), [b[:0] for b in boxes], [n[:0] for n in labels])])
    _, student, distiller = make_pair(refresh_steps=None)
    with pytest.raises(RuntimeError, match="expected prototypes, call refresh first"):
        train_step(student, distiller)


def test_state_goes_through_a_file(tmp_path) -> None:
    _, student, distiller = make_pair(method="gkd+mgd")
    for seed in range(5):
        train_step(student, distiller, seed=seed)
    torch.save(distiller.state_dict(), tmp_path / "state.pt")
    _, other_student, other = make_pair(method="gkd+mgd")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.steps == distiller.steps == 5
    for own, loaded in zip(distiller.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, loaded)
    other_student.load_state_dict(student.state_dict())
    for seed in range(5, 7):  # over the next generation of prototypes
        found = []
        for net, item in ((student, distiller), (other_student, other)):
            torch.manual_seed(seed)
            found.append(train_step(net, item, seed=seed))
        for name, value in found[0].items():
            assert torch.equal(found[1][name], value)
    assert torch.equal(other.bank.student, distiller.bank.student)


def test_settings_by_name() -> None:
    _, _, distiller = make_pair(foreground_weight=16.0, background_weight=0.0)
    assert distiller.settings.foreground_weight == 16
    base = Settings(capacity=7)
    assert dataclasses.replace(base, min_box=4.0).capacity == make_pair(settings=base)[2].settings.capacity
    with pytest.raises(TypeError, match="fore_weight"):
        make_pair(fore_weight=1.0)
    with pytest.raises(ValueError, match="foreground_weight: expected zero or a positive number, got -1"):
        make_pair(foreground_weight=-1.0)
    with pytest.raises(ValueError, match="boxes: expected one of xyxy, cxcywh, got 'xywh'"):
        make_pair(boxes="xywh")


def test_the_sum_trains_the_student_towards_the_teacher() -> None:
    _, student, distiller = make_pair()
    optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(float(train_step(student, distiller)["gkd_background"]))
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]

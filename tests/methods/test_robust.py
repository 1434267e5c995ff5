from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd_fast.instances import Instances, SoftPairs
from gkd_fast.methods import Settings
from gkd_fast.methods.gkd import Adapters, PrototypeBank, robust_distilling, robust_weights, soft_label_loss
from gkd_fast.methods.gkd.robust import background_trust
from gkd_fast.methods.units import TeacherUnits, Units

CONFIG = Settings()


def make_bank(levels: int = 3, classes: int = 3) -> PrototypeBank:
    generator = torch.Generator().manual_seed(5)
    offsets = torch.tensor([0, 4, 4, 7])[: classes + 1]  # the second class has no prototypes
    count = int(offsets[-1])
    return PrototypeBank(
        student=torch.randn(levels, count, 6, generator=generator),
        teacher=torch.randn(levels, count, 8, generator=generator),
        class_offsets=offsets,
        most=4,
        image_ids=torch.zeros(levels, count, dtype=torch.int64),
        boxes=torch.zeros(levels, count, 4),
        classes=("a", "b", "c"),
        strides=tuple(4 * 2**level for level in range(levels)),
    )


def make_maps(channels: int, *, levels: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, 32 >> level, 48 >> level, generator=generator) for level in range(levels)]


def make_instances() -> Instances:
    boxes = torch.tensor([[8.0, 8, 40, 60], [0, 0, 190, 127], [100, 20, 103, 22], [50, 50, 90, 120]])
    return Instances(boxes, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 0]))


def test_robust_weights_follow_their_definition() -> None:
    bank = make_bank()
    student, teacher = torch.randn(5, 6), torch.randn(5, 8)
    level, labels = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 2, 1, 2, 0])
    omega = robust_weights(student, teacher, level, labels, bank)
    for i in range(5):
        rows = slice(int(bank.class_offsets[labels[i]]), int(bank.class_offsets[labels[i] + 1]))
        if labels[i] == 1:
            assert omega[i] == 1
            continue
        nearest = [
            float(F.cosine_similarity(x[i][None], prototypes[level[i], rows]).max())
            for x, prototypes in ((student, bank.student), (teacher, bank.teacher))
        ]
        assert float(omega[i]) == pytest.approx(1 - abs(nearest[0] - nearest[1]), abs=1e-5)


def by_loops(feature: Tensor, prototypes: Tensor, mean: Tensor) -> Tensor:
    """max_m cos(f - mu, p_m - mu), cell after cell."""
    channels = feature.shape[1]
    cells = (feature - mean[:, None, None]).permute(0, 2, 3, 1).flatten(0, 2)
    nearest = [
        max(float(F.cosine_similarity(cell, own[:channels] - mean, dim=0)) for own in prototypes) for cell in cells
    ]
    return torch.tensor(nearest).view(feature.shape[0], *feature.shape[2:])


def test_background_counts_as_far_as_it_resembles_a_prototype_in_both_spaces() -> None:
    bank = make_bank()
    generator = torch.Generator().manual_seed(3)
    student, teacher = (
        [2 + torch.randn(2, channels, 4, 5 - level, generator=generator) for level in range(3)] for channels in (6, 8)
    )
    units = TeacherUnits()
    units.add([1 + feature for feature in teacher])
    for given in (None, units.units()):
        trust = background_trust(student, teacher, bank, given)
        for level, found in enumerate(trust.split([2 * 4 * (5 - level) for level in range(3)])):
            found = found.view(2, 4, 5 - level)
            means = student[level].mean((0, 2, 3)), teacher[level].mean((0, 2, 3)) + (given is not None)
            near_s = by_loops(student[level], bank.student[level], means[0])
            near_t = by_loops(teacher[level], bank.teacher[level], means[1])
            expected = near_t.clamp(min=0) * (1 - (near_s - near_t).abs()).clamp(min=0)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert 0 < float(found.mean()) < 1


def test_published_background_counts_all_the_same() -> None:
    published = dataclasses.replace(CONFIG, background_trust="none")
    terms, others = run()[0], run(published)[0]
    assert others["background"].item() > terms["background"].item() > 0
    torch.testing.assert_close(others["foreground"], terms["foreground"])


def run(config: Settings = CONFIG, *, stage: str = "two_stage", kappa: float = 1.0, instances=None):
    student, teacher = make_maps(6), make_maps(8, seed=1)
    for feature in student:
        feature.requires_grad_()
    torch.manual_seed(0)
    adapters = Adapters([(6, 8)] * 3)
    terms, omega = robust_distilling(
        student,
        adapters(student),
        teacher,
        instances or make_instances(),
        None,
        make_bank(),
        config,
        stage=stage,
        kappa=kappa,
    )
    return terms, omega, student, adapters


def test_terms_scale_with_their_weights_and_with_attenuation() -> None:
    plain, _, _, _ = run()
    doubled, _, _, _ = run(
        dataclasses.replace(CONFIG, global_weight=10.0, foreground_weight=32.0, background_weight=32.0)
    )
    halved, _, _, _ = run(kappa=0.5)
    for name, value in plain.items():
        assert float(value) > 0
        torch.testing.assert_close(doubled[name], 2 * value)
        torch.testing.assert_close(halved[name], value / 2)


def test_one_stage_sums_the_feature_losses_over_levels() -> None:
    two, _, _, _ = run()
    one, _, _, _ = run(stage="one_stage")
    for name in ("foreground", "background"):
        torch.testing.assert_close(one[name], 3 * two[name])
    torch.testing.assert_close(one["global"], two["global"])


def test_a_box_is_foreground_on_every_level_by_the_weight_it_has_there() -> None:
    student, teacher, instances = make_maps(6), make_maps(8, seed=1), make_instances()
    adapted, bank = make_maps(8, seed=2), make_bank()
    terms, omega = robust_distilling(
        student, adapted, teacher, instances, None, bank, CONFIG, stage="one_stage", kappa=1
    )
    expected = {"foreground": 0.0, "background": 0.0}
    trust = background_trust(student, teacher, bank).split([feature[:, 0].numel() for feature in teacher])
    for level, (own, other) in enumerate(zip(adapted, teacher, strict=True)):
        weight = torch.zeros(2, *own.shape[2:])
        for box, image, value in zip(instances.boxes, instances.image_index, omega[level], strict=True):
            x1, y1, x2, y2 = (int(side / bank.strides[level]) for side in box)
            rows, columns = slice(y1, max(y2, y1 + 1)), slice(x1, max(x2, x1 + 1))
            weight[image, rows, columns] = weight[image, rows, columns].clamp(min=value)
        square, outside = (own - other).square().sum(1), weight == 0
        expected["foreground"] += float((weight * square).sum() / (2 * 8 * weight.sum()))
        rest = outside * trust[level].view_as(outside)
        expected["background"] += float((rest * square).sum() / (2 * 8 * outside.sum()))
    for name, value in expected.items():
        factor = getattr(CONFIG, f"{name}_weight")
        assert float(terms[name]) == pytest.approx(factor * value, rel=1e-4), name
    published = dataclasses.replace(CONFIG, box_levels="own")
    others, _ = robust_distilling(
        student, adapted, teacher, instances, None, bank, published, stage="one_stage", kappa=1
    )
    assert float(others["foreground"]) != pytest.approx(float(terms["foreground"]), rel=1e-3)


def test_in_units_of_the_teacher_levels_are_averaged_and_divided_by_their_variances() -> None:
    student, teacher, adapted = make_maps(6), make_maps(8, seed=1), make_maps(8, seed=2)
    units = Units([torch.zeros(8)] * 3, torch.tensor([1.0, 4.0, 16.0]), torch.tensor([1.0, 2.0, 4.0]))

    def terms(levels: slice, given: Units | None, stage: str) -> dict[str, Tensor]:
        bank = make_bank()
        cut = dataclasses.replace(
            bank, student=bank.student[levels], teacher=bank.teacher[levels], strides=bank.strides[levels]
        )
        maps = student[levels], adapted[levels], teacher[levels]
        config = dataclasses.replace(CONFIG, background_trust="none")
        return robust_distilling(*maps, make_instances(), None, cut, config, stage=stage, kappa=1, units=given)[0]

    alone = [terms(slice(level, level + 1), None, "two_stage") for level in range(3)]
    for stage in ("one_stage", "two_stage"):
        together = terms(slice(0, 3), units, stage)
        for name in ("foreground", "background"):
            expected = sum(own[name] / deviation**2 for own, deviation in zip(alone, (1, 2, 4), strict=True)) / 3
            torch.testing.assert_close(together[name], expected)


def test_gradients_reach_the_student_and_the_adapters() -> None:
    terms, omega, student, adapters = run()
    assert not omega.requires_grad
    sum(terms.values()).backward()
    for parameter in (*student, *adapters.parameters()):
        grad = parameter.grad
        assert grad is not None
        assert torch.isfinite(grad).all()
        assert (grad != 0).any()


def test_a_batch_without_instances_distils_the_background_alone() -> None:
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    terms, omega, student, _ = run(instances=nothing)
    assert omega.shape == (3, 0)
    assert float(terms["global"]) == float(terms["foreground"]) == 0
    assert float(terms["background"]) > 0
    sum(terms.values()).backward()
    assert all(torch.isfinite(feature.grad).all() for feature in student)


def test_two_stage_soft_labels_are_a_weighted_categorical_kl() -> None:
    bank, instances = make_bank(), make_instances()
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    level = torch.tensor([0, 1, 2, 0])
    embeddings = torch.randn(4, 6), torch.randn(4, 8)
    soft = SoftPairs(student, teacher, torch.arange(4), level, *embeddings)
    weights = robust_weights(*embeddings, level, instances.labels, bank)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = (weights * 4 * (p * (p / q).log()).mean(1)).mean()
    torch.testing.assert_close(soft_label_loss(soft, torch.ones(3, 4), instances, bank, CONFIG), expected)


def test_one_stage_soft_labels_are_a_binary_kl_with_the_weight_of_the_instances_own_level() -> None:
    instances = make_instances()
    omega = torch.rand(3, 4)
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    owner = torch.tensor([0, 1, 1, 3, 2, 0])
    soft = SoftPairs(student, teacher, owner, torch.tensor([2, 0, 1, 1, 0, 0]))
    own_level = torch.tensor([0, 1, 0, 0])  # the second box is 155 pixels wide in geometric mean: level 1
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    expected = (omega[own_level[owner], owner] * 4 * divergence).mean()
    torch.testing.assert_close(soft_label_loss(soft, omega, instances, make_bank(), CONFIG), expected)
    among_others = SoftPairs(
        torch.cat([torch.randn(3, 3), student]),
        torch.cat([torch.randn(3, 3), teacher]),
        torch.cat([torch.full((3,), -1), owner]),
        torch.zeros(9, dtype=torch.int64),
    )
    torch.testing.assert_close(soft_label_loss(among_others, omega, instances, make_bank(), CONFIG), expected)


def test_without_robust_weights_all_instances_count_alike_but_for_the_global_loss() -> None:
    plain = dataclasses.replace(CONFIG, robust_weights=False, background_trust="none")
    weighted, alike = run(dataclasses.replace(CONFIG, background_trust="none")), run(plain)
    assert alike[1].unique().tolist() == [1]
    torch.testing.assert_close(alike[0]["global"], weighted[0]["global"])
    assert not torch.isclose(alike[0]["foreground"], weighted[0]["foreground"])
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    owner = torch.tensor([0, 1, 2, -1])
    soft = SoftPairs(student, teacher, owner, torch.zeros(4, dtype=torch.int64), torch.randn(4, 6), torch.randn(4, 8))
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = (4 * (p * (p / q).log()).mean(1))[:3].mean()
    torch.testing.assert_close(soft_label_loss(soft, alike[1], make_instances(), make_bank(), plain), expected)


def test_equal_logits_cost_nothing() -> None:
    logits = torch.randn(4, 5)
    soft = SoftPairs(logits, logits, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    assert float(soft_label_loss(soft, torch.ones(3, 4), make_instances(), make_bank(), CONFIG)) == pytest.approx(
        0, abs=1e-6
    )


def test_no_positives_cost_nothing() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64)
    loss = soft_label_loss(
        SoftPairs(logits, logits, empty, empty), torch.ones(3, 4), make_instances(), make_bank(), CONFIG
    )
    loss.backward()
    assert float(loss) == 0
    logits = torch.randn(5, 5, requires_grad=True)
    nowhere = SoftPairs(logits, torch.randn(5, 5), torch.full((5,), -1), torch.zeros(5, dtype=torch.int64))
    loss = soft_label_loss(nowhere, torch.ones(3, 4), make_instances(), make_bank(), CONFIG)
    loss.backward()
    assert float(loss) == float(logits.grad.abs().max()) == 0

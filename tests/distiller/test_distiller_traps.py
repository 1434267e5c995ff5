"""What goes wrong around forward hooks: wrappers, copies, modes, graphs, in-place layers, compiled networks."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from own_networks import CLASSES, LAYERS, Network, make_boxes, make_images, make_pair, own_loss, train_step
from torch import nn
from torch.utils.checkpoint import checkpoint

from gkd_fast.distiller import Distiller


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def hooks_of(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_neither_network_is_a_part_of_it() -> None:
    teacher, student, distiller = make_pair()
    own = {id(p) for p in distiller.parameters()}
    assert not own & {id(p) for net in (teacher, student) for p in net.parameters()}
    assert all("levels" not in name or name.startswith("methods.") for name in distiller.state_dict())
    assert all(p.requires_grad for p in teacher.parameters())  # a user's network stays as it is
    distiller.eval()
    assert student.training


def test_a_copy_for_ema_is_not_watched() -> None:
    _, student, distiller = make_pair()
    images, (boxes, labels) = make_images(), make_boxes()
    own = own_loss(student(images))
    ema = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in ema.parameters():
            parameter.zero_()
        ema(images)
    terms = distiller(images, boxes, labels)
    (own + sum(terms.values())).backward()
    assert all(p.grad is not None for p in student.levels.parameters())
    again = copy.deepcopy(ema)
    again(images)


def test_a_pickled_student_loads_where_gkd_fast_is_not(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    Distiller(nn.Sequential(nn.Conv2d(3, 6, 1)), plain, 1, ["0"], example=torch.zeros(1, 3, 8, 8))
    torch.save(plain, tmp_path / "student.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['gkd_fast'] = None\n"
        f"net = torch.load({str(tmp_path / 'student.pt')!r}, weights_only=False)\n"
        "print(tuple(net(torch.zeros(1, 3, 4, 4)).shape), [name for name in sys.modules if 'gkd_fast.' in name])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout.strip() == "(1, 4, 4, 4) []", result.stderr


def test_the_distiller_itself_is_saved_by_its_state() -> None:
    distiller = make_pair()[2]
    for copied in (copy.deepcopy, lambda item: torch.save(item, io.BytesIO())):
        with pytest.raises(TypeError, match="expected its state_dict"):
            copied(distiller)


def test_hooks_can_be_taken_off() -> None:
    teacher, student, distiller = make_pair()
    assert hooks_of(student) == hooks_of(teacher) == 3
    distiller.remove()
    assert hooks_of(student) == hooks_of(teacher) == 0


def test_no_map_and_no_graph_is_alive_after_the_step() -> None:
    _, student, distiller = make_pair()
    train_step(student, distiller)
    for watched in (distiller._student, distiller._teacher):
        assert all(tap.value is None for tap in watched.taps)


def test_a_teacher_put_into_train_mode_teaches_in_evaluation_mode() -> None:
    teacher = Network((24, 24, 24))
    teacher.levels[1] = nn.Sequential(nn.Conv2d(3, 24, 3, 8, 1), nn.BatchNorm2d(24), nn.SiLU())
    _, student, distiller = make_pair(teacher=teacher)
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    train_step(student, distiller)
    teacher.levels[1].train()
    train_step(student, distiller)
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_students_modes_outlive_the_example_and_a_pass() -> None:
    student = Network()
    student.levels[0].eval()
    _, _, distiller = make_pair(student)
    distiller.refresh([(make_images(), *make_boxes())])
    assert student.training
    assert not student.levels[0].training
    assert student.levels[1].training


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_in_layer_names(prefix: str) -> None:
    teacher, student = Network((24, 24, 24)), Network()
    layers = [prefix + layer for layer in LAYERS]
    distiller = Distiller(teacher, nn.DataParallel(student), CLASSES, layers, LAYERS, example=make_images())
    train_step(student, distiller)


def test_an_own_part_called_module_is_found() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Network()

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return self.module(images)

    layers = [f"module.{layer}" for layer in LAYERS]
    student = Outer()
    distiller = Distiller(Network((24, 24, 24)), student, CLASSES, layers, LAYERS, example=make_images())
    train_step(student, distiller)


def test_mixed_precision_with_a_float32_level() -> None:
    def run_level(level: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if level[0].stride == (4, 4):
            with torch.autocast("cpu", enabled=False):
                return level(x.float())
        return level(x)

    _, student, distiller = make_pair(Network(run_level=run_level), method="gkd+fgd+cwd")
    for seed in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = own_loss(student(make_images(seed=seed)))
            terms = distiller(make_images(seed=seed), *make_boxes(seed=seed))
        (loss + sum(terms.values())).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in student.parameters())


def test_a_network_of_bfloat16_weights() -> None:
    _, student, distiller = make_pair(method="gkd+cwd")
    student.bfloat16()
    for seed in range(4):
        images = make_images(seed=seed)
        loss = own_loss(student(images.bfloat16()))
        terms = distiller(images, *make_boxes(seed=seed))
        (loss + sum(terms.values())).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())


def test_a_checkpoint_that_passes_gradients_on() -> None:
    _, plain_student, plain_distiller = make_pair()
    _, student, distiller = make_pair()
    student.run_level = lambda level, x: checkpoint(level, x.requires_grad_(), use_reentrant=False)
    plain, found = train_step(plain_student, plain_distiller), train_step(student, distiller)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)
    assert all(tap.value is None for tap in distiller._student.taps)  # backward ran the levels again


def test_a_reentrant_checkpoint_is_an_error() -> None:
    def run_level(level: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda y: level(y) * 1.0, x.requires_grad_(), use_reentrant=True)

    _, student, distiller = make_pair(Network(run_level=run_level))
    with pytest.raises(RuntimeError, match=r"expected maps with gradient.*use_reentrant=False"):
        train_step(student, distiller)


def test_a_frozen_student_is_an_error() -> None:
    _, student, distiller = make_pair()
    with torch.no_grad():
        student(make_images())
    with pytest.raises(RuntimeError, match="student: expected maps with gradient"):
        distiller(make_images(), *make_boxes())


def test_validation_without_gradients_is_none() -> None:
    _, student, distiller = make_pair()
    distiller.eval()
    with torch.no_grad():
        student(make_images())
        terms = distiller(make_images(), *make_boxes())
    assert all(value.isfinite() for value in terms.values())
    assert distiller.steps == 0


def test_a_forgotten_forward_pass_is_an_error() -> None:
    _, student, distiller = make_pair()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"student: layers levels\.0, .* run the network first"):
            distiller(make_images(), *make_boxes())
        train_step(student, distiller)


def test_another_batch_than_the_students_is_an_error() -> None:
    _, student, distiller = make_pair()
    student(make_images(count=3))
    with pytest.raises(ValueError, match="images: expected the 3 that the student's last forward pass saw, got 2"):
        distiller(make_images(), *make_boxes())


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_an_in_place_layer_behind_a_watched_one_is_an_error(role: str) -> None:
    def network(channels: int) -> nn.Module:
        found = Network((channels,) * 3)
        for number, stride in enumerate((4, 8, 16)):
            conv = nn.Conv2d(3, channels, 3, stride, 1)
            found.levels[number] = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        return found

    networks = {"student": Network(), "teacher": Network((24, 24, 24))}
    networks[role] = network(16)
    convs = [f"{layer}.0" for layer in LAYERS]
    layers = {name: [f"{layer}.1" for layer in LAYERS] if name == role else convs for name in networks}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bare batch normalisations
        with pytest.raises(RuntimeError, match=rf"{role}: the output of layer 'levels\.0\.1' was changed in place"):
            Distiller(
                networks["teacher"],
                networks["student"],
                CLASSES,
                layers["student"],
                layers["teacher"],
                example=make_images(),
            )
    assert hooks_of(networks["student"]) == hooks_of(networks["teacher"]) == 0


def test_a_bare_batch_normalisation_is_warned_of() -> None:
    student = Network()
    for number, stride in enumerate((4, 8, 16)):
        student.levels[number] = nn.Sequential(nn.Conv2d(3, 16, 3, stride, 1), nn.BatchNorm2d(16), nn.ReLU())
    layers = [f"{layer}.1" for layer in LAYERS]
    with pytest.warns(UserWarning, match=r"layer 'levels\.0\.1' is a batch normalisation.*say little of an instance"):
        Distiller(Network((24, 24, 24)), student, CLASSES, layers, LAYERS, example=make_images())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["levels.9"], r"student: Network has no layer 'levels\.9'; near: levels"),
        (["neck.levels.0"], r"no layer 'neck\.levels\.0'; near: .*levels\.0"),
        ("levels.0", r"student: expected a list of layers' names, got 'levels\.0'"),
        ([], "student: expected a list of layers' names"),
    ],
)
def test_a_wrong_layer_is_named(layers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distiller(Network((24, 24, 24)), Network(), CLASSES, layers, LAYERS, example=make_images())


def test_layers_that_give_no_map_or_run_twice_are_errors() -> None:
    class Odd(Network):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Conv2d(16, 3, 1)
            self.flat = nn.Flatten()

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            maps = [self.shared(level(images)) for level in self.levels]
            return [self.flat(found) for found in maps]

    for layer, message in (("shared", "runs several times in a forward pass"), ("flat", "runs several times")):
        with pytest.raises(ValueError, match=message):
            Distiller(Network((24, 24, 24)), Odd(), CLASSES, [layer], ["levels.0"], example=make_images())
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    with pytest.raises(RuntimeError, match=r"student: expected maps \[N,C,H,W\] from layer '1', got none"):
        Distiller(Network((24, 24, 24)), net, CLASSES, ["1"], ["levels.0"], example=make_images())
    with pytest.raises(ValueError, match="as many maps of both networks, got 2 of the student and 3 of the teacher"):
        Distiller(Network((24, 24, 24)), Network(), CLASSES, LAYERS[:2], LAYERS, example=make_images())


def test_layers_in_another_order_are_an_error() -> None:
    student = Network()
    with pytest.raises(ValueError, match=r"student: expected layers from the finest map on, got strides \(16, 8, 4\)"):
        Distiller(Network((24, 24, 24)), student, CLASSES, LAYERS[::-1], LAYERS, example=make_images())
    assert hooks_of(student) == 0


def test_the_teacher_ends_behind_its_last_watched_layer() -> None:
    class Counting(Network):
        heads_run = 0

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            found = [level(images) for level in self.levels]
            type(self).heads_run += 1
            return [head(level) for head, level in zip(self.heads, found, strict=True)]

    _, student, distiller = make_pair(teacher=Counting((24, 24, 24)))
    assert Counting.heads_run == 1  # the example
    train_step(student, distiller)
    distiller.refresh([(make_images(), *make_boxes())])
    assert Counting.heads_run == 1
    distiller._teacher.inner(make_images())  # whoever else runs it gets all of it
    assert Counting.heads_run == 2


def test_two_distillers_on_one_student() -> None:
    _, student, first = make_pair()
    second = Distiller(Network((20, 20, 20)), student, CLASSES, LAYERS, example=make_images())
    images, (boxes, labels) = make_images(), make_boxes()
    loss = own_loss(student(images))
    (loss + sum(first(images, boxes, labels).values()) + sum(second(images, boxes, labels).values())).backward()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["function", "in place"])
def test_compiled_networks_give_the_same(how: str) -> None:
    _, plain, expected = make_pair()
    torch.manual_seed(0)
    teacher, student = Network((24, 24, 24)), Network()
    if how == "function":
        compiled = torch.compile(student, backend="aot_eager"), torch.compile(teacher, backend="aot_eager")
    else:
        student.compile(backend="aot_eager")
        compiled = student, teacher
    _, _, distiller = make_pair(*compiled)
    for target, source in zip(distiller.parameters(), expected.parameters(), strict=True):
        target.data.copy_(source.data)
    student.load_state_dict(plain.state_dict())
    for seed in range(5):
        for network in (plain, student):
            network.zero_grad()
        one, other = train_step(plain, expected, seed=seed), train_step(compiled[0], distiller, seed=seed)
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
    for p, q in zip(plain.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_distiller_behind_the_first_compiled_call_is_an_error() -> None:
    student = Network()
    compiled = torch.compile(student, backend="aot_eager")
    own_loss(compiled(make_images())).backward()
    _, _, distiller = make_pair(compiled)
    with pytest.raises(RuntimeError, match="build the distiller before the first call of a compiled network"):
        train_step(compiled, distiller)

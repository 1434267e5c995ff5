"""Imported detectors find what their source finds: boxes, scores and classes, against the sources' own inference."""

from __future__ import annotations

import dataclasses
import pickle
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from published_forwards import FORWARDS, Network, Weights
from tiny_folders import write_voc
from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet

from gkd_fast.cli import convert as command
from gkd_fast.convert import Source, convert
from gkd_fast.detectors import DetectorSpec, backbones, build_detector
from gkd_fast.detectors.foreign_files import ForeignCheckpoint, read_foreign
from gkd_fast.errors import InputError
from gkd_fast.runs.detector_file import load_detector

CAFFE = {"mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0), "bgr": True, "stride_in_1x1": True}
NAMES = ("ant", "bee", "cow")
CASES = [(source, kind) for source in ("mmdet", "detectron2") for kind in ("faster_rcnn", "retinanet")]


@pytest.fixture(autouse=True)
def short_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bottleneck a stage under the name of a ResNet, to be quick."""
    real = backbones._classifier

    def build(name: str, **options: Any) -> torch.nn.Module:
        return ResNet(Bottleneck, [1, 1, 1, 1]) if name == "short" else real(name, **options)

    monkeypatch.setattr(backbones, "_classifier", build)


def picture(height: int = 96, width: int = 150) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def network(source: str, **changes: Any) -> Network:
    return dataclasses.replace(Network(**(CAFFE if source == "detectron2" else {})), **changes)


def described(source: str, kind: str, **changes: Any) -> Source:
    return Source(library=source, architecture=kind, **{"backbone": "short", "classes": NAMES} | changes)


def source_result(source: str, kind: str, net: Network) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    state, found = _source_result(source, kind, net)
    return dict(state), found


@lru_cache
def _source_result(source: str, kind: str, net: Network) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    weights = Weights()
    return weights.state, FORWARDS[source, kind](weights, picture(), net)


def imported(
    state: dict[str, Tensor], source: str, kind: str, net: Network, *, text: str = "", **changes: Any
) -> tuple[DetectorSpec, torch.nn.Module]:
    foreign = ForeignCheckpoint({name: value.clone() for name, value in state.items()}, (), text)
    done = convert(foreign, described(source, kind, **changes), "x.pth")
    assert done.classes == NAMES
    return dataclasses.replace(done.spec, proposals=net.proposals, detections=net.detections), done.model


def result(spec: DetectorSpec, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    model = build_detector(spec, 3).double().eval()
    model.load_state_dict(state)
    with torch.no_grad():
        found = model([picture().double() / 255])[0]
    return found["boxes"], found["scores"], found["labels"] - 1


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    """Equal up to the float32 statistics of the input and the float32 boxes of RoIAlign."""
    if len(ours[1]) != len(theirs[1]) or not torch.equal(ours[2], theirs[2]):
        return False
    close = torch.allclose(ours[1], theirs[1], atol=1e-4, rtol=0)
    return close and torch.allclose(ours[0], theirs[0], atol=1e-2, rtol=0)


@pytest.mark.parametrize(("source", "kind"), CASES)
def test_boxes_scores_and_classes_are_the_sources(source: str, kind: str) -> None:
    net = network(source)
    state, theirs = source_result(source, kind, net)
    assert len(theirs[1]) > 20
    assert len(theirs[2].unique()) == 3
    spec, model = imported(state, source, kind, net)
    ours = result(spec, model.state_dict())
    torch.testing.assert_close(ours[2], theirs[2])
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-2, rtol=0)


WRONG = [
    ("mmdet", "faster_rcnn", {"roi_aligned": False}),
    ("mmdet", "faster_rcnn", {"roi_sampling": 2}),
    ("mmdet", "faster_rcnn", {"box_weights": (1.0, 1.0, 1.0, 1.0)}),
    ("mmdet", "faster_rcnn", {"smallest_proposal": 16.0}),
    ("mmdet", "faster_rcnn", {"image_mean": (0.0, 0.0, 0.0)}),
    ("mmdet", "retinanet", {"limit_shrinking": False}),
    ("mmdet", "retinanet", {"rounded_anchors": True}),
    ("mmdet", "retinanet", {"relu_before_p7": True}),
    ("detectron2", "faster_rcnn", {"bgr": False}),
    ("detectron2", "faster_rcnn", {"image_std": (58.395, 57.12, 57.375)}),
    ("detectron2", "faster_rcnn", {"stride_in_1x1": False}),
    ("detectron2", "retinanet", {"limit_shrinking": True}),
    ("detectron2", "retinanet", {"relu_before_p7": False}),
    ("detectron2", "retinanet", {"measured_strides": True}),
]


@pytest.mark.parametrize(("source", "kind", "change"), WRONG)
def test_every_convention_matters(source: str, kind: str, change: dict[str, Any]) -> None:
    net = network(source)
    state, theirs = source_result(source, kind, net)
    spec, model = imported(state, source, kind, net)
    wrong = dataclasses.replace(spec, conventions=dataclasses.replace(spec.conventions, **change))
    assert wrong != spec
    assert not same(result(wrong, model.state_dict()), theirs)


def configuration(kind: str, net: Network, **changes: Any) -> str:
    """The text of an mmdet 3.x configuration, as mmengine writes it into a checkpoint."""
    style = "caffe" if net.stride_in_1x1 else "pytorch"
    coder, loss = "bbox_coder=dict(type='DeltaXYWHBBoxCoder')", "loss_cls=dict(type='FocalLoss', use_sigmoid=True)"
    values = {
        "mean": list(net.mean),
        "std": list(net.std),
        "backbone": f"dict(type='ResNet', depth=50, style='{style}')",
        "neck": "dict(type='FPN', num_outs=5)",
        "anchors": "dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])",
        "scale": (1333, 800),
        "retina": "dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], "
        "strides=[8, 16, 32, 64, 128])",
        "nms": "dict(type='nms', iou_threshold=0.5)",
        "extra": f"add_extra_convs='{net.extra_levels}', relu_before_extra_convs={net.relu_before_extra_convs}",
    } | changes
    head = (
        f"rpn_head=dict(type='RPNHead', anchor_generator={values['anchors']}, {coder}), "
        "roi_head=dict(type='StandardRoIHead', bbox_roi_extractor=dict(type='SingleRoIExtractor', "
        "roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)), bbox_head=dict(type='Shared2FCBBoxHead', "
        "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]))), "
        f"test_cfg=dict(rpn=dict(nms_pre={net.proposals}, max_per_img={net.proposals}, min_bbox_size=0, "
        f"nms=dict(type='nms', iou_threshold=0.7)), rcnn=dict(score_thr=0.05, nms={values['nms']}, max_per_img=100))"
    )
    if kind == "retinanet":
        values["neck"] = f"dict(type='FPN', num_outs=5, start_level=1, {values['extra']})"
        head = (
            f"bbox_head=dict(type='RetinaHead', anchor_generator={values['retina']}, {coder}, {loss}), "
            f"test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms={values['nms']}, max_per_img=100)"
        )
    preprocessor = (
        f"dict(type='DetDataPreprocessor', mean={values['mean']}, std=[{', '.join(map(str, values['std']))},], "
        f"bgr_to_rgb={not net.bgr}, pad_size_divisor=32)"
    )
    name = {"faster_rcnn": "FasterRCNN", "retinanet": "RetinaNet"}[kind]
    return (
        f"model = dict(type='{name}', data_preprocessor={preprocessor}, backbone={values['backbone']}, "
        f"neck={values['neck']}, {head})\n"
        f"test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale={values['scale']}, "
        "keep_ratio=True), dict(type='PackDetInputs')]\n"
    )


@pytest.mark.parametrize("relu", [False, True])
def test_extra_levels_on_the_pyramids_own_output(relu: bool) -> None:
    net = network("mmdet", extra_levels="on_output", relu_before_extra_convs=relu)
    state, theirs = source_result("mmdet", "retinanet", net)
    spec, model = imported(state, "mmdet", "retinanet", net, text=configuration("retinanet", net))
    assert spec.conventions.extra_levels == "p5"
    assert same(result(spec, model.state_dict()), theirs)


@pytest.mark.parametrize("how", ["option", "text"])
def test_caffe_style_of_mmdet(how: str) -> None:
    net = network("mmdet", **CAFFE)
    state, theirs = source_result("mmdet", "faster_rcnn", net)
    given = {"style": "caffe"} if how == "option" else {"text": configuration("faster_rcnn", net)}
    spec, model = imported(state, "mmdet", "faster_rcnn", net, **given)
    assert same(result(spec, model.state_dict()), theirs)
    plain, _ = imported(state, "mmdet", "faster_rcnn", net)
    assert not same(result(plain, model.state_dict()), theirs)


def test_one_box_for_all_classes() -> None:
    net = network("mmdet")
    state, _ = source_result("mmdet", "faster_rcnn", net)
    for end in ("weight", "bias"):
        name = f"roi_head.bbox_head.fc_reg.{end}"
        state[name] = state[name][:4].repeat(3, *[1] * (state[name].dim() - 1))
    weights = Weights(dict(state))
    theirs = FORWARDS["mmdet", "faster_rcnn"](weights, picture(), net)
    for end in ("weight", "bias"):
        state[f"roi_head.bbox_head.fc_reg.{end}"] = state[f"roi_head.bbox_head.fc_reg.{end}"][:4]
    spec, model = imported(state, "mmdet", "faster_rcnn", net)
    assert same(result(spec, model.state_dict()), theirs)


@pytest.mark.parametrize(
    ("source", "backbone", "shape"),
    [
        ("mmdet", "resnet50", {"blocks": (3, 4, 6, 3)}),
        ("detectron2", "resnet101", {"blocks": (3, 4, 23, 3)}),
        ("mmdet", "resnext101_32x4d", {"blocks": (3, 4, 23, 3), "groups": 32, "base_width": 4}),
    ],
)
def test_backbones_by_name(source: str, backbone: str, shape: dict[str, Any]) -> None:
    net = network(source, **shape)
    weights = Weights()
    FORWARDS[source, "retinanet"](weights, picture(32, 32), net)
    weights.state["backbone.bn1.num_batches_tracked"] = torch.tensor(5)
    spec, _ = imported(weights.state, source, "retinanet", net, backbone=backbone)
    assert spec.backbone == backbone


BOX_HEAD, CLASSES = "roi_head.bbox_head.shared_fcs.1", "roi_head.bbox_head.fc_cls"
REFUSED = [  # source, kind, weights beside the right ones, weights that are missing, what the line says
    (
        "mmdet",
        "faster_rcnn",
        {"mask_head.x": (1,)},
        "rpn_head.rpn_conv.bias",
        "more mask_head.x; lacks .*rpn.head.conv",
    ),
    ("mmdet", "faster_rcnn", {f"{BOX_HEAD}.weight": (1024, 3)}, "", r"1 weights of other shapes, .* is \[1024, 3\]"),
    ("mmdet", "faster_rcnn", {"backbone.stem.0.weight": (1,)}, "", "a ResNet-D stem .1 names, the first backbone.stem"),
    ("mmdet", "faster_rcnn", {"roi_head.bbox_head.0.fc_cls.weight": (1,)}, "", "a Cascade R-CNN"),
    ("mmdet", "faster_rcnn", {"rpn_head.conv_cls.weight": (1,)}, "", "proposals of FCOS"),
    (
        "mmdet",
        "faster_rcnn",
        {"roi_head.bbox_head.shared_convs.0.conv.weight": (1,)},
        "",
        "convolutions in the box head",
    ),
    ("mmdet", "faster_rcnn", {"backbone.layer2.0.conv2_offset.weight": (1,)}, "", "deformable convolutions"),
    ("mmdet", "faster_rcnn", {"neck.lateral_convs.0.gn.weight": (1,)}, "", "normalisation in the pyramid"),
    ("mmdet", "faster_rcnn", {"backbone.gn1.weight": (1,)}, "", r"group normalisation \(GN\)"),
    ("mmdet", "retinanet", {"bbox_head.cls_convs.0.gn.weight": (1,)}, "", "normalisation in RetinaNet's heads"),
    ("mmdet", "retinanet", {"bbox_head.atss_cls.weight": (1,)}, "", "an ATSS or PAA"),
    ("detectron2", "faster_rcnn", {"roi_heads.box_head.0.fc1.weight": (1,)}, "", "a Cascade R-CNN"),
    ("mmdet", "faster_rcnn", {"rpn_head.init_proposal_bboxes.weight": (1,)}, "", "a Sparse R-CNN"),
    ("mmdet", "faster_rcnn", {"roi_head.shared_head.layer4.0.conv1.weight": (1,)}, "", "a C4 detector"),
    ("mmdet", "faster_rcnn", {"backbone.layer2.0.conv2.conv_offset.weight": (1,)}, "", "deformable convolutions"),
    ("mmdet", "retinanet", {"encoder.layers.0.norm.weight": (1,), "bbox_head.fc_cls.bias": (1,)}, "", "a DETR"),
    ("mmdet", "retinanet", {"bbox_head.tl_heat.0.weight": (1,)}, "", "a CornerNet"),
    ("mmdet", "retinanet", {"backbone.features.0.weight": (1,)}, "", "a VGG or MobileNet as backbone"),
    ("mmdet", "retinanet", {"neck.dilated_encoder_blocks.0.conv1.bn.weight": (1,)}, "", "a YOLOF"),
    ("mmdet", "retinanet", {"bbox_head.shared_fcs.0.weight": (1,)}, "", r"a detector of mmdet before 2\.0"),
    ("detectron2", "faster_rcnn", {"roi_heads.box_head.conv1.weight": (1,)}, "", "convolutions in the box head"),
    ("detectron2", "retinanet", {"head.cls_subnet.1.weight": (1,)}, "", "normalisation in RetinaNet's heads"),
    ("detectron2", "retinanet", {"backbone.res2.0.conv1.weight": (1,)}, "", "a C4 or DC5 detector"),
]


@pytest.mark.parametrize(("source", "kind", "more", "fewer", "message"), REFUSED)
def test_other_networks_are_refused_in_one_line(
    source: str, kind: str, more: dict[str, Any], fewer: str, message: str
) -> None:
    state, _ = source_result(source, kind, network(source))
    state |= {name: torch.zeros(shape) for name, shape in more.items()}
    state.pop(fewer, None)
    with pytest.raises(InputError, match=message) as caught:
        imported(state, source, kind, network(source))
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"library": "detectron2"}, "weights of mmdet, not of --source detectron2"),
        ({"architecture": "retinanet"}, "weights of faster_rcnn, not of --architecture retinanet"),
        ({"classes": ("a", "b")}, "--classes: expected the checkpoint's 3 names, got 2"),
        ({"classes": ()}, "3 classes without names; --classes"),
        ({"backbone": ""}, "a backbone of 1 1 1 1 blocks"),
        ({"prefix": "teacher."}, "--prefix teacher.: expected one of none"),
        ({"long_side": 100}, "--long-side: expected at least the short side 800, got 100"),
        ({"config": Path("config.yaml")}, "--config: expected mmdet's configuration, a .py file, got config.yaml"),
    ],
)
def test_what_is_said_has_to_fit(given: dict[str, Any], message: str) -> None:
    state, _ = source_result("mmdet", "faster_rcnn", network("mmdet"))
    source = Source(**{"backbone": "short", "classes": NAMES} | given)
    with pytest.raises(InputError, match=message):
        convert(ForeignCheckpoint(state, (), ""), source, "x.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nms": "dict(type='soft_nms', iou_threshold=0.5)"}, "test_cfg.rcnn.nms.type = 'soft_nms'"),
        ({"backbone": "dict(type='ResNet', depth=50, dcn=dict(type='DCN'))"}, "model.backbone.dcn = "),
        ({"backbone": "dict(type='ResNet', depth=DEPTH, style=STYLE)"}, "backbone.style = STYLE .* a literal value"),
        ({"neck": "dict(type='PAFPN', num_outs=5)"}, "model.neck.type = 'PAFPN'"),
        ({"scale": [(1333, 480), (1333, 960)]}, "Resize.scale = .* two sides in pixels"),
        ({"anchors": "dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8])"}, "strides = "),
    ],
)
def test_what_the_configuration_says_is_taken_over_or_refused_by_name(change: dict[str, Any], message: str) -> None:
    net = network("mmdet")
    state, _ = source_result("mmdet", "faster_rcnn", net)
    with pytest.raises(InputError, match=message):
        imported(state, "mmdet", "faster_rcnn", net, text=configuration("faster_rcnn", net, **change))


def test_anchors_that_no_file_describes_are_refused() -> None:
    state, _ = source_result("mmdet", "faster_rcnn", network("mmdet"))
    state |= {
        f"rpn_head.rpn_{name}.{end}": torch.zeros(count, *([256, 1, 1] if end == "weight" else []))
        for name, count in (("cls", 5), ("reg", 20))
        for end in ("weight", "bias")
    }
    with pytest.raises(InputError, match=r"5 anchors a cell, expected 3 .*--config"):
        imported(state, "mmdet", "faster_rcnn", network("mmdet"))


def test_detectors_without_a_pyramid_or_proposals_are_refused() -> None:
    state, _ = source_result("mmdet", "faster_rcnn", network("mmdet"))
    for part, message in (("neck.", "a detector without a feature pyramid, C4 or DC5"), ("rpn_head.", "a Fast R-CNN")):
        with pytest.raises(InputError, match=message):
            imported(
                {n: v for n, v in state.items() if not n.startswith(part)}, "mmdet", "faster_rcnn", network("mmdet")
            )


def test_weights_that_are_not_finite_and_versions_of_other_boxes_are_refused() -> None:
    state, _ = source_result("mmdet", "faster_rcnn", network("mmdet"))
    with pytest.raises(InputError, match=r"x.pth: of mmdet 1\.2\.0, whose boxes count one pixel more"):
        convert(ForeignCheckpoint(state, NAMES, "", "1.2.0"), Source(backbone="short"), "x.pth")
    name = "neck.fpn_convs.0.conv.bias"
    state[name] = state[name].clone().fill_(torch.nan)
    with pytest.raises(InputError, match=rf"weights that are not finite \(1 names, the first {name}\)"):
        convert(ForeignCheckpoint(state, NAMES, ""), Source(backbone="short"), "x.pth")


def test_buffers_of_losses_belong_to_no_network() -> None:
    state, _ = source_result("mmdet", "retinanet", network("mmdet"))
    _, plain = imported(state, "mmdet", "retinanet", network("mmdet"))
    _, model = imported(state | {"bbox_head.loss_cls.edges": torch.zeros(31)}, "mmdet", "retinanet", network("mmdet"))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["student.", "architecture.", "module.", "_orig_mod.module."])
def test_networks_within_networks_are_taken_by_their_prefix(prefix: str) -> None:
    state, _ = source_result("mmdet", "faster_rcnn", network("mmdet"))
    inner = {f"{prefix}{name}": value for name, value in state.items()}
    wrapped = prefix.endswith("module.")
    if not wrapped:
        inner |= {f"teacher.{name}": value + 1 for name, value in state.items()}
        with pytest.raises(InputError, match=rf"{prefix} \(\d+ weights\), teacher. \(\d+ weights\); --prefix"):
            imported(inner, "mmdet", "faster_rcnn", network("mmdet"))
    given = {} if wrapped else {"prefix": prefix}
    _, model = imported(inner, "mmdet", "faster_rcnn", network("mmdet"), **given)
    _, plain = imported(state, "mmdet", "faster_rcnn", network("mmdet"))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_copies_by_ema_hooks_and_mask_branches_are_left_out_and_said() -> None:
    state, _ = source_result("mmdet", "faster_rcnn", network("mmdet"))
    more = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in state.items()}
    more |= {"roi_head.mask_head.convs.0.conv.weight": torch.zeros(1)}
    foreign = ForeignCheckpoint(state | more, NAMES, "")
    done = convert(foreign, Source(backbone="short"), "x.pth")
    assert any(f"{len(state)} names, the first ema_" in note for note in done.notes)
    assert any("without its mask branch (1 names" in note for note in done.notes)
    _, plain = imported(state, "mmdet", "faster_rcnn", network("mmdet"))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in done.model.state_dict().items())


class Harm:
    """A pickle that writes a file where it is read with the standard unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_the_command_writes_a_teacher_and_runs_no_foreign_code(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "detectron2" if suffix == ".pkl" else "mmdet"
    state, _ = source_result(source, "retinanet", network(source))
    path, output, harmed = tmp_path / f"foreign{suffix}", tmp_path / "new" / "model.pt", tmp_path / "harmed"
    if suffix == ".pkl":
        content = {"model": {n: v.float().numpy() for n, v in state.items()}, "__author__": "them", "x": Harm(harmed)}
        path.write_bytes(pickle.dumps(content))
    else:
        floats = {name: value.float() for name, value in state.items()}
        content = {"state_dict": floats, "meta": {"dataset_meta": {"classes": NAMES}}, "message_hub": Harm(harmed)}
        torch.save(content, path)
    arguments = ["--source", source, "--architecture", "retinanet", "--backbone", "short", "--checkpoint", str(path)]
    command.main([*arguments, "--output", str(output), "--teacher-ap", "0.4", "--classes", *NAMES])
    assert not harmed.exists()
    assert "retinanet on short, 3 classes, images of 800 to 1333 pixels" in capsys.readouterr().out
    checkpoint = load_detector(output)
    assert (checkpoint.classes, checkpoint.ap) == (NAMES, 0.4)
    assert checkpoint.spec.conventions.limit_shrinking is (source == "mmdet")
    checkpoint.build()
    if suffix == ".pth":
        assert read_foreign(path).classes == NAMES


def test_the_command_draws_and_evaluates_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = source_result("mmdet", "faster_rcnn", network("mmdet"))
    content = {"state_dict": {name: value.float() for name, value in state.items()}}
    torch.save(content | {"meta": {"CLASSES": NAMES}}, tmp_path / "theirs.pth")
    objects = {f"image{k}": [(name, 0, (2, 3, 20, 25))] for k, name in enumerate(NAMES)}
    data = write_voc(tmp_path / "data", objects, split="val")
    write_voc(tmp_path / "data", objects)
    arguments = [
        "--checkpoint",
        str(tmp_path / "theirs.pth"),
        "--output",
        str(tmp_path / "made.pt"),
        "--backbone",
        "short",
    ]
    arguments += ["--short-side", "32", "--long-side", "64", "--teacher-ap", "0.4"]
    command.main([*arguments, "--verify", str(data / "JPEGImages"), "--verify-images", "2", "--data-root", str(data)])
    lines = capsys.readouterr().out.splitlines()
    assert any("boxes drawn in 2 images; they should lie on the objects" in line for line in lines)
    assert len(list((tmp_path / "made").glob("image*.png"))) == 2
    assert re.fullmatch(r"AP 0\.\d{3}, AP50 0\.\d{3} on 3 images, stated 0\.400", lines[-1])
    checkpoint = load_detector(tmp_path / "made.pt")
    assert (checkpoint.config["data"]["short_side"], checkpoint.config["data"]["long_side"]) == (32, 64)

"""Any torchvision classification backbone as the bottom of a feature pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from gkd_fast.detectors.conventions import (
    TORCHVISION,
    Conventions,
    ExtraLevels,
    InputConversion,
    converts_input,
    stride_in_first_convolution,
)
from gkd_fast.errors import InputError

PYRAMID_STRIDES = {"faster_rcnn": (4, 8, 16, 32), "retinanet": (8, 16, 32)}
_PROBE = 128


class _ChannelsLastBody(BackboneWithFPN):
    """For backbones whose stages return [N,H,W,C] (Swin)."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        stages = self.body(x)
        return self.fpn(OrderedDict((name, stage.permute(0, 3, 1, 2)) for name, stage in stages.items()))


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's frozen batch normalisation as one operator, in the dtype of its input.

    torchvision's takes seven, and under autocast leaves float32 to the layers behind it.
    """

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, *statistics, training=False, eps=self.eps)


class _ConvertingBody(BackboneWithFPN):
    """For networks that expect other input than torchvision's normalised images."""

    conversion: InputConversion

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(self.conversion(x))


def backbone_with_fpn(
    name: str,
    *,
    detector: str,
    channels: int,
    width: float = 1.0,
    weights: str = "",
    pyramid_norm: bool = False,
    freeze_norm: bool = False,
    conventions: Conventions = TORCHVISION,
) -> BackboneWithFPN:
    """Build torchvision's `BackboneWithFPN` on a torchvision model.

    Args:
        name: torchvision model name (``resnet50``, ``mobilenet_v2``, ``convnext_tiny``, ``swin_t``, ...).
        detector: ``faster_rcnn`` (strides 4 to 64) or ``retinanet`` (strides 8 to 128).
        channels: channels of every pyramid level.
        width: width multiplier, for models that take one.
        weights: name of torchvision weights of the model, or empty for random ones.
        pyramid_norm: batch normalisation behind the pyramid's convolutions.
        freeze_norm: replace the backbone's batch normalisation by `FrozenNorm`, torchvision's but for its speed.
        conventions: the input, where bottlenecks have their stride, and RetinaNet's levels P6 and P7.

    Raises:
        InputError: for an unknown model or weights, a width the model does not take, or a model without
            stages of the needed strides.
    """
    model = _classifier(name, width=width, weights=weights)
    if freeze_norm:
        _freeze_norm(model)
    body = _body(model)
    if conventions.stride_in_1x1:
        stride_in_first_convolution(body)
    stages, channels_last = _stages(body, PYRAMID_STRIDES[detector])
    missing = [stride for stride in PYRAMID_STRIDES[detector] if stride not in stages]
    if missing:
        raise InputError(f"backbone {name}: expected stages of strides {PYRAMID_STRIDES[detector]}; none of {missing}")
    extra: ExtraFPNBlock = LastLevelMaxPool()
    if detector == "retinanet":
        extra = ExtraLevels(stages[PYRAMID_STRIDES[detector][-1]][1], channels, conventions)
    build = _ChannelsLastBody if channels_last else BackboneWithFPN
    if converts_input(conventions):
        if channels_last:
            raise InputError(f"backbone {name}: expected torchvision's image statistics for a network of this kind")
        build = _ConvertingBody
    backbone = build(
        body,
        return_layers={stages[stride][0]: str(i) for i, stride in enumerate(PYRAMID_STRIDES[detector])},
        in_channels_list=[stages[stride][1] for stride in PYRAMID_STRIDES[detector]],
        out_channels=channels,
        extra_blocks=extra,
        norm_layer=nn.BatchNorm2d if pyramid_norm else None,
    )
    if converts_input(conventions):
        backbone.conversion = InputConversion(conventions)
    return backbone


def _classifier(name: str, *, width: float, weights: str) -> nn.Module:
    if name == "resnext101_32x4d" and not weights:  # of the usual pyramids, the one that torchvision has no name for
        return ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"backbone: expected a torchvision model ({', '.join(known[:3])}, ...); got {name!r}")
    chosen = None
    if weights:
        enum = torchvision.models.get_model_weights(name)
        if weights not in enum.__members__:
            raise InputError(f"weights of {name}: expected one of {', '.join(enum.__members__)}; got {weights!r}")
        chosen = enum[weights]
    options = {} if width == 1.0 else {"width_mult": width}
    try:
        return torchvision.models.get_model(name, weights=chosen, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"backbone {name}: expected width 1.0 for these weights, got {width} ({error})") from error
    except OSError as error:
        raise InputError(f"weights {weights} of {name}: expected a download or a cached file; {error}") from error


def _body(model: Any) -> nn.Module:
    for attribute in ("features", "layers"):
        if isinstance(getattr(model, attribute, None), nn.Sequential):
            return getattr(model, attribute)
    if hasattr(model, "trunk_output"):  # RegNet nests its stages one level deeper
        return nn.Sequential(OrderedDict([("stem", model.stem), *model.trunk_output.named_children()]))
    return model


def _stages(body: nn.Module, strides: tuple[int, ...]) -> tuple[dict[int, tuple[str, int]], bool]:
    """The last child module of every stride with its channels, and whether the maps are [N,H,W,C]."""
    stages: dict[int, tuple[str, int]] = {}
    channels_last = False
    for child, output in _probe(body):
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        side, depth = (1, 3) if channels_last else (2, 1)
        stride = _PROBE // output.shape[side]
        if stride in strides:
            stages[stride] = (child, output.shape[depth])
    return stages, channels_last


@torch.no_grad()
def _probe(body: nn.Module) -> Iterator[tuple[str, Tensor]]:
    modes = {module: module.training for module in body.modules()}
    body.eval()
    x = torch.zeros(1, 3, _PROBE, _PROBE)
    for child, module in body.named_children():
        try:
            x = module(x)
        except (RuntimeError, TypeError, NotImplementedError, AssertionError):
            break
        if not isinstance(x, Tensor) or x.dim() != 4 or min(x.shape[1:3]) == 1:
            break
        yield child, x
    for module, mode in modes.items():
        module.training = mode


def _freeze_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenNorm(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze_norm(child)
